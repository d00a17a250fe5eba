"""Optimizers of a stack: what it holds is free, so every step moves all of it, each member at its own rate and α."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.stack import Stack

__all__ = ["Adam", "AdamW", "Optimizer", "Sgd"]


@dataclass(frozen=True, slots=True)
class _Slot:
    """What a step needs of one parameter: all tensors have its shape, ``alpha`` and ``rate`` broadcast to it."""

    value: Tensor
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
        # One piece of memory for all intermediate results: it stays in cache from entry to slot.
        largest = max(value.numel() for value in stack.parameters.values())
        scratch = next(iter(stack.parameters.values())).new_empty(largest)
        self._slots: dict[str, _Slot] = {}
        for name, value in stack.parameters.items():
            value, shape = value.detach(), (stack.members, *[1] * (value.dim() - 1))
            given = alpha.get(stack.pieces[name].entry, ())
            self._slots[name] = _Slot(
                value,
                value.new_tensor(given).view(shape) if any(given) else None,
                value.new_tensor(rate).view(shape),
                scratch[: value.numel()].view_as(value),
            )

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step along ``gradients``, by parameter; they are overwritten."""
        with torch.no_grad():
            for name, gradient in gradients.items():
                slot = self._slots[name]
                if slot.alpha is not None:
                    gradient.addcmul_(torch.sign(slot.value, out=slot.scratch), slot.alpha)
                slot.value.sub_(self._update(name, slot, gradient))

    def keep(self, stack: Stack, places: Sequence[int]) -> None:
        """Go on with these members alone, after the stack does: see :meth:`clnp.stack.Stack.keep`."""
        for name, slot in self._slots.items():
            value = stack.parameters[name].detach()
            index = torch.tensor(places, device=value.device)
            self._slots[name] = _Slot(
                value,
                None if slot.alpha is None else slot.alpha.index_select(0, index),
                slot.rate.index_select(0, index),
                slot.scratch[: len(places)],
            )
            for state in self._states():
                state[name] = state[name].index_select(0, index)

    def _states(self) -> Sequence[dict[str, Tensor]]:
        """What it keeps from step to step, by parameter; each has its shape."""
        return ()

    @abstractmethod
    def _update(self, name: str, slot: _Slot, gradient: Tensor) -> Tensor:
        """What to subtract from the parameter, in its scratch or in the gradient's memory."""

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(slot.value) for name, slot in self._slots.items()}


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

    def _states(self) -> Sequence[dict[str, Tensor]]:
        return self._first, self._second

    def _update(self, name: str, slot: _Slot, gradient: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        first = self._first[name].lerp_(gradient, 1 - beta1)
        second = self._second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # torch's quotient, numerator and denominator times the square root of the second moment's correction.
        correction = math.sqrt(1 - beta2**self._steps)
        denominator = torch.sqrt(second, out=slot.scratch).add_(self.epsilon * correction)
        rate = slot.rate * (correction / (1 - beta1**self._steps))
        return torch.div(first, denominator, out=slot.scratch).mul_(rate)


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

    def _update(self, name: str, slot: _Slot, gradient: Tensor) -> Tensor:
        update = super()._update(name, slot, gradient)
        return update.addcmul_(slot.value, slot.rate, value=self.weight_decay) if name in self._decayed else update


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum, as :class:`torch.optim.SGD` computes it."""

    def __init__(
        self, stack: Stack, alpha: Mapping[str, Sequence[float]], rate: Sequence[float], *, momentum: float = 0.0
    ) -> None:
        super().__init__(stack, alpha, rate)
        self.momentum = momentum
        self._velocity = self._zeros() if momentum else {}

    def _states(self) -> Sequence[dict[str, Tensor]]:
        return (self._velocity,) if self.momentum else ()

    def _update(self, name: str, slot: _Slot, gradient: Tensor) -> Tensor:
        if self.momentum:
            gradient = self._velocity[name].mul_(self.momentum).add_(gradient)
        return torch.mul(gradient, slot.rate, out=slot.scratch)
