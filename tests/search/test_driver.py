"""A run from start to end, on a real database: what it refuses, how it continues, and how signals end it."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
from sqlalchemy import text

import clnp.pace
import search.driver
from search import machine
from search.driver import run_experiment
from search.errors import BadInput, Held, Impossible, Unavailable
from search.experiment import Experiment
from search.grid import cells, stacks
from search.records import Measured, load
from search.reports.plan import plan
from search.snapshot import Event, Snapshot
from search.store import Store, open_store
from search.writer import Writer

PLAIN: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [40, 30]},
    "grid": {"alpha": [1e-3], "learning_rate": [0.005, 0.01]},
    "training": {"epochs": 2},
    "rule": {"margin": 3},
    "worker": {"gpu": 0},
}


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**PLAIN, **changes})


class Noting:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[Event] = []
        self.snapshots: list[Snapshot] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def watch(self, name: str, snapshot: Callable[[], Snapshot]) -> None:
        assert name
        self.snapshots.append(snapshot())

    def event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def view() -> Noting:
    return Noting()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path / 'store.db'}", None) as store:
        yield store


@pytest.fixture
def drive(files: Store, view: Noting) -> Callable[..., None]:
    def call(chosen: Experiment | None = None, **options: Any) -> None:
        run_experiment(files, chosen or experiment(), **{"name": "small", "backend": "inline", "view": view, **options})

    return call


def test_a_run_goes_to_its_end_and_is_left_alone_then(drive: Callable[..., None], files: Store, view: Noting) -> None:
    drive()
    row = files.run("small")
    assert row is not None
    assert (row.state, row.reason) == ("finished", "")
    assert files.jobs("small") == []
    assert files.holder("small") is None
    assert sorted(files.history("small").commits) == [(0, 0), (0, 1)]
    (attempt,) = files.attempts("small")
    assert attempt.outcome == "finished"
    assert {
        "clnp-search",
        "numerics",
        "python",
        "torch",
        "ray",
        "optuna",
        "device",
        "threads",
    } <= attempt.versions.keys()
    assert [event.kind for event in view.events].count("task committed") == 2
    assert len(view.snapshots) == 1

    drive()
    assert len(files.attempts("small")) == 1
    assert any("finished" in note for note in view.notes)


def test_a_stack_is_measured_once_a_run_and_written_down(
    drive: Callable[..., None], files: Store, view: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: a driver that dies after it goes on by what is in the ledger."""
    monkeypatch.setattr(clnp.pace, "_SLOW", math.inf)  # however busy this machine is
    middle = experiment(
        model={"hidden": [350, 350]},
        grid={"alpha": [1e-3], "learning_rate": [1e-3, 2e-3, 3e-3]},
        tasks={"count": 1},
        training={"epochs": 1},
    )

    def die(*_: Any) -> None:
        raise Unavailable("the database is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "open_task", die)
        with pytest.raises(Unavailable):
            drive(middle)
    assert [event.kind for event in view.events][:1] == ["stack measured"]
    assert files.history("small").openings == {}
    measured = files.history("small").measured
    drive(middle)
    with files.database.engine.connect() as connection:
        notes = [
            load(Measured, note)
            for (note,) in connection.execute(text("SELECT note FROM clnp_jobs WHERE kind = 'measure'"))
        ]
    assert notes == [measured]
    assert measured is not None
    assert measured.memory is None
    assert measured.pace is not None
    assert measured.pace.members == 3
    formed = stacks(middle, cells(middle, 0), workers=1, pace=measured.pace)
    assert [opening.stacks for opening in files.history("small").openings.values()] == [formed]


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    drive: Callable[..., None], files: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: unless it is asked for others; and a plan says the same."""
    for chosen in (1, 2):
        monkeypatch.setattr(machine, "threads", lambda *_, chosen=chosen: chosen)
        drive(experiment(tasks={"count": chosen}))
    assert plan(experiment(tasks={"count": 3}), "small", store=files)["workers"]["threads"] == 1
    assert plan(experiment(), "other", store=files)["workers"]["threads"] == 2
    drive(experiment(tasks={"count": 3}, worker={"cpu": 2}))
    assert [attempt.versions["threads"] for attempt in files.attempts("small")] == ["1", "1", "2"]


def test_a_run_may_grow(drive: Callable[..., None], files: Store) -> None:
    drive()
    first = files.history("small").commits[0, 0]
    grown = experiment(tasks={"count": 3}, replicas=2, retries=7)
    drive(grown)
    history = files.history("small")
    assert sorted(history.commits) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert history.commits[0, 0] == first
    row = files.run("small")
    assert row is not None
    assert Experiment.from_json(row.experiment) == grown


def test_another_experiment_is_refused(drive: Callable[..., None], files: Store) -> None:
    """Promise 8: with the difference shown, and nothing started or changed."""
    drive()
    before = files.run("small"), files.attempts("small"), files.history("small")
    other = experiment(seed=4, tasks={"count": 1}, rule={"margin": 2.5})
    with pytest.raises(BadInput) as caught:
        drive(other)
    for part in ("seed: was 0, is 4", "rule.margin: was 3.0, is 2.5", "tasks.count: was 2, is 1", "--name NEW"):
        assert part in str(caught.value)
    assert (files.run("small"), files.attempts("small"), files.history("small")) == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "no/name"}, "cannot name a run"),
        ({"address": "host:6379"}, "--address host:6379"),
        ({"chosen": experiment(worker={"gpu": 3})}, "3 GPUs"),
        ({"chosen": experiment(tasks={"dataset": "mnist"}), "data_dir": "/nowhere"}, "/nowhere"),
        ({"backend": "tune", "address": "ray://head:10001"}, "clnp-search submit"),
    ],
)
def test_bad_input_makes_no_run(drive: Callable[..., None], files: Store, options: dict[str, Any], match: str) -> None:
    """Promise 8."""
    with pytest.raises(BadInput, match=match):
        drive(**options)
    assert not Path(files.artifacts).exists()
    assert [run.name for run in files.runs()] == []


def test_a_stop_is_written_down_and_the_same_command_tries_again(drive: Callable[..., None], files: Store) -> None:
    collapsed = experiment(grid={"alpha": [10.0], "learning_rate": [0.01]})
    for attempts in (1, 2):
        with pytest.raises(Impossible, match=r"majority|α|alpha"):
            drive(collapsed)
        row = files.run("small")
        assert row is not None
        assert row.state == "stopped"
        assert "task 1" in row.reason
        assert [attempt.outcome for attempt in files.attempts("small")] == ["stopped"] * attempts
        assert files.holder("small") is None
        assert files.jobs("small") == []


def test_other_versions_are_said_and_recorded(
    drive: Callable[..., None], files: Store, view: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive()
    monkeypatch.setattr(search.driver, "describe", lambda *_: {"torch": "1.0"})
    drive(experiment(replicas=2))
    last = files.attempts("small")[-1]
    assert last.versions["torch"] == "1.0"
    assert any("torch was" in note and "is 1.0" in note for note in last.notes)
    assert any("torch was" in note for note in view.notes)


def test_a_fork_that_was_interrupted_while_copying_trains_nothing(
    drive: Callable[..., None], files: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.driver, "copy_tasks", lambda *_, **__: False)
    drive()
    (attempt,) = files.attempts("small")
    row = files.run("small")
    assert row is not None
    assert (row.state, attempt.outcome, files.holder("small")) == ("open", "interrupted", None)
    assert files.history("small").openings == {}


def test_a_live_driver_keeps_others_out(drive: Callable[..., None], files: Store) -> None:
    chosen = experiment()
    with (
        files.take("small", experiment_json=chosen.to_json(), data="d" * 64, versions={}),
        pytest.raises(Held, match="which is running"),
    ):
        drive()  # before its data, which are others, are even read
    with pytest.raises(BadInput, match="data"):
        drive()
    files.delete("small")
    drive()
    row = files.run("small")
    assert row is not None
    with (
        files.take("small", experiment_json=row.experiment, data=row.data, versions={}),
        pytest.raises(Held, match=str(os.getpid())),
    ):
        drive(experiment(replicas=2))


# Signals end the process, so these tests run one


DRIVER = """
import sys
from search.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Child:
    """A driver in a process of its own, in the folder of the test."""

    def __init__(self, folder: Path, *options: str, **changes: Any) -> None:
        self.folder = folder
        file = folder / "small.yaml"
        file.write_text(json.dumps({**PLAIN, **changes}))  # JSON is YAML
        home = folder / "home"
        home.mkdir(exist_ok=True)
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "run", str(file), *options],
            cwd=folder,
            env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        assert self.process.stderr is not None
        while text not in (line := self.process.stderr.readline()):
            assert line, f"ended with {self.process.wait()}: {self.lines}"
            self.lines.append(line)

    def end(self, *signals: signal.Signals) -> tuple[float, str]:
        """Send signals; the seconds that it takes to end, and what it says on the way."""
        began = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return time.monotonic() - began, out + err

    def store(self) -> Store:
        return open_store(f"sqlite:///{self.folder / 'clnp-search.db'}", None, create=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(*options: str, **changes: Any) -> Child:
        children.append(Child(tmp_path, *options, **changes))
        return children[-1]

    yield make
    for child in children:
        child.process.kill()
        child.process.communicate()


ENDLESS = {"training": {"epochs": 10**6}}


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 150
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_gives_back_what_runs(start: Callable[..., Child], number: signal.Signals, code: int) -> None:
    child = start("--backend", "inline", **ENDLESS)
    child.wait_for("task opened")
    store = child.store()
    until(lambda: store.jobs("small") and store.jobs("small")[0].epoch > 0)
    seconds, said = child.end(number)
    assert child.process.returncode == code
    assert seconds < 5
    assert said.strip() == "interrupted; continue with: clnp-search resume small --backend inline"
    assert store.jobs("small") == []
    assert store.holder("small") is None
    assert store.attempts("small")[-1].outcome == "interrupted"
    row = store.run("small")
    assert row is not None
    assert row.state == "open"
    store.close()


def test_a_second_signal_leaves_at_once(start: Callable[..., Child]) -> None:
    child = start("--backend", "inline", **ENDLESS)
    child.wait_for("task opened")
    _, said = child.end(signal.SIGINT, signal.SIGTERM)
    assert child.process.returncode == 143, "an orderly end would be the first one's"
    assert "interrupted" not in said


def test_a_signal_is_answered_though_nobody_reads_what_it_says(start: Callable[..., Child]) -> None:
    """A Ctrl-C ends what the output is piped into too."""
    child = start("--backend", "inline", **ENDLESS)
    child.wait_for("task opened")
    store = child.store()
    for stream in (child.process.stdout, child.process.stderr):
        assert stream is not None
        stream.close()
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(timeout=60) == 130
    assert store.attempts("small")[-1].outcome == "interrupted"
    assert store.holder("small") is None
    store.close()


def test_a_lost_lease_ends_the_driver(start: Callable[..., Child]) -> None:
    """Promise 6: every write checks the lease, and who lost it writes no more."""
    child = start("--backend", "inline", **ENDLESS)
    child.wait_for("task opened")
    store = child.store()
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE clnp_leases SET token = 'another'")
    seconds, said = child.end()
    assert child.process.returncode == 4
    assert seconds < 20
    assert "taken over" in said
    store.close()


def test_a_second_signal_ends_ray_too(start: Callable[..., Child]) -> None:
    """Left alone, some of its processes go on for a minute."""
    child = start(**ENDLESS)
    child.wait_for("task opened")
    until(lambda: len(psutil.Process(child.process.pid).children(recursive=True)) > 4)
    family = psutil.Process(child.process.pid).children(recursive=True)
    child.end(signal.SIGINT, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert list(Path(tempfile.gettempdir()).glob(f"clnp-ray-{child.process.pid}-*")) == []


@pytest.mark.parametrize("moment", ["while Ray starts", "while workers train"])
def test_a_signal_ends_ray_too(start: Callable[..., Child], moment: str) -> None:
    child = start(**ENDLESS)
    child.wait_for("task opened")
    store = child.store()
    if moment == "while workers train":
        until(lambda: any(job.epoch > 0 for job in store.jobs("small")))
    else:
        until(lambda: psutil.Process(child.process.pid).children())
    family = psutil.Process(child.process.pid).children(recursive=True)
    seconds, said = child.end(signal.SIGINT)
    assert child.process.returncode == 130
    assert seconds < 5
    assert re.fullmatch(r"interrupted; continue with: clnp-search resume small\n", said)
    assert store.jobs("small") == []
    assert store.holder("small") is None
    store.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(Path(tempfile.gettempdir()).glob(f"clnp-ray-{child.process.pid}-*")) == []


def test_a_run_that_is_not_there_yet_is_not_to_be_resumed(start: Callable[..., Child]) -> None:
    """A cluster that takes the connection and never answers: the run's row is written after it has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = start("--address", f"127.0.0.1:{server.getsockname()[1]}", **ENDLESS)
        server.accept()[0].close()
        seconds, said = child.end(signal.SIGINT)
    assert child.process.returncode == 130
    assert seconds < 5
    assert said == "interrupted before anything was started; the same command starts it\n"
