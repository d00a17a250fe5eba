"""Runs to draw: in memory, of workers that make results up in no time, and one that was trained."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.backends.simulated import Simulated, World
from search.cli import main
from search.experiment import Experiment
from search.memory import MemoryBook
from search.reports.common import Known
from search.rows import History, RunRow
from search.run import Run

HOSTILE = '</script><script>window.bad = 1</script><img src="http://127.0.0.1/x" onerror="window.bad = 1"> & "%{x}"'
"""What a person may write where text is free."""


def simulated(*, world: World | None = None, stop_after: int | None = None, **changes: Any) -> Known:
    """A run; after ``stop_after`` events it is cut off."""
    keys = {
        "name": "made-up",
        "description": HOSTILE,
        "tasks": {"count": 3},
        "model": {"hidden": [32, 24]},
        "replicas": 2,
        "grid": {"alpha": [0.001, [0.01, 0.02, 0.03]], "learning_rate": [0.001, 0.002]},
        "training": {"epochs": 4},
        "rule": {"margin": 3.0},
    }
    experiment = Experiment.model_validate({**keys, **changes})
    book, backend, events = MemoryBook(), Simulated(workers=2, world=world or World()), []

    def told(event: object) -> None:
        events.append(event)
        if len(events) == stop_after:
            backend.stop.set()

    run = Run(experiment, book, book, data=lambda *_: "e" * 64, workers=2, on_event=told)
    backend.execute(run)
    state = "finished" if run.finished else "open"
    row = RunRow(experiment.name, experiment.to_json(), "d" * 64, state, "", "artifacts", 1.7e9, 1.7e9 + 60)
    return Known(row, experiment, History(book.openings, book.cells, book.commits, []))


@pytest.fixture
def simulate() -> Callable[..., Known]:
    return simulated


@pytest.fixture(scope="session")
def made_up() -> Known:
    """Two replicas of three tasks, fine-tuned; cell 3 of each diverged."""
    return simulated(world=World(diverges=lambda _, cell: cell.index == 3), fine_tuning={"rounds": 2})


@pytest.fixture(scope="session")
def deep() -> Known:
    """Of more layers and tasks than have a colour or a number each."""
    grid = {"alpha": [0.001, [0.001 * (1 + layer) for layer in range(13)]], "learning_rate": [0.001]}
    return simulated(name="deep", replicas=1, tasks={"count": 15}, model={"hidden": [60] * 12}, grid=grid)


@pytest.fixture(scope="session")
def opened() -> Known:
    """Without a commit yet."""
    return simulated(name="open", stop_after=4)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with the run ``small``."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = {
        "name": "small",
        "tasks": {"count": 2},
        "model": {"hidden": [24, 24]},
        "grid": {"alpha": [0.0003, 0.001], "learning_rate": [0.01]},
        "training": {"epochs": 3},
        "rule": {"margin": 3.0},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(experiment))
    storage = f"sqlite:///{folder / 'small.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stderr", io.StringIO())
        assert main(["run", str(folder / "small.yaml"), "--backend", "inline", "--storage", storage]) == 0
    return storage


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory, made_up: Known, deep: Known, opened: Known) -> Path:
    """A folder with the page of each."""
    from search.figures.page import page

    folder = tmp_path_factory.mktemp("pages")
    for known in (made_up, deep, opened):
        (folder / f"{known.row.name}.html").write_text(page(known), encoding="utf-8")
    return folder
