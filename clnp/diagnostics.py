"""Count what a commit used: units, weights by class, and how much of what is new builds on what is old (Sec. 2.2)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from clnp.graph import Layer
from clnp.network import Network
from clnp.ownership import active, lives, reads, weight_classes
from clnp.subnetwork import check_committed
from clnp.usage import GroupUse, LayerUse, Usage

__all__ = ["diagnose"]


def diagnose(network: Network, activity: Mapping[str, Tensor]) -> Usage:
    """The use of the network by the task that was committed last.

    Args:
        network: Right after its commit.
        activity: The mean activity on the task that the commit went by, float64 ``[units]`` by hidden group's name.

    Raises:
        IndexError: Nothing is committed.
    """
    task = network.task - 1
    check_committed(network, task)
    groups = []
    for group in network.groups:
        owner = network.owner(group)
        old = lives(network, group, task) & (owner != task) & (activity[group.name] > 0).to(owner.device)
        free = int((~active(network, group)).sum())
        groups.append(GroupUse(group.name, int((owner == task).sum()), int(old.sum()), free))
    return Usage(tuple(groups), tuple(_layer(network, layer, task) for layer in network.layers))


def _layer(network: Network, layer: Layer, task: int) -> LayerUse:
    kernel = math.prod(layer.kernel)
    if layer == network.output:
        read = layer.columns(reads(network, layer, task))
        rows = torch.arange(layer.units, device=read.device)
        # What a shared output layer does not read is masked for this task and other tasks' own.
        severed = layer.inputs - int(read.sum()) if network.head == "multi" else 0
        counts = (int(read.sum()) * layer.units, 0, severed * layer.units)
    else:
        rows = (network.owner(layer.group) == task).nonzero().squeeze(1)
        classes = weight_classes(network, layer)
        counts = (int(classes.active.sum()), int(classes.free.sum()), int(classes.interference.sum()))
    into, free, interference = (count * kernel for count in counts)
    return LayerUse(layer.name, into, free, interference, _old_share(network, layer, task, rows))


def _old_share(network: Network, layer: Layer, task: int, rows: Tensor) -> float | None:
    if layer.source is None:
        return None
    read = reads(network, layer, task)
    weight = network.weights(layer, task).weight[rows].detach().double()
    norms = weight.abs().view(len(rows), layer.inputs, math.prod(layer.kernel)).sum(2)
    old = float(norms[:, layer.columns(read & (network.owner(layer.source) != task))].sum())
    total = float(norms[:, layer.columns(read)].sum())
    return old / total if total else None
