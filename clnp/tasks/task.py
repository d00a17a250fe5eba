"""What a task is to the method: whole data sets as tensors, the test split behind a door."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clnp.tasks.encoded import Encoded, decoded, some
from clnp.tasks.transform import Transform

__all__ = ["Sequence", "Split", "Task", "check_index"]


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Split:
    """Samples ``x`` (float32 ``[n, *shape]``) and their classes ``y`` (int64 ``[n]``).

    Args:
        x: The samples; bytes stay bytes.
        y: Their classes.

    Attributes:
        samples: What the split holds. Read by pieces, bytes are never floats as a whole: ``decoded(samples[piece])``.
        y: As given.
    """

    samples: Tensor | Encoded
    y: Tensor

    def __init__(self, x: Tensor | Encoded, y: Tensor) -> None:
        object.__setattr__(self, "samples", x)
        object.__setattr__(self, "y", y)

    @property
    def x(self) -> Tensor:
        """All samples as floats. Of bytes they are made, and given away, whenever they are asked for."""
        return decoded(self.samples)

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Split":
        """The split on a device, its ``x`` in ``dtype`` where one is given."""
        return Split(self.samples.to(device, dtype), self.y.to(device))

    def part(self, index: Tensor | slice) -> "Split":
        """The samples at places int64 ``[k]``, or of a slice."""
        return Split(some(self.samples, index), self.y[index])

    def decoded(self) -> "Split":
        """The split with floats, for who reads them more than once."""
        return Split(self.x, self.y)


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

    Its methods raise IndexError for a task that there is not, see :func:`check_index`.

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


def check_index(sequence: Sequence, index: int) -> None:
    """Refuse a task that the sequence does not have.

    Raises:
        IndexError: It has none at this index.
    """
    if not 0 <= index < sequence.count:
        raise IndexError(f"there is no task {index}: the sequence has {sequence.count}, and the first is 0")
