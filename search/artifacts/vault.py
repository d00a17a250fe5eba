"""What keeps named bytes: the contract that folder and bucket fulfil alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Entry", "Missing", "Nameless", "Trouble", "Vault"]


class Trouble(Exception):
    """Something failed; its text is the reason in a line, without any secret.

    Attributes:
        passes: Whether time alone may mend it.
    """

    def __init__(self, reason: str, passes: bool) -> None:
        super().__init__(reason, passes)  # both: it crosses from a worker to the driver as the cause of an error
        self.passes = passes

    def __str__(self) -> str:
        return str(self.args[0])


class Nameless(Trouble):
    """No name server knows the host: its name is wrong, or the network is away."""


class Missing(Exception):
    """Nothing has that name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept under a name: its bytes, and when they were written, in seconds since 1970 by the place's clock."""

    size: int
    written: float


class Vault(ABC):
    """Named bytes in one place.

    - What :meth:`write` began is there whole or not at all, whenever its writer, the machine or the connection stops.
    - A name that is written again holds the new bytes.
    - It remembers nothing: what another process wrote or removed is seen at once.
    - Every method raises :class:`Trouble` where the place cannot be used, and tries nothing twice.
    - Messages hold no credentials. It may be used from several threads, and opened on any node from its location alone.
    """

    @abstractmethod
    def address(self, name: str) -> str:
        """Where a name's bytes lie, for people."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes.

        Raises:
            Missing: There are none.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Keep ``data`` under ``name``."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes kept under a name; they are not read.

        Raises:
            Missing: There are none.
        """

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Remove a name; False where it was gone already."""

    @abstractmethod
    def entries(self) -> Mapping[str, Entry]:
        """Every name; nothing is read. Empty where the place is not there."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything was made here."""

    @abstractmethod
    def make(self) -> None:
        """Make the place where that is needed."""

    @abstractmethod
    def unmake(self) -> None:
        """Remove the place where nothing is left in it."""

    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """The names of the places that lie in this one, sorted."""
