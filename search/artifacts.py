"""Content-addressed tensors in an Optuna artifact store."""

import hashlib
import io
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from clnp.files import write_whole
from search.errors import BadInput, Damage, Unavailable
from search.names import artifact_file

__all__ = ["Artifacts"]

_NAME = re.compile(r"([0-9a-f]{64})\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.safetensors\.[0-9a-f]{32}\.tmp")

_RECOVERY = (
    "Scores, staircases and commits are in the database and unharmed: status, show and replay work without it, and "
    "clnp-search verify says what the file holds and what is whole without it. Without a copy the tensors come back "
    "only by training again: clnp-search run ... --name NEW"
)


class _SyncedFolder(FileSystemArtifactStore):
    """A folder in which a file is there whole or not at all, whenever its writer or the machine stops."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / artifact_id, content_body.read())
        _sync_folder(self._folder)


class Artifacts:
    """The tensors of a run, each file named by the SHA-256 of its bytes.

    Args:
        location: A folder; it is made when the first artifact is put.

    Raises:
        BadInput: The location is a file, or a URL.
    """

    def __init__(self, location: str) -> None:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location):
            raise BadInput(f"artifacts at {location!r}: only folders are supported; give a path")
        self.location = os.path.abspath(location)
        self._folder = Path(self.location)
        if self._folder.exists() and not self._folder.is_dir():
            raise BadInput(f"artifacts at {self.location}: this is a file; give a folder")
        self._store = _SyncedFolder(self._folder)

    def __repr__(self) -> str:
        return f"Artifacts({self.location!r})"

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its SHA-256; where it is kept already, sound, nothing is written.

        Raises:
            Unavailable: The folder cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        with _reachable(self._path(sha256), "written"):
            if not self._sound(sha256, len(data)):
                self._store.write(artifact_file(sha256), io.BytesIO(data))
        return sha256

    def get(self, sha256: str, *, recovery: str = _RECOVERY) -> bytes:
        """The bytes kept under a SHA-256.

        Args:
            recovery: What is whole without them, and how they come back where there is no copy. Who knows what they
                are says it; else what holds for any file is said.

        Raises:
            Damage: They are missing or hash to something else.
            Unavailable: The file cannot be read.
        """
        path = self._path(sha256)
        copy = f"Put back a copy of the file: whichever has this SHA-256 will do. {recovery}"
        try:
            with _reachable(path, "read"), self._store.open_reader(artifact_file(sha256)) as file:
                data = file.read()
        except ArtifactNotFound:
            raise Damage(f"{path} is missing. {copy}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise Damage(
                f"{path} is damaged: its SHA-256 should be {sha256} and is {found} ({len(data)} bytes). {copy}"
            )
        return data

    def size(self, sha256: str) -> int:
        """Bytes on disk.

        Raises:
            Damage: The file is missing.
            Unavailable: The folder cannot be read.
        """
        path = self._path(sha256)
        with _reachable(path, "read"):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                raise Damage(f"{path} is missing. Put back a copy of the file. {_RECOVERY}") from None

    def remove(self, sha256: str) -> bool:
        """Remove a file; False where it was gone already.

        Raises:
            Unavailable: It cannot be removed.
        """
        try:
            with _reachable(self._path(sha256), "removed"):
                self._store.remove(artifact_file(sha256))
        except ArtifactNotFound:
            return False
        return True

    def list(self) -> tuple[str, ...]:
        """The SHA-256 of everything kept, sorted. What a killed writer left half written is not among it.

        Raises:
            Unavailable: The folder cannot be read.
        """
        return tuple(sorted(match[1] for match in map(_NAME.fullmatch, self._names()) if match))

    def sweep(self) -> int:
        """Remove what killed writers left half written, and say how many files that were.

        Raises:
            Unavailable: A file cannot be removed.
        """
        left = [self._folder / name for name in self._names() if _TEMPORARY.fullmatch(name)]
        for path in left:
            with _reachable(path, "removed"):
                path.unlink(missing_ok=True)
        return len(left)

    def prepare(self) -> None:
        """Make the folder and try to write in it.

        Raises:
            BadInput: Neither is possible.
        """
        trial = self._folder / f".{'0' * 64}.safetensors.{uuid.uuid4().hex}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            raise BadInput(f"artifacts cannot be written in {self.location}: {error.strerror}") from None

    def discard(self) -> int:
        """Remove every artifact and, where nothing else lies in it, the folder; say how many artifacts that were.

        Raises:
            Unavailable: One of them cannot be removed.
        """
        removed = sum(self.remove(sha256) for sha256 in self.list())
        self.sweep()
        with _reachable(self._folder, "removed"):
            if self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()
        return removed

    def _path(self, sha256: str) -> Path:
        return self._folder / artifact_file(sha256)

    def _names(self) -> Sequence[str]:
        with _reachable(self._folder, "read"):
            try:
                return os.listdir(self._folder)
            except FileNotFoundError:
                return ()

    def _sound(self, sha256: str, size: int) -> bool:
        try:
            if self._path(sha256).stat().st_size != size:
                return False
            with self._store.open_reader(artifact_file(sha256)) as file:
                return hashlib.sha256(file.read()).hexdigest() == sha256
        except (FileNotFoundError, ArtifactNotFound):
            return False


@contextmanager
def _reachable(path: Path, what: str) -> Iterator[None]:
    """Say of what fails which file it is, and that the run can go on."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be {what}: {error.strerror or error}; mend it, the same command continues"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last beyond a power cut; Windows does that by itself and cannot open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
