"""What the rule would have picked at another margin."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import grid, indent, of, theta_cell, theta_column, title, unit_cells, unit_columns
from search.text import number, percent

__all__ = ["replay"]


def replay(report: Mapping[str, Any]) -> RenderableType:
    """What the rule would have picked at another margin."""
    parts: list[RenderableType] = []
    for replica in report["replicas"]:
        place = (
            f"{of('replica', replica['replica'], len(report['replicas']))} at a margin of {number(report['margin'])}"
        )
        if not replica["tasks"]:
            none = f"no task is committed yet; status {report['run']} says how far it is"
            parts += [title(report["run"], place), indent(Text(none)), Text()]
            continue
        freed = unit_columns(report["layers"], "freed")
        theta = theta_column(task["theta_scale"] for task in replica["tasks"])
        pick = (">\ncell", theta, ">would be\ncell", theta, ">\nvalidation", ">\ncost")
        table = grid(">\ntask", _limit(replica["tasks"]), *pick, *freed, "\n")
        for task in replica["tasks"]:
            was, now = task["committed"], task["winner"]
            table.add_row(
                str(task["task"]),
                number(task["margin"]),
                str(was["cell"]),
                theta_cell(was["theta"], task["theta_scale"], theta),
                str(now["cell"]),
                theta_cell(now["theta"], task["theta_scale"], theta),
                percent(task["accuracy"]),
                f"{task['cost']:+d}" if task["cost"] else "0",
                *unit_cells(task["freed"], signed=True),
                task["outcome"],
                style="dim" if task["outcome"] == "given the history" else "",
            )
        parts += [title(report["run"], place), indent(table), Text()]
    if not any(replica["tasks"] for replica in report["replicas"]):
        return Group(*parts[:-1])
    return Group(*parts, Text(" ".join(_notes(report)), style="dim"))


def _limit(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The header over the points that were given up at most, of a fork under two rules."""
    rules = {task["rule"] for task in tasks}
    if len(rules) > 1:
        return ">margin or\nfloor was"
    return ">floor\nwas" if rules == {"budget"} else ">margin\nwas"


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    tasks = [task for replica in report["replicas"] for task in replica["tasks"]]
    tuned = any(task["fine_tuned"] for task in tasks)
    than = "the committed trial where it was pruned, before fine-tuning" if tuned else "the commit"
    yield f"cost: validation samples that the pick has right fewer than {than}; freed: units that it claims fewer."
    yield "Exact up to the first task that differs; the tasks after it are given the history."
    if tuned:
        yield "Fine-tuning is not replayed."
    if any(task["dropped"] for task in tasks):
        yield "Cells that halving dropped are no candidates; a margin larger than halving's is refused."
    budgeted = sorted({task["task"] for task in tasks if task["rule"] == "budget"})
    if len(budgeted) == len({task["task"] for task in tasks}):
        yield "The run's own rule is the budget rule; what is tried here is the margin rule."
    elif budgeted:
        which = f"task{'' if len(budgeted) == 1 else 's'} {', '.join(map(str, budgeted))}"
        yield f"The budget rule decided {which}; what is tried here is the margin rule."
