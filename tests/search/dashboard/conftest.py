"""Runs with commits, in a database of either kind, without training anything."""

import http.client
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from search.backends.simulated import Simulated, World
from search.experiment import Experiment
from search.run import Run
from search.store import Store, open_store

TENSORS = {"winner": b"what the winner was " * 99, "commit": b"what was committed " * 99}


def experiment(**changes: Any) -> Experiment:
    keys = {
        "name": "run",
        "tasks": {"count": 2},
        "model": {"hidden": [9, 9]},
        "grid": {"alpha": [0.001], "learning_rate": [0.001, 0.002, 0.003]},
        "training": {"epochs": 4},
        "rule": {"margin": 3.0},
    }
    return Experiment.model_validate({**keys, **changes})


def _learn(store: Store, *, world: World | None = None, **changes: Any) -> Experiment:
    made = experiment(**changes)
    layers = made.outline.layer_names
    taken = {"experiment_json": made.to_json(), "data": "d" * 64, "versions": {"torch": "2.13.0"}}
    with store.take(made.name, **taken, layers=layers) as writer:
        run = Run(made, writer, store.history(made.name), data=lambda *_: "e" * 64, workers=2)
        Simulated(workers=2, world=world or World()).execute(run)
        if run.stopped is not None:
            raise run.stopped
        writer.finish("finished")
    return made


@pytest.fixture
def made() -> Experiment:
    """The run that :func:`learnt` holds."""
    return experiment()


@pytest.fixture
def learn() -> Callable[..., Experiment]:
    """Has a run learnt by workers that train nothing; who drives it writes no note."""

    return _learn


@pytest.fixture
def empty(sqlite_url: str, tmp_path: Path) -> Iterator[Store]:
    """A SQLite file without a run."""
    with open_store(sqlite_url, str(tmp_path / "artifacts")) as store:
        yield store


@pytest.fixture(scope="session")
def _learnt(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learnt") / "learnt.db"
    shutil.copy(sqlite_template, path)
    with open_store(f"sqlite:///{path}") as store:
        _learn(store)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path.parent


@pytest.fixture
def learnt(_learnt: Path, tmp_path: Path) -> Iterator[Store]:
    """A SQLite file with the run, and its folder beside it."""
    shutil.copytree(_learnt, tmp_path, dirs_exist_ok=True)
    with open_store(f"sqlite:///{tmp_path / 'learnt.db'}") as store:
        yield store


@pytest.fixture
def with_tensors(make: Any) -> Callable[[Store], str]:
    """A run with one commit, whose tensors and whose winner's are in its folder; gives that."""

    def one(store: Store) -> str:
        taken = {"experiment_json": experiment().to_json(), "data": "d" * 64, "versions": {}}
        with store.take("run", **taken, layers=("hidden1", "hidden2", "output")) as writer:
            writer.open_task(make.opening())
            for index in range(4):
                sha256 = writer.artifacts.put(TENSORS["winner"] if index == 0 else b"%d" % index)
                writer.add_cell(0, 0, make.record(index, artifact=sha256, correct=90 - index))
            sha256 = writer.artifacts.put(TENSORS["commit"])
            writer.add_commit(make.commit(artifact=sha256))
            return str(writer.artifacts.location)

    return one


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    data: bytes


@pytest.fixture
def fetch() -> Any:
    """Asks a dashboard for a path of its own."""

    def one(address: str, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
        place = urlsplit(address)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
        with ExitStack() as stack:
            stack.callback(connection.close)
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {**kind, **headers})
            response = connection.getresponse()
            data = response.read()
            return Answer(response.status, data.decode(errors="replace"), data)

    return one
