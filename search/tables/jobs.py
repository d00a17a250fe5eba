"""Jobs on a cluster."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import grid
from search.text import clock, plural

__all__ = ["jobs", "stopped", "submitted"]


def jobs(report: Mapping[str, Any]) -> RenderableType:
    """The jobs of a cluster, a line each."""
    others = f"{plural(report['others'], 'job')} of others" if report["others"] else ""
    if not report["jobs"]:
        return Text(f"no job of clnp-search on {report['address']}{', ' + others if others else ''}")
    table = grid("run", "status", "started", "ended", "~how it ended")
    for job in report["jobs"]:
        times = ("–" if job[key] is None else clock(job[key]) for key in ("started", "ended"))
        table.add_row(job["run"], job["status"], *times, _ending(job))
    return Group(table, *([Text(f"and {others}")] if others else []))


def _ending(job: Mapping[str, Any]) -> str:
    if job["status"] != "failed":
        return ""
    return f"exit code {job['exit_code']}: {job['outcome']}"


def _reason(job: Mapping[str, Any]) -> str:
    return f": {job['outcome']}" if job["outcome"] else ""


def submitted(report: Mapping[str, Any]) -> RenderableType:
    """What became of a run that was submitted."""
    name, address = report["run"], shlex.quote(report["address"])
    if report["status"] in ("running", "waiting"):
        how = "goes on" if report["continues"] else "is submitted"
        state = "" if report["status"] == "running" else ", and waits for the head to start it"
        return Text(f"run {name} {how} as a job{state}; look on: clnp-search logs {name} --follow --address {address}")
    verb = "" if report["status"] == "failed" else "is "
    return Text(f"run {name} {verb}{report['status']}{_reason(report)}")


def stopped(report: Mapping[str, Any]) -> RenderableType:
    """How a job that was told to stop ended."""
    head = f"run {report['run']} {'is' if report['asked'] else 'had ended before:'} {report['status']}{_reason(report)}"
    if report["status"] == "finished" or report["command"] is None:
        return Text(head)
    return Text(f"{head}; continue with: {report['command']} --address {shlex.quote(report['address'])}")
