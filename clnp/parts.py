"""An opened network's units and entries, parted: what its open task may change, and what nothing changes any more."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clnp.graph import INPUT, Add, Layer, Node, Plain
from clnp.network import Network
from clnp.ownership import STATISTICS, entries, norm_entries, trainable

__all__ = ["Parts", "Piece", "dropped"]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of an entry, which the open task may change.

    Attributes:
        entry: Its name, as by :func:`clnp.ownership.entries`.
        rows: Which units, indices; None: all.
        columns: Which of the features that a weight reads, indices; None: all.
    """

    entry: str
    rows: Tensor | None
    columns: Tensor | None = None

    def of(self, value: Tensor) -> Tensor:
        """That part of an entry, in memory of its own."""
        value = value.clone() if self.rows is None else value.index_select(0, self.rows)
        return value if self.columns is None else value.index_select(1, self.columns)

    def into(self, value: Tensor, part: Tensor) -> None:
        """Put that part of an entry in place."""
        rows = torch.arange(len(value), device=value.device) if self.rows is None else self.rows
        if self.columns is None:
            value[rows] = part
        else:
            value[rows.unsqueeze(1), self.columns] = part


class Parts:
    """The old and the free units of an opened network, the entries that follow from them, and what reads which.

    An old unit reads old ones alone: its weights from free ones were severed. A free unit reads both. So the old units
    of every node are a function of the sample, up to the first Dropout before them.

    Args:
        network: An opened network. It is read, never written.

    Attributes:
        old, free: By group's name the indices of its units of either kind. Of neither kind are the logits.
        pieces: What gradients change, by name: the entry's, or ``"<entry>:old"`` and ``"<entry>:free"`` of a layer that
            reads units of both kinds.
        statistics: What free BatchNorm channels change without a gradient, by entry.
        reads: By layer the names of the pieces that read ``"old"`` units, or the network's input, and ``"free"`` ones;
            empty where the layer has nothing to train.
        frozen: What the old units are computed with, by entry; and a shared output layer's bias after the first task.
        fixed: The places of the nodes whose old units are read and depend on the sample alone, in order.
        later: Of those whose old units are read and depend on a Dropout too.
        frontier: Those among ``fixed``, and :data:`clnp.graph.INPUT`, that a free unit or one of ``later`` reads.
    """

    def __init__(self, network: Network) -> None:
        graph, self._output, self._masks = network.graph, network.output, trainable(network)
        found = entries(network)
        self._changing = {group.name: self._changes(graph.nodes, group.name, group.units) for group in network.groups}
        self.old = {name: _indices(~changing) for name, changing in self._changing.items()}
        self.free = {name: _indices(changing) for name, changing in self._changing.items()}
        self.pieces: dict[str, Piece] = {}
        self.statistics: dict[str, Piece] = {}
        self.reads: dict[str, dict[str, str]] = {}
        self.frozen: dict[str, Tensor] = {}
        for layer in network.layers:
            self._part(layer, found)
        for norm in network.norms:
            old, free = self.old[norm.group], self.free[norm.group]
            for name in norm_entries(network, norm):
                self.frozen[name] = found[name][old]
                if len(free):
                    kind = self.statistics if name.endswith(STATISTICS) else self.pieces
                    kind[name] = Piece(name, free)
        self.fixed, self.later = self._follow(graph.nodes)
        self.frontier = self._frontier(graph.nodes)

    def _changes(self, nodes: tuple[Node, ...], group: str, units: int) -> Tensor:
        """The units of a group of which the open task may change anything: bool ``[units]``."""
        holders = {node.op.name for node in nodes if node.group == group and not isinstance(node.op, Plain | Add)}
        masks = [mask for name, mask in self._masks.items() if name.rpartition(".")[0] in holders]
        return torch.stack([mask.flatten().expand(units) for mask in masks]).any(0)

    def _part(self, layer: Layer, found: dict[str, Tensor]) -> None:
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        output = layer == self._output
        rows = None if output else self.free[layer.group]
        columns: dict[str, Tensor | None] = {"old": None}
        if layer.source is not None:
            free = layer.columns(self._changing[layer.source])
            columns = {"old": _indices(~free), "free": _indices(free)}
        if not output and len(self.old[layer.group]):
            part = Piece(weight, self.old[layer.group], columns["old"])
            self.frozen[weight] = part.of(found[weight])
            if layer.bias:
                self.frozen[bias] = found[bias][self.old[layer.group]]
        self.reads[layer.name] = {}
        if rows is not None and not len(rows):
            return
        if output:
            # Of a shared output layer a task reads the columns that it may change.
            mask = self._masks[weight].flatten().expand(layer.inputs)
            columns = {kind: at if at is None else at[mask[at]] for kind, at in columns.items()}
        read = {kind: at for kind, at in columns.items() if at is None or len(at)}
        for kind, at in read.items():
            name = weight if len(read) == 1 else f"{weight}:{kind}"
            self.pieces[name] = Piece(weight, rows, at)
            self.reads[layer.name][kind] = name
        if layer.bias and (rows is not None or bool(self._masks[bias].any())):
            self.pieces[bias] = Piece(bias, rows)
        elif layer.bias:
            self.frozen[bias] = found[bias].clone()

    def _follow(self, nodes: tuple[Node, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The places whose old units are read, before any Dropout and after one."""
        read: set[int] = set()
        for place, node in reversed(list(enumerate(nodes))):
            if place in read or (isinstance(node.op, Layer) and "old" in self.reads[node.op.name]):
                read.update(node.inputs)
        later: set[int] = set()
        for place in sorted(read - {INPUT}):
            if dropped(nodes[place]) > 0 or not later.isdisjoint(nodes[place].inputs):
                later.add(place)
        return tuple(sorted(read - later - {INPUT})), tuple(sorted(later))

    def _frontier(self, nodes: tuple[Node, ...]) -> tuple[int, ...]:
        read = {at for place in self.later for at in nodes[place].inputs}
        for node in nodes:
            if isinstance(node.op, Layer) and "old" in self.reads[node.op.name]:
                read.update(node.inputs)
        return tuple(sorted(read.difference(self.later)))


def dropped(node: Node) -> float:
    """The share of features that a Dropout drops; 0 of any other node."""
    module = node.op.module() if isinstance(node.op, Plain) else None
    return module.p if isinstance(module, nn.Dropout) else 0.0


def _indices(units: Tensor) -> Tensor:
    return units.nonzero().squeeze(1)
