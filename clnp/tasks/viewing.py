"""Views: MNIST and Fashion-MNIST in turns, upright, turned and inverted: real images that change from task to task."""

import hashlib
import math
from functools import partial

import torch
from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.base import dataset_sha256, largest_value, read_samples
from clnp.tasks.carving import carve, held_out
from clnp.tasks.sizes import VIEWED, VIEWS, at_most, dataset_sizes, views_sizes
from clnp.tasks.task import Sequence, Task, check_index
from clnp.tasks.transform import Transform
from clnp.tasks.whole import WholeTask

__all__ = ["views"]


def views(
    *, count: int, seed: int, validation: float, samples: int | None = None, data_dir: str | None = None
) -> Sequence:
    """The views of one replica: task t shows its data set as entry t of :data:`clnp.tasks.VIEWS` says.

    The tasks are MNIST and Fashion-MNIST in turns: both upright, both by a quarter turn, both inverted, then by half
    and three quarters of a turn, then inverted and turned. It stands in for the convolutional sequences of the paper
    where CIFAR is not at hand. Samples are images ``[n, 1, 28, 28]`` divided by 255. A data set's validation split is
    carved once from its training split: the same samples in all its views.

    Args:
        count: How many tasks, at most as many as there are views.
        seed: Draws the validation samples.
        validation: The share of a task's training samples that is held out, above 0 and below 1.
        samples: At most so many training samples of a data set are used, the validation split's among them; None: all.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: A data set is absent, or not the known one.
        ValueError: ``count`` is below 1 or above the number of views, ``validation`` leaves a split
            empty, or ``samples`` is below 1.
    """
    for index, sizes in enumerate(views_sizes(count)):
        held_out(validation, at_most(sizes, samples).train, f" of task {index}")
    return _Views(count, seed, validation, samples, data_dir)


class _Views:
    def __init__(self, count: int, seed: int, validation: float, samples: int | None, data_dir: str | None) -> None:
        self.count = count
        self.shape = dataset_sizes(VIEWED[0]).shape
        self.classes = dataset_sizes(VIEWED[0]).classes
        self._data = {dataset: dataset_sha256(dataset, data_dir) for dataset in VIEWED}
        self._data_dir = data_dir
        self._all = samples is None
        self._carved = {dataset: _carved(dataset, seed, validation, samples) for dataset in VIEWED}

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        transform, dataset = self.transform(index), VIEWS[index].dataset
        train, validation = self._carved[dataset]
        read = partial(read_samples, dataset, self._data_dir)
        return WholeTask(read, train=train, validation=validation, transform=transform)

    def sha256(self, index: int) -> str:
        transform, view = self.transform(index), VIEWS[index]
        digest = hashlib.sha256(f"view {self._data[view.dataset]}\n{int(transform.inverted)}\n".encode())
        train, validation = self._carved[view.dataset]
        # Of all samples the validation split says which are for training.
        used = (validation,) if self._all else (validation, train)
        for numbers in (*used, _turned(self.shape, view.turns)):
            digest.update(f"{len(numbers)}\n".encode())
            digest.update(numbers.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def transform(self, index: int) -> Transform:
        check_index(self, index)
        dataset, turns, inverted = VIEWS[index]
        permutation = _turned(self.shape, turns) if turns else None
        return Transform(permutation, largest_value(dataset), self.shape, inverted)


def _carved(dataset: str, seed: int, validation: float, samples: int | None) -> tuple[Tensor, Tensor]:
    sizes = dataset_sizes(dataset)
    held = held_out(validation, at_most(sizes, samples).train)
    return carve(sizes.train, held, generator(seed, "validation", dataset), most=samples)


def _turned(shape: tuple[int, ...], turns: int) -> Tensor:
    """The permutation int64 ``[features]`` that turns an image of ``shape`` counterclockwise by quarters."""
    places = torch.arange(math.prod(shape), device="cpu").reshape(shape)
    return places.rot90(turns, (1, 2)).flatten()
