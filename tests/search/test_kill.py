"""Promise 3: a run that was killed at any moment and continued has the records of one that was not, hash for hash.

The driver is a process of its own and ends itself with SIGKILL at a named point. What it left is continued in this
process, one job after another.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from search.artifacts import Artifacts
from search.driver import run_experiment
from search.experiment import Experiment, read_experiment
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
import search.worker
from search.artifacts import Artifacts
from search.driver import run_experiment
from search.experiment import Experiment
from search.store import open_store
from search.studies import Studies
from search.view import open_view
from search.writer import Writer

folder, experiment, backend, point, count = sys.argv[1:]
left = int(count)


def die(owner, name, moment):
    real = getattr(owner, name)

    def deadly(*arguments, **options):
        global left
        left -= 1
        if left == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


points = {
    "": None,
    "after an upload": (Artifacts, "put", "after"),
    "after a staircase": (Studies, "add", "before"),
    "after a trial": (Studies, "add", "after"),
    "during a commit": (search.worker, "commit", "after"),
    "while a commit is fine-tuned": (clnp.finetuning, "put_back", "after"),
    "before a commit is written": (Writer, "add_commit", "before"),
    "after a commit": (Writer, "add_commit", "after"),
}
if points[point] is not None:
    die(*points[point])
with open_store(f"sqlite:///{folder}/store.db", None) as store, open_view(sys.stderr) as view:
    chosen = Experiment.model_validate(json.loads(experiment))
    run_experiment(store, chosen, name="killed", backend=backend, view=view)
"""


@dataclass(frozen=True)
class Records:
    """All that a run leaves, but for when, by which jobs and on which worker it came about."""

    openings: Any
    cells: Any
    commits: Any
    artifacts: tuple[str, ...]
    trials: Any


def start(folder: Path, experiment: Experiment, *, backend: str = "inline", point: str = "", count: int = 0) -> Any:
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), json.dumps(experiment.to_json()), backend, point, str(count)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def open_folder(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'store.db'}", None)


def go_on(folder: Path, experiment: Experiment) -> Records:
    """Continue in this process to the end, check that nothing was left behind, and read all records."""
    with open_folder(folder) as store, open(os.devnull, "w") as nowhere, open_view(nowhere) as view:
        assert run_experiment(store, experiment, name="killed", backend="inline", view=view) == 0
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
    ("point", "count"),
    [
        ("after an upload", 4),
        ("after a staircase", 2),
        ("after a trial", 5),
        ("during a commit", 2),
        ("before a commit is written", 3),
        ("after a commit", 1),
    ],
)
def test_killed_at_a_named_point(point: str, count: int, tmp_path: Path, undisturbed: Records) -> None:
    killed(start(tmp_path, small(), point=point, count=count))
    with open_folder(tmp_path) as store:
        assert len(store.history("killed").commits) < 4
        assert store.jobs("killed")
    assert go_on(tmp_path, small()) == undisturbed


def test_killed_while_a_commit_is_fine_tuned(tmp_path: Path) -> None:
    """Between two rounds: the commit runs again whole, with the same bits."""
    tuned = {"epochs": 2, "learning_rate": 0.005, "alpha": 1e-4, "rounds": 2, "margin": 8}
    experiment = small(fine_tuning=tuned, replicas=1, tasks={"count": 1})
    (tmp_path / "undisturbed").mkdir()
    expected = go_on(tmp_path / "undisturbed", experiment)
    assert any(one.better for commit in expected.commits.values() for one in commit.rounds)
    killed(start(tmp_path / "killed", experiment, point="while a commit is fine-tuned", count=1))
    with open_folder(tmp_path / "killed") as store:
        assert store.jobs("killed")
        assert not store.history("killed").commits
    assert go_on(tmp_path / "killed", experiment) == expected


def test_killed_again_and_again(tmp_path: Path, undisturbed: Records) -> None:
    """The records of a stack come in over several drivers, none of which sees its end."""
    for _ in range(2):
        killed(start(tmp_path, small(), point="after a trial", count=1))
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
    process = start(tmp_path, small(), backend="tune", point="after a commit", count=2)
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


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inline", "tune"])
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_moments(backend: str, tmp_path: Path, family: Callable[[Any], None]) -> None:
    """The quickstart, with a net 100 wide, killed whenever; the moments are drawn over the time that it takes."""
    experiment = read_experiment("quickstart", ["model.hidden=[100, 100]", "worker.cells=3", "training.epochs=10"])
    (tmp_path / "undisturbed").mkdir()
    began = time.monotonic()
    expected = go_on(tmp_path / "undisturbed", experiment)
    takes = time.monotonic() - began
    draw = random.Random(0)
    folder, kills, starts = tmp_path / "killed", 0, 0
    while kills < 20:
        starts += 1
        process = start(folder, experiment, backend=backend)
        wait_for_work(folder, process)  # before, there is little to lose
        time.sleep(draw.uniform(0, takes / 5))
        if process.poll() is not None:
            folder = tmp_path / f"killed-{starts}"  # finished in between: once more from the start
            continue
        family(process)
        process.kill()
        killed(process)
        kills += 1
    folder.mkdir(exist_ok=True)
    assert go_on(folder, experiment) == expected


def wait_for_work(folder: Path, process: Any) -> None:
    """Until a worker of this driver has trained an epoch, or the driver has ended."""
    folder.mkdir(exist_ok=True)
    with open_folder(folder) as store:
        while process.poll() is None:
            holder = store.holder("killed")  # until it has the lease, the jobs are those of the one before
            if holder and holder.pid == process.pid and any(job.epoch for job in store.jobs("killed")):
                return
            time.sleep(0.02)
