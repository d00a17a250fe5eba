"""Data sets that a driver brings to a node which has them not: packed there, unpacked here, found by workers.

On a node they lie in a folder of the temporary folder, which is named by what is in it. Systems clean that folder file
by file: what is not whole any more is brought again.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.errors import BadInput

__all__ = ["Parcel", "find", "holds", "pack", "pieces", "unpack"]

_PIECE = 32 * 2**20
"""Bytes that travel at once: so many a node must have room for."""

_hashed: set[Path] = set()
"""The folders whose files this process has hashed: later looks compare sizes alone."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is brought: files by their paths in a folder of data sets.

    Attributes:
        folder: Where they lie in the driver.
        files: (path, bytes, SHA-256) of each.
    """

    folder: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def name(self) -> str:
        """A SHA-256 over all of it."""
        return hashlib.sha256("\n".join(f"{path} {sha256}" for path, _, sha256 in self.files).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, size, _ in self.files)


def pack(datasets: Sequence[str], data_dir: str | None) -> Parcel | None:
    """The raw files of these data sets; None where there are none, since they are bundled.

    Args:
        datasets: Which are here, checked.
        data_dir: Where data sets lie.
    """
    from clnp.tasks import cifar, vision

    folder, paths = vision.data_folder(data_dir), list[str]()
    for dataset in datasets:
        if dataset in cifar.CIFAR:
            paths += cifar.check(dataset, folder)
        elif dataset in vision.VISION:
            known = vision.VISION[dataset]
            paths += [f"{known.folder}/raw/{file}" for file in known.sha256]
    files = tuple((path, (folder / path).stat().st_size, _sha256(folder / path)) for path in paths)
    return Parcel(str(folder), files) if files else None


def pieces(parcel: Parcel) -> Iterator[bytes]:
    """The bytes of all files, one after the other; a piece is of one file."""
    for path, size, _ in parcel.files:
        with open(Path(parcel.folder) / path, "rb") as stream:
            for _ in range(0, size, _PIECE):
                yield stream.read(_PIECE)


def holds(parcel: Parcel, data_dir: str | None) -> bool:
    """Whether this node has what the parcel has: where its data sets lie, or brought before."""
    from clnp.tasks import vision

    place = _place(parcel.name)
    # What was brought is what is found; see find.
    return _is_whole(place, parcel) if place.is_dir() else _has_files(vision.data_folder(data_dir), parcel)


def unpack(parcel: Parcel, given: Iterable[bytes]) -> bool:
    """Write what was brought, whole or not at all; False where it was there already, whole, and nothing was asked for.

    Args:
        given: From :func:`pieces`; asked for only where it is needed. Other processes of this node wait meanwhile.

    Raises:
        BadInput: What came is not what was sent, or the temporary folder cannot be used.
    """
    import fcntl  # not everywhere; where there are no clusters, nothing is unpacked

    root, place = _root(), _place(parcel.name)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(place, parcel):
            return False
        for cut_off in root.glob("*.part"):
            shutil.rmtree(cut_off)
        half = root / f"{parcel.name}.part"
        source = iter(given)
        for path, size, sha256 in parcel.files:
            _write(half / path, size, sha256, source)
        if place.exists():
            shutil.rmtree(place)
        half.rename(place)
        _hashed.add(place)
    return True


def find(name: str | None, data_dir: str | None) -> str | None:
    """Where a worker's data sets lie: what was brought under this name, or else ``data_dir``.

    What is read is checked as ever.
    """
    return str(_place(name)) if name is not None and _place(name).is_dir() else data_dir


def _is_whole(place: Path, parcel: Parcel) -> bool:
    """Whether a folder that was brought still holds every file."""
    try:
        sizes = all((place / path).stat().st_size == size for path, size, _ in parcel.files)
    except FileNotFoundError:
        return False
    if sizes and place not in _hashed and _has_files(place, parcel):
        _hashed.add(place)
    return sizes and place in _hashed


def _has_files(folder: Path, parcel: Parcel) -> bool:
    try:
        return all(_sha256(folder / path) == sha256 for path, _, sha256 in parcel.files)
    except OSError:
        return False


def _write(path: Path, size: int, sha256: str, source: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), size
    with open(path, "wb") as stream:
        while left > 0:
            piece = next(source, b"")
            digest.update(piece)
            stream.write(piece)
            left -= len(piece)
            if not piece:
                break
        stream.flush()
        os.fsync(stream.fileno())
    if left or digest.hexdigest() != sha256:
        raise BadInput(f"{path.name} did not come as it was sent: its SHA-256 is {digest.hexdigest()}, not {sha256}")


def _root() -> Path:
    """This account's folder in the temporary one, closed to others."""
    root = Path(tempfile.gettempdir()) / f"clnp-data-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise BadInput(f"data cannot be kept in {root}: {error.strerror}; set TMPDIR to another folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BadInput(f"data cannot be kept in {root}: others may write there; remove it, or set TMPDIR")
    return root


def _place(name: str) -> Path:
    return _root() / name


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
