"""How large the data sets are, known without loading them: pure Python, so that plans and checks need no torch."""

import difflib
import hashlib
import math
from typing import Literal, NamedTuple

from clnp.errors import DataUnavailable

__all__ = [
    "DATASETS",
    "Order",
    "SPLIT_CIFAR",
    "Sizes",
    "VIEWED",
    "VIEWS",
    "View",
    "at_most",
    "class_counts",
    "class_order",
    "dataset_sizes",
    "split_cifar_sizes",
    "split_sizes",
    "validation_count",
    "views_sizes",
]

Order = Literal["label", "shuffled"]
"""Of classes: that of their labels, or one that the seed draws."""


class Sizes(NamedTuple):
    """The shape of a sample ``(channels, height, width)``, classes, and samples of the training and test split."""

    shape: tuple[int, ...]
    classes: int
    train: int
    test: int

    @property
    def inputs(self) -> int:
        """Features of a sample."""
        return math.prod(self.shape)


class View(NamedTuple):
    """How a task of :func:`clnp.tasks.views` shows a data set: quarter turns counterclockwise, and whether inverted."""

    dataset: str
    turns: int
    inverted: bool


_SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar-10": (3, 32, 32),
    "cifar-100": (3, 32, 32),
}

# Training and test samples of each class, in label order. Facts of the files whose hashes are checked before a read.
_COUNTS = {
    "digits": (
        (151, 151, 150, 153, 148, 152, 151, 149, 146, 149),
        (27, 31, 27, 30, 33, 30, 30, 30, 28, 31),
    ),
    "mnist": (
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion-mnist": ((6000,) * 10, (1000,) * 10),
    "cifar-10": ((5000,) * 10, (1000,) * 10),
    "cifar-100": ((500,) * 100, (100,) * 100),
}

DATASETS = tuple(_SHAPES)
"""The names of the data sets."""

SPLIT_CIFAR = ("cifar-10", "cifar-100")
"""What split-cifar is made from: the first whole, the second by as many classes as the first has (Sec. 3.2)."""

VIEWED = ("mnist", "fashion-mnist")
"""What views are of."""

# Quarter turns, and whether inverted.
_LOOKS = ((0, False), (1, False), (0, True), (2, False), (3, False), (1, True), (2, True), (3, True))

VIEWS = tuple(View(dataset, *look) for look in _LOOKS for dataset in VIEWED)
"""The tasks of :func:`clnp.tasks.views`, in their order."""


def dataset_sizes(dataset: str) -> Sizes:
    """The sizes of a data set, before a validation split is carved from its training split.

    Raises:
        DataUnavailable: No data set has this name.
    """
    train, test = class_counts(dataset, test=False), class_counts(dataset, test=True)
    return Sizes(_SHAPES[dataset], len(train), sum(train), sum(test))


def class_counts(dataset: str, *, test: bool) -> tuple[int, ...]:
    """How many samples each class has in the training or the test split, in label order.

    Raises:
        DataUnavailable: No data set has this name.
    """
    if dataset not in _COUNTS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DATASETS)}"
        raise DataUnavailable(f"no data set is called {dataset!r}; {hint}")
    return _COUNTS[dataset][test]


def class_order(classes: int, order: Order, seed: int) -> tuple[int, ...]:
    """The labels from 0 to ``classes - 1``, rising or in an order that hangs on ``seed`` alone.

    Raises:
        ValueError: ``order`` is another word.
    """
    if order == "label":
        return tuple(range(classes))
    if order == "shuffled":
        drawn = {label: hashlib.sha256(f"{seed} class {label}".encode()).digest() for label in range(classes)}
        return tuple(sorted(drawn, key=drawn.__getitem__))
    raise ValueError(f"order is {order!r}; give 'label' or 'shuffled'")


def split_sizes(dataset: str, *, classes: int, count: int, order: Order = "label", seed: int = 0) -> tuple[Sizes, ...]:
    """The sizes of each of ``count`` split tasks of ``classes`` classes, taken in an order of :func:`class_order`.

    Raises:
        DataUnavailable: No data set has this name.
        ValueError: A task has less than 2 classes, there is no task, the data set has too few classes, or ``order`` is
            an unknown word.
    """
    whole = dataset_sizes(dataset)
    if classes < 2:
        raise ValueError(f"classes is {classes}; a task has at least 2 classes")
    _check_count(count)
    if count * classes > whole.classes:
        raise ValueError(
            f"{count} tasks of {classes} classes need {count * classes}, but {dataset} has {whole.classes}; "
            f"with {classes} a task there can be {whole.classes // classes} tasks"
        )
    train, test = class_counts(dataset, test=False), class_counts(dataset, test=True)
    labels = class_order(whole.classes, order, seed)
    parts = [labels[task * classes : (task + 1) * classes] for task in range(count)]
    return tuple(
        Sizes(whole.shape, classes, sum(train[label] for label in part), sum(test[label] for label in part))
        for part in parts
    )


def split_cifar_sizes(count: int) -> tuple[Sizes, ...]:
    """The sizes of the first ``count`` tasks of split-cifar, which no order of classes changes.

    Raises:
        ValueError: There is no task, or CIFAR-100 has too few classes.
    """
    _check_count(count)
    whole, parted = SPLIT_CIFAR
    first, rest = dataset_sizes(whole), dataset_sizes(parted)
    splits = rest.classes // first.classes
    if count - 1 > splits:
        raise ValueError(
            f"{count} tasks are {whole} and {count - 1} splits of {first.classes} classes, which need "
            f"{(count - 1) * first.classes}, but {parted} has {rest.classes}; there can be {splits + 1} tasks"
        )
    return first, *(split_sizes(parted, classes=first.classes, count=count - 1) if count > 1 else ())


def views_sizes(count: int) -> tuple[Sizes, ...]:
    """The sizes of the first ``count`` of the :data:`VIEWS`.

    Raises:
        ValueError: There is no task, or ``count`` is above the number of views.
    """
    _check_count(count)
    if count > len(VIEWS):
        raise ValueError(
            f"{count} tasks need as many views, but of {' and '.join(VIEWED)} there are {len(VIEWS)}: each in four "
            f"directions, as it is and inverted; there can be {len(VIEWS)} tasks"
        )
    return tuple(dataset_sizes(view.dataset) for view in VIEWS[:count])


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}; a sequence has at least one task")


def at_most(sizes: Sizes, samples: int | None) -> Sizes:
    """The sizes of a task that uses at most so many training samples; None: all.

    Raises:
        ValueError: ``samples`` is below 1.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples is {samples}; a task uses at least one of its training samples")
    return sizes if samples is None else sizes._replace(train=min(sizes.train, samples))


def validation_count(share: float, samples: int) -> int:
    """How many of a training split's samples a share of it holds out."""
    return round(share * samples)
