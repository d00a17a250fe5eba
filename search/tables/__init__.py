"""Reports as tables for people: a dictionary in, something rich can print out."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import RenderableType

from search.tables.common import print_table
from search.tables.final import final
from search.tables.jobs import jobs, stopped, submitted
from search.tables.overview import overview
from search.tables.plan import plan
from search.tables.replay import replay
from search.tables.show import show
from search.tables.small import collected, deleted, drawn, experiments, exported, verify
from search.tables.status import status

__all__ = ["TABLES", "print_table"]

TABLES: Mapping[str, Callable[[Mapping[str, Any]], RenderableType]] = {
    "deleted": deleted,
    "experiments": experiments,
    "export": exported,
    "final": final,
    "gc": collected,
    "overview": overview,
    "list": jobs,
    "plan": plan,
    "replay": replay,
    "report": drawn,
    "show": show,
    "status": status,
    "stop": stopped,
    "submit": submitted,
    "verify": verify,
}
"""The table of each report."""
