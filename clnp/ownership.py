"""Who owns each unit, and what follows from it: what a task reads, and the three weight classes (Sec. 2.1, Fig. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.network import FREE, Layer, Network

__all__ = ["Claims", "WeightClasses", "active", "masked", "reads", "trainable", "weight_classes"]

Claims = Mapping[str, Tensor]
"""The units that the open task would claim: by hidden layer's name a bool ``[units]``, true on free units only."""


def active(network: Network, layer: Layer, task: int | None = None) -> Tensor:
    """The units of a hidden layer that some task (or one up to ``task``) owns: bool ``[units]``."""
    owner = network.owner(layer)
    owned = owner != FREE
    return owned if task is None else owned & (owner <= task)


def masked(network: Network, layer: Layer) -> bool:
    """Whether a task reads only its own units of this hidden layer: the last one under a shared output layer."""
    return network.head == "single" and layer is network.last


def reads(network: Network, layer: Layer, task: int, claims: Claims | None = None) -> Tensor:
    """The units of a hidden layer that ``task``'s answer is computed from: bool ``[units]``.

    A committed task reads the units that it and the tasks before it own. The open one (``task == network.task``) reads
    these and, of the free ones, those in ``claims``, or all without ``claims``. In a masked layer each reads its own only.
    """
    if task < network.task:
        return network.owner(layer) == task if masked(network, layer) else active(network, layer, task)
    own = ~active(network, layer) if claims is None else claims[layer.name]
    return own if masked(network, layer) else active(network, layer) | own


@dataclass(frozen=True, slots=True)
class WeightClasses:
    """The partition of a layer's weights, bool ``[units, inputs]`` each (Sec. 2.1)."""

    active: Tensor
    free: Tensor
    interference: Tensor


def weight_classes(network: Network, layer: Layer) -> WeightClasses:
    """Split a hidden layer's weights: into free units (free), from active and from free units into active ones.

    The network's inputs always count as active, so the first layer has no interference weights.
    """
    into = active(network, layer).unsqueeze(1)
    place = network.layers.index(layer)
    if place == 0:
        source = torch.ones(1, layer.inputs, dtype=torch.bool, device=into.device)
    else:
        source = active(network, network.layers[place - 1]).unsqueeze(0)
    return WeightClasses(into & source, (~into).expand(-1, layer.inputs), into & ~source)


def trainable(network: Network) -> dict[str, Tensor]:
    """Which entries the open task may change, by ``"<layer>.weight"`` and ``"<layer>.bias"``: bool, broadcastable.

    Hidden layers: the rows of free units. A task's own output layer: all of it. A shared one: the columns of free units
    of the last hidden layer, and the bias in the first task only.
    """
    entries: dict[str, Tensor] = {}
    for layer in network.hidden:
        free = ~active(network, layer)
        entries[f"{layer.name}.weight"] = free.unsqueeze(1)
        if layer.bias:
            entries[f"{layer.name}.bias"] = free
    output = network.output
    own = network.head == "multi"
    columns = ~active(network, network.last)
    entries[f"{output.name}.weight"] = (torch.ones_like(columns) if own else columns).unsqueeze(0)
    if output.bias:
        entries[f"{output.name}.bias"] = torch.tensor([own or network.task == 0], device=network.device)
    return entries
