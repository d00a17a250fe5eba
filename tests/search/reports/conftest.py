"""Runs for reports: recorded in a real database, by workers that make results up in no time."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.backends.simulated import Fate, Simulated, World
from search.experiment import Experiment
from search.run import Run
from search.store import Store, open_store

DURATION = 2.0
"""Virtual seconds that every job takes."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path / 'reports.db'}") as store:
        yield store


def make_experiment(**changes: Any) -> Experiment:
    keys = {
        "name": "made-up",
        "tasks": {"count": 3},
        "model": {"hidden": [32, 24]},
        "replicas": 2,
        "grid": {"alpha": [0.001, [0.01, 0.02, 0.03]], "learning_rate": [0.001, 0.002]},
        "training": {"epochs": 4},
        "rule": {"margin": 1.0},
    }
    return Experiment.model_validate({**keys, **changes})


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """Makes an experiment; keys given change it."""
    return make_experiment


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a finished run in which cell 3 of every task diverged."""
    path = tmp_path_factory.mktemp("recorded") / "reports.db"
    with open_store(f"sqlite:///{path}") as store:
        record(store, make_experiment(), world=World(diverges=lambda _, cell: cell.index == 3))
    return path


@pytest.fixture
def finished(recorded: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of it."""
    path = shutil.copy(recorded, tmp_path / "finished.db")
    with open_store(f"sqlite:///{path}", create=False) as store:
        yield store


def record(
    store: Store,
    experiment: Experiment,
    *,
    world: World,
    stop_after: int | None = None,
    keep_lease: bool = False,
    plan: Callable[..., Fate] = lambda *_: Fate(DURATION),
    **options: Any,
) -> float:
    """Record a run, or go on with it; after ``stop_after`` events it is cut off. Gives the virtual time it took."""
    backend = Simulated(workers=2, world=world, plan=plan)
    writer = store.take(
        experiment.name,
        experiment_json=experiment.to_json(),
        data="d" * 64,
        versions={"torch": "2.13.0"},
        layers=experiment.outline.layer_names,
    )
    events: list[object] = []

    def told(event: object) -> None:
        events.append(event)
        if len(events) == stop_after:
            backend.stop.set()

    history = store.history(experiment.name)
    run = Run(experiment, writer, history, data=lambda *_: "e" * 64, workers=2, on_event=told, **options)
    backend.execute(run)
    if run.finished:
        writer.finish("finished")
    if not keep_lease:
        run.give_back()
        writer.release("interrupted")
    return backend.time


@pytest.fixture
def simulate(store: Store) -> Callable[..., float]:
    """Records a run in ``store``, see :func:`record`; its tensors outlive an interruption."""
    return partial(record, store, world=World())
