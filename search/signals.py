"""The first SIGINT, SIGTERM or SIGHUP asks for an orderly end; the second ends the process at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Signals"]

_HANGUP = getattr(signal, "SIGHUP", None)
"""Of a terminal that is closed; Windows has none."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM, *([] if _HANGUP is None else [_HANGUP]))

_ONCE = 0.5
"""Seconds in which the same signal again is the first one still: who passes signals on, such as ``timeout``, sends one
to the process and one to its group. So is a hangup with another: a session that is closed may send both."""


class Signals:
    """Listens while it is entered, in the main thread alone, where Python handles signals; elsewhere it hears none.

    The handler only notes the signal: it runs between any two instructions of the main thread, where a lock may be
    held, so whoever wants to know looks at :attr:`received`. Under ``nohup`` a terminal may be closed.

    Args:
        at_second: Called before the second one ends the process: what ends others that would outlive it.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self, at_second: Callable[[], None] = lambda: None) -> None:
        self._at_second = at_second
        self.received: int | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or 0)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            nohup = _HANGUP is not None and signal.getsignal(_HANGUP) is signal.SIG_IGN
            heard = [number for number in _NUMBERS if not (nohup and number == _HANGUP)]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = number, now
        elif now - self._when > _ONCE or (number != self.received and _HANGUP not in (number, self.received)):
            try:
                self._at_second()
            finally:
                os._exit(128 + number)
