"""What a task is to the method: whole data sets as tensors, the test split behind a door."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clnp.tasks.transform import Transform

__all__ = ["Sequence", "Split", "Task"]


@dataclass(frozen=True, slots=True)
class Split:
    """Samples ``x`` (float32 ``[n, *shape]``) and their classes ``y`` (int64 ``[n]``)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Split":
        """The split on a device, its ``x`` in ``dtype`` where one is given."""
        return Split(self.x.to(device, dtype), self.y.to(device))


class Task(Protocol):
    """One data set to learn."""

    @property
    def train(self) -> Split: ...

    @property
    def validation(self) -> Split: ...

    def open_test(self) -> Split:
        """The test split. Nothing before the task's commit may call this."""
        ...


class Sequence(Protocol):
    """The ordered list of tasks of one replica.

    Attributes:
        count: How many tasks there are.
        shape: Of one sample: ``(features,)``, or ``(channels, height, width)`` for images.
        classes: Classes of every task.
    """

    count: int
    shape: tuple[int, ...]
    classes: int

    def task(self, index: int) -> Task: ...

    def sha256(self, index: int) -> str:
        """A hash over the samples, the splits and the transform of a task."""
        ...

    def transform(self, index: int) -> Transform:
        """What the raw samples of a task go through before they are its ``x``."""
        ...
