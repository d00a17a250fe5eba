"""Who writes the notes: a thread beside the driver's, so that no worker waits for a figure."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from search.errors import LeaseLost, SearchError
from search.snapshot import Event
from search.store import Store
from search.text import plural

if TYPE_CHECKING:
    from search.writer import Writer

__all__ = ["Notes", "complete"]

_PAUSE = 0.5
"""Seconds in which the next task's jobs go out first: Python runs one thread at a time."""

_POLL = 0.1


class Notes:
    """The notes of a run's committed tasks while its driver works.

    Entered, it makes good what an attempt before left out; :meth:`told` of a commit, it writes that one's. A note that
    could not be written is told of and tried again with the next one, or by the next attempt: the run goes on.

    Args:
        tell: Told, a line each, what could not be written.
        hurried: Asked at the end whether to leave the rest to the next attempt.
    """

    def __init__(
        self, store: Store, writer: "Writer", *, tell: Callable[[str], None], hurried: Callable[[], bool]
    ) -> None:
        self._store = store
        self._writer = writer
        self._tell = tell
        self._hurried = hurried
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"notes of {writer.name}", daemon=True)

    def __enter__(self) -> Self:
        self._wanted.put(None)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._wanted.put(None)
        while self._thread.is_alive() and not self._hurried():
            self._thread.join(_POLL)

    def told(self, event: Event) -> None:
        """Note a commit."""
        if event.kind == "task committed":
            self._wanted.put(None)

    def _work(self) -> None:
        while True:
            self._wanted.get()
            ending = self._ending.wait(_PAUSE)
            while not self._wanted.empty():
                self._wanted.get()
            try:
                _write(self._store, self._writer, self._hurried)
            except LeaseLost:
                return  # the driver meets it too, and says so
            except SearchError as error:
                if not self._hurried():
                    self._tell(f"a task's note for the dashboard is not written yet: {error}")
            if ending:
                return


def complete(store: Store, name: str, *, tell: Callable[[str], None]) -> None:
    """Write the notes that a finished run lacks, of another edition or where its last driver was cut off.

    Raises:
        Held: Another driver has the run.
    """
    missing = store.unnoted(name)
    if missing:
        tell(f"writing {plural(len(missing), 'note')} for the dashboard")
        with store.annotate(name) as writer:
            _write(store, writer, lambda: False)


def _write(store: Store, writer: "Writer", hurried: Callable[[], bool]) -> None:
    """Write every note that is missing, the oldest commit's first.

    Raises:
        SearchError: Of the first one that could not be written; those after it are.
    """
    missing = store.unnoted(writer.name)
    row = store.run(writer.name)
    if not missing or row is None:
        return
    from search.dashboard.note import compose, merge  # with plotly, once there is something to draw

    first: SearchError | None = None
    for place in missing:
        if hurried():
            return
        try:
            noted = store.noted(writer.name, *place)
            if noted is not None:
                writer.carry(*place, partial(merge, compose(row, noted)))
        except LeaseLost:
            raise
        except SearchError as error:
            first = first or error
    if first is not None:
        raise first
