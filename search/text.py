"""How numbers, times and sizes are written for people."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime

__all__ = [
    "MANY",
    "accuracies",
    "clock",
    "duration",
    "first_line",
    "first_sentence",
    "group_list",
    "job",
    "members",
    "number",
    "numbers",
    "pace_text",
    "percent",
    "plural",
    "points_text",
    "size",
    "theta",
    "times",
    "units",
    "up_to",
]

MANY = 6
"""So many groups of units, or layers, still have a column or a number each; more are summed up."""

_TASKS = 10
"""So many tasks still have a number each."""

_LINE = 300
"""Characters of a reason that a row of a table can hold."""


def first_line(text: str) -> str:
    """The first line of ``text`` that says anything, cut to what a row of a table can hold."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"


def first_sentence(text: str) -> str:
    """What happened, without what could be done: the first sentence of ``text``, without its full stop."""
    return text.partition("\n")[0].partition(". ")[0].removesuffix(".")


def percent(share: float) -> str:
    """A share of 1 in percent, two decimals: ``97.31 %``."""
    return f"{100 * share:.2f} %"


def number(value: float, *, digits: int = 6) -> str:
    """A number to so many digits: ``1e-5``, ``0.002``, ``3.16e-4``."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def numbers(values: Iterable[float]) -> str:
    """One number a layer: ``80 + 102`` stays readable where commas would look like a list."""
    return " + ".join(number(value) for value in values)


def units(counts: Sequence[int]) -> str:
    """Units of every group: ``80 + 102``, or of many groups their sum: ``1,234 in 20 groups``."""
    return numbers(counts) if len(counts) <= MANY else f"{sum(counts):,} in {len(counts)} groups"


def group_list(names: Sequence[str]) -> str:
    """The names of groups: ``hidden1, hidden2``, or of many how many: ``20 groups``."""
    return ", ".join(names) if len(names) <= MANY else f"{len(names)} groups"


def members(cells: Sequence[int]) -> str:
    """The cells of a stack: ``cell 3``, ``cells 0–5``, ``cells 0–2, 5``."""
    runs: list[list[int]] = []
    for cell in cells:
        if runs and cell == runs[-1][-1] + 1:
            runs[-1].append(cell)
        else:
            runs.append([cell])
    text = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"cells {text}" if len(cells) > 1 else f"cell {text}"


def job(kind: str, cells: Sequence[int]) -> str:
    """What a job does, in a table: ``cells 0–5``, ``commit``, ``measurement``."""
    return {"commit": "commit", "measure": "measurement"}.get(kind) or members(cells)


def accuracies(shares: Sequence[float]) -> str:
    """The accuracy of every task in percent: ``97.31  96.02``, or of many tasks ``mean 96.40, last 95.11 (20)``."""
    if len(shares) <= _TASKS:
        return "  ".join(f"{100 * share:.2f}" for share in shares) or "–"
    return f"mean {100 * sum(shares) / len(shares):.2f}, last {100 * shares[-1]:.2f} ({len(shares)})"


def theta(value: float | None, *, digits: int = 6) -> str:
    """A threshold; None keeps every unit."""
    return "keep all" if value is None else number(value, digits=digits)


def size(count: float) -> str:
    """Bytes in decimal units: ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A span of time in its two largest units: ``45 s``, ``3 min 05 s``, ``2 h 10 min``, ``4 d 03 h``."""
    whole = max(0, math.ceil(seconds) if seconds < 1 else round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def clock(seconds: float) -> str:
    """A moment, seconds since 1970, in local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def points_text(points: float) -> str:
    """Percentage points: ``1 point``, ``0.667 points``."""
    return f"{number(points, digits=3)} point{'' if points == 1 else 's'}"


def pace_text(members: int, times: float, *, gains: bool) -> str:
    """How a stack's steps compare with one member's, ``times`` as long, and what becomes of that."""
    became = "cells train as stacks" if gains else "each cell trains alone"
    if members == 1:
        return f"one cell's steps are too slow for a stack to gain by: {became}"
    return f"a stack of {members} takes {number(times, digits=2)} times as long a step as one cell: {became}"


def plural(count: int, word: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def up_to(count: int, word: str, *, verb: bool = False) -> str:
    """``task 1``, ``tasks 1 to 3``; with a verb ``task 1 is``, ``tasks 1 to 3 are``."""
    text, be = (f"{word} 1", "is") if count == 1 else (f"{word}s 1 to {count}", "are")
    return f"{text} {be}" if verb else text


def times(count: int) -> str:
    """``once``, ``2 times``."""
    return "once" if count == 1 else f"{count:,} times"
