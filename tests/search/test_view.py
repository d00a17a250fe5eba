"""The live view: lines where there is no terminal, a table drawn in place where there is one."""

import io
import os
import pty
import re
import threading
import time

import pytest
from rich.console import Console

from search.backends.simulated import Simulated, World
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import Progress, Score
from search.run import Run
from search.snapshot import Event, ReplicaState, RunningJob, Snapshot
from search.view import Lines, Screen, open_view, render

SNAPSHOT = Snapshot(
    replicas=(
        ReplicaState(0, 2, 5, 4, 1, 6, (Score(290, 297), Score(288, 297)), (80, 64)),
        ReplicaState(1, 5, 5, 0, 0, 0, tuple(Score(280 + task, 297) for task in range(5)), (11, 7)),
    ),
    running=(
        RunningJob(7, "stack", 0, 2, (3, 4, 5), "here:12", 12, 30, 0.964),
        RunningJob(8, "commit", 1, 4, (2,)),
    ),
)


def drawn(width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render("quickstart", SNAPSHOT, 83.0))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def test_the_table_on_a_narrow_terminal():
    assert drawn() == (
        "quickstart  1 min 23 s\n"
        "replica  task             cells                units free  test accuracy, %\n"
        "1        task 3 of 5      4 of 6 (1 diverged)  80 + 64     97.64  96.97\n"
        "2        all 5 committed                       11 + 7      94.28  94.61  94.95\n"
        "                                                           95.29  95.62\n"
        "\n"
        "running    where              epoch           validation  worker\n"
        "cells 3–5  replica 1, task 3  epoch 12 of 30  96.40 %     here:12\n"
        "commit     replica 2, task 5                              waiting"
    )


def test_without_a_run_nothing_is_running():
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(render("quickstart", Snapshot(SNAPSHOT.replicas, ()), 1.0))
    assert "running" not in console.export_text()


def test_the_view_goes_by_the_stream():
    assert isinstance(open_view(io.StringIO()), Lines)


def test_an_event_is_one_line():
    stream = io.StringIO()
    with open_view(stream) as view:
        view.watch("quickstart", lambda: SNAPSHOT)
        view.event(Event("cell finished", "alpha=0.1" * 40, 0, 1, 3))
        view.event(Event("run finished", "all tasks are committed"))
        view.note("since the last attempt: torch was 2.12, is 2.13")
    lines = stream.getvalue().splitlines()
    assert [line[10:] for line in lines] == [
        "replica 1, task 2: cell finished: " + "alpha=0.1" * 40,
        "run finished: all tasks are committed",
        "since the last attempt: torch was 2.12, is 2.13",
    ]
    assert all(line[2] == line[5] == ":" for line in lines)


def events(groups: int) -> dict[str, set[str]]:
    """What a simulated run of so many layers told, by kind."""
    experiment = Experiment.model_validate(
        {
            "tasks": {"count": 2},
            "model": {"hidden": [40] * groups},
            "grid": {"alpha": [0.0001, [1e-4] * groups + [1e-3]], "learning_rate": [0.0005]},
            "grow": {"by": 10, "below": 1000},
        }
    )
    book, found = MemoryBook(), []
    run = Run(experiment, book, book, data=lambda *_: "data", workers=1, on_event=found.append)
    Simulated(workers=1, world=World()).execute(run)
    assert run.finished, run.stopped
    return {kind: {event.text for event in found if event.kind == kind} for kind in {event.kind for event in found}}


def test_the_units_of_an_event_carry_their_noun():
    few, many = events(2), events(20)
    assert any(re.search(r", \d+ \+ \d+ new units$", text) for text in few["winner chosen"])
    assert all(re.search(r", [\d,]+ new units in 20 groups$", text) for text in many["winner chosen"])
    assert all(re.search(r", claimed \d+ \+ \d+ units, \d+ \+ \d+ free$", text) for text in few["task committed"])
    assert all(re.search(r", claimed [\d,]+ units, [\d,]+ free in 20 groups$", text) for text in many["task committed"])
    assert any(
        text.endswith("units grown: hidden1 from 40 to 50, hidden2 from 40 to 50") for text in few["task opened"]
    )
    assert any(text.endswith("units grown: from 800 to 1,000 in 20 groups") for text in many["task opened"])


def test_the_numbers_of_a_cell_are_written_in_one_way():
    few, many = events(2)["cell finished"], events(20)["cell finished"]
    assert {text.partition(": ")[0] for text in few} == {
        "alpha=1e-4,1e-4,1e-4 learning_rate=5e-4",
        "alpha=1e-4,1e-4,0.001 learning_rate=5e-4",
    }
    assert {text.partition(": ")[0] for text in many} == {
        "alpha=1e-4 in 21 layers learning_rate=5e-4",
        "alpha=1e-4 – 0.001 in 21 layers learning_rate=5e-4",
    }


def test_nothing_in_an_event_is_taken_for_markup():
    stream = io.StringIO()
    with open_view(stream) as view:
        view.note("[bold]sqlite:///[x].db[/bold] :smile:")
    assert stream.getvalue()[10:] == "[bold]sqlite:///[x].db[/bold] :smile:\n"


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_quiet_period_has_one_line_of_progress():
    stream = io.StringIO()
    with Lines(Console(file=stream, soft_wrap=True), period=0.2) as view:
        view.watch("quickstart", lambda: SNAPSHOT)
        wait_for(lambda: stream.getvalue().count("\n") >= 2)
    first = stream.getvalue().splitlines()[0]
    assert first[10:] == (
        "replica 1 task 3 of 5, 4 of 6 cells (1 diverged); replica 2 all 5 committed; "
        "running: cells 3–5 epoch 12 of 30, commit"
    )


def test_a_period_with_events_has_no_line_of_progress():
    stream = io.StringIO()
    with Lines(Console(file=stream), period=2.0) as view:
        view.watch("quickstart", lambda: SNAPSHOT)
        for _ in range(30):
            view.event(Event("task opened", "6 cells", 0, 0))
            time.sleep(0.1)
    assert "running:" not in stream.getvalue()


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._pieces: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 4096)
            except OSError:
                return
            self._pieces.append(piece)

    @property
    def text(self) -> str:
        return b"".join(self._pieces).decode(errors="replace")

    def close(self) -> None:
        self.stream.close()
        self._thread.join(5)
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_terminal_shows_the_table_and_gets_its_cursor_back(terminal):
    with open_view(terminal.stream) as view:
        assert isinstance(view, Screen)
        wait_for(lambda: "starting" in terminal.text)
        view.watch("quickstart", lambda: SNAPSHOT)
        wait_for(lambda: "task 3 of 5" in terminal.text and "epoch 12 of 30" in terminal.text)
        view.event(Event("cell finished", "quiet", 0, 1, 3))
        view.event(Event("cell dropped", "quiet", 0, 1, 4))
        view.event(Event("task committed", "test 290 of 297 right", 0, 1))
        wait_for(lambda: "replica 1, task 2: task committed: test 290 of 297 right" in terminal.text)
    wait_for(lambda: terminal.text.count("\x1b[?25h") == 1)
    assert terminal.text.count("\x1b[?25l") == 1
    assert "quiet" not in terminal.text


def test_a_stopped_replica_is_shown():
    state = ReplicaState(1, 2, 5, 6, 0, 6, (Score(9, 10), Score(8, 10)), (11, 0), "no free unit left")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(render("quickstart", Snapshot((state,), ()), 83.0))
    assert "stopped at task 3 of 5" in console.export_text()


class Stuck:
    """A write to the database in an outage: it tells the view so while the run is locked, then waits."""

    def __init__(self, view):
        self.view = view
        self.began, self.mended = threading.Event(), threading.Event()

    def __call__(self, step):
        if step == "before progress":
            self.view.note("the database cannot be used")
            self.began.set()
            self.mended.wait(30)


@pytest.mark.parametrize("kind", ["screen", "lines"])
def test_an_outage_in_the_middle_of_a_turn_blocks_neither_view_nor_end(terminal, kind):
    stream = io.StringIO()
    view = open_view(terminal.stream) if kind == "screen" else Lines(Console(file=stream, soft_wrap=True), period=0.1)
    stuck = Stuck(view)
    book = MemoryBook(World().artifacts, stuck)
    run = Run(Experiment(), book, book, data=lambda *_: "data", workers=1, on_event=view.event)

    def text():
        return terminal.text if kind == "screen" else stream.getvalue()

    with view:
        view.watch("quickstart", run.snapshot)
        job = run.next_job()
        wait_for(lambda: "task 1 of 5" in text())
        writer = threading.Thread(target=run.progress, args=(job.id, Progress("here", 1, 30, 0.5)), daemon=True)
        writer.start()
        assert stuck.began.wait(5), "a note waits for nothing"
        wait_for(lambda: "the database cannot be used" in text(), 5)
        before = text().count("task 1 of 5")
        wait_for(lambda: text().count("task 1 of 5") > before + 2, 10)
        ended = time.monotonic()
    assert time.monotonic() - ended < 5
    assert writer.is_alive()
    stuck.mended.set()
    writer.join(5)
    assert not writer.is_alive()


@pytest.mark.parametrize("kind", [Screen, Lines])
def test_a_snapshot_that_does_not_come_delays_neither_notes_nor_the_end(monkeypatch, kind):
    monkeypatch.setenv("TERM", "xterm-256color")
    asked, given = threading.Event(), threading.Event()

    def snapshot():
        asked.set()
        given.wait(30)
        return SNAPSHOT

    stream = io.StringIO()
    view = kind(Console(file=stream, force_terminal=kind is Screen))
    with view:
        view.watch("quickstart", snapshot)
        view.note("it begins")
        assert asked.wait(5)
        began = time.monotonic()
        view.note("it hangs")
    assert time.monotonic() - began < 5
    given.set()
    text = stream.getvalue()
    assert 0 < text.index("it begins") < text.index("it hangs")


def test_what_was_told_is_printed_in_order_also_after_the_end():
    stream = io.StringIO()
    with open_view(stream) as view:
        for number in range(200):
            view.note(f"note {number}")
    view.note("the end")
    told = [line[10:] for line in stream.getvalue().splitlines()]
    assert told == [*(f"note {number}" for number in range(200)), "the end"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_goes_away_ends_nothing(monkeypatch, capfd, terminal):
    """As ``| head`` and ``| tee`` do; the report on stdout is another matter."""

    class Gone(io.StringIO):
        left = 1

        def isatty(self):
            return terminal

        def write(self, text):
            self.left -= 1
            if self.left < 0:
                raise BrokenPipeError
            return len(text)

    monkeypatch.setenv("TERM", "xterm-256color")
    with open_view(Gone()) as view:
        view.watch("quickstart", lambda: SNAPSHOT)
        for number in range(5):
            view.note(f"note {number}")
            time.sleep(0.1)
    view.note("the end")
    os.write(1, b"the report")
    assert capfd.readouterr() == ("the report", "")


class Stopped(io.StringIO):
    """A terminal that was stopped with Ctrl-S."""

    def __init__(self, started):
        super().__init__()
        self._started = started

    def isatty(self):
        return True

    def write(self, text):
        self._started.wait(30)
        return super().write(text)


@pytest.mark.parametrize("kind", [Screen, Lines])
def test_a_stopped_terminal_delays_neither_notes_nor_the_end(monkeypatch, kind):
    monkeypatch.setenv("TERM", "xterm-256color")
    started = threading.Event()
    started.set()
    view = kind(Console(file=Stopped(started), force_terminal=True))
    with view:
        started.clear()
        began = time.monotonic()
        for _ in range(100):
            view.note("nobody reads it")
        assert time.monotonic() - began < 2
        time.sleep(0.1)
    assert time.monotonic() - began < 5
    started.set()


def test_events_from_many_threads_are_whole_lines():
    stream = io.StringIO()
    with open_view(stream) as view:
        view.watch("quickstart", lambda: SNAPSHOT)
        threads = [
            threading.Thread(target=lambda: [view.event(Event("job lost", "worker died", 0, 0)) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 200
    assert {line[10:] for line in lines} == {"replica 1, task 1: job lost: worker died"}
