"""The experiments that ship with the package."""

import pytest

from search.experiment import read_experiment, shipped
from search.grid import cells, warnings


def test_the_shipped_ones_are_listed_with_a_line_each() -> None:
    assert list(shipped()) == ["permuted-mnist-small", "quickstart"]
    for description in shipped().values():
        assert 0 < len(description) <= 120
        assert "\n" not in description


@pytest.mark.parametrize("name", shipped())
def test_nothing_is_wrong_with_them(name: str) -> None:
    experiment = read_experiment(name)
    assert experiment.name == name
    assert warnings(experiment) == []


def test_the_quickstart_is_what_the_readme_promises() -> None:
    experiment = read_experiment("quickstart")
    assert experiment.tasks.dataset == "digits"
    assert (experiment.tasks.count, experiment.replicas, experiment.head) == (5, 2, "single")
    grid = cells(experiment, 0)
    assert (len({cell.alpha for cell in grid}), len({cell.learning_rate for cell in grid})) == (3, 2)


def test_the_small_mnist_run_is_what_was_asked_for() -> None:
    experiment = read_experiment("permuted-mnist-small")
    assert experiment.tasks.dataset == "mnist"
    assert (experiment.tasks.count, experiment.outline.widths, experiment.training.epochs) == (3, (400, 400), 5)
    assert len(cells(experiment, 0)) == 4
