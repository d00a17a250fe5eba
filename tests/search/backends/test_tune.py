"""The backend on a real Ray: one is started for all tests here, on this machine, with two workers."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.backends import cluster
from search.backends.inline import Inline
from search.backends.simulated import World
from search.backends.tune import Tune
from search.errors import BadInput, Unavailable
from search.experiment import Experiment
from search.machine import Pool
from search.memory import MemoryBook
from search.records import Job, Progress, dump
from search.run import Run
from search.worker import WorkerSettings

NewRun = Callable[..., Run]
Small = Callable[..., Experiment]

SECRET = "hunter2-in-a-url"


class Watching(MemoryBook):
    """Notes which worker does what; may kill the first one that is heard of."""

    def __init__(self, *, kill: bool = False) -> None:
        super().__init__()
        self.url = f"postgresql://user:{SECRET}@host/database"
        self.workers: dict[int, int] = {}
        self._kill = kill

    def progress(self, job: int, worker: str, epoch: int, accuracy: float | None) -> None:
        super().progress(job, worker, epoch, accuracy)
        self.workers[job] = int(worker.rpartition(":")[2])
        if self._kill:
            self._kill = False
            os.kill(self.workers[job], signal.SIGKILL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder for Ray; what lies in it keeps Ray from asking the cloud's metadata address who it is."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        (folder / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def tune(home: Path, artifacts: Path) -> Iterator[Tune]:
    backend = Tune()
    backend.start(Pool(2, "cpu", 1, 0), WorkerSettings(str(artifacts), None, "cpu", 1))
    backend._ready.result()
    yield backend
    ours = backend._cluster._processes()
    assert len(ours) > 3
    backend.close()
    psutil.wait_procs(ours, timeout=10)
    assert not [child for child in ours if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not os.path.exists(backend._cluster.folder)


@pytest.fixture
def undisturbed(small: Small, new_run: NewRun, results: Callable[[MemoryBook], Any], artifacts: Path) -> Any:
    """The records of the same run in one process."""
    backend, book = Inline(), MemoryBook()
    backend.start(Pool(1, "cpu", 1, 0), WorkerSettings(str(artifacts), None, "cpu", 1))
    backend.execute(new_run(one_cell_a_stack(small), book))
    return results(book)


def one_cell_a_stack(small: Small) -> Experiment:
    """Four stacks a task: at its commit, and at the opening of the next one, a worker of two is idle."""
    return small(worker={"cells": 1, "gpu": 0})


def test_a_run_is_that_of_one_process_and_its_workers_stay_warm(
    tune: Tune,
    small: Small,
    new_run: NewRun,
    results: Callable[[MemoryBook], Any],
    undisturbed: Any,
    home: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Promise 3 for the records, Promise 6 for what lies on disk.

    Ray starts no process that nobody needs.
    """
    until = time.monotonic() + 10
    while len(started := {process.pid: process.name() for process in tune._cluster._processes()}) < 6:
        assert time.monotonic() < until, started
        time.sleep(0.1)
    book = Watching()
    run = new_run(one_cell_a_stack(small), book, workers=2)
    tune.execute(run)
    assert len(started) == 6, started  # the cluster's store, the node with its two agents, two workers
    assert run.finished
    assert results(book) == undisturbed
    assert {job.state for job in book.jobs.values()} == {"done"}
    assert len(book.workers) == 8
    assert len(set(book.workers.values())) == 2
    assert capfd.readouterr() == ("", "")
    files = [path for path in Path(tune._cluster.folder).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert os.listdir(home) == ["ray_bootstrap_config.yaml"]


def test_a_worker_that_dies_loses_its_job_alone(
    tune: Tune,
    small: Small,
    new_run: NewRun,
    results: Callable[[MemoryBook], Any],
    undisturbed: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Promise 3."""
    book = Watching(kill=True)
    run = new_run(one_cell_a_stack(small), book, workers=2)
    tune.execute(run)
    assert run.finished
    assert results(book) == undisturbed
    lost = [job_id for job_id, job in book.jobs.items() if job.state == "lost"]
    assert lost == [next(iter(book.workers))]
    assert "died" in book.jobs[lost[0]].note
    assert len(set(book.workers.values())) == 3
    assert capfd.readouterr() == ("", "")


def test_a_job_that_raises_is_lost_with_its_reason(
    tune: Tune, small: Small, new_run: NewRun, artifacts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be written where the artifacts belong."""
    experiment = small(grid={"alpha": [1e-3], "learning_rate": [1e-3]}, retries=0)
    run = new_run(experiment, book := MemoryBook(), workers=2)
    aside = artifacts.rename(artifacts.with_name("aside"))
    artifacts.symlink_to("/proc")
    try:
        tune.execute(run)
    finally:
        artifacts.unlink()
        aside.rename(artifacts)
    assert isinstance(run.stopped, Unavailable)
    assert len(book.losses) == 1
    assert book.losses[0].note.startswith("search.errors.Unavailable: ")
    assert str(artifacts) in book.losses[0].note
    assert capfd.readouterr() == ("", "")


def test_it_ends_when_ray_does_not_start(
    small: Small, new_run: NewRun, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Unavailable("Ray does not start on this machine: no")

    monkeypatch.setattr(cluster.Cluster, "start", fail)
    backend = Tune()
    backend.start(Pool(1, "cpu", 1, 0), settings)
    try:
        with pytest.raises(Unavailable, match="does not start"):
            backend.execute(new_run(small(), MemoryBook()))
    finally:
        backend.stop.set()
        backend.close()


def test_a_worker_of_several_threads_is_one_process(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray begins with a process for each core it is told of; how many threads a worker has is in its settings."""
    began: list[Pool] = []
    monkeypatch.setattr(cluster.Cluster, "start", lambda _, pool: began.append(pool))
    monkeypatch.setattr(cluster.Cluster, "stop", lambda _: None)  # it would end the Ray of the other tests
    backend = Tune()
    backend.start(Pool(2, "cpu", 3, 0), replace(settings, threads=3))
    backend._ready.result()
    backend.close()
    assert began == [Pool(2, "cpu", 1, 0)]
    assert backend._settings is not None
    assert backend._settings.threads == 3


def test_stop_does_not_wait_for_ray(
    small: Small, new_run: NewRun, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = threading.Event()
    monkeypatch.setattr(cluster.Cluster, "start", lambda *_: starting.wait(60))
    backend = Tune()
    backend.start(Pool(1, "cpu", 1, 0), settings)
    book = MemoryBook()
    run = new_run(small(), book)
    threading.Timer(0.3, backend.stop.set).start()
    began = time.monotonic()
    backend.execute(run)
    backend.close()
    assert time.monotonic() - began < 2
    run.give_back()
    assert {job.state for job in book.jobs.values()} == {"given back"}
    starting.set()


def test_what_came_back_before_a_stop_is_taken_in(small: Small) -> None:
    """An orderly stop loses no finished cell, and blames nobody for a worker that ended with it."""
    from search.backends.hooks import Ended, Exchange, Progressed, Returned

    world, backend = World(), Tune()
    stop_at_the_first = lambda step: backend.stop.set() if step == "after the trial" else None  # noqa: E731
    book = MemoryBook(world.artifacts, stop_at_the_first)
    run = Run(small(worker={"gpu": 0, "cells": 1}), book, book, data=lambda *_: "d", workers=4)
    exchange = Exchange()

    class AtOnce:
        """Workers that need no time; the last of them dies."""

        def put(self, job: Any) -> None:
            exchange.events.put(Progressed(job.id, dump(Progress("here:1", 1, 2, 0.5))))
            last = job.cells[0].index == 3
            ended = Ended(job.id, "it was killed") if last else Returned(job.id, dump(world.stack(job, {}, 0.0, 1.0)))
            exchange.events.put(ended)

    exchange.jobs = AtOnce()  # type: ignore[assignment]
    left = backend._carry(run, exchange, Future(), Pool(4, "cpu", 1, 0))
    backend.close()
    run.give_back()
    assert sorted(book.cells[0, 0]) == [0, 1, 2]
    assert len(left) == 1
    assert not book.losses


def test_ray_begins_to_start_before_torch_is_imported() -> None:
    """Each takes seconds, and on two cores they go side by side."""
    script = "import sys, search.driver, search.backends.tune; print([n for n in ('torch', 'ray') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_ray_client_is_refused() -> None:
    with pytest.raises(BadInput, match="clnp-search submit"):
        Tune("ray://head:10001")


def test_hooks_show_pickle_nothing(settings: WorkerSettings) -> None:
    """Promise 6: Tune pickles its searcher to disk."""
    from search.backends.hooks import Delivery, Exchange, Jobs, Parking

    exchange = Exchange()
    parking = Parking(exchange)
    jobs = Jobs(exchange, settings, parking)
    for hook in (parking, jobs, Delivery(exchange, jobs, parking)):
        assert hook.__getstate__() == {}
        assert len(pickle.dumps(hook)) < 200


def test_suggest_waits_while_there_is_nothing_else_to_do(settings: WorkerSettings) -> None:
    """None would make Tune sleep a second, again and again."""
    from search.backends.hooks import Exchange, Jobs, Parking

    exchange = Exchange()
    jobs = Jobs(exchange, settings, Parking(exchange))
    job = some_job()
    threading.Timer(0.2, exchange.jobs.put, (job,)).start()
    suggested = jobs.suggest("first")
    assert isinstance(suggested, dict)
    assert jobs.of == {"first": job.id}
    assert jobs.suggest("second") is None  # a trial lives: Tune has something to look after
    exchange.over.set()
    assert jobs.suggest("third") == jobs.FINISHED


def test_a_parked_worker_goes_to_one_new_trial_at_a_time(settings: WorkerSettings) -> None:
    from search.backends.hooks import Exchange, Jobs, Parking

    class Controller:
        def __init__(self) -> None:
            self.stopped: list[Any] = []

        def stop_trial(self, trial: Any) -> None:
            self.stopped.append(trial)

    exchange, controller = Exchange(), Controller()
    parking = Parking(exchange)
    jobs = Jobs(exchange, settings, parking)
    for trial in ("a", "b", "c"):
        parking.on_trial_add(controller, trial)
    assert not parking.waking
    for trial in ("a", "b", "c"):
        assert parking.on_trial_result(controller, trial, {"progress": ""}) == "CONTINUE"
        assert parking.on_trial_result(controller, trial, {"result": ""}) == "NOOP"
    parking.choose_trial_to_run(controller)
    assert controller.stopped == []
    parking.on_trial_add(controller, "d")
    exchange.jobs.put(some_job())
    assert jobs.suggest("e") is None
    parking.choose_trial_to_run(controller)
    assert controller.stopped == ["a"]
    assert jobs.suggest("e") is not None
    exchange.over.set()
    parking.choose_trial_to_run(controller)
    assert controller.stopped == ["a", "b", "c"]


def some_job() -> Job:
    from search.records import Cell, StackJob

    return StackJob(7, 0, 0, (Cell(0, (0.1,), 0.1),), (), (), "data", {})


FOUR = """
import sys
from search.backends.tune import Tune
from search.experiment import Experiment
from search.machine import Pool
from search.memory import MemoryBook
from search.run import Run
from search.building import build_sequence
from search.worker import WorkerSettings

workers = set()


class Watching(MemoryBook):
    def progress(self, job, worker, epoch, accuracy):
        workers.add(worker)


experiment = Experiment.model_validate_json(sys.argv[1])
sequence = build_sequence(experiment, 0, None)
book = Watching()
backend = Tune()
backend.start(Pool(4, "cpu", 1, 0), WorkerSettings(sys.argv[2], None, "cpu", 1))
run = Run(experiment, book, book, data=lambda _, task: sequence.sha256(task), workers=4)
backend.execute(run)
backend.close()
print(run.finished, len(workers))
"""


@pytest.mark.slow
def test_four_workers_stay_warm(small: Small, home: Path, tmp_path: Path) -> None:
    """One replica: at every task change three of four workers are idle. A process of its own: Ray is one a process."""
    experiment = small(tasks={"count": 3}, worker={"cells": 1, "gpu": 0})
    command = [sys.executable, "-c", FOUR, experiment.model_dump_json(), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True 4\n", "")
