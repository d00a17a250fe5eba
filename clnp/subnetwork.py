"""A task's sub-network: the narrow network that its answer is computed by, cut out of the wide one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clnp.graph import Add, Graph, Layer, Node, Norm, Plain
from clnp.network import Network
from clnp.ownership import NORM_ENTRIES, Claims, lives, reads

__all__ = ["Narrow", "Select", "before_mask", "check_committed", "cut", "subnetwork"]


class Select(nn.Module):
    """Some features of a sample: ``[n, features, …]`` to ``[n, len(index), …]``.

    What a shared output layer reads where earlier tasks' units of the same group are computed too: in a residual
    network, whose other layers read them.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class Narrow(nn.Module):
    """A network with additions as plain torch modules, computed node by node.

    Args:
        graph: In what order, and what reads what.
        steps: By place what a node becomes: modules one after another, none for an addition.
    """

    def __init__(self, graph: Graph, steps: list[list[nn.Module]]) -> None:
        super().__init__()
        self._graph = graph
        self._steps: dict[Node, list[str]] = {}
        for place, (node, modules) in enumerate(zip(graph.nodes, steps, strict=True)):
            self._steps[node] = []
            for number, module in enumerate(modules):
                name = f"{node.name.replace('.', '_')}_{place}" + (f"_{number}" if len(modules) > 1 else "")
                self.add_module(name, module)
                self._steps[node].append(name)

    def forward(self, x: Tensor) -> Tensor:
        return self._graph.run(x, self._compute)

    def _compute(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if isinstance(node.op, Add):
            return inputs[0] + inputs[1]
        value = inputs[0]
        for name in self._steps[node]:
            value = self.get_submodule(name)(value)
        return value


def cut(network: Network, task: int, claims: Claims | None = None) -> nn.Sequential | Narrow:
    """A plain torch module with the units that ``task`` is computed from, and no other.

    ::

        x [batch, *shape] → layer(inputs, read 1) → … → layer(read n, classes) → … → logits [batch, classes]

    A ``nn.Sequential`` of the network's layer kinds, or, where it has additions, a :class:`Narrow` of them. Its weights
    are copies. Nothing of other units enters it, whatever they hold (Sec. 2.1: the narrower network embedded in the
    original structure).

    Args:
        network: The wide network.
        task: A committed task, or the open one.
        claims: For the open task, the free units that it would claim; all of them without.

    Raises:
        IndexError: ``task`` is neither committed nor open.
        ValueError: The task would read no unit of some hidden group.
    """
    if not 0 <= task <= network.task:
        raise IndexError(f"task {task} is neither committed nor open; the network has {network.task} committed tasks")
    units: dict[str | None, Tensor] = {}
    for group in network.groups:
        found = lives(network, group, task, claims)
        if not found.any():
            raise ValueError(f"task {task} would read no unit of {group.name}; it needs at least one")
        units[group.name] = found
    modules: list[list[nn.Module]] = [_modules(network, node, task, claims, units) for node in network.graph.nodes]
    if network.graph.chain:
        return nn.Sequential(*(module for step in modules for module in step)).eval()
    return Narrow(network.graph, modules).eval()


def subnetwork(network: Network, task: int) -> nn.Sequential | Narrow:
    """The sub-network of a committed task, see :func:`cut`.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    return cut(network, task)


def before_mask(network: Network, task: int) -> nn.Sequential:
    """The network at full width as far as a shared output layer's mask lets a committed task read it: all units of all
    groups but the last, and of that one the task's own. Of networks without additions, whose output layer reads one
    feature a unit."""
    group, output = network.last.name, network.output
    units = reads(network, output, task)
    modules: list[nn.Module] = []
    for node in network.graph.nodes:
        op = node.op
        if isinstance(op, Layer):
            rows = units.nonzero().squeeze(1) if op.group == group else None
            columns = op.columns(units).nonzero().squeeze(1) if op == output else None
            modules.append(_narrow(network, op, task, rows, columns))
        elif isinstance(op, Norm):
            every = torch.ones(op.units, dtype=torch.bool, device=network.device)
            modules.append(_narrow_norm(network, op, units if op.group == group else every))
        elif isinstance(op, Plain):
            modules.append(op.module())
    return nn.Sequential(*modules).eval()


def check_committed(network: Network, task: int) -> None:
    """Refuse a task that is not committed.

    Raises:
        IndexError: It is not.
    """
    if not 0 <= task < network.task:
        raise IndexError(f"task {task} is not committed; the network has {network.task} committed tasks")


def _modules(
    network: Network, node: Node, task: int, claims: Claims | None, units: dict[str | None, Tensor]
) -> list[nn.Module]:
    """What a node becomes: one module, two where it reads fewer units than are there, none for an addition."""
    op = node.op
    if isinstance(op, Add):
        return []
    if isinstance(op, Norm):
        return [_narrow_norm(network, op, units[op.group])]
    if not isinstance(op, Layer):
        return [op.module()]
    rows = None if op == network.output else units[op.group].nonzero().squeeze(1)
    if op.source is None:
        return [_narrow(network, op, task, rows, None)]
    read = reads(network, op, task, claims)
    narrow = _narrow(network, op, task, rows, op.columns(read).nonzero().squeeze(1))
    if network.graph.chain or bool((read == units[op.source]).all()):
        return [narrow]
    there = op.columns(units[op.source])
    return [Select(op.columns(read)[there].nonzero().squeeze(1)), narrow]


def _narrow(network: Network, layer: Layer, task: int, rows: Tensor | None, columns: Tensor | None) -> nn.Module:
    """A layer of its own with some rows and columns of the wide one; None takes all."""
    wide = network.weights(layer, task)
    weight = wide.weight if rows is None else wide.weight.index_select(0, rows)
    weight = weight.clone() if columns is None else weight.index_select(1, columns)
    # On the meta device nothing is drawn or allocated: a scan cuts hundreds of these.
    narrow = layer.module(weight.shape[1], weight.shape[0], weight.dtype)
    narrow.weight = nn.Parameter(weight, requires_grad=False)
    if wide.bias is not None:
        bias = wide.bias.clone() if rows is None else wide.bias.index_select(0, rows)
        narrow.bias = nn.Parameter(bias, requires_grad=False)
    return narrow


def _narrow_norm(network: Network, norm: Norm, units: Tensor) -> nn.Module:
    wide = network.norm(norm)
    narrow = norm.blank(int(units.sum()), network.device, network.dtype)
    for kind in NORM_ENTRIES:
        if (value := getattr(wide, kind)) is not None:
            getattr(narrow, kind).copy_(value[units])
    return narrow
