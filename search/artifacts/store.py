"""The artifact store: bytes under their own SHA-256, checked whenever they are read."""

import functools
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from search.artifacts.folder import Folder
from search.artifacts.locations import is_bucket, normal
from search.artifacts.vault import Entry, Missing, Nameless, Trouble, Vault
from search.errors import BadInput, Damage, Unavailable
from search.names import artifact_file
from search.text import duration

__all__ = ["PATIENCE", "Artifacts", "is_probe", "probe_name"]

PATIENCE = 60.0
"""Seconds for which what may pass by itself is tried again: as long as for the database."""

_DAY = 86_400.0
"""Seconds after which who was writing is no more."""

Result = TypeVar("Result")

_NAME = re.compile(r"([0-9a-f]{64})\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.safetensors\.[0-9a-f]{32}\.tmp")

_RECOVERY = (
    "Scores, staircases and commits are in the database and unharmed: status, show and replay work without it, and "
    "clnp-search verify says what the file holds and what is whole without it. Without a copy the tensors come back "
    "only by training again: clnp-search run ... --name NEW"
)


class Artifacts:
    """The tensors of a run, each file or object named by the SHA-256 of its bytes.

    What fails and may pass by itself (a full disk, a share or server that is away) is tried again with growing pauses.
    It may be pickled; what it tells and how it pauses stays behind then.

    Args:
        location: A folder, made when the first artifact is put; or ``s3://BUCKET/PREFIX``, reached as boto3 is told by
            its own environment variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …) and files.
        prepared: Whether :meth:`prepare` was called elsewhere: then a folder that is not there is away, not empty.
        patience: Seconds for which it is tried again.
        on_wait: Told once an outage what is waited for.
        pause: Sleeps so many seconds; False: nobody wants to wait any longer. What it raises ends the waiting.

    Attributes:
        waiting: What is waited for at this moment; empty: nothing.

    Raises:
        BadInput: The location is a file or another kind of URL, or holds credentials; or boto3 is not installed.
    """

    def __init__(
        self,
        location: str,
        *,
        prepared: bool = False,
        patience: float = PATIENCE,
        on_wait: Callable[[str], None] | None = None,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self.location = normal(location)
        self.on_wait = on_wait
        self._prepared = prepared
        self._patience = patience
        self._pause = pause or _sleep
        self.waiting = ""
        self._vault = _open(self.location, prepared)

    def __repr__(self) -> str:
        return f"Artifacts({self.location!r})"

    def __reduce__(self) -> "tuple[Callable[..., Artifacts], tuple[str, bool, float]]":
        return _again, (self.location, self._prepared, self._patience)

    @property
    def vault(self) -> Vault:
        """What keeps the bytes; nothing is tried again there."""
        return self._vault

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its SHA-256; where it is kept already, sound, nothing is written.

        Raises:
            Unavailable: It cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        name = artifact_file(sha256)

        def write() -> None:
            if not self._sound(name, data):
                self._vault.write(name, data)

        self._carefully(name, "written", write)
        return sha256

    def get(self, sha256: str, *, recovery: str = _RECOVERY) -> bytes:
        """The bytes kept under a SHA-256.

        Args:
            recovery: What is whole without them, and how they come back where there is no copy. Who knows what they
                are says it; else what holds for any file is said.

        Raises:
            Damage: They are missing or hash to something else.
            Unavailable: They cannot be read.
        """
        name = artifact_file(sha256)
        copy = f"Put back a copy of the file: whichever has this SHA-256 will do. {recovery}"
        try:
            data = self._carefully(name, "read", lambda: self._vault.read(name))
        except Missing:
            raise Damage(f"{self._vault.address(name)} is missing. {copy}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise Damage(
                f"{self._vault.address(name)} is damaged: its SHA-256 should be {sha256} and is {found} "
                f"({len(data)} bytes). {copy}"
            )
        return data

    def size(self, sha256: str) -> int:
        """Bytes kept; they are not read.

        Raises:
            Damage: The file is missing.
            Unavailable: The place cannot be read.
        """
        name = artifact_file(sha256)
        try:
            return self._carefully(name, "read", lambda: self._vault.size(name))
        except Missing:
            raise Damage(f"{self._vault.address(name)} is missing. Put back a copy of the file. {_RECOVERY}") from None

    def remove(self, sha256: str) -> bool:
        """Remove a file; False where it was gone already.

        Raises:
            Unavailable: It cannot be removed.
        """
        name = artifact_file(sha256)
        return self._carefully(name, "removed", lambda: self._vault.remove(name))

    def list(self) -> tuple[str, ...]:
        """The SHA-256 of everything kept, sorted. What a killed writer left half written is not among it.

        Raises:
            Unavailable: The place cannot be read.
        """
        return tuple(self.entries())

    def entries(self) -> dict[str, Entry]:
        """As :meth:`list`, each with its bytes and when it was written; nothing is read."""
        found = ((_NAME.fullmatch(name), entry) for name, entry in sorted(self._entries().items()))
        return {match[1]: entry for match, entry in found if match}

    def half_written(self) -> dict[str, Entry]:
        """What killed writers and probes left, by name.

        Raises:
            Unavailable: The place cannot be read.
        """
        return {name: entry for name, entry in sorted(self._entries().items()) if _TEMPORARY.fullmatch(name)}

    def sweep(self) -> int:
        """Remove what killed writers left half written, and say how many files that were.

        Raises:
            Unavailable: A file cannot be removed.
        """
        left = self.half_written()
        for name in left:
            self._carefully(name, "removed", lambda name=name: self._vault.remove(name))  # type: ignore[misc]
        return len(left)

    def exists(self) -> bool:
        """Whether anything was ever put or prepared here, and is there."""
        return self._carefully("", "read", self._vault.exists)

    def places(self) -> tuple[str, ...]:
        """The names of the places in this one, such as the runs' in the one that they share."""
        return self._carefully("", "read", self._vault.places)

    def prepare(self, *, again: bool = False) -> None:
        """Make the folder, and try to write, list, read back and remove something in it.

        Args:
            again: It could be used before: a host's name that nobody knows any more is waited for, too.

        Raises:
            BadInput: One of them is not possible.
            Unavailable: It may become possible again.
        """
        data = secrets.token_bytes(32)
        name = probe_name(data)
        steps: dict[str, Callable[[], object]] = {
            "written": lambda: (self._vault.make(), self._vault.write(name, data)),
            "listed": self._vault.entries,
            "read": lambda: self._check_probe(name, data),
            "removed": lambda: self._vault.remove(name),
        }
        for what, step in steps.items():
            self.attempt(what, step if again else functools.partial(_at_first, step))
        if not again:
            self.tidy()

    def attempt(self, what: str, work: Callable[[], Result]) -> Result:
        """What ``work`` returns of the :attr:`vault`, tried again while that may help.

        Args:
            what: What is to be done, for people: "written", "read".

        Raises:
            BadInput: It never will.
            Unavailable: It may be possible again.
        """
        try:
            return self._persist(work)
        except Trouble as error:
            text = f"artifacts cannot be {what} in {self.location}: {error}"
            if error.passes:
                raise Unavailable(f"{text}; the same command continues") from error
            raise BadInput(text) from error

    def tidy(self) -> None:
        """Remove what was left half written for more than a day: by probes, in a place in which no run writes."""
        for name, entry in self._entries().items():
            if is_probe(name) and entry.written < time.time() - _DAY:
                with suppress(Trouble):  # another user's may be that user's alone to remove
                    self._vault.remove(name)

    def _check_probe(self, name: str, data: bytes) -> None:
        try:
            found = self._vault.read(name)
        except Missing:
            found = b""
        if found != data:
            raise BadInput(f"artifacts in {self.location}: what was written does not come back; give another place")

    def discard(self) -> int:
        """Remove every artifact and, where nothing else lies in it, the folder; say how many artifacts that were.

        Raises:
            Unavailable: One of them cannot be removed.
        """
        removed = sum(self.remove(sha256) for sha256 in self.list())
        self.sweep()
        self._carefully("", "removed", self._vault.unmake)
        return removed

    def _entries(self) -> dict[str, Entry]:
        return dict(self._carefully("", "read", self._vault.entries))

    def _sound(self, name: str, data: bytes) -> bool:
        try:
            return self._vault.size(name) == len(data) and self._vault.read(name) == data
        except Missing:
            return False

    def _carefully(self, name: str, what: str, work: Callable[[], Result]) -> Result:
        """What ``work`` returns, tried again while that may help.

        Raises:
            Unavailable: It failed for good, or for as long as the patience lasts.
        """
        began = time.monotonic()
        try:
            return self._persist(work)
        except Trouble as error:
            waited = time.monotonic() - began
            tried = f" for {waited:.0f} s" if waited >= 1 else ""
            where = self._vault.address(name) if name else self.location
            raise Unavailable(
                f"{where} cannot be {what}{tried}: {error}; mend it, the same command continues"
            ) from error

    def _persist(self, work: Callable[[], Result]) -> Result:
        """``work`` must bear being run after it succeeded unnoticed.

        Raises:
            Trouble: The last one.
        """
        began, pause = time.monotonic(), 0.05
        while True:
            try:
                result = work()
            except Trouble as error:
                waited = time.monotonic() - began
                if not error.passes or waited >= self._patience:
                    raise
                if waited > 1:
                    self._tell(error)
                if not self._pause(min(pause, self._patience - waited)):
                    raise
                pause = min(2 * pause, 5.0)
            else:
                self.waiting = ""
                return result

    def _tell(self, error: Trouble) -> None:
        if not self.waiting:
            most = duration(self._patience)
            self.waiting = f"artifacts in {self.location} cannot be used ({error}); waiting for it, for {most} at most"
            if self.on_wait is not None:
                self.on_wait(self.waiting)


def probe_name(data: bytes) -> str:
    """A name for something that is there for a moment only: :meth:`Artifacts.sweep` and :meth:`Artifacts.tidy` remove
    it if it stays."""
    return f".{artifact_file(hashlib.sha256(data).hexdigest())}.{secrets.token_hex(16)}.tmp"


def _at_first(step: Callable[[], Result]) -> Result:
    """Nobody ever reached the place under a name that is not known: that is a wrong name."""
    try:
        return step()
    except Nameless as error:
        raise Trouble(str(error), passes=False) from error


def is_probe(name: str) -> bool:
    """Whether a name came from :func:`probe_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def _open(location: str, prepared: bool) -> Vault:
    if is_bucket(location):
        try:
            from search.artifacts.s3 import Bucket
        except ModuleNotFoundError as error:
            if error.name not in ("boto3", "botocore"):
                raise
            raise BadInput(f"artifacts at {location} need boto3: pip install 'clnp-search[s3]'") from None
        return Bucket(location)
    return Folder(location, prepared=prepared)


def _again(location: str, prepared: bool, patience: float) -> Artifacts:
    return Artifacts(location, prepared=prepared, patience=patience)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True
