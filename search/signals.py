"""The first SIGINT or SIGTERM asks for an orderly end; the second ends the process at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Signals"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Listens while it is entered, in the main thread alone, where Python handles signals; elsewhere it hears none.

    The handler only notes the signal: it runs between any two instructions of the main thread, where a lock may be
    held, so whoever wants to know looks at :attr:`received`.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.received or 0)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
