"""How far runs are."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.tables.common import grid, indent, title, unit_cells, unit_columns
from search.text import clock, duration, members, percent, plural

__all__ = ["run_block", "status"]


def status(report: Mapping[str, Any]) -> RenderableType:
    """How far runs are: a block each."""
    if not report["runs"]:
        return Text(f"no run in {report['storage']} yet; clnp-search run quickstart makes one")
    blocks: list[RenderableType] = []
    for run in report["runs"]:
        blocks += [*run_block(run), Text()]
    return Group(*blocks[:-1])


def run_block(run: Mapping[str, Any]) -> list[RenderableType]:
    shape = f"{run['count']} tasks of {run['tasks']}, {run['head']} head, {plural(len(run['replicas']), 'replica')}"
    parts: list[RenderableType] = [title(run["run"], f"{run['state']}: {shape}")]
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
            "  ".join(f"{100 * test['accuracy']:.2f}" for test in replica["test"]) or "–",
        )
    parts.append(indent(table))
    if run["running"]:
        parts.append(indent(_jobs(run)))
    return [*parts, *(indent(Text(line)) for line in _remarks(run))]


def _cells(cells: Mapping[str, int] | None) -> str:
    if cells is None:
        return "–"
    extra = [f"{cells[word]} {word}" for word in ("diverged", "running") if cells[word]]
    return f"{cells['finished']} of {cells['total']}" + (f" ({', '.join(extra)})" if extra else "")


def _jobs(run: Mapping[str, Any]) -> Table:
    table = grid("job", ">replica", ">task", "worker", ">epoch", ">validation", "since")
    for job in run["running"]:
        what = "commit" if job["kind"] == "commit" else members(job["cells"])
        accuracy = "" if job["accuracy"] is None else percent(job["accuracy"])
        place = (str(job["replica"]), str(job["task"]))
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
