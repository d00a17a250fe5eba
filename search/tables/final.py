"""What a run has come to: tasks, accuracy matrix and verdict."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.tables.common import (
    alpha_cells,
    alpha_columns,
    forked,
    grid,
    of,
    theta_cell,
    theta_column,
    title,
    unit_cells,
    unit_columns,
)
from search.text import group_list, members, number, percent, plural

__all__ = ["final"]


def final(report: Mapping[str, Any]) -> RenderableType:
    """The tasks of every replica, its accuracy matrix, and the verdict on what is old."""
    parts: list[RenderableType] = []
    for replica in report["replicas"]:
        parts += [
            title(report["run"], of("replica", replica["replica"], len(report["replicas"])) + forked(report)),
            _tasks(report, replica),
        ]
        if len(replica["matrix"]) > 1:
            parts += [Text(), Text("test accuracy in %, measured again after each commit", style="bold")]
            parts.append(_matrix(replica["matrix"]))
        parts.append(Text())
    return Group(*parts, *map(Text, _missing(report)), *map(Text, _over_budget(report)), _verdict(report))


def _tasks(report: Mapping[str, Any], replica: Mapping[str, Any]) -> Table:
    tasks = replica["tasks"]
    alpha = alpha_columns(tasks)
    units = unit_columns(report["layers"], "new, left")
    theta = theta_column(task["theta_scale"] for task in tasks)
    table = grid(">\ntask", *alpha, ">learning\nrate", theta, ">\nvalidation", ">\ntest", *units)
    for task in tasks:
        table.add_row(
            str(task["task"]),
            *alpha_cells(task, alpha),
            number(task["learning_rate"]),
            theta_cell(task["theta"], task["theta_scale"], theta),
            percent(task["validation"]["accuracy"]),
            percent(task["test"]["accuracy"]),
            *unit_cells(task["claimed"], task["free"]),
        )
    return table


def _matrix(matrix: list[list[Mapping[str, Any]]]) -> Table:
    table = grid("after task", *(f">task {task}" for task in range(1, len(matrix) + 1)))
    for task, row in enumerate(matrix, start=1):
        table.add_row(str(task), *(f"{100 * entry['accuracy']:.2f}" for entry in row))
    return table


def _missing(report: Mapping[str, Any]) -> Iterable[str]:
    for replica in report["replicas"]:
        for task in replica["tasks"]:
            if task["missing"]:
                place = f"replica {replica['replica']}, task {task['task']}"
                yield f"{place} was committed without {members(task['missing'])}, lost too often"


def _over_budget(report: Mapping[str, Any]) -> Iterable[str]:
    for replica in report["replicas"]:
        tasks = [task for task in replica["tasks"] if task["over_budget"]]
        over = [f"task {task['task']} ({group_list(task['over_budget'])})" for task in tasks]
        if over:
            yield f"replica {replica['replica']} was over budget, even at the floor, in {', '.join(over)}"


def _verdict(report: Mapping[str, Any]) -> Text:
    commits = sum(len(replica["tasks"]) for replica in report["replicas"])
    text = Text(f"{plural(commits, 'commit')}")
    wanted = report["count"] * len(report["replicas"])
    if commits < wanted:
        text.append(f" of {wanted}")
    changed = f", {report['changed']} of {report['fingerprints']} old fingerprints changed"
    text.append(changed, style="bold red" if report["changed"] else "")
    if report["accuracy"] is not None:
        spread = "" if report["deviation"] is None else f" ± {percent(report['deviation'])} over the replicas"
        text.append(f", mean test accuracy {percent(report['accuracy'])}{spread}")
    return text
