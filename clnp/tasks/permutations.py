"""Permuted tasks: one data set, and for every task but the first another order of its features (Sec. 3.1)."""

import hashlib
from functools import partial

import torch
from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.base import dataset_sha256, largest_value, read_samples
from clnp.tasks.carving import carve, held_out
from clnp.tasks.sizes import at_most, dataset_sizes
from clnp.tasks.task import Sequence, Task, check_index
from clnp.tasks.transform import Transform
from clnp.tasks.whole import WholeTask

__all__ = ["permuted"]


def permuted(
    dataset: str,
    *,
    count: int,
    seed: int,
    validation: float,
    samples: int | None = None,
    data_dir: str | None = None,
) -> Sequence:
    """The permuted tasks of one replica.

    The first task sees the pixels in their own order, task t in one that ``seed`` and t give (Sec. 3.1; Ref. [20]
    leaves the first task unpermuted). The validation split is carved from the training split: the same samples in every
    task. Pixels are divided by the largest value they can have, 255 or, for the digits, 16.

    Args:
        dataset: One of :data:`clnp.tasks.DATASETS`.
        count: How many tasks.
        seed: Draws the validation samples and the permutations.
        validation: The share of the training samples that is held out, above 0 and below 1.
        samples: At most so many training samples are used, the validation split's among them; None: all.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: The data set is unknown, absent, or not the known one.
        ValueError: ``count`` or ``samples`` is below 1, or ``validation`` leaves one of the two splits empty.
    """
    if count < 1:
        raise ValueError(f"count is {count}; a sequence has at least one task")
    used = at_most(dataset_sizes(dataset), samples).train
    return _Permuted(dataset, count, seed, held_out(validation, used), samples, data_dir)


class _Permuted:
    def __init__(
        self, dataset: str, count: int, seed: int, held_out: int, most: int | None, data_dir: str | None
    ) -> None:
        sizes = dataset_sizes(dataset)
        self.count = count
        self.shape: tuple[int, ...] = (sizes.inputs,)
        self.classes = sizes.classes
        self._seed = seed
        self._data = dataset_sha256(dataset, data_dir)
        self._scale = largest_value(dataset)
        self._read = partial(read_samples, dataset, data_dir)
        self._train, self._validation = carve(sizes.train, held_out, generator(seed, "validation"), most=most)
        # Of all samples the validation split says which are for training.
        self._used = (self._validation,) if most is None else (self._validation, self._train)
        self._hashes: dict[int, str] = {}

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        transform = self.transform(index)
        return WholeTask(self._read, train=self._train, validation=self._validation, transform=transform)

    def sha256(self, index: int) -> str:
        if index not in self._hashes:
            digest = hashlib.sha256(f"permuted {self._data}\n".encode())
            for numbers in (*self._used, self._permutation(index)):
                digest.update(f"{len(numbers)}\n".encode())
                digest.update(numbers.numpy().astype("<i8").tobytes())
            self._hashes[index] = digest.hexdigest()
        return self._hashes[index]

    def transform(self, index: int) -> Transform:
        permutation = self._permutation(index)
        return Transform(permutation if index else None, self._scale, self.shape)

    def _permutation(self, index: int) -> Tensor:
        check_index(self, index)
        if index == 0:
            return torch.arange(self.shape[0], device="cpu")
        return torch.randperm(self.shape[0], generator=generator(self._seed, "permutation", index), device="cpu")
