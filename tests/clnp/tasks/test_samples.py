"""At most so many training samples a task: fewer of the same, in every kind of sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clnp.tasks import permuted, split, split_cifar, views
from clnp.tasks.task import Sequence

Make = Callable[..., Sequence]


@pytest.fixture(params=["permuted", "split", "split_cifar", "views"])
def make(request: pytest.FixtureRequest) -> Make:
    """A sequence of two tasks."""
    plain: dict[str, Any] = {"count": 2, "seed": 0, "validation": 0.25}
    if request.param == "permuted":
        return lambda **changes: permuted("digits", **plain, **changes)
    if request.param == "split":
        return lambda **changes: split("digits", classes=5, **plain, **changes)
    fixture = "small_mnist" if request.param == "views" else "small_cifar"
    plain["data_dir"] = str(request.getfixturevalue(fixture))
    sequence = views if request.param == "views" else split_cifar
    return lambda **changes: sequence(**plain, **changes)


def held(sequence: Sequence, index: int) -> tuple[int, int]:
    task = sequence.task(index)
    return len(task.train), len(task.validation)


def test_there_are_so_many_and_the_test_split_stays_whole(make: Make) -> None:
    for index in range(2):
        assert held(make(samples=8), index) == (6, 2)
        assert len(make(samples=8).task(index).open_test()) == len(make().task(index).open_test())


def test_they_are_samples_of_the_whole_training_split(make: Make) -> None:
    few, all_of_them = make(samples=8).task(1), make().task(1)
    training = torch.cat([all_of_them.train.x, all_of_them.validation.x]).flatten(1)
    for x in (*few.train.x, *few.validation.x):
        assert (training == x.flatten()).all(1).any()


def test_the_hash_tells_them_apart_and_more_than_there_are_changes_no_sample(make: Make) -> None:
    assert len({make().sha256(0), make(samples=8).sha256(0), make(samples=9).sha256(0)}) == 3
    assert torch.equal(make(samples=10**6).task(0).train.x, make().task(0).train.x)


def test_none_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="samples is 0; a task uses at least one"):
        make(samples=0)


def test_too_few_for_both_splits_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="must leave some of the 1 samples"):
        make(samples=1)
