"""``report``: a run's page, written to a folder."""

import os
from pathlib import Path

from clnp.files import write_whole
from search.errors import BadInput
from search.figures.page import page
from search.reports.common import Report, read_run
from search.store import Store

__all__ = ["report"]


def report(store: Store, name: str, folder: str) -> Report:
    """Write ``folder``/``name``.html, one file that needs no other and no network; an old one is replaced.

    The folder is made where it is not there. The file appears whole or not at all.

    Raises:
        BadInput: No run has this name, or the folder is a file or cannot be written.
        Damage: A row cannot be read.
    """
    known = read_run(store, name)
    path = _writable(folder) / f"{name}.html"
    if os.path.isdir(path):
        raise BadInput(f"--to {folder}: {path} is a folder; remove it, or give another folder")
    text = page(known).encode()
    try:
        write_whole(path, text)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return {
        "run": name,
        "file": str(path),
        "size": len(text),
        "replicas": len(known.replicas),
        "commits": len(known.history.commits),
        "trials": sum(map(len, known.history.cells.values())),
    }


def _writable(folder: str) -> Path:
    """The folder, made if need be: seconds of drawing come before the writing."""
    path = Path(folder)
    if os.path.exists(path) and not os.path.isdir(path):
        raise BadInput(f"--to {folder} is a file; give a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except NotADirectoryError:
        raise BadInput(f"--to {folder}: a part of this path is a file; give a folder") from None
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise BadInput(f"--to {folder}: no permission to write there; give another folder")
    return path


def _unwritable(folder: str, error: OSError) -> BadInput:
    return BadInput(f"--to {folder} cannot be written: {error.strerror or error}; give another folder")
