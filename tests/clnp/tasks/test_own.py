"""A person's own tasks: made by a function, checked, hashed, their test split left alone."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.seeding import generator
from clnp.tasks import Split, from_function


def make(index: int, test: bool) -> Split:
    """Twenty training samples and eight test samples of four classes, other ones for every task."""
    source = torch.Generator().manual_seed(2 * index + test)
    count = 8 if test else 20
    return Split(torch.rand(count, 3, 2, 5, generator=source), torch.arange(count) % 4)


def sequence(function: Callable[[int, bool], Any] = make, **changes: Any) -> Any:
    return from_function(function, **{"count": 3, "seed": 0, "validation": 0.2, **changes})


class Recorded:
    """:func:`make`, with the calls it got."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, index: int, test: bool) -> Split:
        self.calls.append((index, test))
        return make(index, test)


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 2), seed=st.integers(0, 2**40), share=st.floats(0.03, 0.97))
def test_the_validation_samples_are_carved_from_the_training_samples(index: int, seed: int, share: float) -> None:
    task = sequence(seed=seed, validation=share).task(index)
    given_ = make(index, False)
    order = torch.randperm(20, generator=generator(seed, "validation", index))
    held = round(share * 20)
    for part, places in ((task.validation, order[:held]), (task.train, order[held:])):
        assert torch.equal(part.x, given_.x[places.sort().values])
        assert torch.equal(part.y, given_.y[places.sort().values])
    assert torch.equal(task.open_test().x, make(index, True).x)
    assert torch.equal(task.open_test().y, make(index, True).y)


def test_shape_and_classes_come_from_the_first_task() -> None:
    made = sequence()
    assert (made.count, made.shape, made.classes) == (3, (3, 2, 5), 4)
    assert sequence(classes=7).classes == 7


def test_the_test_split_is_asked_for_by_open_test_alone() -> None:
    """Promise 5: the test split stays closed until the commit."""
    recorded = Recorded()
    made = sequence(recorded)
    for index in range(3):
        task = made.task(index)
        assert len(task.train) == 16
        assert len(task.validation) == 4
        assert made.sha256(index)
        assert made.transform(index)(task.train.x).shape == (16, 3, 2, 5)
    assert not any(test for _, test in recorded.calls)
    assert len(made.task(1).open_test()) == 8
    assert [index for index, test in recorded.calls if test] == [1]


def test_samples_are_made_when_they_are_used_and_once_a_task_object() -> None:
    recorded = Recorded()
    made = sequence(recorded)
    task = made.task(2)
    assert recorded.calls == [(0, False)]
    assert task.train is task.train
    assert task.validation is task.validation
    assert recorded.calls == [(0, False), (2, False)]
    assert made.sha256(2) == made.sha256(2) == sequence().sha256(2)
    assert made.sha256(0)
    assert recorded.calls == [(0, False), (2, False)]  # both hashes were had with the samples
    assert made.sha256(1) == made.sha256(1)
    assert recorded.calls[2:] == [(1, False)]


def test_the_transform_changes_nothing() -> None:
    made = sequence()
    for index in range(3):
        assert made.transform(index).permutation is None
        assert torch.equal(made.transform(index)(make(index, True).x), made.task(index).open_test().x)


def changed(**parts: Callable[[Split], Any]) -> Callable[[int, bool], Any]:
    """:func:`make`, with the training or test samples of the later tasks, or of all, changed."""

    def other(index: int, test: bool) -> Any:
        found = make(index, test)
        if index and not test and "later" in parts:
            return parts["later"](found)
        if test and "test" in parts:
            return parts["test"](found)
        if not test and "train" in parts:
            return parts["train"](found)
        return found

    return other


def test_the_hash_tells_samples_labels_splits_and_classes_apart() -> None:
    def nudged(split: Split) -> Split:
        split.x[7, 0, 0, 0] += 1
        return split

    hashes = [
        sequence(function, **changes).sha256(1)
        for function, changes in (
            (make, {}),
            (make, {"seed": 1}),
            (make, {"validation": 0.3}),
            (make, {"classes": 5}),
            (changed(train=nudged), {}),
            (changed(later=lambda split: Split(split.x, split.y.flip(0))), {}),
            (lambda index, test: Split(make(index, test).x.reshape(-1, 30), make(index, test).y), {}),
        )
    ]
    assert len(set(hashes)) == 7
    assert sequence(count=2).sha256(1) == hashes[0]


def test_the_hash_is_of_the_training_samples_alone() -> None:
    """Promise 5: not even the hash looks at the test split."""
    assert sequence(changed(test=lambda split: Split(split.x + 1, split.y))).sha256(1) == sequence().sha256(1)


def test_the_hash_hangs_on_values_and_not_on_their_layout() -> None:
    def strided(index: int, test: bool) -> Split:
        found = make(index, test)
        return Split(found.x.transpose(1, 3).contiguous().transpose(1, 3), found.y.repeat_interleave(2)[::2])

    assert not strided(0, False).x.is_contiguous()
    assert sequence(strided).sha256(1) == sequence().sha256(1)


def test_the_hashes_are_those_of_every_process_and_version() -> None:
    """Runs are continued by them: a change here refuses every run that was begun before it."""
    code = (
        "import torch; from clnp.tasks import Split, from_function\n"
        "make = lambda index, test: Split(torch.arange(60.).reshape(20, 3) + index, torch.arange(20) % 4)\n"
        "print(from_function(make, count=2, seed=0, validation=0.2).sha256(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "8f38a0eaf65900913c78dbd6c63875fde53b733ae80d8d5b82231c854099a01f"


def test_a_function_that_gives_other_samples_every_time_is_refused() -> None:
    """Promise 2: what is scored later must be what was trained on."""
    source = torch.Generator().manual_seed(0)

    def drifting(index: int, test: bool) -> Split:
        return Split(torch.rand(20, 3, generator=source), torch.arange(20) % 4)

    made = sequence(drifting)
    assert len(made.task(1).train) == 16
    with pytest.raises(ValueError, match=r"make\(1, False\) gave other samples than the time before; .* generator"):
        _ = made.task(1).train


def test_samples_come_without_a_gradient() -> None:
    def learned(index: int, test: bool) -> Split:
        return Split(make(index, test).x.requires_grad_(True), make(index, test).y)

    task = sequence(learned).task(1)
    assert not task.train.x.requires_grad
    assert not task.open_test().x.requires_grad


def with_number(split: Split, number: float) -> Split:
    split.x[3, 0, 0, 0] = number
    return split


BAD: list[tuple[Callable[[Split], Any], str]] = [
    (lambda split: (split.x, split.y), r" gave a tuple; give a clnp.tasks.Split\(x, y\)"),
    (lambda split: Split(split.x.numpy(), split.y), " gave x as a ndarray; make it a torch.Tensor"),  # type: ignore[arg-type]
    (lambda split: Split(split.x.double(), split.y), r" gave x in torch.float64; convert it with .to\(torch.float32\)"),
    (lambda split: Split(split.x, split.y.int()), r" gave y in torch.int32; convert it with .to\(torch.int64\)"),
    (lambda split: Split(split.x.to("meta"), split.y), " gave x on meta; give tensors on the CPU"),
    (lambda split: Split(split.x[:-1], split.y), r" gave x .* and y \[\d+\]; give x \[n, \*shape\] and y \[n\]"),
    (
        lambda split: Split(split.x, split.y.unsqueeze(1)),
        r" gave x .* and y \[\d+, 1\]; give x \[n, \*shape\] and y \[n\]",
    ),
    (lambda split: Split(split.x[:, 0, 0, 0], split.y), r" gave x \[\d+\] and y \[\d+\]; give x"),
    (lambda split: Split(split.x[:, :0], split.y), r" gave x \[\d+, 0, 2, 5\] and"),
    (lambda split: Split(split.x[:0], split.y[:0]), " gave no samples; give at least 1"),
    (lambda split: with_number(split, float("nan")), " gave x with 1 numbers that are not finite; mend or leave out"),
    (lambda split: with_number(split, float("-inf")), " gave x with 1 numbers that are not finite"),
    (lambda split: Split(split.x, split.y - 1), " gave label -1; labels are numbered from 0"),
]
LATER = [
    *BAD,
    (lambda split: Split(split.x[:, :2], split.y), r" gave samples of shape \(2, 2, 5\), and task 0 has \(3, 2, 5\)"),
    (lambda split: Split(split.x, split.y + 1), r" gave label 4, but a task has 4 classes, 0 to 3; .* classes=5"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_first_samples_that_cannot_be_used_are_refused_at_once(change: Callable[[Split], Any], message: str) -> None:
    """Promise 8: bad input is refused before anything starts."""
    with pytest.raises(ValueError, match=r"make\(0, False\)" + message):
        sequence(changed(train=change))


@pytest.mark.parametrize(("change", "message"), LATER)
def test_later_samples_are_checked_against_the_first(change: Callable[[Split], Any], message: str) -> None:
    made = sequence(changed(later=change))
    assert len(made.task(0).train) == 16
    asks: list[Callable[[], Any]] = [
        lambda: made.task(1).train,
        lambda: made.task(1).validation,
        lambda: made.sha256(1),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=r"make\(1, False\)" + message):
            ask()


@pytest.mark.parametrize(("change", "message"), LATER)
def test_test_samples_are_checked_when_they_are_opened(change: Callable[[Split], Any], message: str) -> None:
    task = sequence(changed(test=change)).task(0)
    assert len(task.train) == 16
    with pytest.raises(ValueError, match=r"make\(0, True\)" + message):
        task.open_test()


@pytest.mark.parametrize(
    ("labels", "found"), [(torch.arange(20) % 4 + 1, "from 1 to 4"), (torch.zeros(20).long(), "from 0 to 0")]
)
def test_labels_that_do_not_tell_the_classes_need_them_named(labels: torch.Tensor, found: str) -> None:
    def other(index: int, test: bool) -> Split:
        return Split(make(index, False).x, labels)

    with pytest.raises(ValueError, match=rf"gave labels {found}, which do not tell .* or give classes="):
        sequence(other)
    assert sequence(other, classes=6).classes == 6
    with pytest.raises(ValueError, match="classes is 1; a task has at least 2 classes"):
        sequence(other, classes=1)


def test_a_task_too_small_for_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"validation is 0.01; .* 20 samples of task 0 in both splits"):
        sequence(validation=0.01)
    made = sequence(changed(later=lambda split: Split(split.x[:2], split.y[:2])))
    with pytest.raises(ValueError, match=r"validation is 0.2; .* some of the 2 samples of task 2 in both splits"):
        made.sha256(2)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_task_outside_the_sequence_is_refused(index: int) -> None:
    made = sequence()
    for ask in (made.task, made.sha256, made.transform):
        with pytest.raises(IndexError, match=f"there is no task {index}: the sequence has 3"):
            ask(index)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="count is 0; a sequence has at least one task"):
        sequence(count=0)
