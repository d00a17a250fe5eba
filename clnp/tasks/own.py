"""A person's own tasks, made by a function."""

import hashlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.carving import carve, held_out
from clnp.tasks.task import Sequence, Split, Task, check_index
from clnp.tasks.transform import Transform

__all__ = ["Make", "from_function"]

Make = Callable[[int, bool], Split]
"""``make(index, test)``: the training samples of a task, or its test samples."""


def from_function(make: Make, *, count: int, seed: int, validation: float, classes: int | None = None) -> Sequence:
    """A sequence of tasks whose samples a function gives.

    ``make(index, False)`` gives all training samples of a task, of which the validation split is carved, and
    ``make(index, True)`` its test samples: ``x`` float32 ``[n, *shape]`` and ``y`` int64 ``[n]``, labels from 0, on the
    CPU. It must give the same samples whenever it is called: training samples are called for once a task object and
    once for a hash, test samples by ``open_test()`` alone. The first task's are made here and let go again.

    Args:
        make: Gives a task's samples.
        count: How many tasks.
        seed: Draws the validation samples of each task.
        validation: The share of a task's training samples that is held out, above 0 and below 1.
        classes: Classes of every task. By default the largest label of the first task's training samples, plus 1.

    Raises:
        ValueError: ``count`` is below 1, ``classes`` below 2, or the first task's samples cannot be used; the same of a
            later task when its samples are first asked for.
    """
    if count < 1:
        raise ValueError(f"count is {count}; a sequence has at least one task")
    if classes is not None and classes < 2:
        raise ValueError(f"classes is {classes}; a task has at least 2 classes")
    return _Own(make, count, seed, validation, classes)


class _Own:
    def __init__(self, make: Make, count: int, seed: int, validation: float, classes: int | None) -> None:
        self.count = count
        self._make = make
        self._seed = seed
        self._share = validation
        self._hashes: dict[int, str] = {}
        first = _checked(make(0, False), "make(0, False)")
        self.shape = tuple(first.x.shape[1:])
        self.classes = _classes(first.y) if classes is None else classes
        self._places(0, first)

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        check_index(self, index)
        return _OwnTask(self, index)

    def sha256(self, index: int) -> str:
        check_index(self, index)
        # Of the training samples alone: the test split stays closed until the commit.
        if index not in self._hashes:
            self._places(index, self.samples(index, test=False))
        return self._hashes[index]

    def transform(self, index: int) -> Transform:
        check_index(self, index)
        return Transform(None, 1.0, self.shape)

    def carved(self, index: int) -> tuple[Split, Split]:
        """The training and the validation split of a task."""
        samples = self.samples(index, test=False)
        train, validation = self._places(index, samples)
        return samples.part(train), samples.part(validation)

    def samples(self, index: int, *, test: bool) -> Split:
        """What the function gives, checked against the first task."""
        what = f"make({index}, {test})"
        found = _checked(self._make(index, test), what)
        shape = tuple(found.x.shape[1:])
        if shape != self.shape:
            raise ValueError(
                f"{what} gave samples of shape {shape}, and task 0 has {self.shape}; give every task the same shape"
            )
        largest = int(found.y.max())
        if largest >= self.classes:
            raise ValueError(
                f"{what} gave label {largest}, but a task has {self.classes} classes, 0 to {self.classes - 1}; "
                f"renumber the labels, or give classes={largest + 1}"
            )
        return found

    def _places(self, index: int, samples: Split) -> tuple[Tensor, Tensor]:
        """Where the training and the validation samples are; refuses samples that are not those of the time before."""
        held = held_out(self._share, len(samples), f" of task {index}")
        train, validation = carve(len(samples), held, generator(self._seed, "validation", index))
        found = self._hash(samples, validation)
        if self._hashes.setdefault(index, found) != found:
            raise ValueError(
                f"make({index}, False) gave other samples than the time before; it must give the same at every call: "
                "draw random numbers from a generator that it seeds itself"
            )
        return train, validation

    def _hash(self, samples: Split, validation: Tensor) -> str:
        digest = hashlib.sha256(f"own {self.classes} {tuple(samples.x.shape)} {len(validation)}\n".encode())
        digest.update(samples.x.numpy().astype("<f4", order="C", copy=False).data)
        for numbers in (samples.y, validation):
            digest.update(numbers.numpy().astype("<i8", order="C", copy=False).data)
        return digest.hexdigest()


class _OwnTask:
    def __init__(self, sequence: _Own, index: int) -> None:
        self._sequence = sequence
        self._index = index

    @cached_property
    def _carved(self) -> tuple[Split, Split]:
        return self._sequence.carved(self._index)

    @property
    def train(self) -> Split:
        return self._carved[0]

    @property
    def validation(self) -> Split:
        return self._carved[1]

    def open_test(self) -> Split:
        return self._sequence.samples(self._index, test=True)


def _checked(given: Split, what: str) -> Split:
    """Samples that a network can be trained on, without a gradient."""
    if not isinstance(given, Split):
        raise ValueError(f"{what} gave a {type(given).__name__}; give a clnp.tasks.Split(x, y)")
    x, y = given.x, given.y
    for name, tensor, dtype in (("x", x, torch.float32), ("y", y, torch.int64)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what} gave {name} as a {type(tensor).__name__}; make it a torch.Tensor")
        if tensor.dtype != dtype:
            raise ValueError(f"{what} gave {name} in {tensor.dtype}; convert it with .to({dtype})")
        if tensor.device.type != "cpu":
            raise ValueError(f"{what} gave {name} on {tensor.device}; give tensors on the CPU")
    if x.dim() < 2 or y.dim() != 1 or len(x) != len(y) or 0 in x.shape[1:]:
        raise ValueError(f"{what} gave x {list(x.shape)} and y {list(y.shape)}; give x [n, *shape] and y [n]")
    if not len(y):
        raise ValueError(f"{what} gave no samples; give at least 1")
    if not bool(x.isfinite().all()):
        strange = int((~x.isfinite()).sum())
        raise ValueError(f"{what} gave x with {strange} numbers that are not finite; mend or leave out these samples")
    smallest = int(y.min())
    if smallest < 0:
        raise ValueError(f"{what} gave label {smallest}; labels are numbered from 0")
    return Split(x.detach(), y)


def _classes(labels: Tensor) -> int:
    """How many classes the first task's labels speak of."""
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest > 0 or largest < 1:
        raise ValueError(
            f"make(0, False) gave labels from {smallest} to {largest}, which do not tell the number of classes; "
            "number them from 0, at least 2 classes, or give classes="
        )
    return largest + 1
