"""A small real experiment on the digits, and the run of it in memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.backends.cluster import prepare
from search.building import build_sequence
from search.experiment import Experiment
from search.memory import MemoryBook
from search.run import Run
from search.worker import WorkerSettings

# Ray reads it when it is imported, once for all tests of a process, whichever imports it first.
prepare(own=False)


@pytest.fixture
def small() -> Callable[..., Experiment]:
    """The experiment, with changes. A net 100 wide is in it: the size of a stack changes bits there."""
    plain = {
        "tasks": {"count": 2},
        "model": {"hidden": [100, 40]},
        "grid": {"alpha": [1e-3, 3e-3], "learning_rate": [0.003, 0.005]},
        "training": {"epochs": 2},
        "rule": {"margin": 3},
        "worker": {"gpu": 0},
        "keep": "all",
    }
    return lambda **changes: Experiment.model_validate({**plain, **changes})


@pytest.fixture
def new_run() -> Callable[..., Run]:
    def make(experiment: Experiment, book: MemoryBook, *, workers: int = 1) -> Run:
        def data(replica: int, task: int) -> str:
            return build_sequence(experiment, replica, None).sha256(task)

        return Run(experiment, book.take(), book, data=data, workers=workers)

    return make


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    (tmp_path / "artifacts").mkdir()
    return WorkerSettings(str(tmp_path / "artifacts"), None, "cpu", 1)


@pytest.fixture
def results() -> Callable[[MemoryBook], Any]:
    """All records of a book but for when they came about: what no backend and no loss may change."""

    def read(book: MemoryBook) -> Any:
        cells = {
            (place, index): replace(record, started=0.0, ended=0.0)
            for place, records in book.cells.items()
            for index, record in records.items()
        }
        commits = {place: replace(record, started=0.0, ended=0.0) for place, record in book.commits.items()}
        return book.openings, cells, commits

    return read
