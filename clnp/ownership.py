"""Who owns each unit, and what follows from it: what a task reads, and the three weight classes (Sec. 2.1, Fig. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.errors import Damaged, NothingToCommit
from clnp.graph import Group, Layer, Norm
from clnp.network import FREE, Network

__all__ = [
    "NORM_ENTRIES",
    "STATISTICS",
    "Claims",
    "WeightClasses",
    "active",
    "check_room",
    "entries",
    "lives",
    "masked",
    "norm_entries",
    "reads",
    "take_free",
    "trainable",
    "weight_classes",
    "with_free",
]

Claims = Mapping[str, Tensor]
"""The units that the open task would claim: by hidden group's name a bool ``[units]``, true on free units only."""


def active(network: Network, group: Group | str, task: int | None = None) -> Tensor:
    """The units of a group that some task (or one up to ``task``) owns: bool ``[units]``."""
    owner = network.owner(group)
    owned = owner != FREE
    return owned if task is None else owned & (owner <= task)


def masked(network: Network, group: Group | str) -> bool:
    """Whether the output layer reads only a task's own units of this group: it is shared, and reads this one."""
    return network.head == "single" and network.last.name == (group if isinstance(group, str) else group.name)


def check_room(network: Network) -> None:
    """Refuse to go on where a task reads only its own units of the last hidden group and none is free there.

    Raises:
        NothingToCommit: It is so.
    """
    last, task = network.last, network.task
    if masked(network, last) and bool(active(network, last).all()):
        raise NothingToCommit(
            f"no free unit left in {last.name}: all {last.units} are owned after {task} tasks, and with a single head "
            f"task {task + 1} reads only new ones; let the layer grow, prune harder (a larger α or margin) or give "
            f"each task its own head"
        )


def reads(network: Network, layer: Layer, task: int, claims: Claims | None = None) -> Tensor:
    """What ``layer`` reads to answer ``task``: bool ``[units]`` of its source, or all features of the network's input.

    A committed task reads the units that it and the tasks before it own. The open one (``task == network.task``) reads
    these and, of the free ones, those in ``claims``, or all without ``claims``. A shared output layer reads the task's
    own alone.
    """
    if layer.source is None:
        return torch.ones(layer.inputs, dtype=torch.bool, device=network.device)
    alone = network.head == "single" and layer == network.output
    if task < network.task:
        return network.owner(layer.source) == task if alone else active(network, layer.source, task)
    own = ~active(network, layer.source) if claims is None else claims[layer.source]
    return own if alone else active(network, layer.source) | own


def lives(network: Network, group: Group | str, task: int, claims: Claims | None = None) -> Tensor:
    """The units of a group that ``task``'s answer is computed from, by whichever layer: bool ``[units]``."""
    name = group if isinstance(group, str) else group.name
    units = [reads(network, layer, task, claims) for layer in network.graph.readers(name)]
    return torch.stack(units).any(0)


@dataclass(frozen=True, slots=True)
class WeightClasses:
    """The partition of a layer's weights, bool ``[units, inputs]`` each (Sec. 2.1); of a convolution's by kernel."""

    active: Tensor
    free: Tensor
    interference: Tensor


def weight_classes(network: Network, layer: Layer) -> WeightClasses:
    """Split a hidden layer's weights: into free units (free), from active and from free units into active ones.

    The network's inputs always count as active, so a layer that reads them has no interference weights.
    """
    into = active(network, layer.group).unsqueeze(1)
    if layer.source is None:
        source = torch.ones(1, layer.inputs, dtype=torch.bool, device=into.device)
    else:
        source = layer.columns(active(network, layer.source)).unsqueeze(0)
    return WeightClasses(into & source, (~into).expand(-1, layer.inputs), into & ~source)


NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")
"""What a BatchNorm keeps for each channel; without affine, the last two."""

STATISTICS = NORM_ENTRIES[2:]
"""What training moves without a gradient."""


def entries(network: Network) -> dict[str, Tensor]:
    """All that the open task's answer is computed with, by ``"<layer>.weight"``, ``"<norm>.running_mean"`` …

    Weights are ``[units, inputs, *kernel]``, biases and what a BatchNorm keeps ``[units]``, in the network's own
    memory. The output layer is the shared one, or the open task's own.

    Raises:
        KeyError: The open task's own output layer has not been placed.
    """
    found: dict[str, Tensor] = {}
    for layer in network.layers:
        weights = network.weights(layer)
        found[f"{layer.name}.weight"] = weights.weight.detach()
        if weights.bias is not None:
            found[f"{layer.name}.bias"] = weights.bias.detach()
    for norm in network.norms:
        found |= norm_entries(network, norm)
    return found


def norm_entries(network: Network, norm: Norm) -> dict[str, Tensor]:
    """What a BatchNorm keeps for each channel, ``[units]`` each, by ``"<norm>.weight"`` …, in the network's memory."""
    module = network.norm(norm)
    kept = {kind: getattr(module, kind) for kind in NORM_ENTRIES}
    return {f"{norm.name}.{kind}": value.detach() for kind, value in kept.items() if value is not None}


def trainable(network: Network) -> dict[str, Tensor]:
    """Which entries the open task may change, named as by :func:`entries`: bool, broadcastable.

    Hidden layers: the rows of free units; BatchNorms: scale, shift and statistics of free channels. A task's own output
    layer: all of it. A shared one: the columns of free units of the last hidden group, and the bias in the first task
    only.
    """
    masks: dict[str, Tensor] = {}
    output = network.output
    for layer in network.layers:
        ones = [1] * len(layer.kernel)
        if layer != output:
            free = ~active(network, layer.group)
            masks[f"{layer.name}.weight"] = free.view(-1, 1, *ones)
            if layer.bias:
                masks[f"{layer.name}.bias"] = free
            continue
        own = network.head == "multi"
        columns = layer.columns(~active(network, network.last))
        masks[f"{layer.name}.weight"] = (torch.ones_like(columns) if own else columns).view(1, -1, *ones)
        if layer.bias:
            masks[f"{layer.name}.bias"] = torch.tensor([own or network.task == 0], device=network.device)
    for norm in network.norms:
        free = ~active(network, norm.group)
        masks |= dict.fromkeys(norm_entries(network, norm), free)
    return masks


def take_free(network: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of ``values``, shaped and named as :func:`entries`, what the open task may change, compact and in new memory.

    Hidden layers and BatchNorms: the rows of free units, ``[free, inputs, *kernel]`` and ``[free]``. A shared output
    layer: the columns of free units, ``[classes, free]``, and in the first task the bias. A task's own: whole. An entry
    of which nothing may change is left out.
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
    slots, masks = {}, trainable(result)
    for name, value in entries(result).items():
        dim, places = _places(masks[name], value)
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
