"""Let layers grow between tasks (Sec. 4): new units at the end, free, and nothing old moves by a bit."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from clnp.graph import Graph, Group, Layer, Node, Norm
from clnp.network import Network
from clnp.ownership import norm_entries

__all__ = ["grow", "resized", "widths"]


def widths(network: Network) -> tuple[int, ...]:
    """The units of each hidden group."""
    return tuple(group.units for group in network.groups)


def grow(network: Network, extra: Mapping[str, int]) -> Network:
    """A copy with more units, "simply increasing the number of neurons in these layers when moving on to the next
    task" (Sec. 4).

    They are free and come after those that were there. What reads them has zeros for them, so every committed task
    keeps its fingerprint and its logits; :func:`clnp.training.open_task` draws what the next task may train.

    Args:
        network: Between two tasks.
        extra: By hidden group's name how many units it gains.

    Raises:
        ValueError: There is no such group, or the number is negative.
    """
    known = {group.name for group in network.groups}
    for name, units in extra.items():
        if name not in known:
            raise ValueError(f"there is no hidden group {name!r} to grow; there are {', '.join(sorted(known))}")
        if not isinstance(units, int) or isinstance(units, bool) or units < 0:
            raise ValueError(f"{name} would grow by {units!r} units; give a whole number, at least 0")
    grown = network.copy()
    grown.widen(resized(network.graph, extra))
    with torch.no_grad():
        for old, new in zip(network.layers, grown.layers, strict=True):
            tasks = range(network.task + 1) if network.head == "multi" and old == network.output else [None]
            for task in tasks:
                if task is None or str(task) in network.heads:
                    _put(network.weights(old, task).weight, grown.weights(new, task).weight)
                    _put(network.weights(old, task).bias, grown.weights(new, task).bias)
        for before, after in zip(network.norms, grown.norms, strict=True):
            entries = norm_entries(grown, after)
            for name, value in norm_entries(network, before).items():
                _put(value, entries[name])
    for group in network.groups:
        owner = grown.owner(group)
        owner[: group.units] = network.owner(group)
    return grown


def _put(old: Tensor | None, new: Tensor | None) -> None:
    if old is not None and new is not None:
        new[tuple(slice(size) for size in old.shape)] = old


def resized(graph: Graph, extra: Mapping[str, int]) -> Graph:
    """The graph with so many units more, or fewer, in each hidden group by its name."""

    def op(node: Node) -> Node:
        found = node.op
        if isinstance(found, Layer):
            inputs = found.inputs + found.positions * extra.get(found.source or "", 0)
            return replace(node, op=replace(found, inputs=inputs, units=found.units + extra.get(found.group, 0)))
        if isinstance(found, Norm):
            return replace(node, op=replace(found, units=found.units + extra.get(found.group, 0)))
        return node

    groups = [Group(group.name, group.units + extra.get(group.name, 0)) for group in graph.groups]
    return Graph([op(node) for node in graph.nodes], groups)
