"""Who owns each unit, and what follows from it: what a task reads, and the three weight classes (Sec. 2.1, Fig. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.errors import Damaged, NothingToCommit
from clnp.network import FREE, Layer, Network

__all__ = [
    "Claims",
    "WeightClasses",
    "active",
    "check_room",
    "entries",
    "masked",
    "reads",
    "take_free",
    "trainable",
    "weight_classes",
    "with_free",
]

Claims = Mapping[str, Tensor]
"""The units that the open task would claim: by hidden layer's name a bool ``[units]``, true on free units only."""


def active(network: Network, layer: Layer, task: int | None = None) -> Tensor:
    """The units of a hidden layer that some task (or one up to ``task``) owns: bool ``[units]``."""
    owner = network.owner(layer)
    owned = owner != FREE
    return owned if task is None else owned & (owner <= task)


def masked(network: Network, layer: Layer) -> bool:
    """Whether a task reads only its own units of this hidden layer: the last one under a shared output layer."""
    return network.head == "single" and layer == network.last


def check_room(network: Network) -> None:
    """Refuse to go on where a task reads only its own units of the last hidden layer and none is free there.

    Raises:
        NothingToCommit: It is so.
    """
    last, task = network.last, network.task
    if masked(network, last) and bool(active(network, last).all()):
        raise NothingToCommit(
            f"no free unit left in {last.name}: all {last.units} are owned after {task} tasks, and with a single head "
            f"task {task + 1} reads only new ones; widen the layer, prune harder (a larger α or margin) or give each "
            f"task its own head"
        )


def reads(network: Network, layer: Layer, task: int, claims: Claims | None = None) -> Tensor:
    """The units of a hidden layer that ``task``'s answer is computed from: bool ``[units]``.

    A committed task reads the units that it and the tasks before it own. The open one (``task == network.task``) reads
    these and, of the free ones, those in ``claims``, or all without ``claims``. In a masked layer each reads its own
    only.
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


def entries(network: Network) -> dict[str, Tensor]:
    """The weights and biases that the open task reads, by ``"<layer>.weight"`` and ``"<layer>.bias"``.

    Weights are ``[units, inputs]``, biases ``[units]``, in the network's own memory. The output layer is the shared
    one, or the open task's own.

    Raises:
        KeyError: The open task's own output layer has not been placed.
    """
    found: dict[str, Tensor] = {}
    for layer in network.layers:
        linear = network.linear(layer)
        found[f"{layer.name}.weight"] = linear.weight.detach()
        if layer.bias:
            found[f"{layer.name}.bias"] = linear.bias.detach()
    return found


def trainable(network: Network) -> dict[str, Tensor]:
    """Which entries the open task may change, named as by :func:`entries`: bool, broadcastable.

    Hidden layers: the rows of free units. A task's own output layer: all of it. A shared one: the columns of free units
    of the last hidden layer, and the bias in the first task only.
    """
    masks: dict[str, Tensor] = {}
    for layer in network.hidden:
        free = ~active(network, layer)
        masks[f"{layer.name}.weight"] = free.unsqueeze(1)
        if layer.bias:
            masks[f"{layer.name}.bias"] = free
    output = network.output
    own = network.head == "multi"
    columns = ~active(network, network.last)
    masks[f"{output.name}.weight"] = (torch.ones_like(columns) if own else columns).unsqueeze(0)
    if output.bias:
        masks[f"{output.name}.bias"] = torch.tensor([own or network.task == 0], device=network.device)
    return masks


def take_free(network: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of ``values``, shaped and named as :func:`entries`, what the open task may change, compact and in new memory.

    Hidden layers: the rows of free units, ``[free, inputs]`` and ``[free]``. A shared output layer: the columns of free
    units, ``[classes, free]``, and in the first task the bias. A task's own: whole. An entry of which nothing may
    change is left out.
    """
    free: dict[str, Tensor] = {}
    for name, mask in trainable(network).items():
        dim, places = _places(mask, values[name])
        if len(places):
            free[name] = values[name].index_select(dim, places)
    return free


def with_free(network: Network, free: Mapping[str, Tensor]) -> Network:
    """A copy of an opened network with what :func:`take_free` took put in place; all other entries keep every bit.

    Raises:
        Damaged: An entry is missing, unknown, or of another shape or dtype than this network's.
    """
    result = network.copy()
    slots = {}
    for name, value in entries(result).items():
        dim, places = _places(trainable(result)[name], value)
        if len(places):
            slots[name] = (value, dim, places)
    unknown = sorted(free.keys() - slots.keys())
    if unknown:
        raise Damaged(
            f"{unknown[0]} is not among the entries that task {network.task + 1} may change: {', '.join(slots)}"
        )
    for name, (value, dim, places) in slots.items():
        if name not in free:
            raise Damaged(f"{name} is missing; found {', '.join(sorted(free)) or 'nothing'}")
        given = free[name]
        shape = (*value.shape[:dim], len(places), *value.shape[dim + 1 :])
        if given.shape != shape or given.dtype != value.dtype:
            raise Damaged(
                f"{name} is {given.dtype} of shape {tuple(given.shape)}, where the units that are free in this network "
                f"need {value.dtype} of shape {shape}"
            )
        value.index_copy_(dim, places, given.to(value.device))
    return result


def _places(mask: Tensor, value: Tensor) -> tuple[int, Tensor]:
    """The dimension along which a mask of :func:`trainable` selects, and the indices that it selects there."""
    dim = next((dim for dim, size in enumerate(mask.shape) if size > 1), 0)
    along = mask.flatten()
    if len(along) == 1:
        along = along.expand(value.shape[dim])
    return dim, along.nonzero().flatten()
