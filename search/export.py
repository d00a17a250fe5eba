"""``export``: a committed task's narrow network with its input transform, in a file that needs no clnp."""

import os
from pathlib import Path

from clnp.errors import DataUnavailable
from clnp.export import Exported, UnsupportedExport, save
from clnp.ownership import lives
from clnp.subnetwork import subnetwork
from search.book import place
from search.building import assemble, build_sequence
from search.errors import BadInput, Damage
from search.own_code import folders
from search.records import CommitRecord, Committed
from search.reports.common import Known, Report, find_commit, layers, read_run
from search.store import Store

__all__ = ["export"]

_KINDS = {
    ".safetensors": "tensors with their architecture",
    ".onnx": "ONNX",
    ".pt2": "torch.export",
}


def export(
    store: Store, name: str, *, task: int, file: str, replica: int | None = None, data_dir: str | None = None
) -> Report:
    """Put a run's commits up to a task back together, cut the task's narrow network out, and write it.

    Every fingerprint on the way is compared with the recorded one before anything is written.

    Args:
        task: From 1.
        file: Where to write; its ending chooses the format: ``.safetensors``, ``.onnx`` or ``.pt2``.
        replica: From 1, the first without it.
        data_dir: Where the data set lies, which the input transform is taken with.

    Raises:
        BadInput: No run has this name, it has no such replica, the task is not committed, the data or a person's own
            code are absent or other than the run's, or the file cannot be written, for want of a package too.
        Damage: An artifact is missing or damaged.
        clnp.errors.Damaged: A fingerprint is not the recorded one.
    """
    known = read_run(store, name)
    record = find_commit(known, task, replica)
    path = _writable(file)
    where = (data_dir, folders(known.experiment.code))
    try:
        sequence = build_sequence(known.experiment, record.replica, *where)
    except DataUnavailable as error:
        raise BadInput(str(error)) from error
    _check_data(known, record, sequence.sha256(record.task))
    commits = [
        Committed(one.task, one.artifact, one.fingerprint, one.widths)
        for one in known.commits(record.replica)[: record.task + 1]
    ]
    network = assemble(known.experiment, commits, store.open_artifacts(known.row.artifacts), where[1])
    try:
        save(Exported(sequence.transform(record.task), subnetwork(network, record.task)), path)
    except UnsupportedExport as error:
        raise BadInput(f"--to {file}: {error}") from error
    except OSError as error:
        raise BadInput(f"--to {file} cannot be written: {error.strerror or error}; give another path") from error
    used = [int(lives(network, group, record.task).sum()) for group in network.groups]
    return {
        "run": name,
        "replica": record.replica + 1,
        "task": record.task + 1,
        "file": str(path),
        "kind": _KINDS[path.suffix.lower()],
        "size": path.stat().st_size,
        "units": layers(known.hidden, used),
        "of": layers(known.hidden, record.widths),
        "fingerprint": record.fingerprint,
    }


def _writable(file: str) -> Path:
    """The path, if a file of a known kind can be written there: seconds of work come before the writing."""
    path = Path(file)
    if path.suffix.lower() not in _KINDS:
        kinds = ", ".join(f"{ending} ({what})" for ending, what in _KINDS.items())
        raise BadInput(f"--to {file}: the ending chooses the format; give one of {kinds}")
    if path.is_dir():
        raise BadInput(f"--to {file} is a folder; give the path of a file in it")
    if not path.parent.is_dir():
        raise BadInput(f"--to {file}: the folder {path.parent} does not exist; make it, or give another path")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise BadInput(f"--to {file}: no permission to write in {path.parent}; give another path")
    return path


def _check_data(known: Known, record: CommitRecord, found: str) -> None:
    """The input transform must be the one that the task was learnt with."""
    opening = known.opening(record.replica, record.task)
    if opening is None:
        raise Damage(
            f"{place(record.replica, record.task)}: the ledger has the commit and no opening; restore the database "
            f"from a backup"
        )
    if found != opening.data:
        raise BadInput(
            f"{place(record.replica, record.task)}: the data are other than the run's: their SHA-256 is {found}, and "
            f"was {opening.data} when the task opened; bring the old data back"
        )
