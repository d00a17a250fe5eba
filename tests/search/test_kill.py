"""Promise 3: a run that was killed at any moment and continued has the records of one that was not, hash for hash.

The driver is a process of its own and ends itself with SIGKILL at a named point. What it left is continued in this
process, one job after another.
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search.artifacts import Artifacts
from search.driver import run_experiment
from search.experiment import Experiment
from search.ledger import Jobs
from search.names import study_name
from search.store import Store, open_store
from search.view import open_view

SMALL: dict[str, Any] = {
    "name": "killed",
    "tasks": {"count": 2},
    "model": {"hidden": [100, 30]},  # at a width of 100 the size of a stack changes bits
    "replicas": 2,
    "grid": {"alpha": [1e-3, 2e-3], "learning_rate": [0.005]},
    "training": {"epochs": 2},
    "rule": {"margin": 3},
    "worker": {"cells": 2, "gpu": 0},
}

DRIVER = """
import json, os, signal, sys

import clnp.finetuning
import search.building
import search.worker.commit
from search.artifacts import Artifacts
from search.driver import run_experiment
from search.experiment import Experiment
from search.store import open_store
from search.studies import Studies
from search.view import open_view
from search.writer import Writer

POINTS = {
    "after an upload": (Artifacts, "put", "after"),
    "after a staircase": (Studies, "add", "before"),
    "after a trial": (Studies, "add", "after"),
    "during a commit": (search.worker.commit, "commit", "after"),
    "while a commit is fine-tuned": (clnp.finetuning, "put_back", "after"),
    "before a commit is written": (Writer, "add_commit", "before"),
    "after a commit": (Writer, "add_commit", "after"),
    "after its end": (Writer, "finish", "after"),
}


def die(owner, name, moment, left):
    real = getattr(owner, name)

    def deadly(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def drive(url, folder, experiment, backend, point, count):
    if point:
        die(*POINTS[point], count)
    log = open(f"{folder}/log", "a")
    os.dup2(log.fileno(), 2)
    with open_store(url, f"{folder}/artifacts", patience=600) as store, open_view(sys.stderr) as view:
        run_experiment(store, Experiment.model_validate(experiment), name="killed", backend=backend, view=view)


if len(sys.argv) > 1:
    drive(*json.loads(sys.argv[1]))
    sys.exit()
import search.backends.inline  # not again for every driver: to import takes longer than such a run

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        drive(*json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Records:
    """All that a run leaves, but for when, by which jobs and on which worker it came about."""

    openings: Any
    cells: Any
    commits: Any
    artifacts: tuple[str, ...]
    trials: Any


def url(folder: Path) -> str:
    """Of the run in a folder: what the file ``url`` in it says, else a SQLite file."""
    file = folder / "url"
    return file.read_text() if file.exists() else f"sqlite:///{folder / 'store.db'}"


def _asked(folder: Path, experiment: Experiment, backend: str, point: str, count: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return json.dumps([url(folder), str(folder), experiment.to_json(), backend, point, count])


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **more, "PYTHONPATH": path}


def start(folder: Path, experiment: Experiment, *, point: str = "", count: int = 0) -> "subprocess.Popen[bytes]":
    """A driver whose workers are Ray's."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    command = [sys.executable, "-c", DRIVER, _asked(folder, experiment, "tune", point, count)]
    return subprocess.Popen(command, env=_environment(HOME=str(home)), stdout=subprocess.DEVNULL)


class Forked:
    """A driver that a process which has everything imported forked: it works at once. One at a time."""

    def __init__(self, parent: Any, folder: Path, experiment: Experiment, point: str = "", count: int = 0) -> None:
        self.returncode: int | None = None
        self._parent = parent
        print(_asked(folder, experiment, "inline", point, count), file=parent.stdin, flush=True)
        self.pid = int(parent.stdout.readline())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._parent.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("driver", timeout or 0)
            self.returncode = int(self._parent.stdout.readline())
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def fork() -> Iterator[Callable[..., Forked]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], **pipes, env=_environment(OMP_NUM_THREADS="1"), text=True
    ) as parent:
        yield partial(Forked, parent)


def open_folder(folder: Path) -> Store:
    return open_store(url(folder), str(folder / "artifacts"))


def go_on(folder: Path, experiment: Experiment) -> Records:
    """Continue in this process to the end, check that nothing was left behind, and read all records."""
    with open_folder(folder) as store, open(os.devnull, "w") as nowhere, open_view(nowhere) as view:
        run_experiment(store, experiment, name="killed", backend="inline", view=view)
        row = store.run("killed")
        assert row is not None
        assert row.state == "finished"
        assert store.jobs("killed") == []
        assert store.holder("killed") is None
        history = store.history("killed")
        return Records(
            openings=history.openings,
            cells={
                (place, index): replace(record, started=0.0, ended=0.0)
                for place, records in history.cells.items()
                for index, record in records.items()
            },
            commits={place: replace(record, started=0.0, ended=0.0) for place, record in history.commits.items()},
            artifacts=Artifacts(row.artifacts).list(),
            trials=_trials(store, experiment),
        )


def _trials(store: Store, experiment: Experiment) -> Any:
    """Every trial of every study by its cell; none may be there twice, and none unfinished."""
    storage = store.database.rdb_storage()
    found = {}
    for replica in range(experiment.replicas):
        for task in range(experiment.tasks.count):
            name = study_name("killed", replica, task)
            trials = optuna.load_study(study_name=name, storage=storage).trials
            assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
            by_cell = Counter(trial.user_attrs["cell"] for trial in trials)
            assert set(by_cell.values()) == {1}
            for trial in trials:
                values = trial.values, trial.params, trial.intermediate_values, trial.user_attrs["artifact"]
                found[name, trial.user_attrs["cell"]] = values
    return found


def small(**changes: Any) -> Experiment:
    return Experiment.model_validate({**SMALL, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    records = go_on(tmp_path_factory.mktemp("undisturbed"), small())
    assert len(records.cells) == 8
    assert len(records.commits) == 4
    assert len(records.artifacts) == 8  # a winner and a commit each
    return records


def killed(process: Any, *, within: float = 120) -> None:
    assert process.wait(within) == -signal.SIGKILL


# With two cells a task and two replicas there are 12 uploads, 8 staircases and trials, and 4 commits.
@pytest.mark.parametrize(
    ("database", "point", "count"),
    [
        ("sqlite", "after an upload", 4),
        ("sqlite", "after a staircase", 2),
        ("postgresql", "after a staircase", 2),
        ("sqlite", "after a trial", 5),
        ("sqlite", "during a commit", 2),
        ("sqlite", "before a commit is written", 3),
        ("postgresql", "after a commit", 1),
    ],
)
def test_killed_at_a_named_point(
    database: str,
    point: str,
    count: int,
    tmp_path: Path,
    undisturbed: Records,
    fork: Callable[..., Forked],
    request: pytest.FixtureRequest,
) -> None:
    if database == "postgresql":
        (tmp_path / "url").write_text(request.getfixturevalue("postgres_url"))
    killed(fork(tmp_path, small(), point, count))
    with open_folder(tmp_path) as store:
        assert len(store.history("killed").commits) < 4
        assert store.jobs("killed")
    assert go_on(tmp_path, small()) == undisturbed


def test_killed_once_its_end_is_written(tmp_path: Path, undisturbed: Records, fork: Callable[..., Forked]) -> None:
    """Nobody goes on with a finished run, so its driver leaves nothing that another would have to clear away."""
    killed(fork(tmp_path, small(), "after its end", 1))
    with open_folder(tmp_path) as store:
        (attempt,) = store.attempts("killed")
        assert attempt.outcome == "finished"
        assert attempt.ended is not None
    assert go_on(tmp_path, small()) == undisturbed


def test_killed_while_a_commit_is_fine_tuned(tmp_path: Path, fork: Callable[..., Forked]) -> None:
    """Between two rounds: the commit runs again whole, with the same bits."""
    tuned = {"epochs": 2, "learning_rate": 0.005, "alpha": 1e-4, "rounds": 2, "margin": 8}
    experiment = small(fine_tuning=tuned, replicas=1, tasks={"count": 1})
    (tmp_path / "undisturbed").mkdir()
    expected = go_on(tmp_path / "undisturbed", experiment)
    assert any(one.better for commit in expected.commits.values() for one in commit.rounds)
    killed(fork(tmp_path / "killed", experiment, "while a commit is fine-tuned", 1))
    with open_folder(tmp_path / "killed") as store:
        assert store.jobs("killed")
        assert not store.history("killed").commits
    assert go_on(tmp_path / "killed", experiment) == expected


def test_killed_again_and_again(tmp_path: Path, undisturbed: Records, fork: Callable[..., Forked]) -> None:
    """The records of a stack come in over several drivers, none of which sees its end."""
    for _ in range(2):
        killed(fork(tmp_path, small(), "after a trial", 1))
    assert go_on(tmp_path, small()) == undisturbed


@pytest.fixture
def family() -> Iterator[Callable[[Any], None]]:
    """Remembers the children of a driver. Ray's processes notice its end by themselves, its agents after a minute."""
    members: list[psutil.Process] = []
    drivers: list[int] = []

    def remember(process: Any) -> None:
        drivers.append(process.pid)
        members.extend(psutil.Process(process.pid).children(recursive=True))

    yield remember
    alive = [process for process in members if process.is_running()]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().endswith("Agent"):
                process.kill()
    _, alive = psutil.wait_procs(alive, timeout=30)
    for driver in drivers:
        for folder in Path(tempfile.gettempdir()).glob(f"clnp-ray-{driver}-*"):
            shutil.rmtree(folder, ignore_errors=True)
    assert alive == []


def test_killed_with_ray(tmp_path: Path, undisturbed: Records, family: Callable[[Any], None]) -> None:
    """Workers that outlive their driver may still upload; that changes no record."""
    process = start(tmp_path, small(), point="after a commit", count=2)
    end = time.monotonic() + 120
    with open_folder(tmp_path) as store:
        while process.poll() is None:
            if any(job.epoch for job in store.jobs("killed")):
                family(process)
                break
            assert time.monotonic() < end
            time.sleep(0.02)
    killed(process)
    assert go_on(tmp_path, small()) == undisturbed


# Hundreds of kills, at random moments


MANY: dict[str, Any] = {
    **SMALL,
    "training": {"epochs": 6},
    # A stack that kills its worker twice goes out cell by cell, with other bits.
    "worker": {"cells": 1, "gpu": 0},
    "retries": 100,
}


@pytest.fixture
def new_folder(tmp_path: Path, new_url: Callable[[str], str]) -> Callable[[str], Path]:
    """Makes a folder whose run has a database of its own, of either kind."""

    def make(kind: str) -> Path:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if kind == "postgresql":
            (folder / "url").write_text(new_url(kind))
        return folder

    return make


def say(text: str) -> None:
    """Into the log of a test that takes minutes."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    ("backend", "kind", "kills"), [("inline", "postgresql", 80), ("tune", "postgresql", 20), ("inline", "sqlite", 20)]
)
def test_drivers_killed_at_random_moments(
    backend: str,
    kind: str,
    kills: int,
    tmp_path: Path,
    new_folder: Callable[[str], Path],
    family: Callable[[Any], None],
    fork: Callable[..., Forked],
) -> None:
    """Every run that the killed drivers make is brought to its end by one that is not, and has the same records."""
    experiment = Experiment.model_validate(MANY)
    (tmp_path / "undisturbed").mkdir()
    began = time.monotonic()
    expected = go_on(tmp_path / "undisturbed", experiment)
    takes = time.monotonic() - began
    draw = random.Random(0)
    done = runs = 0
    while done < kills:
        folder, here, finished = new_folder(kind), 0, False
        while here < 10 and done < kills and not finished:
            process: Any = fork(folder, experiment) if backend == "inline" else start(folder, experiment)
            if draw.random() < 0.8:
                wait_for_work(folder, process)  # before, there is little to lose
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, takes / 3))
            finished = process.poll() == 0
            if process.returncode == 1:
                # On a busy machine Ray may take longer to start than it allows itself.
                assert "The same command tries again" in (folder / "log").read_text()
            elif not finished:
                family(process)
                process.kill()
                finished = process.wait(120) == 0  # in the moment before
                if not finished:
                    killed(process)
                    done, here = done + 1, here + 1
        assert go_on(folder, experiment) == expected
        assert jobs(folder).keys() <= {"done", "given back"}
        runs += 1
        say(f"{backend}, {kind}: {done} kills, {runs} runs, the last one with {here}; records identical")


def jobs(folder: Path) -> dict[str, set[int]]:
    """The jobs of a run by how they ended."""
    found: dict[str, set[int]] = {}
    with open_folder(folder) as store, store.database.engine.connect() as connection:
        for row in connection.execute(sqlalchemy.select(Jobs.id, Jobs.state)):
            found.setdefault(row.state, set()).add(row.id)
    return found


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kills", [50])
def test_workers_killed_at_random_moments(
    kills: int, tmp_path: Path, new_folder: Callable[[str], Path], family: Callable[[Any], None]
) -> None:
    """Each loss is in the ledger, and the records are those of a run that lost nothing."""
    experiment = Experiment.model_validate(MANY)
    (tmp_path / "undisturbed").mkdir()
    expected = go_on(tmp_path / "undisturbed", experiment)
    draw = random.Random(1)
    done = runs = lost = 0
    while done < kills:
        folder, here, seen = new_folder("postgresql"), 0, set()
        process = start(folder, experiment)
        with open_folder(folder) as store:
            while process.poll() is None and done < kills:
                job = next((job for job in store.jobs("killed") if job.worker and job.id not in seen), None)
                if job is None:
                    time.sleep(0.02)
                    continue
                if not seen:
                    family(process)
                seen.add(job.id)
                time.sleep(draw.uniform(0, 0.3))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.worker.rpartition(":")[2]), signal.SIGKILL)
                    done, here = done + 1, here + 1
            assert process.wait(600) == 0, (folder / "log").read_text()
            losses = store.history("killed").losses
        ended = jobs(folder)
        assert ended.keys() <= {"done", "lost"}
        assert len(losses) == len(ended.get("lost", ()))
        assert len(losses) <= here  # a worker that had just ended its job took none with it
        assert go_on(folder, experiment) == expected
        runs, lost = runs + 1, lost + len(losses)
        say(f"{done} workers killed in {runs} runs, {lost} jobs lost with them, each in the ledger; records identical")
    assert lost > kills / 2


def wait_for_work(folder: Path, process: Any) -> None:
    """Until a worker of this driver has trained an epoch, or the driver has ended."""
    folder.mkdir(exist_ok=True)
    with open_folder(folder) as store:
        while process.poll() is None:
            holder = store.holder("killed")  # until it has the lease, the jobs are those of the one before
            if holder and holder.pid == process.pid and any(job.epoch for job in store.jobs("killed")):
                return
            time.sleep(0.02)
