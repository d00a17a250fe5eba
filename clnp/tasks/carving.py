"""The validation split, carved from a task's training samples."""

import torch
from torch import Tensor

from clnp.tasks.sizes import validation_count

__all__ = ["carve", "held_out"]


def held_out(share: float, samples: int, of: str = "") -> int:
    """How many of ``samples`` a share holds out for validation.

    Args:
        share: Above 0 and below 1.
        samples: Training samples before the carving.
        of: Whose samples they are, for the message: ``" of task 3"``.

    Raises:
        ValueError: One of the two splits would be empty.
    """
    count = validation_count(share, samples) if 0 < share < 1 else 0
    if not 0 < count < samples:
        raise ValueError(f"validation is {share}; it must leave some of the {samples} samples{of} in both splits")
    return count


def carve(samples: int, held_out: int, source: torch.Generator, *, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The places of the training and of the ``held_out`` validation samples, each int64 in rising order.

    Args:
        most: Both together are at most so many; None: all ``samples``.
    """
    order = torch.randperm(samples, generator=source, device="cpu")[:most]
    return order[held_out:].sort().values, order[:held_out].sort().values
