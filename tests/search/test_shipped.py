"""The experiments that ship with the package."""

import pytest

from search.advice import warnings
from search.building import resolve
from search.experiment import Experiment, read_experiment, shipped
from search.grid import cells

SPOKEN_OF = {
    # More tasks than fit, so that the layer fills up.
    "permuted-mnist-25": "α looks too weak to leave room",
    "permuted-mnist-25-small": "α looks too weak to leave room",
    # As the paper did it.
    "split-cifar-wide": "training.early_stopping is on",
}
"""What is thought twice about on purpose."""


@pytest.mark.parametrize("name", shipped())
def test_nothing_is_wrong_with_them(name: str) -> None:
    experiment = resolve(read_experiment(name))
    assert experiment.name == name
    assert 0 < len(experiment.description) <= 120
    assert "\n" not in experiment.description
    found = warnings(experiment)
    assert len(found) == (name in SPOKEN_OF)
    assert all(SPOKEN_OF[name] in line for line in found)


@pytest.mark.parametrize("name", sorted(set(shipped()) - {"quickstart"}))
def test_every_experiment_of_the_paper_has_a_small_twin_of_the_same_kind(name: str) -> None:
    if name.endswith("-small"):
        assert name.removesuffix("-small") in shipped()
        return
    large, small = read_experiment(name), read_experiment(f"{name}-small")
    assert (small.head, small.model.kind, small.validation) == (large.head, large.model.kind, large.validation)
    # Of the wide twin's 400 validation samples the best epoch is a matter of rounding.
    assert small.training.early_stopping == (large.training.early_stopping and name != "split-cifar-wide")
    assert (small.fine_tuning is None) == (large.fine_tuning is None)
    assert small.replicas == 1


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


class TestThePaper:
    """The values that the paper names, Sec. 3."""

    def test_permuted_mnist(self) -> None:
        for name, count in (("permuted-mnist", 10), ("permuted-mnist-25", 40)):
            experiment = read_experiment(name)
            assert (experiment.tasks.count, experiment.replicas, experiment.head) == (count, 5, "single")
            assert experiment.outline.widths == (2000, 2000)
            assert (experiment.training.optimizer, experiment.training.batch_size) == ("adam", 256)
            (later,) = cells(experiment, 1)
            assert (later.alpha, later.learning_rate) == ((1e-7, 1e-5, 1e-6), 0.002)
            first = [(cell.alpha, cell.learning_rate) for cell in cells(experiment, 0)]
            assert (later.alpha, later.learning_rate) in first
            assert float(experiment.margin(9)) == 0.05

    @pytest.mark.parametrize(("name", "margin"), [("", 1), ("-m2", 2), ("-ft", 4)])
    def test_split_cifar_narrow(self, name: str, margin: int) -> None:
        experiment = resolve(read_experiment(f"split-cifar-narrow{name}"))
        assert (experiment.tasks.kind, experiment.tasks.count) == ("split-cifar", 6)
        assert (experiment.head, experiment.replicas, experiment.validation) == ("multi", 5, 0.1)
        (cell,) = cells(experiment, 0)
        assert (set(cell.alpha), cell.learning_rate) == ({5e-5}, 0.001)
        assert experiment.margin(0) == margin
        tuning = experiment.fine_tuning
        if name == "-ft":
            assert tuning is not None
            assert (tuning.epochs, tuning.learning_rate, tuning.alpha, tuning.rounds) == (20, 1e-4, 5e-5, 1)

    def test_split_cifar_wide(self) -> None:
        experiment: Experiment = resolve(read_experiment("split-cifar-wide"))
        assert (experiment.tasks.kind, experiment.tasks.count) == ("split-cifar", 10)
        assert (experiment.head, experiment.replicas, experiment.validation) == ("single", 5, 0.1)
        assert experiment.training.early_stopping
