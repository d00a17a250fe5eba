"""The live view of a run: a table on a terminal, lines where there is none. It reads snapshots and changes nothing."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.book import place
from search.snapshot import Event, ReplicaState, RunningJob, Snapshot
from search.tables import grid
from search.text import duration, members, numbers, percent

__all__ = ["Lines", "Screen", "View", "open_view", "render"]

_QUIET = ("task opened", "cell finished", "winner chosen")
"""Events that the table shows anyway: on a terminal they are no lines of their own."""

_PERIOD = 60.0
"""Seconds between progress lines where there is no terminal."""


class View(Protocol):
    """What a driver tells while it runs. Everything may be called from any thread."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and leave the terminal as it was."""

    def watch(self, name: str, snapshot: Callable[[], Snapshot]) -> None:
        """Show the run ``name`` from now on, as ``snapshot`` gives it."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def note(self, text: str) -> None:
        """A line for people, such as who holds the lease."""


def open_view(stream: TextIO) -> View:
    """The view that fits ``stream``: drawn in place on a terminal, line by line elsewhere."""
    console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())
    return Screen(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class _Base:
    """What both views know: the run's name and where its snapshots come from."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._snapshot: Callable[[], Snapshot] | None = None
        self._since = time.monotonic()

    def watch(self, name: str, snapshot: Callable[[], Snapshot]) -> None:
        self._name, self._snapshot = name, snapshot

    def note(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(Text(f"{time.strftime('%H:%M:%S')}  {text}"))

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._since


class Screen(_Base):
    """Tasks, cells and accuracies of every replica, redrawn in place; what passes is printed above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=4, transient=True, redirect_stderr=False
        )

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        if event.kind not in _QUIET:
            self._print(event_line(event))

    def _draw(self) -> RenderableType:
        if self._snapshot is None:
            return Text("starting …", style="dim")
        return render(self._name, self._snapshot(), self._elapsed)


class Lines(_Base):
    """One line an event, and one line of progress in a minute that had none."""

    def __init__(self, console: Console, *, period: float = _PERIOD) -> None:
        super().__init__(console)
        self._period = period
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress lines", daemon=True)

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def event(self, event: Event) -> None:
        self._print(event_line(event))

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        super()._print(text)

    def _tick(self) -> None:
        while not self._ended.wait(max(0.01, self._last + self._period - time.monotonic())):
            if self._snapshot is not None and time.monotonic() >= self._last + self._period:
                self._print(progress_line(self._snapshot()))
            elif self._snapshot is None:
                self._last = time.monotonic()


def event_line(event: Event) -> str:
    """An event as one line, e.g. ``replica 1, task 2: cell finished, …``."""
    text = f"{event.kind}: {event.text}" if event.text else event.kind
    if event.replica is None:
        return text
    where = f"replica {event.replica + 1}" if event.task is None else place(event.replica, event.task)
    return f"{where}: {text}"


def progress_line(snapshot: Snapshot) -> str:
    """A snapshot as one line."""
    parts = [f"replica {state.index + 1} {_task(state)}{_cells(state, ', {} cells')}" for state in snapshot.replicas]
    running = [f"{_what(job)} {_epoch(job)}".strip() for job in snapshot.running]
    return "; ".join(parts) + (f"; running: {', '.join(running)}" if running else "")


def render(name: str, snapshot: Snapshot, elapsed: float) -> RenderableType:
    """The table that the terminal shows."""
    replicas = grid("replica", "task", "cells", "units free", "~test accuracy, %")
    for state in snapshot.replicas:
        tests = "  ".join(f"{100 * score.accuracy:.2f}" for score in state.tests)
        free = numbers(state.free) or "–"
        replicas.add_row(str(state.index + 1), _task(state), _cells(state, "{}"), free, tests or "–")
    head = Text.assemble((name, "bold"), (f"  {duration(elapsed)}", "dim"))
    if not snapshot.running:
        return Group(head, replicas)
    jobs = grid("running", "where", "epoch", "validation", "worker")
    for job in snapshot.running:
        accuracy = "" if job.accuracy is None else percent(job.accuracy)
        jobs.add_row(_what(job), place(job.replica, job.task), _epoch(job), accuracy, job.worker or "waiting")
    return Group(head, replicas, Text(), jobs)


def _task(state: ReplicaState) -> str:
    if state.committed == state.tasks:
        return f"all {state.tasks} committed"
    return f"task {state.committed + 1} of {state.tasks}"


def _cells(state: ReplicaState, form: str) -> str:
    if not state.cells:
        return ""
    diverged = f" ({state.diverged} diverged)" if state.diverged else ""
    return form.format(f"{state.finished} of {state.cells}") + diverged


def _what(job: RunningJob) -> str:
    return "commit" if job.kind == "commit" else members(job.cells)


def _epoch(job: RunningJob) -> str:
    return f"epoch {job.epoch} of {job.epochs}" if job.epochs else ""
