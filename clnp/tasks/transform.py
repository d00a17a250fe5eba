"""What a raw sample goes through before it is a task's ``x``."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.tasks.encoded import Encoded, scaled

__all__ = ["Transform"]


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """The order of the features, their scale and the shape of a sample: what stands between raw samples and ``x``.

    ::

        raw [n, features] or [n, *map] → flatten → permutation → float32 → inversion → ÷ scale → x [n, *shape]

    Attributes:
        permutation: int64 ``[features]``: feature i of ``x`` is feature ``permutation[i]`` of the raw sample. None
            where the features keep their order.
        scale: What every feature is divided by: the largest value that a raw one can have.
        shape: Of one sample of ``x``.
        inverted: Whether a raw feature v is taken as ``scale - v``: black for white.

    Raises:
        ValueError: The shape or the scale is not above 0, or the permutation is not one of the shape's features.
    """

    permutation: Tensor | None
    scale: float
    shape: tuple[int, ...]
    inverted: bool = False

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}; a sample has at least one size, each at least 1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is {self.scale}; give the largest raw value, a finite number above 0")
        order, features = self.permutation, math.prod(self.shape)
        if order is None:
            return
        if order.dtype != torch.int64 or order.shape != (features,):
            raise ValueError(
                f"permutation is {order.dtype} {list(order.shape)}; a sample of shape {self.shape} needs "
                f"torch.int64 [{features}]"
            )
        if not torch.equal(order.sort().values, torch.arange(features, device=order.device)):
            raise ValueError(f"permutation does not hold each number from 0 to {features - 1} once")

    def __call__(self, raw: Tensor) -> Tensor:
        """The samples as the task has them: float32 ``[n, *shape]``, bit for bit, in memory of their own.

        Args:
            raw: ``[n, features]``, or ``[n, …]`` with as many, in any dtype of real numbers.

        Raises:
            ValueError: The samples have another number of features.
        """
        # Before the floats are made: bytes are a quarter of the memory traffic.
        x = self._arranged(raw)
        return scaled(x.to(torch.float32, copy=True), self._divisor(x), inverted=self.inverted)

    def encode(self, raw: Tensor) -> Encoded:
        """The samples as the task has them, still bytes; they decode to what a call gives, bit for bit.

        Args:
            raw: uint8 ``[n, features]``, or ``[n, …]`` with as many. Without a permutation its memory is shared.

        Raises:
            ValueError: The samples have another number of features, or are not bytes.
        """
        x = self._arranged(raw)
        return Encoded(x, self._divisor(x), self.inverted)

    def _arranged(self, raw: Tensor) -> Tensor:
        """Raw features ``[n, *shape]`` in the task's order."""
        features = math.prod(self.shape)
        if raw.dim() < 2 or math.prod(raw.shape[1:]) != features:
            raise ValueError(f"raw samples are {list(raw.shape)}; give [n, {features}] or [n, {_sizes(self.shape)}]")
        x = raw.flatten(1)
        if self.permutation is not None:
            x = _reorder(x, self.permutation)
        return x.reshape(len(x), *self.shape)

    def _divisor(self, x: Tensor) -> Tensor:
        return torch.tensor(self.scale, dtype=torch.float32, device=x.device)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """The features of ``x`` ``[n, features]`` in another order."""
    if x.device.type != "cpu" or x.dtype != torch.uint8:
        return x[:, order.to(x.device)]
    # Of bytes numpy has MNIST's test split in another order after 5 ms, torch after 18.
    return torch.from_numpy(x.numpy().take(order.numpy(force=True), axis=1))


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
