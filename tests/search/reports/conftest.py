"""Runs for reports: recorded in a real database, by workers that make results up in no time."""

from collections.abc import Callable, Iterator
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


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """Makes an experiment; keys given change it."""

    def make(**changes: Any) -> Experiment:
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

    return make


@pytest.fixture
def simulate(store: Store) -> Callable[..., float]:
    """Records a run, or goes on with it; after ``stop_after`` events it is cut off. Gives the virtual time it took."""
    worlds: list[World] = []

    def run(
        experiment: Experiment,
        *,
        stop_after: int | None = None,
        keep_lease: bool = False,
        world: World | None = None,
        plan: Callable[..., Fate] = lambda *_: Fate(DURATION),
        versions: dict[str, str] | None = None,
        **options: Any,
    ) -> float:
        worlds.append(world or (worlds[-1] if worlds else World()))
        backend = Simulated(workers=2, world=worlds[-1], plan=plan)
        writer = store.take(
            experiment.name,
            experiment_json=experiment.to_json(),
            data="d" * 64,
            versions=versions or {"torch": "2.13.0"},
            layers=experiment.layer_names,
        )
        events: list[object] = []

        def told(event: object) -> None:
            events.append(event)
            if len(events) == stop_after:
                backend.stop.set()

        history = store.history(experiment.name)
        going = Run(experiment, writer, history, data=lambda *_: "e" * 64, workers=2, on_event=told, **options)
        backend.execute(going)
        if going.finished:
            writer.finish("finished")
        if not keep_lease:
            going.give_back()
            writer.release("interrupted")
        return backend.time

    return run
