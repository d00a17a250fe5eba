"""Permuted tasks: one data set, and for every task but the first another order of its features (Sec. 3.1)."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.base import Samples, dataset_sha256, largest_value, read_samples
from clnp.tasks.carving import carve, held_out
from clnp.tasks.sizes import dataset_sizes
from clnp.tasks.task import Sequence, Split, Task
from clnp.tasks.transform import Transform

__all__ = ["permuted"]


def permuted(dataset: str, *, count: int, seed: int, validation: float, data_dir: str | None = None) -> Sequence:
    """The permuted tasks of one replica.

    The first task sees the pixels in their own order, task t in one that ``seed`` and t give (Sec. 3.1; Ref. [20]
    leaves the first task unpermuted). The validation split is carved from the training split: the same samples in every
    task. Pixels are divided by the largest value they can have, 255 or, for the digits, 16.

    Args:
        dataset: ``"digits"``, ``"mnist"`` or ``"fashion-mnist"``.
        count: How many tasks.
        seed: Draws the validation samples and the permutations.
        validation: The share of the training split that is held out, above 0 and below 1.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: The data set is unknown, absent, or not the known one.
        ValueError: ``count`` is below 1, or ``validation`` leaves one of the two splits empty.
    """
    if count < 1:
        raise ValueError(f"count is {count}; a sequence has at least one task")
    return _Permuted(dataset, count, seed, held_out(validation, dataset_sizes(dataset).train), data_dir)


class _Permuted:
    def __init__(self, dataset: str, count: int, seed: int, held_out: int, data_dir: str | None) -> None:
        sizes = dataset_sizes(dataset)
        self.count = count
        self.shape: tuple[int, ...] = (sizes.inputs,)
        self.classes = sizes.classes
        self._seed = seed
        self._data = dataset_sha256(dataset, data_dir)
        self._scale = largest_value(dataset)
        self._read = partial(read_samples, dataset, data_dir)
        self._train, self._validation = carve(sizes.train, held_out, generator(seed, "validation"))
        self._hashes: dict[int, str] = {}

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        transform = self.transform(index)
        return _PermutedTask(self._read, train=self._train, validation=self._validation, transform=transform)

    def sha256(self, index: int) -> str:
        if index not in self._hashes:
            digest = hashlib.sha256(f"permuted {self._data}\n".encode())
            for numbers in (self._validation, self._permutation(index)):
                digest.update(f"{len(numbers)}\n".encode())
                digest.update(numbers.numpy().astype("<i8").tobytes())
            self._hashes[index] = digest.hexdigest()
        return self._hashes[index]

    def transform(self, index: int) -> Transform:
        permutation = self._permutation(index)
        return Transform(permutation if index else None, self._scale, self.shape)

    def _permutation(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(f"there is no task {index}: the sequence has {self.count}, and the first is 0")
        if index == 0:
            return torch.arange(self.shape[0])
        return torch.randperm(self.shape[0], generator=generator(self._seed, "permutation", index))


class _PermutedTask:
    def __init__(
        self, read: Callable[..., Samples], *, train: Tensor, validation: Tensor, transform: Transform
    ) -> None:
        self._read = read
        self._train = train
        self._validation = validation
        self._transform = transform

    @cached_property
    def train(self) -> Split:
        return self._split(self._read(test=False), self._train)

    @cached_property
    def validation(self) -> Split:
        return self._split(self._read(test=False), self._validation)

    def open_test(self) -> Split:
        samples = self._read(test=True)
        return self._split(samples, torch.arange(len(samples.y)))

    def _split(self, samples: Samples, indices: Tensor) -> Split:
        return Split(self._transform(samples.x[indices]), samples.y[indices])
