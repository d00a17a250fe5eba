"""What the tables share: how they are printed, and the columns for layers, groups of units and α."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search.text import number, percent, theta

__all__ = [
    "alpha_cells",
    "alpha_columns",
    "fit",
    "forked",
    "grid",
    "indent",
    "of",
    "pairs",
    "print_table",
    "score",
    "theta_cell",
    "theta_column",
    "title",
    "unit_cells",
    "unit_columns",
]

_UNFOLDED = 10_000
"""Columns where the output is no terminal: nothing is folded."""

_WIDE = 3
"""So many groups of units have a column each beside others on 80 columns; more are summed up in one."""

_NAME = 12
"""Columns that a name may take on average where each has a column; longer ones are summed up as many are."""


def print_table(table: RenderableType, stream: TextIO) -> None:
    """Print it in the width of the terminal; into a pipe or a file as wide as it is, without colours."""
    if stream.isatty():
        Console(file=stream, highlight=False).print(table)
        return
    console = Console(file=io.StringIO(), width=_UNFOLDED, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def grid(*columns: str) -> Table:
    """A plain table with a header; a column named with ``>`` in front is aligned to the right, with ``~`` may fold."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.lstrip(">~"), justify=justify, no_wrap=not column.startswith("~"), overflow="fold")
    return table


def forked(report: Mapping[str, Any]) -> str:
    """Where a run was forked, at the end of a line; nothing of one that was not."""
    return "" if report["origin"] is None else f", {report['origin']}"


def fit(names: Sequence[str], most: int) -> bool:
    """Whether ``names`` have a column each: at most so many, and not too long."""
    return len(names) <= most and sum(map(len, names)) <= most * _NAME


def alpha_columns(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The headers for α: one a layer, or one for all: of many, of long names, or of the same α each."""
    found = [cell["alpha"] for cell in cells]
    if not found or not fit(list(found[0]), _WIDE + 1) or all(len(set(alpha.values())) == 1 for alpha in found):
        return [">\nα"]
    return [f">α\n{layer}" for layer in found[0]]


def alpha_cells(cell: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """What stands under :func:`alpha_columns`; of many layers the least and the largest."""
    values = list(cell["alpha"].values())
    if len(columns) == 1 and min(values) < max(values):
        return [f"{number(min(values))} – {number(max(values))}"]
    return [number(value) for value in values][: len(columns)]


def unit_columns(groups: Sequence[str], word: str) -> list[str]:
    """The headers for units: one a group, or one for all of many groups, or of long names."""
    return [f">{group}\n{word}" for group in groups] if fit(groups, _WIDE) else [f">units\n{word}"]


def unit_cells(*counts: Mapping[str, int], join: str = ", ", signed: bool = False) -> list[str]:
    """What stands under :func:`unit_columns`: the counts of each group joined, or their sums."""
    groups = list(counts[0])
    rows = [[each[group] for each in counts] for group in groups]
    if not fit(groups, _WIDE):
        rows = [[sum(each.values()) for each in counts]]
    written = [[f"{one:+d}" if signed and one else str(one) for one in row] for row in rows]
    return [join.join([row[0], *(f"{one:>3}" for one in row[1:])]) for row in written]


def theta_column(scales: Iterable[str]) -> str:
    """The header for θ: of tasks cut at one θ for all layers, or at a multiple of each layer's mean activity."""
    return ">× layer's\nmean: θ" if set(scales) == {"layers"} else ">\nθ"


def theta_cell(value: float | None, scale: str, column: str) -> str:
    """What stands under :func:`theta_column`; where tasks of both kinds do, those by layer say so."""
    text = theta(value, digits=4)
    return f"{text} × mean" if scale == "layers" and column == ">\nθ" and value is not None else text


def title(name: str, rest: str) -> Text:
    return Text.assemble((name, "bold"), f", {rest}" if rest else "")


def of(word: str, index: int, count: int) -> str:
    return f"{word} {index} of {count}"


def score(found: Mapping[str, Any]) -> str:
    return f"{percent(found['accuracy'])} ({found['correct']} of {found['total']})"


def pairs(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def indent(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, 2), expand=False)
