"""The small ones: the shipped experiments, a verdict, what was deleted, what was exported, what was drawn."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import grid
from search.text import plural, size, units

__all__ = ["deleted", "drawn", "experiments", "exported", "verify"]


def experiments(report: Mapping[str, Any]) -> RenderableType:
    """The shipped experiments, a line each."""
    table = grid("experiment", "~what it is")
    for entry in report["experiments"]:
        table.add_row(entry["experiment"], entry["description"])
    return table


def verify(report: Mapping[str, Any]) -> RenderableType:
    """The verdict in a line, what is wrong before it."""
    problems = [Text(problem, style="red") for problem in report["problems"]]
    return Group(*problems, *map(Text, report["remarks"]), Text(report["verdict"], style="bold"))


def deleted(report: Mapping[str, Any]) -> RenderableType:
    """What went."""
    counts = (
        plural(report["studies"], "Optuna study").replace("studys", "studies"),
        plural(report["rows"], "ledger row"),
        plural(report["artifacts"], "artifact"),
    )
    return Text(f"{report['run']} is deleted: {', '.join(counts)}")


def exported(report: Mapping[str, Any]) -> RenderableType:
    """What was written, in a line."""
    used, wide = (units(list(report[key].values())) for key in ("units", "of"))
    return Text(
        f"{report['file']} ({size(report['size'])}): task {report['task']} of {report['run']}, replica "
        f"{report['replica']}, as {report['kind']}; {used} units of {wide}, fingerprint checked"
    )


def drawn(report: Mapping[str, Any]) -> RenderableType:
    """The page that was written, in a line."""
    counts = [plural(report[key], key[:-1]) for key in ("replicas", "commits", "trials")]
    return Text(f"{report['file']} ({size(report['size'])}): {report['run']}, {', '.join(counts)}")
