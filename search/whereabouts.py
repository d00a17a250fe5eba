"""Where the records of a command are: the database that its options, a file or a variable name, opened."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import BadInput
from search.options import DEFAULT_STORAGE, STORAGE_VARIABLE
from search.output import note

if TYPE_CHECKING:
    from search.store import Store

__all__ = ["check_lasting", "open_existing", "open_records"]

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a job that was submitted."""

_PATIENCE = {"run": 600.0, "resume": 600.0, "delete": 60.0, "gc": 60.0}
"""Seconds for which a command waits for a database that went away: a driver survives a server's restart or update."""

_SHORT = 10.0
"""The same for those that only read, where somebody looks on."""


def open_records(options: argparse.Namespace, *, create: bool) -> "Store":
    """The store, which the first run makes (``create``).

    Raises:
        BadInput: No URL, or one that names no database that could be had.
        Unavailable: It stayed away.
    """
    from search.store import open_store

    patience = _PATIENCE.get(options.command, _SHORT)
    artifacts = getattr(options, "artifacts", None)
    return open_store(_url(options), artifacts, create=create, patience=patience, on_outage=note)


def open_existing(options: argparse.Namespace) -> "Store | None":
    """The store, or None where the first run would make it.

    Raises:
        BadInput: As :func:`open_records`.
        Unavailable: Likewise.
    """
    from search.database import Database
    from search.ledger import has_tables
    from search.store import Store

    if _is_new(options):
        return None
    database = Database(_url(options), create=False, patience=_SHORT, on_outage=note)
    if has_tables(database):
        return Store(database)
    database.close()
    return None


def check_lasting(options: argparse.Namespace, store: "Store", name: str) -> None:
    """A Ray job's folder, where tensors would go that lie beside no database file, is removed with the cluster.

    Raises:
        BadInput: It is there that the tensors of a run called ``name`` would go.
    """
    if _JOB_VARIABLE not in os.environ or options.artifacts is not None or store.database.path is not None:
        return
    if store.run(name) is None:
        raise BadInput(
            "no --artifacts: this is a Ray job, whose folder goes with the cluster, and the tensors with it; give a "
            "folder that every machine of the cluster has, or s3://BUCKET/PREFIX"
        )


def _url(options: argparse.Namespace) -> str:
    if options.storage is not None:
        return str(options.storage)
    if options.storage_file is not None:
        return _first_line(options.storage_file)
    found = os.environ.get(STORAGE_VARIABLE)
    if not found and _JOB_VARIABLE in os.environ:
        raise BadInput(
            f"no database: this is a Ray job, whose folder goes with the cluster, so that {DEFAULT_STORAGE} would too; "
            f"give --storage-file or --storage, or start Ray on the head with {STORAGE_VARIABLE} set"
        )
    return found or DEFAULT_STORAGE


def _first_line(file: str) -> str:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"--storage-file {file}: {error.strerror}; give a file whose first line is the URL") from None
    except UnicodeDecodeError:
        raise BadInput(f"--storage-file {file}: this is not text; give a file whose first line is the URL") from None
    url = lines[0].strip() if lines else ""
    if not url:
        raise BadInput(f"--storage-file {file}: its first line is empty; write the database's URL there")
    return url


def _is_new(options: argparse.Namespace) -> bool:
    """Whether the database is a file that is not there yet, and that a run could make."""
    from search.urls import dialect, read_url

    url, _ = read_url(_url(options))
    file = Path(str(url.database))
    return dialect(url) == "sqlite" and file.parent.is_dir() and not file.exists()
