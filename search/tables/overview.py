"""Every run of a database, a line each."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.text import clock, percent, plural

__all__ = ["overview"]

_REASON = 60
"""Characters of a reason that a line shows; ``status NAME`` shows all of it."""

_HEAD = ("run", "state", "tasks", "cells", "test", "last change", "why")


def overview(report: Mapping[str, Any]) -> RenderableType:
    """A line a run; on a terminal that is narrower the lines are cut.

    Not one of rich's tables: to lay out 1,000 rows takes one longer than all the rest.
    """
    runs = report["runs"]
    if not runs:
        return Text(f"no run in {report['storage']} yet; clnp-search run quickstart makes one")
    states = ", ".join(f"{count:,} {state}" for state, count in report["states"].items())
    rows = [_HEAD, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    table = Text("\n", no_wrap=True, overflow="ellipsis").append(head, "bold").append("\n").append("\n".join(lines))
    return Group(Text(f"{plural(len(runs), 'run')} in {report['storage']}: {states}"), table)


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    state = f"running on {run['holder']['host']}" if run["state"] == "running" else run["state"]
    shape = f"{run['committed']}"
    if run["tasks"] is not None:
        shape += f" of {run['replicas']} × {run['count']}" if run["replicas"] > 1 else f" of {run['count']}"
    cells = run["cells"]
    accuracy = "–" if run["accuracy"] is None else percent(run["accuracy"])
    return (
        run["run"],
        state,
        shape,
        "–" if cells is None else f"{cells['finished']} of {cells['total']}",
        "damaged" if run["damaged"] else accuracy,
        clock(run["updated"])[:16],
        _short(_why(run)),
    )


def _why(run: Mapping[str, Any]) -> str:
    """Why nothing goes on: what the run stopped for, or that its driver ended without a word."""
    holder = run["holder"]
    left = holder is not None and not holder["live"] and run["state"] == "open"
    return run["reason"] or (f"left by process {holder['pid']} on {holder['host']}, which is gone" if left else "")


def _short(reason: str) -> str:
    line = reason.partition("\n")[0]
    return line if len(line) <= _REASON else f"{line[: _REASON - 1]}…"
