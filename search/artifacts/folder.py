"""A folder as a vault: of this machine, or one that all nodes mount."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clnp.files import write_whole
from search.artifacts.vault import Entry, Missing, Trouble, Vault
from search.errors import BadInput

__all__ = ["Folder"]

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT"),  # room may be made
        *("EIO", "ESTALE", "EREMOTEIO", "ENOTCONN", "ENODEV", "ENOLINK"),  # a share that went away
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNREFUSED", "ECONNRESET"),
        *("EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOMEM"),
    )
    if hasattr(errno, name)
)


class Folder(Vault):
    """A folder, in which a file is there whole or not at all, whenever its writer or the machine stops.

    Args:
        path: Absolute.
        prepared: Whether it was made already. One that is not there then is a share that is away: it is not made
            anew on this machine's own disk, and what it holds is not missing.

    Raises:
        BadInput: The path is a file's.
    """

    def __init__(self, path: str, *, prepared: bool = False) -> None:
        self._path = Path(path)
        self._prepared = prepared
        if os.path.exists(path) and not os.path.isdir(path):
            raise BadInput(f"artifacts at {path}: this is a file; give a folder")

    def address(self, name: str) -> str:
        return str(self._path / name)

    def read(self, name: str) -> bytes:
        with self._reachable(reads=True):
            return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        if not self._prepared:
            self.make()
        with self._reachable():
            write_whole(self._path / name, data)
            self._sync()

    def size(self, name: str) -> int:
        with self._reachable(reads=True):
            return (self._path / name).stat().st_size

    def remove(self, name: str) -> bool:
        try:
            with self._reachable(reads=True):
                (self._path / name).unlink()
        except Missing:
            return False
        return True

    def entries(self) -> Mapping[str, Entry]:
        found = {}
        for entry in self._scan():
            # Another process may remove what was just listed.
            try:
                with self._reachable(reads=True):
                    if entry.is_file():
                        status = entry.stat()
                        found[entry.name] = Entry(status.st_size, status.st_mtime)
            except Missing:
                continue
        return found

    def exists(self) -> bool:
        return os.path.isdir(self._path)

    def make(self) -> None:
        with self._reachable():
            self._path.mkdir(parents=True, exist_ok=True)

    def unmake(self) -> None:
        with self._reachable():
            if self._path.is_dir() and not any(self._path.iterdir()):
                self._path.rmdir()

    def places(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self._scan() if entry.is_dir()))

    def _scan(self) -> list[os.DirEntry[str]]:
        try:
            with self._reachable(reads=True), os.scandir(self._path) as found:
                return list(found)
        except Missing:
            return []

    @contextmanager
    def _reachable(self, *, reads: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._prepared and not os.path.isdir(self._path):
                raise Trouble("the folder is not there: is it on a share that is away?", passes=True) from error
            if isinstance(error, FileNotFoundError) and reads:
                raise Missing from error
            raise Trouble(error.strerror or str(error), passes=error.errno in _PASSING) from error

    def _sync(self) -> None:
        """Make a rename last beyond a power cut; Windows does that by itself and cannot open folders."""
        if os.name == "nt":
            return
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
