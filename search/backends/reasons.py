"""Why a job was lost, in one line that a person and the ledger can keep."""

import traceback

__all__ = ["first_line", "reason"]

_LENGTH = 300


def reason(error: BaseException) -> str:
    """What was raised and where: ``RuntimeError: out of memory (training.py:187)``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(str(error))}{where}"


def first_line(text: str) -> str:
    """The first line of ``text`` that says anything, cut to what a row of a table can hold."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= _LENGTH else f"{line[: _LENGTH - 1]}…"
