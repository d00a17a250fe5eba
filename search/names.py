"""Every name and key: runs, studies, cells and artifacts."""

import re

from search.errors import BadInput
from search.records import Cell

__all__ = ["RUN_NAME_RULE", "artifact_file", "cell_key", "check_run_name", "is_run_name", "study_name"]

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

RUN_NAME_RULE = "use 1 to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit"


def is_run_name(name: str) -> bool:
    """Whether ``name`` can name a run: letters, digits, ``.``, ``_`` and ``-``, 100 at most, no mark first."""
    return _RUN_NAME.fullmatch(name) is not None


def check_run_name(name: str) -> str:
    """``name``, if it can name a run.

    Raises:
        BadInput: It cannot.
    """
    if not is_run_name(name):
        raise BadInput(f"{name!r} cannot name a run: {RUN_NAME_RULE}")
    return name


def study_name(run: str, replica: int, task: int) -> str:
    """The Optuna study of one task of one replica, e.g. ``quickstart/replica-0/task-03``."""
    return f"{run}/replica-{replica}/task-{task:02d}"


def cell_key(cell: Cell) -> str:
    """What makes a cell the same cell, e.g. ``alpha=0.0001,0.001,0.0001 learning_rate=0.002``."""
    return f"alpha={','.join(map(repr, cell.alpha))} learning_rate={cell.learning_rate!r}"


def artifact_file(sha256: str) -> str:
    """The name of a tensor file in the artifact store."""
    return f"{sha256}.safetensors"
