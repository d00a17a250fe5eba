"""The live view of a run: a table on a terminal, lines where there is none. It reads snapshots and changes nothing."""

import errno
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.book import place
from search.snapshot import Event, ReplicaState, RunningJob, Snapshot
from search.tables.common import grid
from search.text import MANY, accuracies, duration, percent, plural, units
from search.text import job as job_text

__all__ = ["Lines", "Screen", "View", "open_view", "render"]

_QUIET = ("task opened", "cell finished", "cell dropped", "winner chosen")
"""Events that the table shows anyway: on a terminal they are no lines of their own."""

_PERIOD = 60.0
"""Seconds between progress lines where there is no terminal."""

_REDRAW = 0.25
"""Seconds between two drawings of the table."""

_ROWS = 10
"""Rows that the table shows of replicas, and as many of jobs: with its lines between them as many as a terminal has."""

_PATIENCE = 0.5
"""Seconds to wait for a terminal that takes no text, such as one that was stopped with Ctrl-S."""


class View(Protocol):
    """What a driver tells while it runs. Everything may be called from any thread, whatever locks it holds."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print what was told, stop drawing and leave the terminal as it was."""

    def watch(self, name: str, snapshot: Callable[[], Snapshot]) -> None:
        """Show the run ``name`` from now on, as ``snapshot`` gives it."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def note(self, text: str) -> None:
        """A line for people, such as who holds the lease."""


def open_view(stream: TextIO) -> View:
    """The view that fits ``stream``: drawn in place on a terminal, line by line elsewhere."""
    console = _Console(file=stream, highlight=False, soft_wrap=not stream.isatty())
    return Screen(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class _Console(Console):
    """Says that its reader is gone. Rich would end the thread, and have stdout, where the report goes, lead nowhere."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Base(ABC):
    """What both views have in common: a thread of their own, which writes what was queued.

    Who tells a view something may hold the very lock that a snapshot needs. So telling only queues, a snapshot is taken
    while no lock is held, and nothing here waits for long: not for the run, not for a terminal that takes no text.
    """

    def __init__(self, console: Console, period: float) -> None:
        self._console = console
        self._period = period
        self._name = ""
        self._snapshot: Callable[[], Snapshot] | None = None
        self._since = time.monotonic()
        self._texts: deque[str] = deque()
        self._woken = threading.Event()
        self._ended = False
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        self._write(self._open)
        threading.Thread(target=self._work, name="view", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._woken.set()
        self._write(self._close)

    def watch(self, name: str, snapshot: Callable[[], Snapshot]) -> None:
        self._name, self._snapshot = name, snapshot

    def note(self, text: str) -> None:
        self._texts.append(_stamped(text))
        self._woken.set()
        if self._ended:
            self._write(_nothing)

    def _work(self) -> None:
        while not self._ended:
            quiet = not self._woken.wait(self._period)
            self._woken.clear()
            snapshot = None if self._snapshot is None else self._snapshot()
            self._write(partial(self._draw_unless_ended, snapshot, quiet))

    def _write(self, then: Callable[[], None]) -> None:
        """Print what is queued, then do ``then``; one thread at a time. Given up if the terminal takes nothing.

        Once nobody reads it, as after ``| head`` or on a terminal that is closed, nothing is printed: that ends no run.
        Nor does a disk that is full for a while: what was queued is not said.
        """
        if self._writing.acquire(timeout=_PATIENCE):
            try:
                while self._texts:
                    self._console.print(Text(self._texts.popleft()))
                then()
            except OSError as error:
                self._texts.clear()
                self._console.quiet = error.errno in (None, errno.EPIPE, errno.EIO)
            finally:
                self._writing.release()

    def _draw_unless_ended(self, snapshot: Snapshot | None, quiet: bool) -> None:
        if not self._ended:
            self._draw(snapshot, quiet)

    def _open(self) -> None:  # noqa: B027 – not every view has a part in it
        """Before the thread begins."""

    @abstractmethod
    def _draw(self, snapshot: Snapshot | None, quiet: bool) -> None:
        """Show a snapshot, None where there is no run yet; ``quiet``: for a period nothing was printed."""

    def _close(self) -> None:  # noqa: B027 – not every view has a part in it
        """Leave the terminal as it was."""


class Screen(_Base):
    """Tasks, cells and accuracies of every replica, redrawn in place; what passes is printed above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, _REDRAW)
        # Without rich's own refreshing: it would take the snapshot while it holds the lock that printing needs.
        self._live = Live(
            Text("starting …", style="dim"), console=console, auto_refresh=False, transient=True, redirect_stderr=False
        )

    def event(self, event: Event) -> None:
        if event.kind not in _QUIET:
            self.note(event_line(event))

    def _open(self) -> None:
        self._live.start(refresh=True)

    def _draw(self, snapshot: Snapshot | None, quiet: bool) -> None:  # noqa: ARG002 – redrawn whether or not
        if snapshot is not None:
            self._live.update(render(self._name, snapshot, time.monotonic() - self._since), refresh=True)

    def _close(self) -> None:
        self._live.stop()


class Lines(_Base):
    """One line an event, and one line of progress in a minute that had none."""

    def __init__(self, console: Console, *, period: float = _PERIOD) -> None:
        super().__init__(console, period)

    def event(self, event: Event) -> None:
        self.note(event_line(event))

    def _draw(self, snapshot: Snapshot | None, quiet: bool) -> None:
        if quiet and snapshot is not None:
            self._console.print(Text(_stamped(progress_line(snapshot))))


def _stamped(text: str) -> str:
    return f"{time.strftime('%H:%M:%S')}  {text}"


def _nothing() -> None:
    """Nothing follows what is printed."""


def event_line(event: Event) -> str:
    """An event as one line, e.g. ``replica 1, task 2: cell finished, …``."""
    text = f"{event.kind}: {event.text}" if event.text else event.kind
    if event.replica is None:
        return text
    where = f"replica {event.replica + 1}" if event.task is None else place(event.replica, event.task)
    return f"{where}: {text}"


def progress_line(snapshot: Snapshot) -> str:
    """A snapshot as one line; of many replicas what they come to together."""
    if len(snapshot.replicas) > MANY or len(snapshot.running) > _ROWS:
        return _summary(snapshot)
    parts = [f"replica {state.index + 1} {_task(state)}{_cells(state, ', {} cells')}" for state in snapshot.replicas]
    running = [f"{job_text(job.kind, job.cells)} {_epoch(job)}".strip() for job in snapshot.running]
    return "; ".join(parts) + (f"; running: {', '.join(running)}" if running else "")


def _summary(snapshot: Snapshot) -> str:
    """All replicas together: ``100 replicas: 1,234 of 2,000 tasks committed, …``."""
    states = snapshot.replicas
    committed, tasks = (sum(getattr(state, key) for state in states) for key in ("committed", "tasks"))
    finished, cells, diverged, dropped = (sum(found) for found in zip(*map(_counts, states), strict=True))
    text = f"{plural(len(states), 'replica')}: {committed:,} of {tasks:,} tasks committed"
    if cells:
        text += f"; of the open ones {finished:,} of {cells:,} cells"
        text += _ended(diverged, dropped)
    stopped = sum(state.stopped is not None for state in states)
    text += f"; {plural(stopped, 'replica')} stopped" if stopped else ""
    return text + (f"; {plural(len(snapshot.running), 'job')} running" if snapshot.running else "")


def render(name: str, snapshot: Snapshot, elapsed: float) -> RenderableType:
    """The table that the terminal shows: of many replicas those that are furthest behind, of many jobs the first."""
    shown = snapshot.replicas
    head = Text.assemble((name, "bold"), (f"  {duration(elapsed)}", "dim"))
    parts: list[RenderableType] = [head]
    many = len(shown) > _ROWS
    if many:
        parts.append(Text(_summary(snapshot)))
        shown = tuple(sorted(shown, key=lambda state: (state.committed, state.finished, state.index))[:_ROWS])
    replicas = grid("replica", "task", "cells", "units free", "mean test" if many else "~test accuracy, %")
    for state in shown:
        scores = [score.accuracy for score in state.tests]
        tests = percent(sum(scores) / len(scores)) if many and scores else accuracies(scores)
        free = units(state.free) or "–"
        replicas.add_row(str(state.index + 1), _task(state), _cells(state, "{}"), free, tests)
    parts += [replicas, *_more(len(snapshot.replicas), "replicas that have come further")]
    if snapshot.running:
        jobs = grid("running", "where", "epoch", "validation", "worker")
        for job in snapshot.running[:_ROWS]:
            accuracy = "" if job.accuracy is None else percent(job.accuracy)
            what, where = job_text(job.kind, job.cells), place(job.replica, job.task)
            jobs.add_row(what, where, _epoch(job), accuracy, job.worker or "waiting")
        parts += [Text(), jobs, *_more(len(snapshot.running), "jobs")]
    return Group(*parts)


def _more(count: int, what: str) -> list[Text]:
    return [Text(f"… and {count - _ROWS:,} more {what}", style="dim")] if count > _ROWS else []


def _task(state: ReplicaState) -> str:
    if state.committed == state.tasks:
        return f"all {state.tasks} committed"
    where = f"task {state.committed + 1} of {state.tasks}"
    return where if state.stopped is None else f"stopped at {where}"


def _counts(state: ReplicaState) -> tuple[int, int, int, int]:
    return state.finished, state.cells, state.diverged, state.dropped


def _cells(state: ReplicaState, form: str) -> str:
    if not state.cells:
        return ""
    return form.format(f"{state.finished} of {state.cells}") + _ended(state.diverged, state.dropped)


def _ended(diverged: int, dropped: int) -> str:
    """How many of the finished cells are no candidates: ``(1 diverged, 3 dropped)``."""
    counts = ((diverged, "diverged"), (dropped, "dropped"))
    words = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    return f" ({words})" if words else ""


def _epoch(job: RunningJob) -> str:
    if job.waiting:
        return "waiting"
    return f"epoch {job.epoch} of {job.epochs}" if job.epochs else ""
