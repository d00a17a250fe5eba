"""The cells of a task and the stacks that they form."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.pace import Pace
from search.experiment import Experiment
from search.grid import cells, measured_for, stacks, to_measure
from search.records import Cell, Measured, Memory

GRID: dict[str, Any] = {"alpha": [[1e-7, 1e-5, 1e-6], 1e-5], "learning_rate": [0.001, 0.002]}
LATER: dict[str, Any] = {"alpha": [1e-4], "learning_rate": [0.002]}


def experiment(**keys: Any) -> Experiment:
    return Experiment.from_json({"grid": GRID, **keys})


def test_cells_are_every_alpha_with_every_learning_rate_in_the_order_of_the_file() -> None:
    spread = (1e-5,) * 3
    assert cells(experiment(), 0) == (
        Cell(0, (1e-7, 1e-5, 1e-6), 0.001),
        Cell(1, (1e-7, 1e-5, 1e-6), 0.002),
        Cell(2, spread, 0.001),
        Cell(3, spread, 0.002),
    )
    assert cells(experiment(), 4) == cells(experiment(), 0)


def test_a_single_alpha_goes_for_every_layer() -> None:
    deep = Experiment.from_json({"model": {"hidden": [5, 4, 3]}, "grid": {"alpha": [0.5], "learning_rate": [1]}})
    assert cells(deep, 0) == (Cell(0, (0.5,) * 4, 1.0),)


def test_another_grid_from_the_second_task_on() -> None:
    later = experiment(grid={**GRID, "after_first": LATER})
    assert len(cells(later, 0)) == 4
    assert cells(later, 1) == cells(later, 2) == (Cell(0, (1e-4,) * 3, 0.002),)
    part = experiment(grid={**GRID, "after_first": {"alpha": [1e-4]}})
    assert [cell.learning_rate for cell in cells(part, 1)] == [0.001, 0.002]


def test_the_first_task_s_winner_alone() -> None:
    winner = experiment(grid={**GRID, "after_first": "winner"})
    won = cells(winner, 0, Cell(2, (1.0,) * 3, 1.0))[2]
    assert won == Cell(2, (1e-5,) * 3, 0.001)
    assert cells(winner, 3, won) == (Cell(0, won.alpha, won.learning_rate),)
    with pytest.raises(ValueError, match="task 3 has the first task's winner for its grid"):
        cells(winner, 3)
    assert len(cells(experiment(), 3, won)) == 4


def of_size(count: int, **keys: Any) -> Experiment:
    keys = {"grid": {"alpha": [1.0], "learning_rate": [0.1 * (place + 1) for place in range(count)]}, **keys}
    return Experiment.from_json(keys)


def formed(
    count: int, *, workers: int, most: int | None = None, pace: Pace | None = None, **keys: Any
) -> tuple[tuple[int, ...], ...]:
    one = of_size(count, **keys)
    return stacks(one, cells(one, 0), workers=workers, most=most, pace=pace)


def test_a_small_network_gives_each_worker_of_a_replica_one_stack() -> None:
    assert formed(6, workers=1) == ((0, 1, 2, 3, 4, 5),)
    assert formed(6, workers=2) == ((0, 1, 2), (3, 4, 5))
    assert formed(6, workers=4, replicas=2) == ((0, 1, 2), (3, 4, 5))
    assert formed(6, workers=3, replicas=2) == ((0, 1, 2), (3, 4, 5))
    assert formed(6, workers=2, replicas=5) == ((0, 1, 2, 3, 4, 5),)
    assert formed(3, workers=16) == ((0,), (1,), (2,))


def test_a_large_network_trains_alone_on_a_cpu_and_stacked_on_a_gpu() -> None:
    large: dict[str, Any] = {"model": {"hidden": [400, 400]}, "tasks": {"dataset": "mnist"}}
    alone = ((0,), (1,), (2,), (3,))
    assert formed(4, workers=2, **large) == alone
    assert formed(4, workers=2, worker={"gpu": 0}, **large) == alone
    assert formed(4, workers=2, worker={"gpu": 0.5}, **large) == ((0, 1), (2, 3))
    one = of_size(4, **large).with_gpu(1.0)  # what auto became
    assert stacks(one, cells(one, 0), workers=2) == ((0, 1), (2, 3))


def test_stacks_form_where_they_were_measured_to_gain() -> None:
    """Whatever the size and the device; memory bounds them as before."""
    large: dict[str, Any] = {"model": {"hidden": [400, 400]}, "tasks": {"dataset": "mnist"}}
    gains, loses = Pace(1.0, 2.5, 3), Pace(1.0, 2.6, 3)  # 1.2 and 1.15 times
    alone, halves = ((0,), (1,), (2,), (3,)), ((0, 1), (2, 3))
    for keys in ({}, large, {"worker": {"gpu": 1}}):
        assert formed(4, workers=2, pace=gains, **keys) == halves
        assert formed(4, workers=2, pace=loses, **keys) == alone
    assert formed(4, workers=1, pace=gains, most=2) == halves
    assert formed(4, workers=1, pace=loses, worker={"cells": 2}) == halves, "who says how many knows"


GPU: dict[str, Any] = {"worker": {"gpu": 1}}
MIDDLE: dict[str, Any] = {"model": {"hidden": [300, 300]}}
"""112,200 weights."""


@pytest.mark.parametrize(
    ("count", "keys", "expected"),
    [
        (6, {}, 0),
        (6, MIDDLE, 3),
        (1, MIDDLE, 0),
        (2, MIDDLE, 0),  # a stack a worker is one of one cell
        (3, MIDDLE, 2),
        (6, {**MIDDLE, "replicas": 2}, 6),
        (99, MIDDLE, 8),
        (6, {**MIDDLE, "worker": {"cells": 3}}, 0),
        (6, {"model": {"hidden": [590, 590]}}, 3),  # 391,760 weights
        (6, {"model": {"hidden": [600, 600]}}, 0),  # 404,400
        (6, GPU, 3),
        (1, GPU, 0),
        (2, GPU, 1),  # of its memory alone
        (6, {"worker": {"gpu": 1, "cells": 3}}, 0),
    ],
)
def test_a_stack_is_measured_where_the_answer_is_not_known(count: int, keys: dict[str, Any], expected: int) -> None:
    one = of_size(count, **keys)
    assert to_measure(one, cells(one, 0), workers=2) == expected


def test_a_small_network_that_is_no_mlp_is_measured() -> None:
    one = of_size(6, model={"kind": "split-cifar-narrow", "width": 0.1}, tasks={"kind": "split-cifar", "count": 6})
    small = one.with_outline(replace(of_size(6).outline))
    assert to_measure(small, cells(small, 0), workers=2) == 3
    large = one.with_outline(replace(of_size(6, model={"hidden": [1400, 1400]}).outline))  # 2,063,600
    assert to_measure(large, cells(large, 0), workers=2) == 0


def test_what_was_measured_counts_on_its_device() -> None:
    cpu = Measured(None, Pace(1.0, 2.0, 3))
    gpu = Measured(Memory(1, 1, 9, "cuda"), None)
    assert measured_for(of_size(6), cpu) == cpu
    assert measured_for(of_size(6).with_gpu(1.0), cpu) is None
    assert measured_for(of_size(6), gpu) is None
    assert measured_for(of_size(6, **GPU), gpu) == gpu
    assert measured_for(of_size(6, worker={"cells": 3}), cpu) is None


def test_the_size_is_the_one_asked_for() -> None:
    assert formed(6, workers=1, worker={"cells": 4}) == ((0, 1, 2), (3, 4, 5))
    assert formed(6, workers=8, worker={"cells": 99}) == ((0, 1, 2, 3, 4, 5),)


@given(
    count=st.integers(1, 100),
    workers=st.integers(1, 40),
    replicas=st.integers(1, 9),
    wanted=st.just("auto") | st.integers(1, 50),
    gpu=st.sampled_from(["auto", 0, 0.5, 1]),
    pace=st.none() | st.builds(Pace, st.floats(0.1, 1), st.floats(0.1, 9), st.integers(1, 8)),
)
def test_stacks_hold_every_cell_once_in_order_and_evenly(
    count: int, workers: int, replicas: int, wanted: int | str, gpu: float | str, pace: Pace | None
) -> None:
    made = formed(count, workers=workers, replicas=replicas, pace=pace, worker={"cells": wanted, "gpu": gpu})
    assert [index for stack in made for index in stack] == list(range(count))
    sizes = {len(stack) for stack in made}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= (32 if wanted == "auto" else int(wanted))
