"""How large the data sets are, known without loading them: pure Python, so that plans and checks need no torch."""

import difflib
from typing import NamedTuple

from clnp.errors import DataUnavailable

__all__ = ["DATASETS", "Sizes", "dataset_sizes", "validation_count"]


class Sizes(NamedTuple):
    """Features of a sample, classes, and samples of the training and test split."""

    inputs: int
    classes: int
    train: int
    test: int


_SIZES = {
    "digits": Sizes(64, 10, 1500, 297),
    "mnist": Sizes(784, 10, 60_000, 10_000),
    "fashion-mnist": Sizes(784, 10, 60_000, 10_000),
}

DATASETS = tuple(_SIZES)
"""The names of the data sets."""


def dataset_sizes(dataset: str) -> Sizes:
    """The sizes of a data set, before a validation split is carved from its training split.

    Raises:
        DataUnavailable: No data set has this name.
    """
    if dataset not in _SIZES:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DATASETS)}"
        raise DataUnavailable(f"no data set is called {dataset!r}; {hint}")
    return _SIZES[dataset]


def validation_count(share: float, samples: int) -> int:
    """How many of a training split's samples a share of it holds out."""
    return round(share * samples)
