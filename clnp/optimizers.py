"""Optimizers of a stack that move what the open task may change, and nothing else by a bit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.stack import Stack

__all__ = ["Adam", "AdamW", "Optimizer", "Sgd", "select"]


def select(update: Tensor, trainable: Tensor | None) -> Tensor:
    """The update, in place, with exactly +0 wherever an entry is not trainable, NaN or not. None: all are trainable.

    Neither zero gradients (momentum, Adam's state and weight decay move an entry without one) nor a product with 0
    (0 · NaN is NaN) would keep an old entry. Subtracting +0 keeps every bit, a -0's too.
    """
    if trainable is None:
        return update
    return torch.where(trainable, update, update.new_zeros(()), out=update)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a step needs of one stacked entry: all tensors have its shape, ``alpha`` and ``rate`` broadcast to it."""

    value: Tensor
    trainable: Tensor | None
    alpha: Tensor | None
    rate: Tensor
    scratch: Tensor


class Optimizer(ABC):
    """Moves a stack along its gradients, each member at its own learning rate and with its own α a layer.

    L1 (Sec. 2.2) acts on what ``alpha`` names: ``alpha · sign(w)`` is added straight to the gradient. Its state is
    zero when it is made, so one optimizer serves one task.

    Args:
        stack: The members; their parameters are changed in place.
        alpha: By entry, one α a member. An entry that is not named has no L1 term.
        rate: One learning rate a member.
    """

    def __init__(self, stack: Stack, alpha: Mapping[str, Sequence[float]], rate: Sequence[float]) -> None:
        # One piece of memory for all intermediate results: it stays in cache from entry to entry.
        largest = max(value.numel() for value in stack.parameters.values())
        scratch = next(iter(stack.parameters.values())).new_empty(largest)
        self._entries: dict[str, _Entry] = {}
        for name, value in stack.parameters.items():
            value = value.detach()
            shape = (stack.members, *[1] * (value.dim() - 1))
            alphas = value.new_tensor(alpha[name]).view(shape) if any(alpha.get(name, ())) else None
            self._entries[name] = _Entry(
                value,
                stack.trainable[name],
                alphas,
                value.new_tensor(rate).view(shape),
                scratch[: value.numel()].view_as(value),
            )

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step along ``gradients``, by entry; they are overwritten."""
        with torch.no_grad():
            for name, gradient in gradients.items():
                entry = self._entries[name]
                if entry.alpha is not None:
                    gradient.add_(torch.sign(entry.value, out=entry.scratch).mul_(entry.alpha))
                entry.value.sub_(select(self._update(name, entry, gradient), entry.trainable))

    @abstractmethod
    def _update(self, name: str, entry: _Entry, gradient: Tensor) -> Tensor:
        """What to subtract from the entry, in its scratch or in the gradient's memory."""

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(entry.value) for name, entry in self._entries.items()}


class Adam(Optimizer):
    """Adam as :class:`torch.optim.Adam` computes it, with its default betas and epsilon."""

    betas = (0.9, 0.999)
    epsilon = 1e-8

    def __init__(self, stack: Stack, alpha: Mapping[str, Sequence[float]], rate: Sequence[float]) -> None:
        super().__init__(stack, alpha, rate)
        self._first, self._second = self._zeros(), self._zeros()
        self._steps = 0

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        self._steps += 1
        super().step(gradients)

    def _update(self, name: str, entry: _Entry, gradient: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        first = self._first[name].lerp_(gradient, 1 - beta1)
        second = self._second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # torch's quotient, numerator and denominator times the square root of the second moment's correction.
        correction = math.sqrt(1 - beta2**self._steps)
        denominator = torch.sqrt(second, out=entry.scratch).add_(self.epsilon * correction)
        rate = entry.rate * (correction / (1 - beta1**self._steps))
        return torch.div(first, denominator, out=entry.scratch).mul_(rate)


class AdamW(Adam):
    """Adam with decoupled weight decay as :class:`torch.optim.AdamW` computes it, on the free weights alone.

    Like L1, the decay spares biases and BatchNorms; what the open task may not change it does not reach.
    """

    def __init__(
        self, stack: Stack, alpha: Mapping[str, Sequence[float]], rate: Sequence[float], *, weight_decay: float
    ) -> None:
        super().__init__(stack, alpha, rate)
        self.weight_decay = weight_decay
        # Weights have inputs; alpha may name a BatchNorm's entries too.
        self._decayed = frozenset(name for name, value in stack.parameters.items() if value.dim() > 2)

    def _update(self, name: str, entry: _Entry, gradient: Tensor) -> Tensor:
        update = super()._update(name, entry, gradient)
        return update.addcmul_(entry.value, entry.rate, value=self.weight_decay) if name in self._decayed else update


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum, as :class:`torch.optim.SGD` computes it."""

    def __init__(
        self, stack: Stack, alpha: Mapping[str, Sequence[float]], rate: Sequence[float], *, momentum: float = 0.0
    ) -> None:
        super().__init__(stack, alpha, rate)
        self.momentum = momentum
        self._velocity = self._zeros() if momentum else {}

    def _update(self, name: str, entry: _Entry, gradient: Tensor) -> Tensor:
        if self.momentum:
            gradient = self._velocity[name].mul_(self.momentum).add_(gradient)
        return torch.mul(gradient, entry.rate, out=entry.scratch)
