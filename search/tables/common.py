"""What the tables share: how they are printed, and the columns for layers, groups of units and α."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
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

_GAP = 2
"""Columns between those of a table."""

_FOLDED = 16
"""Columns that a cell which may fold is given at least, where it has so many."""

_NAME = 12
"""Columns that a name may take on average where each has a column; longer ones are summed up as many are."""


def print_table(table: RenderableType, stream: TextIO) -> None:
    """Print it in the width of the terminal; into a pipe or a file as wide as it is, without colours.

    A table that is wider than the terminal comes in pieces, below each other: no number may lose a digit.
    """
    if stream.isatty():
        for part, width in _parts(table, Console(file=stream).width):
            Console(file=stream, highlight=False, width=width).print(part)
        return
    console = Console(file=io.StringIO(), width=_UNFOLDED, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _parts(whole: RenderableType, width: int) -> Iterator[tuple[RenderableType, int]]:
    """What stands below each other, each with the columns that it is printed in."""
    if isinstance(whole, Group):
        for part in whole.renderables:
            yield from _parts(part, width)
        return
    table, left = whole, 0
    while isinstance(table, Padding):
        left += table.left
        table = table.renderable
    if not isinstance(table, _Grid):
        yield whole, width
        return
    for piece in table.pieces(width - left):
        yield Padding(piece, (0, 0, 0, left), expand=False), max(width, left + piece.least)


class _Grid(Table):
    """A table that knows how narrow it can be, and that comes in pieces where it is wider."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_edge=False)
        self._names = names
        for name in names:
            justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
            self.add_column(name.lstrip(">~"), justify=justify, no_wrap=not name.startswith("~"), overflow="fold")
        self._widen([column.header for column in self.columns])

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        super().add_row(*cells, **how)
        self._widen(cells)

    @property
    def least(self) -> int:
        """The columns that it takes at least."""
        return sum(map(_least, self.columns)) + _GAP * (len(self.columns) - 1)

    def pieces(self, width: int) -> Iterator["_Grid"]:
        """Itself where it fits; else as many of its columns as fit, then the next ones, each beside the first."""
        if self.least <= width:
            yield self
            return
        places = [0]
        for place in range(1, len(self.columns)):
            taken = sum(_GAP + _least(self.columns[each]) for each in [*places, place]) - _GAP
            if taken > width and len(places) > 1:
                yield self._piece(places)
                places = [0]
            places.append(place)
        yield self._piece(places)

    def _piece(self, places: Sequence[int]) -> "_Grid":
        piece = _Grid([self._names[place] for place in places])
        columns = [self.columns[place].cells for place in places]
        for row, *cells in zip(self.rows, *columns, strict=True):
            piece.add_row(*cells, style=row.style)
        return piece

    def _widen(self, cells: Sequence[RenderableType | None]) -> None:
        """A column is as wide as its widest cell; one that may fold is given :data:`_FOLDED` of that at least."""
        for column, cell in zip(self.columns, cells, strict=False):
            wide = max(map(cell_len, str(cell or "").splitlines()), default=0)
            column.min_width = max(_least(column), wide if column.no_wrap else min(wide, _FOLDED))


def _least(column: Column) -> int:
    return column.min_width or 0


def grid(*columns: str) -> Table:
    """A plain table with a header; a column named with ``>`` in front is aligned to the right, with ``~`` may fold."""
    return _Grid(columns)


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
