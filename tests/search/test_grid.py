"""The cells of a task and the stacks that they form."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.pace import Pace
from search.experiment import Experiment, Origin
from search.grid import cells, expected_share, measured_for, stacks, to_measure, warnings
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


# ── Warnings ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ROOMY: dict[str, Any] = {
    "grid": {"alpha": [1e-2], "learning_rate": [5e-3]},
    "training": {"epochs": 30, "batch_size": 64},
    "rule": {"margin": 1},
}


def warned(**keys: Any) -> list[str]:
    return warnings(Experiment.from_json({**ROOMY, **keys}))


def test_nothing_is_said_of_an_experiment_that_fits() -> None:
    assert warned() == []


def test_a_margin_below_one_sample_is_said_with_its_number() -> None:
    assert warned(rule={"margin": 0.5}) == [
        "rule.margin is 0.5 in task 1: 0.75 of a validation sample (there are 150, one is 0.67 points), so that no "
        "accuracy is given up"
    ]
    assert warned(rule={"margin": [1, 0.1, 1, 0.1, 1]}) == [
        "rule.margin is 0.1 in task 2: 0.15 of a validation sample (there are 150, one is 0.67 points), so that no "
        "accuracy is given up"
    ]


def test_a_margin_of_just_one_sample_is_not_less_than_one() -> None:
    """In floating point 0.07 % of 10,000 samples is 7.000000000000001, and 2.3 % of 1,000 is 22.999999999999996."""
    exact = {"tasks": {"dataset": "mnist"}, "validation": 1 / 6, "grid": {"alpha": [1.0], "learning_rate": [1.0]}}
    assert warned(**exact, rule={"margin": 0.01}) == []
    assert len(warned(**exact, rule={"margin": 0.00999})) == 1


def test_halving_is_said() -> None:
    (line,) = warned(training={"halving": [5]})
    assert line.startswith("training.halving is on: who is more than 5 points behind after epoch 5 is dropped, ")


def test_early_stopping_is_said() -> None:
    (line,) = warned(training={"early_stopping": True})
    assert line.startswith("training.early_stopping is on: ")


def test_an_alpha_too_weak_for_the_tasks_is_said_with_one_that_might_do() -> None:
    weak: dict[str, Any] = {"grid": {"alpha": [[1.0, 1e-5, 1.0], 1e-6], "learning_rate": [2e-3]}}
    (line,) = warned(**weak)
    assert line.startswith("α looks too weak to leave room for 5 tasks: the largest for hidden2 is 1e-5, and")
    assert "99.4 % of its 128 units; try an α of 0.0062," in line
    assert warned(**weak, head="multi") == []
    assert warned(**weak, tasks={"count": 1}) == []
    assert warned(grid={"alpha": [0.02], "learning_rate": [2e-3]}) == []


def test_later_tasks_are_judged_by_their_own_grid() -> None:
    assert len(warned(grid={**ROOMY["grid"], "after_first": {"alpha": [1e-6]}})) == 1
    assert warned(grid={**ROOMY["grid"], "after_first": "winner"}) == []


@pytest.mark.parametrize(
    ("width", "alpha", "rate", "epochs", "measured"),
    [
        (2000, 1e-5, 2e-3, 2, 0.56),
        (2000, 1e-5, 2e-3, 10, 0.18),
        (2000, 1e-5, 2e-3, 30, 0.043),
        (400, 1e-5, 1e-3, 5, 0.92),
        (400, 1e-4, 1e-3, 5, 0.60),
        (400, 1e-3, 1e-3, 5, 0.23),
    ],
)
def test_the_rule_of_thumb_is_within_a_factor_of_two_of_what_was_measured(
    width: int, alpha: float, rate: float, epochs: int, measured: float
) -> None:
    one = Experiment.from_json(
        {
            "tasks": {"dataset": "mnist"},
            "model": {"hidden": [width, width]},
            "grid": {"alpha": [alpha], "learning_rate": [rate]},
            "training": {"epochs": epochs, "batch_size": 256},
        }
    )
    assert 0.5 < expected_share(one, 0) / measured < 2


def test_a_share_of_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="there is no task 5: the experiment has 5"):
        expected_share(Experiment(), 5)


def test_a_network_that_grows_is_not_too_small() -> None:
    weak: dict[str, Any] = {"grid": {"alpha": [1e-6], "learning_rate": [2e-3]}}
    assert len(warned(**weak)) == 1
    assert warned(**weak, grow={"by": 0.1}) == []


BUDGET: dict[str, Any] = {"kind": "budget", "tasks": 5, "floor": 2.0}


def test_nothing_is_said_of_a_budget_that_can_be_met() -> None:
    assert warned(rule=BUDGET) == []


def test_a_floor_below_one_sample_is_said_with_its_own_name() -> None:
    assert warned(rule={**BUDGET, "floor": 0.5}) == [
        "rule.floor is 0.5 in task 1: 0.75 of a validation sample (there are 150, one is 0.67 points), so that no "
        "accuracy is given up"
    ]
    (line,) = warned(fine_tuning={"margin": 0.5})
    assert line.startswith("fine_tuning.margin is 0.5 in task 1: ")


def test_a_budget_for_fewer_tasks_than_there_are_is_said() -> None:
    assert warned(rule={**BUDGET, "tasks": 4}) == [
        "rule.tasks is 4, but the run has 5 tasks: the units are shared among the first 4, and the tasks after them "
        "find what is left; give rule.tasks 5 or more"
    ]


@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_budget_below_one_unit_is_said_to_be_out_of_reach(head: str) -> None:
    (line,) = warned(rule={**BUDGET, "tasks": 129}, head=head)
    assert line == (
        "the budget cannot be met: an equal share of the 128 units of hidden2 among 129 tasks (rule.tasks) is below "
        "one unit, so that every commit that claims one there is over budget; widen hidden2, or lower rule.tasks"
    )
    assert not any("cannot be met" in line for line in warned(rule={**BUDGET, "tasks": 128}, head=head))


def test_a_budget_below_what_the_strongest_cell_looks_able_to_prune_to_is_said_with_an_alpha_that_might_do() -> None:
    weak: dict[str, Any] = {"alpha": [1e-5, 1e-6], "learning_rate": [2e-3]}
    (line,) = warned(rule=BUDGET, grid=weak)
    assert line.startswith(
        "the budget can hardly be met, even at the floor: an equal share of hidden2 among 5 tasks (rule.tasks) is "
        "20 % of its 128 units, and by a rule of thumb a task claims 99.4 % at the largest α for it, 1e-5; try an α "
        "of 0.0062, more epochs"
    )
    assert warned(rule=BUDGET, grid={**weak, "alpha": [0.0063]}) == []
    assert len(warned(rule=BUDGET, grid={**weak, "alpha": [0.0061]})) == 1
    assert warned(rule=BUDGET, grid=weak, head="multi") == []
    assert len(warned(rule=BUDGET, grid={**ROOMY["grid"], "after_first": {"alpha": [1e-6]}})) == 1


def test_of_a_fork_only_what_it_trains_is_warned_of() -> None:
    """The tasks that it is given were trained with another grid, and pruned by another rule."""
    weak: dict[str, Any] = {"grid": {"alpha": [1e-5], "learning_rate": [2e-3]}}
    origin = Experiment.from_json({**ROOMY, "rule": {"margin": 0.5}})

    def said(tasks: int, **keys: Any) -> list[str]:
        return warnings(Experiment.from_json({**ROOMY, **keys}).with_origin(Origin("other", tasks, origin)))

    assert said(4) == said(4, **weak) == []
    (line,) = said(3, **weak)
    assert line.startswith("α looks too weak to leave room for 2 tasks: ")
    later = {"kind": "budget", "tasks": 5, "floor": 2.0}
    assert said(5, rule=later, **weak) == []
    assert len(said(4, rule=later, **weak)) == 1
