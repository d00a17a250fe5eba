"""Split tasks over the digits, over MNIST where it is, and over small files of CIFAR's format."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.errors import DataUnavailable
from clnp.seeding import generator
from clnp.tasks import base, class_order, split, split_cifar, split_cifar_sizes, split_sizes
from clnp.tasks.digits import read_digits


def sequence(**changes: Any) -> Any:
    return split(**{"dataset": "digits", "classes": 2, "count": 5, "seed": 0, "validation": 0.1, **changes})


def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in torch.cat([x.flatten(1), y.unsqueeze(1)], dim=1).tolist())


def test_a_task_is_the_samples_of_its_classes() -> None:
    images, labels = read_digits()
    task = sequence().task(1)
    own = [place for place in range(1500) if labels[place] in (2, 3)]
    held_out = torch.randperm(303, generator=generator(0, "validation", 1))[:30].sort().values
    places = torch.tensor(own)[held_out]
    assert torch.equal(task.validation.x, images[places].reshape(30, 1, 8, 8).float() / 16)
    assert torch.equal(task.validation.y, labels[places] - 2)
    test = [place for place in range(1500, 1797) if labels[place] in (2, 3)]
    assert torch.equal(task.open_test().x, images[test].reshape(-1, 1, 8, 8).float() / 16)
    assert torch.equal(task.open_test().y, labels[test] - 2)
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), classes=st.integers(2, 10), share=st.floats(0.01, 0.99), data=st.data())
def test_the_tasks_share_out_the_training_samples(seed: int, classes: int, share: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10 // classes))
    made = sequence(seed=seed, classes=classes, count=count, validation=share)
    images, labels = read_digits()
    sizes = split_sizes("digits", classes=classes, count=count)
    found = []
    for index, size in enumerate(sizes):
        task = made.task(index)
        both = torch.cat([task.train.y, task.validation.y])
        assert sorted(set(both.tolist())) == list(range(classes))
        assert len(both) == size.train
        assert len(task.validation) == round(share * size.train)
        assert len(task.open_test()) == size.test
        found += rows(torch.cat([task.train.x, task.validation.x]) * 16, both + index * classes)
    taken = labels[:1500] < count * classes
    assert sorted(found) == rows(images[:1500][taken].float(), labels[:1500][taken])


def test_the_validation_samples_of_a_task_hang_on_the_seed_and_the_task_alone() -> None:
    task = sequence().task(1)
    assert torch.equal(sequence(count=2).task(1).train.x, task.train.x)
    assert not torch.equal(sequence(seed=1).task(1).train.x, task.train.x)
    assert torch.equal(sequence(seed=1).task(1).open_test().x, task.open_test().x)


def test_training_and_validation_never_touch_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 5: the test split stays closed until the commit."""
    opened = []

    def read(*where: Any, test: bool) -> base.Samples:
        opened.append(test)
        return base.read_samples(*where, test=test)

    monkeypatch.setattr("clnp.tasks.splits.read_samples", read)
    made = sequence()
    task = made.task(1)
    assert opened == []  # bytes until used
    assert len(task.train) > len(task.validation)
    assert made.sha256(1)
    assert opened == [False, False]
    assert len(task.open_test()) == 57
    assert opened == [False, False, True]


def test_splits_are_made_once_and_leave_the_shared_samples_alone() -> None:
    before = base.read_samples("digits", test=False)
    images, labels = before.x.clone(), before.y.clone()
    task = sequence().task(1)
    assert task.train is task.train
    task.train.samples.bytes.zero_()
    task.train.y.zero_()
    assert torch.equal(base.read_samples("digits", test=False).x, images)
    assert torch.equal(base.read_samples("digits", test=False).y, labels)
    assert sequence().task(1).train.x.any()


@pytest.mark.parametrize("index", range(3))
def test_raw_samples_become_x_through_the_transform(index: int) -> None:
    images, labels = read_digits()
    made = sequence(classes=3, count=3)
    transform, test = made.transform(index), made.task(index).open_test()
    own = (labels[1500:] >= 3 * index) & (labels[1500:] < 3 * index + 3)
    assert transform.permutation is None
    for raw in (images[1500:][own], images[1500:][own].reshape(-1, 8, 8), images[1500:][own].double()):
        assert torch.equal(transform(raw), test.x)


def test_the_hash_tells_splits_and_classes_apart() -> None:
    hashes = [
        sequence(**changes).sha256(index)
        for changes in ({}, {"seed": 1}, {"validation": 0.2}, {"classes": 3, "count": 3})
        for index in range(3)
    ]
    assert len(set(hashes)) == 12
    assert sequence(count=3).sha256(2) == sequence().sha256(2)


def test_the_hash_tells_data_sets_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sequence().sha256(0)
    monkeypatch.setattr("clnp.tasks.splits.dataset_sha256", lambda *_: "other bytes")
    assert sequence().sha256(0) != known


def test_the_hashes_are_those_of_every_process_and_version() -> None:
    """Runs are continued by them: a change here refuses every run that was begun before it."""
    assert [sequence().sha256(index) for index in range(2)] == [
        "927b3305a957e5f64ccb3230c39fc57feb3a4553f7996d19bdfeb4ff34c75a89",
        "a1af2787e5798b3c15a6bfc5e73c1ed00f31e15f3880d408c21a4590c0c02568",
    ]
    code = "from clnp.tasks import split; print(split('digits', classes=2, count=5, seed=0, validation=0.1).sha256(1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sequence().sha256(1)


def test_the_sequence_knows_its_sizes() -> None:
    made = sequence(count=4)
    assert (made.count, made.shape, made.classes) == (4, (1, 8, 8), 2)


@pytest.mark.parametrize("index", [-1, 5])
def test_a_task_outside_the_sequence_is_refused(index: int) -> None:
    made = sequence()
    for ask in (made.task, made.sha256, made.transform):
        with pytest.raises(IndexError, match=f"there is no task {index}: the sequence has 5"):
            ask(index)


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, 1e-9, 0.999, float("nan")])
def test_an_empty_split_of_any_task_is_refused(validation: float) -> None:
    with pytest.raises(ValueError, match="it must leave some of the 302 samples of task 0 in both splits"):
        sequence(validation=validation)


def test_an_empty_split_of_a_later_task_is_refused() -> None:
    # A share that rounds to 1 sample of the 299 and more of the other tasks, and to none of the 295 of task 4.
    with pytest.raises(ValueError, match="some of the 295 samples of task 4 in both splits"):
        sequence(validation=0.5 / 298)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 6}, "6 tasks of 2 classes need 12, but digits has 10; with 2 a task there can be 5 tasks"),
        ({"classes": 11, "count": 1}, "1 tasks of 11 classes need 11, but digits has 10"),
        ({"count": 0}, "count is 0; a sequence has at least one task"),
        ({"classes": 1}, "classes is 1; a task has at least 2 classes"),
    ],
)
def test_more_tasks_than_the_classes_allow_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence(**changes)


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(DataUnavailable, match="no data set is called 'digit'"):
        sequence(dataset="digit")


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_the_real_data_sets_are_split_as_their_sizes_say(dataset: str, folder: str) -> None:
    where = os.environ.get("CLNP_DATA_DIR")
    if where is None or not (Path(where) / folder / "raw").is_dir():
        pytest.skip(f"the variable CLNP_DATA_DIR names no folder with {folder}/raw")
    made = split(dataset, classes=5, count=2, seed=0, validation=0.1)
    for index, size in enumerate(split_sizes(dataset, classes=5, count=2)):
        task = made.task(index)
        assert task.train.x.shape[1:] == size.shape == made.shape == (1, 28, 28)
        assert len(task.train) + len(task.validation) == size.train
        assert len(task.open_test()) == size.test
        assert float(task.train.x.max()) == 1.0


# ── Another order of the classes ──────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**40), classes=st.integers(2, 10), data=st.data())
def test_shuffled_tasks_have_the_classes_that_the_seed_draws(seed: int, classes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10 // classes))
    made = sequence(seed=seed, classes=classes, count=count, order="shuffled")
    order = class_order(10, "shuffled", seed)
    images, labels = read_digits()
    for index, size in enumerate(split_sizes("digits", classes=classes, count=count, order="shuffled", seed=seed)):
        own = order[index * classes : (index + 1) * classes]
        task = made.task(index)
        y = torch.cat([task.train.y, task.validation.y])
        assert (len(y), len(task.open_test())) == (size.train, size.test)
        x = torch.cat([task.train.x, task.validation.x]) * 16
        of_these = torch.isin(labels[:1500], torch.tensor(own))
        assert rows(x, torch.tensor(own)[y]) == rows(images[:1500][of_these].float(), labels[:1500][of_these])
        assert torch.equal(
            torch.tensor(own)[task.open_test().y], labels[1500:][torch.isin(labels[1500:], torch.tensor(own))]
        )


def test_the_label_order_changes_nothing() -> None:
    """Runs that were begun before there was another order go on."""
    assert sequence(order="label").sha256(1) == sequence().sha256(1)
    assert sequence(order="shuffled").sha256(1) != sequence().sha256(1)


def test_the_hash_hangs_on_the_order_within_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sequence(classes=10, count=1).sha256(0)
    monkeypatch.setattr("clnp.tasks.splits.class_order", lambda classes, *_: (1, 0, *range(2, classes)))
    assert sequence(classes=10, count=1).sha256(0) != known


def test_the_shuffled_hashes_are_those_of_every_process_and_version() -> None:
    assert sequence(order="shuffled").sha256(1) == "776e9217a95ce5e0a0ef03acd536d737cf529653f9f45f7f3f974de8ac14193f"


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order is 'random'; give 'label' or 'shuffled'"):
        sequence(order="random")


# ── CIFAR-10, then CIFAR-100 ──────────────────────────────────────────────────────────────────────────────────────────


def cifar(folder: Path, **changes: Any) -> Any:
    return split_cifar(**{"count": 11, "seed": 0, "validation": 0.2, "data_dir": str(folder), **changes})


@pytest.mark.parametrize("order", ["label", "shuffled"])
def test_split_cifar_is_cifar_10_and_then_the_classes_of_cifar_100_by_ten(small_cifar: Path, order: str) -> None:
    made = cifar(small_cifar, order=order)
    assert (made.count, made.shape, made.classes) == (11, (3, 32, 32), 10)
    every = class_order(100, order, 0)  # type: ignore[arg-type]
    for index, size in enumerate(split_cifar_sizes(11)):
        task, test = made.task(index), made.task(index).open_test()
        raw = base.read_samples("cifar-100" if index else "cifar-10", str(small_cifar), test=True)
        own = torch.tensor(every[(index - 1) * 10 : index * 10] if index else range(10))
        of_these = torch.isin(raw.y, own)
        assert torch.equal(test.x, raw.x[of_these].reshape(-1, 3, 32, 32).float() / 255)
        assert torch.equal(own[test.y], raw.y[of_these])
        assert torch.equal(made.transform(index)(raw.x[of_these]), test.x)
        assert (len(task.train) + len(task.validation), len(test)) == (size.train, size.test)
        assert len(task.validation) == round(0.2 * size.train)


def test_split_cifar_hashes_tell_tasks_orders_seeds_and_splits_apart(small_cifar: Path) -> None:
    hashes = [cifar(small_cifar).sha256(index) for index in range(11)]
    changes = ({"order": "shuffled"}, {"order": "shuffled", "seed": 1}, {"seed": 1}, {"validation": 0.4})
    hashes += [cifar(small_cifar, **change).sha256(2) for change in changes]
    assert len(set(hashes)) == 15
    # The order is that of CIFAR-100 alone, and the number of tasks changes none.
    assert cifar(small_cifar, order="shuffled").sha256(0) == hashes[0]
    assert cifar(small_cifar, count=3).sha256(2) == hashes[2]


def test_split_cifar_needs_both_data_sets_however_few_tasks_there_are(small_cifar: Path) -> None:
    (small_cifar / "cifar-100-python" / "train").unlink()
    with pytest.raises(DataUnavailable, match=r"CIFAR-100 is not in .*: train is missing"):
        cifar(small_cifar, count=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 12}, "12 tasks are cifar-10 and 11 splits of 10 classes, which need 110, but cifar-100 has 100; "),
        ({"count": 0}, "count is 0"),
        ({"order": "random"}, "order is 'random'"),
        ({"validation": 0.006}, "it must leave some of the 50 samples of task 1 in both splits"),
    ],
)
def test_a_split_cifar_that_cannot_be_is_refused(small_cifar: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar(small_cifar, **changes)
