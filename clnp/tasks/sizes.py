"""How large the data sets are, known without loading them: pure Python, so that plans and checks need no torch."""

import difflib
import math
from typing import NamedTuple

from clnp.errors import DataUnavailable

__all__ = ["DATASETS", "Sizes", "class_counts", "dataset_sizes", "split_sizes", "validation_count"]


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


_SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28)}

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
}

DATASETS = tuple(_SHAPES)
"""The names of the data sets."""


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


def split_sizes(dataset: str, *, classes: int, count: int) -> tuple[Sizes, ...]:
    """The sizes of each of ``count`` split tasks of ``classes`` classes, taken in label order.

    Raises:
        DataUnavailable: No data set has this name.
        ValueError: A task has less than 2 classes, there is no task, or the data set has too few classes.
    """
    whole = dataset_sizes(dataset)
    if classes < 2:
        raise ValueError(f"classes is {classes}; a task has at least 2 classes")
    if count < 1:
        raise ValueError(f"count is {count}; a sequence has at least one task")
    if count * classes > whole.classes:
        raise ValueError(
            f"{count} tasks of {classes} classes need {count * classes}, but {dataset} has {whole.classes}; "
            f"with {classes} a task there can be {whole.classes // classes} tasks"
        )
    train, test = class_counts(dataset, test=False), class_counts(dataset, test=True)
    parts = [slice(task * classes, (task + 1) * classes) for task in range(count)]
    return tuple(Sizes(whole.shape, classes, sum(train[part]), sum(test[part])) for part in parts)


def validation_count(share: float, samples: int) -> int:
    """How many of a training split's samples a share of it holds out."""
    return round(share * samples)
