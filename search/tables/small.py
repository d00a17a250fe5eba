"""The small ones: the shipped experiments, a verdict, what was deleted, collected, exported, drawn."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import grid
from search.text import plural, size, units

__all__ = ["collected", "deleted", "drawn", "experiments", "exported", "verify"]


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


def collected(report: Mapping[str, Any]) -> RenderableType:
    """What nothing needs, a row a run that has any, or what of it went; then what was left alone, and why."""
    table = grid("run", "given up", "orphans", "half written", "size", "~where")
    for run in report["runs"]:
        if run["files"]:
            counts = (str(run[kind]["files"]) for kind in ("given_up", "orphans", "half_written"))
            table.add_row(run["run"], *counts, size(run["bytes"]), run["location"])
    lines = [f"run {run['run']} {run['skipped']}: left alone" for run in report["runs"] if run["skipped"]]
    lines += [
        f"run {run['run']}: {plural(run['younger']['files'], 'file')} that no row knows, written long after this "
        f"database last heard of the run: left alone, another copy of it may need them ({run['location']})"
        for run in report["runs"]
        if run["younger"]["files"]
    ]
    lines += [f"{place}: of no run in this database, left alone" for place in report["unknown"]]
    verb = "removed" if report["removed"] else "to remove; --yes does it"
    total = f"{plural(report['files'], 'file')}, {size(report['bytes'])}, {verb}"
    verdict = Text(total if report["files"] else "nothing to remove", style="bold")
    return Group(*([table] if report["files"] else []), *map(Text, lines), verdict)


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
