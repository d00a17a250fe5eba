"""What the rule would have picked at another margin."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import grid, indent, of, title, unit_cells, unit_columns
from search.text import number, percent, theta

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
        pick = (">\ncell", ">\nθ", ">would be\ncell", ">\nθ", ">\nvalidation", ">\ncost")
        limit = "floor" if report["rule"] == "budget" else "margin"
        table = grid(">\ntask", f">{limit}\nwas", *pick, *freed, "\n")
        for task in replica["tasks"]:
            was, now = task["committed"], task["winner"]
            table.add_row(
                str(task["task"]),
                number(task["margin"]),
                str(was["cell"]),
                theta(was["theta"], digits=4),
                str(now["cell"]),
                theta(now["theta"], digits=4),
                percent(task["accuracy"]),
                f"{task['cost']:+d}" if task["cost"] else "0",
                *unit_cells(task["freed"], signed=True),
                task["outcome"],
                style="dim" if task["outcome"] == "given the history" else "",
            )
        parts += [title(report["run"], place), indent(table), Text()]
    if not any(replica["tasks"] for replica in report["replicas"]):
        return Group(*parts[:-1])
    text = (
        "cost: validation samples that the pick has right fewer than the commit; freed: units that it claims fewer. "
        "Exact up to the first task that differs; the tasks after it are given the history."
    )
    if report["rule"] == "budget":
        text += " The run's own rule is the budget rule; what is tried here is the margin rule."
    return Group(*parts, Text(text, style="dim"))
