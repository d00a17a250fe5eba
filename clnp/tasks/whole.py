"""A task that has all samples of a data set."""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from clnp.tasks.base import Samples
from clnp.tasks.task import Split
from clnp.tasks.transform import Transform

__all__ = ["WholeTask"]


class WholeTask:
    """A task with every sample of a data set, each split made when it is first asked for.

    Args:
        read: ``read(test=…)`` gives the samples of the training or the test split.
        train, validation: The places of the two splits' samples in the training split: int64 ``[n]``.
        transform: What the samples go through.
    """

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
        return Split(self._transform.encode(samples.x.clone()), samples.y.clone())

    def _split(self, samples: Samples, indices: Tensor) -> Split:
        return Split(self._transform.encode(samples.x[indices]), samples.y[indices])
