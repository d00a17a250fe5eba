"""Split tasks: the classes of one data set, a few for every task; CIFAR-10 and then CIFAR-100 by ten (Sec. 3.2)."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.base import Samples, dataset_sha256, largest_value, read_samples
from clnp.tasks.carving import carve, held_out
from clnp.tasks.sizes import (
    SPLIT_CIFAR,
    Order,
    Sizes,
    at_most,
    class_order,
    dataset_sizes,
    split_cifar_sizes,
    split_sizes,
)
from clnp.tasks.task import Sequence, Split, Task, check_index
from clnp.tasks.transform import Transform

__all__ = ["split", "split_cifar"]


def split(
    dataset: str,
    *,
    classes: int,
    count: int,
    seed: int,
    validation: float,
    order: Order = "label",
    samples: int | None = None,
    data_dir: str | None = None,
) -> Sequence:
    """The split tasks of one replica.

    Task t has the samples of the classes ``t * classes`` to ``(t + 1) * classes - 1`` of an order, in the order of the
    data set, their labels renumbered from 0 as their classes come. Samples are images ``[n, channels, height, width]``,
    divided by the largest value they can have, 255 or, for the digits, 16. Each task's validation split is carved from
    its own training samples.

    Args:
        dataset: One of :data:`clnp.tasks.DATASETS`.
        classes: Classes of a task.
        count: How many tasks; ``count * classes`` is at most the classes of the data set.
        seed: Draws the validation samples, and the order of the classes where it is shuffled.
        validation: The share of a task's training samples that is held out, above 0 and below 1.
        order: Of the classes: ``"label"`` or ``"shuffled"``; see :func:`clnp.tasks.class_order`.
        samples: At most so many training samples of a task are used, the validation split's among them; None: all.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: The data set is unknown, absent, or not the known one.
        ValueError: ``classes`` is below 2, ``count`` is below 1 or asks for more classes than there are, ``order`` is
            an unknown word, or ``validation`` leaves a split of some task empty.
    """
    sizes = split_sizes(dataset, classes=classes, count=count, order=order, seed=seed)
    labels = class_order(dataset_sizes(dataset).classes, order, seed)
    parts = [(dataset, labels[task * classes : (task + 1) * classes]) for task in range(count)]
    return _SplitUp(_carved(parts, sizes, seed, validation, samples), [dataset], data_dir)


def split_cifar(
    *,
    count: int,
    seed: int,
    validation: float,
    order: Order = "label",
    samples: int | None = None,
    data_dir: str | None = None,
) -> Sequence:
    """CIFAR-10 as the first task, then CIFAR-100 by ten classes a task (Sec. 3.2): 11 tasks at most.

    Samples are images ``[n, 3, 32, 32]`` divided by 255. Each task's validation split is carved from its own training
    samples.

    Args:
        count: How many tasks.
        seed: Draws the validation samples, and the order of CIFAR-100's classes where it is shuffled.
        validation: The share of a task's training samples that is held out, above 0 and below 1.
        order: Of the classes of CIFAR-100: ``"label"`` or ``"shuffled"``; those of CIFAR-10 keep their labels.
        samples: At most so many training samples of a task are used, the validation split's among them; None: all.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: A data set is absent, or not the known one; both are needed, however few tasks there are.
        ValueError: ``count`` is below 1 or asks for more classes than there are, ``order`` is an unknown word, or
            ``validation`` leaves a split of some task empty.
    """
    sizes = split_cifar_sizes(count)
    whole, parted = SPLIT_CIFAR
    classes, labels = sizes[0].classes, class_order(dataset_sizes(parted).classes, order, seed)
    parts = [(whole, tuple(range(classes)))]
    parts += [(parted, labels[task * classes : (task + 1) * classes]) for task in range(count - 1)]
    return _SplitUp(_carved(parts, sizes, seed, validation, samples), SPLIT_CIFAR, data_dir)


@dataclass(frozen=True, slots=True)
class _Part:
    """A task's classes in their order, the places of its two splits among the samples of these classes, and whether
    these are all of them."""

    dataset: str
    labels: tuple[int, ...]
    train: Tensor
    validation: Tensor
    all: bool


def _carved(
    parts: list[tuple[str, tuple[int, ...]]],
    sizes: tuple[Sizes, ...],
    seed: int,
    validation: float,
    samples: int | None,
) -> list[_Part]:
    used = [at_most(task, samples).train for task in sizes]
    kept = [held_out(validation, count, f" of task {index}") for index, count in enumerate(used)]
    return [
        _Part(*part, *carve(task.train, held, generator(seed, "validation", index), most=samples), samples is None)
        for index, (part, task, held) in enumerate(zip(parts, sizes, kept, strict=True))
    ]


class _SplitUp:
    def __init__(self, parts: list[_Part], datasets: Iterable[str], data_dir: str | None) -> None:
        first = parts[0]
        self.count = len(parts)
        self.shape = dataset_sizes(first.dataset).shape
        self.classes = len(first.labels)
        self._data = {dataset: dataset_sha256(dataset, data_dir) for dataset in datasets}
        self._transform = Transform(None, largest_value(first.dataset), self.shape)
        self._data_dir = data_dir
        self._parts = parts
        self._hashes: dict[int, str] = {}

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        check_index(self, index)
        part = self._parts[index]
        return _SplitTask(partial(read_samples, part.dataset, self._data_dir), part, self._transform)

    def sha256(self, index: int) -> str:
        check_index(self, index)
        if index not in self._hashes:
            part = self._parts[index]
            labels = " ".join(map(str, part.labels))
            digest = hashlib.sha256(f"split {self._data[part.dataset]}\n{labels}\n{len(part.validation)}\n".encode())
            # Of all samples the validation split says which are for training.
            for places in (part.validation,) if part.all else (part.validation, part.train):
                digest.update(places.numpy().astype("<i8").tobytes())
            self._hashes[index] = digest.hexdigest()
        return self._hashes[index]

    def transform(self, index: int) -> Transform:
        check_index(self, index)
        return self._transform


class _SplitTask:
    def __init__(self, read: Callable[..., Samples], part: _Part, transform: Transform) -> None:
        self._read = read
        self._part = part
        self._transform = transform

    @cached_property
    def train(self) -> Split:
        return self._split(test=False, among=self._part.train)

    @cached_property
    def validation(self) -> Split:
        return self._split(test=False, among=self._part.validation)

    def open_test(self) -> Split:
        return self._split(test=True)

    def _split(self, *, test: bool, among: Tensor | None = None) -> Split:
        """The samples of this task's classes, or those at the places ``among`` them."""
        samples, labels = self._read(test=test), torch.tensor(self._part.labels, device="cpu")
        indices = torch.isin(samples.y, labels).nonzero().squeeze(1)
        if among is not None:
            indices = indices[among]
        y = (samples.y[indices].unsqueeze(1) == labels).int().argmax(1)  # each class's place in the order
        return Split(self._transform.encode(samples.x[indices]), y)
