"""Split tasks: the classes of one data set, a few for every task (Sec. 3.2, there CIFAR-100 by ten)."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial

from torch import Tensor

from clnp.seeding import generator
from clnp.tasks.base import Samples, dataset_sha256, largest_value, read_samples
from clnp.tasks.carving import carve, held_out
from clnp.tasks.sizes import dataset_sizes, split_sizes
from clnp.tasks.task import Sequence, Split, Task
from clnp.tasks.transform import Transform

__all__ = ["split"]


def split(
    dataset: str, *, classes: int, count: int, seed: int, validation: float, data_dir: str | None = None
) -> Sequence:
    """The split tasks of one replica.

    Task t has the samples of the classes ``t * classes`` to ``(t + 1) * classes - 1``, in the order of the data set,
    their labels renumbered from 0. Samples are images ``[n, 1, height, width]``, divided by the largest value they can
    have, 255 or, for the digits, 16. Each task's validation split is carved from its own training samples.

    Args:
        dataset: ``"digits"``, ``"mnist"`` or ``"fashion-mnist"``.
        classes: Classes of a task.
        count: How many tasks; ``count * classes`` is at most the classes of the data set.
        seed: Draws the validation samples.
        validation: The share of a task's training samples that is held out, above 0 and below 1.
        data_dir: Where the files are; see :func:`clnp.tasks.vision.data_folder`.

    Raises:
        DataUnavailable: The data set is unknown, absent, or not the known one.
        ValueError: ``classes`` is below 2, ``count`` is below 1 or asks for more classes than there are, or
            ``validation`` leaves a split of some task empty.
    """
    sizes = split_sizes(dataset, classes=classes, count=count)
    kept = [held_out(validation, task.train, f" of task {index}") for index, task in enumerate(sizes)]
    carved = [
        carve(task.train, held, generator(seed, "validation", index))
        for index, (task, held) in enumerate(zip(sizes, kept, strict=True))
    ]
    return _SplitUp(dataset, classes, carved, data_dir)


class _SplitUp:
    def __init__(self, dataset: str, classes: int, carved: list[tuple[Tensor, Tensor]], data_dir: str | None) -> None:
        self.count = len(carved)
        self.shape = dataset_sizes(dataset).shape
        self.classes = classes
        self._data = dataset_sha256(dataset, data_dir)
        self._transform = Transform(None, largest_value(dataset), self.shape)
        self._read = partial(read_samples, dataset, data_dir)
        self._carved = carved
        self._hashes: dict[int, str] = {}

    def task(self, index: int) -> Task:
        """One task. Its tensors are made when they are first asked for, and live as long as it does."""
        train, validation = self._carved[self._checked(index)]
        return _SplitTask(
            self._read, self._classes(index), train=train, validation=validation, transform=self._transform
        )

    def sha256(self, index: int) -> str:
        if self._checked(index) not in self._hashes:
            _, validation = self._carved[index]
            classes = " ".join(map(str, self._classes(index)))
            digest = hashlib.sha256(f"split {self._data}\n{classes}\n{len(validation)}\n".encode())
            digest.update(validation.numpy().astype("<i8").tobytes())
            self._hashes[index] = digest.hexdigest()
        return self._hashes[index]

    def transform(self, index: int) -> Transform:
        self._checked(index)
        return self._transform

    def _classes(self, index: int) -> range:
        return range(index * self.classes, (index + 1) * self.classes)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"there is no task {index}: the sequence has {self.count}, and the first is 0")
        return index


class _SplitTask:
    def __init__(
        self, read: Callable[..., Samples], classes: range, *, train: Tensor, validation: Tensor, transform: Transform
    ) -> None:
        self._read = read
        self._classes = classes
        self._train = train
        self._validation = validation
        self._transform = transform

    @cached_property
    def train(self) -> Split:
        return self._split(test=False, among=self._train)

    @cached_property
    def validation(self) -> Split:
        return self._split(test=False, among=self._validation)

    def open_test(self) -> Split:
        return self._split(test=True)

    def _split(self, *, test: bool, among: Tensor | None = None) -> Split:
        """The samples of this task's classes, or those at the places ``among`` them."""
        samples = self._read(test=test)
        first, stop = self._classes.start, self._classes.stop
        indices = ((samples.y >= first) & (samples.y < stop)).nonzero().squeeze(1)
        if among is not None:
            indices = indices[among]
        return Split(self._transform(samples.x[indices]), samples.y[indices] - first)
