"""Permuted tasks over the digits."""

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.errors import DataUnavailable
from clnp.seeding import generator
from clnp.tasks import base, dataset_sha256, permuted
from clnp.tasks.digits import read_digits


def sequence(**changes: Any) -> Any:
    return permuted(**{"dataset": "digits", "count": 3, "seed": 0, "validation": 0.1, **changes})


def test_the_first_task_is_the_data_set_as_it_is() -> None:
    images, labels = read_digits()
    task = sequence().task(0)
    held_out = torch.randperm(1500, generator=generator(0, "validation"))[:150].sort().values
    assert torch.equal(task.validation.x, images[held_out].float() / 16)
    assert torch.equal(task.validation.y, labels[held_out])
    assert torch.equal(task.open_test().x, images[-297:].float() / 16)
    assert torch.equal(task.open_test().y, labels[-297:])
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(1, 6), share=st.floats(0.01, 0.99))
def test_every_task_holds_the_same_samples_in_an_order_of_its_own(seed: int, index: int, share: float) -> None:
    made = sequence(count=7, seed=seed, validation=share)
    first, task = made.task(0), made.task(index)
    order = torch.randperm(64, generator=generator(seed, "permutation", index))
    for one, other in (
        (first.train, task.train),
        (first.validation, task.validation),
        (first.open_test(), task.open_test()),
    ):
        assert torch.equal(one.x[:, order], other.x)
        assert torch.equal(one.y, other.y)
    assert len(task.validation) == round(share * 1500)
    assert len(task.train) + len(task.validation) == 1500


def test_the_validation_samples_are_carved_from_the_training_split() -> None:
    images, labels = read_digits()
    task = sequence().task(0)
    both = torch.cat([task.train.x, task.validation.x]) * 16
    classes = torch.cat([task.train.y, task.validation.y])

    def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, ...]]:
        return sorted(tuple(row) for row in torch.cat([x, y.unsqueeze(1)], dim=1).tolist())

    assert rows(both, classes) == rows(images[:1500].float(), labels[:1500])


def test_training_and_validation_never_touch_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 5: the test split stays closed until the commit."""
    opened = []

    def read(*where: Any, test: bool) -> base.Samples:
        opened.append(test)
        return base.read_samples(*where, test=test)

    monkeypatch.setattr("clnp.tasks.permutations.read_samples", read)
    made = sequence()
    task = made.task(1)
    assert len(task.train) > len(task.validation)
    assert made.sha256(1)
    assert opened == [False, False]
    assert len(task.open_test()) == 297
    assert opened == [False, False, True]


def test_splits_are_made_once_and_leave_the_shared_samples_alone() -> None:
    before = base.read_samples("digits", test=False).x.clone()
    task = sequence().task(1)
    assert task.train is task.train
    task.train.samples.bytes.zero_()
    assert torch.equal(base.read_samples("digits", test=False).x, before)
    assert sequence().task(1).train.x.any()
    before = base.read_samples("digits", test=True).x.clone()
    sequence().task(0).open_test().samples.bytes.zero_()
    assert torch.equal(base.read_samples("digits", test=True).x, before)


def test_the_hash_tells_splits_and_permutations_apart() -> None:
    hashes = [
        sequence(**changes).sha256(index)
        for changes in ({}, {"seed": 1}, {"validation": 0.2}, {"validation": 0.1 + 1 / 1500})
        for index in range(3)
    ]
    assert len(set(hashes)) == 12
    assert sequence(count=9).sha256(2) == sequence().sha256(2)


def test_the_hash_tells_data_sets_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sequence().sha256(0)
    monkeypatch.setattr("clnp.tasks.permutations.dataset_sha256", lambda *_: "other bytes")
    assert sequence().sha256(0) != known


def test_the_hashes_are_those_of_every_process_and_version() -> None:
    """Runs are continued by them: a change here refuses every run that was begun before it."""
    made = sequence()
    assert dataset_sha256("digits") == "6e8058011d959d5aff8d8750fba3e5b215d968ec038e222708e9fe519e8da4cd"
    assert [made.sha256(index) for index in range(2)] == [
        "4b8c6c3f271bd5aa007f1c4d4274a8f2e398c2c5f0c47d0bf0117e663e9b5bd0",
        "8d5768dc8774b597490e162b72c30ab9be7ef86a027f8688770b42a934c4d926",
    ]
    # The module is imported first: one of the function's name would hide it.
    code = (
        "import clnp.tasks.permutations; from clnp.tasks import permuted;"
        "print(permuted('digits', count=3, seed=0, validation=0.1).sha256(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == made.sha256(1)


def test_the_samples_are_those_of_every_version() -> None:
    """The hash of a task speaks of what its samples are made from; these are the samples, bit for bit."""
    digest = hashlib.sha256()
    for index in range(3):
        task = sequence().task(index)
        for part in (task.train, task.validation, task.open_test()):
            digest.update(part.x.numpy().tobytes() + part.y.numpy().tobytes())
    assert digest.hexdigest() == "367dc5f9710f43d416e87559c67787c5cfc76e3770f98f5b092d83edb0b53230"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 4))
def test_raw_samples_become_x_through_the_transform(seed: int, index: int) -> None:
    images, _ = read_digits()
    made = sequence(count=5, seed=seed)
    transform, expected = made.transform(index), made.task(index).open_test().x
    assert (transform.permutation is None) == (index == 0)
    assert (transform.shape, transform.scale) == ((64,), 16.0)
    for raw in (images[-297:], images[-297:].reshape(-1, 1, 8, 8), images[-297:].float(), images[-297:].double()):
        assert torch.equal(transform(raw), expected)


def test_the_sequence_knows_its_sizes() -> None:
    made = sequence()
    assert (made.count, made.shape, made.classes) == (3, (64,), 10)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_task_outside_the_sequence_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"there is no task {index}: the sequence has 3"):
        sequence().task(index)
    with pytest.raises(IndexError):
        sequence().sha256(index)
    with pytest.raises(IndexError):
        sequence().transform(index)


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, 1.5, 1e-9, 0.9999999, float("nan")])
def test_an_empty_split_is_refused(validation: float) -> None:
    with pytest.raises(ValueError, match="it must leave some of the 1500 samples in both splits"):
        sequence(validation=validation)


def test_an_empty_sequence_and_an_unknown_data_set_are_refused() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        sequence(count=0)
    with pytest.raises(DataUnavailable, match="no data set is called 'digit'"):
        sequence(dataset="digit")


def test_a_default_device_changes_no_sample() -> None:
    expected = permuted("digits", count=2, seed=0, validation=0.1)
    with torch.device("meta"):
        found = permuted("digits", count=2, seed=0, validation=0.1)
        assert [found.sha256(index) for index in range(2)] == [expected.sha256(index) for index in range(2)]
        x = found.task(1).train.x
    assert torch.equal(x, expected.task(1).train.x)
