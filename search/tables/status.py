"""How far a run is."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.tables.common import fit, forked, grid, indent, title, unit_cells, unit_columns
from search.text import accuracies, clock, duration, percent, plural
from search.text import job as job_text

__all__ = ["run_block", "status"]

_JOBS = 20
"""So many of the jobs that run have a line each."""


def status(report: Mapping[str, Any]) -> RenderableType:
    """How far a run is: a block."""
    blocks: list[RenderableType] = []
    for run in report["runs"]:
        blocks += [*run_block(run), Text()]
    return Group(*blocks[:-1])


def run_block(run: Mapping[str, Any]) -> list[RenderableType]:
    replicas = plural(len(run["replicas"]), "replica")
    shape = f"{plural(run['count'], 'task')} of {run['tasks']}, {run['head']} head, {replicas}"
    shape += ", θ by layer" if run["theta_scale"] == "layers" else ""
    parts: list[RenderableType] = [title(run["run"], f"{run['state']}: {shape}{forked(run)}")]
    if run["reason"]:
        parts.append(Text(run["reason"]))
    free = [column.replace("\n", " ") for column in unit_columns(list(run["units"]), "free")]
    table = grid(">replica", "task", "cells", *free, "~test accuracy, %")
    for replica in run["replicas"]:
        table.add_row(
            str(replica["replica"]),
            "all committed" if replica["task"] is None else f"{replica['task']} of {run['count']}",
            _cells(replica["cells"]),
            *unit_cells(replica["free"], replica["units"], join=" of "),
            accuracies([test["accuracy"] for test in replica["test"]]),
        )
    parts.append(indent(table))
    if any(replica["forecast"] for replica in run["replicas"]):
        parts.append(indent(_forecasts(run)))
    if run["running"]:
        parts.append(indent(_jobs(run)))
        more = len(run["running"]) - _JOBS
        parts += [indent(Text(f"… and {more:,} more; --format json has all of them"))] if more > 0 else []
    return [*parts, *(indent(Text(line)) for line in _remarks(run))]


def _cells(cells: Mapping[str, int] | None) -> str:
    if cells is None:
        return "–"
    extra = [f"{cells[word]} {word}" for word in ("diverged", "dropped", "running") if cells[word]]
    return f"{cells['finished']} of {cells['total']}" + (f" ({', '.join(extra)})" if extra else "")


def _forecasts(run: Mapping[str, Any]) -> Table:
    """Up to which task the units of each group last; of more than two groups the one that is full first."""
    groups = list(run["units"])
    each = groups if fit(groups, 2) else []
    table = grid(">replica", *(f"forecast for {group}" for group in each), *([] if each else ["forecast"]))
    for replica in run["replicas"]:
        found = replica["forecast"]
        if each:
            cells = [_lasts(found[group]) if found else "–" for group in each]
        else:
            first = min(found, key=lambda group: _order(found[group]), default=None)
            cells = ["–" if first is None else f"{first}: {_lasts(found[first])}"]
        table.add_row(str(replica["replica"]), *cells)
    return table


def _order(found: Mapping[str, Any]) -> tuple[float, float]:
    """The sooner a group is full, the less; then the fewer tasks it lasts for."""
    full, more = (float("inf") if found[key] is None else found[key] for key in ("full", "more"))
    return full, more


def _lasts(found: Mapping[str, Any]) -> str:
    budgeted = " budgeted" if found["budgeted"] else ""
    if found["full"] is not None:
        return f"full at task {found['full']} of {found['count']}{budgeted}"
    if found["grows"]:
        return "grows before it is full"
    whole, more = f"lasts for all {plural(found['count'], 'task')}{budgeted}", found["more"]
    return whole if more is None else f"{whole}, {more:,.{1 if more < 10 else 0}f} more"


def _jobs(run: Mapping[str, Any]) -> Table:
    table = grid("job", ">replica", ">task", "worker", ">epoch", ">validation", "since")
    for job in run["running"][:_JOBS]:
        accuracy = "" if job["accuracy"] is None else percent(job["accuracy"])
        place = (str(job["replica"]), str(job["task"]))
        what = job_text(job["kind"], job["cells"])
        table.add_row(what, *place, job["worker"] or "–", str(job["epoch"]), accuracy, clock(job["started"]))
    return table


def _remarks(run: Mapping[str, Any]) -> Iterable[str]:
    holder = run["holder"]
    if run["seconds_left"] is not None:
        yield f"about {duration(run['seconds_left'])} left, from the mean durations so far"
    if holder is not None and holder["live"]:
        yield f"driven by process {holder['pid']} on {holder['host']} since {clock(holder['since'])}"
    elif holder is not None:
        yield f"left by process {holder['pid']} on {holder['host']}, which is gone: clnp-search resume {run['run']}"
    last = run["last_attempt"]
    if last is not None:
        ended = f"{last['outcome']} at {clock(last['ended'])}" if last["ended"] else "not ended"
        yield f"{plural(run['attempts'], 'attempt')}, the last began at {clock(last['started'])}: {ended}"
    yield from run["notes"]
