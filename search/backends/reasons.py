"""Why a job was lost, in one line that a person and the ledger can keep."""

import traceback

from search.text import first_line

__all__ = ["reason"]


def reason(error: BaseException) -> str:
    """What was raised and where: ``RuntimeError: out of memory (training.py:187)``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(str(error))}{where}"
