"""What is said of an experiment before it is trained."""

from typing import Any

import pytest

from search.advice import expected_share, warnings
from search.experiment import Experiment, Origin

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
