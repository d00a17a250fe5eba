"""Members trained as one: what the open task may change is stacked, and what no member can change is shared."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clnp.graph import INPUT, Add, Layer, Node, Norm, Plain
from clnp.layers import Reading, adaptive_average, conv, dense, dropout, noise_mask, norm
from clnp.network import Network
from clnp.ownership import NORM_ENTRIES, entries
from clnp.parts import Parts, Piece, dropped
from clnp.tasks.encoded import Encoded, decoded

__all__ = ["Stack"]

_PIECE = 1024
"""Samples whose old features are computed at once, where they are kept."""


class Stack:
    """``members`` copies of an opened network that see the same batches and differ in what they learn from them.

    ::

        x [batch, inputs] ─ frozen weights ─→ old units ─ frozen weights ─→ old units ┐   alike for all members,
              │                                   │                                   │   without a gradient
              └ one GEMM for all members ┐        └ one GEMM for all members ┐        │
                                         └─→ free units ────── baddbmm ──────┴─→ free units ─→ logits
                                             [members, units, batch]                           of each member

    and so with convolutions: one for all members where they read the same, a grouped one where not. A step costs what
    is free: frozen weights have no gradient and no optimizer state, and old units, which are a function of the sample
    alone up to the first Dropout, can be computed once for as long as the stack trains (:meth:`whole_prefix`): then a
    depleted multi-head network costs its head.

    Inside, samples are the last dimension but for maps: no dense layer then needs a transposed copy, and forward and
    backward take 1.5 ms instead of 1.9 (64-128-128-10, batch 64, 6 members; torch 2.13, one thread of an AMD EPYC).

    Args:
        network: An opened network, see :func:`clnp.training.open_task`. It is read, never written.
        members: How many members there are, at least 1.

    Attributes:
        members: How many members there are.
        pieces: Which parts of the network's entries the parameters are, by name, see :class:`clnp.parts.Parts`.
        parameters: By the same names, ``[members, units, inputs, *kernel]`` and ``[members, units]``.
    """

    def __init__(self, network: Network, members: int) -> None:
        self.members = members
        self._parts = Parts(network)
        self._graph = network.graph
        self._modules = {node: node.op.module() for node in self._graph.nodes if isinstance(node.op, Plain)}
        self._dropped = {node: share for node in self._graph.nodes if (share := dropped(node)) > 0}
        self._entries = entries(network)
        self.pieces: Mapping[str, Piece] = self._parts.pieces
        self.parameters = {name: self._stacked(piece).requires_grad_() for name, piece in self.pieces.items()}
        self._statistics = {name: self._stacked(piece) for name, piece in self._parts.statistics.items()}

    def forward(self, x: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Logits ``[members, batch, classes]`` of samples ``[batch, *shape]``: :meth:`rest` of their :meth:`prefix`."""
        return self.rest(self.prefix(x), noise)

    @torch.no_grad()
    def prefix(self, x: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`rest` reads of samples ``[n, *shape]``: themselves and their old features, ``[n, …]`` each, as
        far as free units or a Dropout read them. Neither members nor training change any of it."""
        x = _maps_or_features(x)
        values = {INPUT: _turned(x)}
        for place in self._parts.fixed:
            values[place] = self._old(place, values, None)
        return tuple(_turned(values[place]) for place in self._parts.frontier)

    def whole_prefix(self, x: Tensor | Encoded, limit: int) -> tuple[Tensor | Encoded, ...] | None:
        """The prefix of many samples, computed piece by piece; None where their old features take more than ``limit``
        bytes, flattened samples counted with them. The samples themselves are as given, or flat, not copied where
        they lie in a row: some of them, decoded, are what :meth:`rest` reads."""
        first = dict(zip(self._parts.frontier, self.prefix(decoded(x[:1])), strict=True))
        # The bits depend on what is kept: so flattened samples count, though they take nothing.
        if len(x) * sum(value.nbytes for place, value in first.items() if place != INPUT) > limit:
            return None
        kept = {
            place: value.new_empty(len(x), *value.shape[1:])
            for place, value in first.items()
            if not self._graph.given(place)
        }
        for start in range(0, len(x) if kept else 0, _PIECE):
            piece = slice(start, start + _PIECE)
            for place, part in zip(first, self.prefix(decoded(x[piece])), strict=True):
                if place in kept:
                    kept[place][piece] = part
        given = {place: x.flatten(1) if value.dim() == 2 else x for place, value in first.items() if place not in kept}
        return tuple({**given, **kept}[place] for place in first)

    def rest(self, prefix: Sequence[Tensor], noise: torch.Generator | None = None) -> Tensor:
        """Logits ``[members, batch, classes]``.

        Args:
            prefix: Of the batch.
            noise: Draws the masks of Dropout, on the batch's device, one for all members. Given, the network is in
                training mode: free channels are normalised with the batch's statistics and update their own. Without,
                in evaluation mode.
        """
        parts = self._parts
        old = {at: _turned(_maps_or_features(value)) for at, value in zip(parts.frontier, prefix, strict=True)}
        own: dict[int, Tensor] = {}
        for place, node in enumerate(self._graph.nodes):
            kept = self._noise(node, old, own, noise) if noise is not None and node in self._dropped else None
            if place in parts.later:
                old[place] = self._old(place, old, kept)
            if node.group is not None and (node.group not in parts.free or len(parts.free[node.group])):
                own[place] = self._own(node, old, own, kept, training=noise is not None)
            for read in self._graph.done[place]:
                old.pop(read, None)
                own.pop(read, None)
        return own[len(self._graph.nodes) - 1].transpose(1, 2)

    def member(self, index: int) -> dict[str, Tensor]:
        """One member's entries, all of them, named and shaped as by :func:`clnp.ownership.entries`."""
        values = {name: value.clone() for name, value in self._entries.items()}
        for pieces, stacked in ((self.pieces, self.parameters), (self._parts.statistics, self._statistics)):
            for name, piece in pieces.items():
                piece.into(values[piece.entry], stacked[name].detach()[index])
        return values

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these members alone, in this order. Their parameters are copied; those of the others are gone."""
        index = torch.tensor(places, device=next(iter(self.parameters.values())).device)
        for own in (self.parameters, self._statistics):
            for name, value in own.items():
                own[name] = value.detach().index_select(0, index).requires_grad_(value.requires_grad)
        self.members = len(places)

    def finite(self) -> Tensor:
        """Which members hold finite numbers only: bool ``[members]``."""
        held = (*self.parameters.values(), *self._statistics.values())
        return torch.stack([value.detach().isfinite().flatten(1).all(1) for value in held]).all(0)

    def _stacked(self, piece: Piece) -> Tensor:
        return torch.stack([piece.of(self._entries[piece.entry])] * self.members)

    def _old(self, place: int, values: Mapping[int, Tensor], kept: Tensor | None) -> Tensor:
        """The old units of a node: features ``[units, batch]`` or maps ``[batch, units, h, w]``."""
        node, frozen = self._graph.nodes[place], self._parts.frozen
        op, x = node.op, values[node.inputs[0]]
        if isinstance(op, Add):
            return x + values[node.inputs[1]]
        if isinstance(op, Layer):
            weight, bias = frozen[f"{op.name}.weight"].unsqueeze(0), frozen.get(f"{op.name}.bias")
            return dense((x, weight), None, bias)[0] if op.kind == "dense" else conv(op, (x, weight), None, bias)[:, 0]
        if isinstance(op, Norm):
            return norm(op, x, _of(op, frozen), training=False)
        return self._plain(node, x, kept, self._parts.old)

    def _own(
        self,
        node: Node,
        old: Mapping[int, Tensor],
        own: Mapping[int, Tensor],
        kept: Tensor | None,
        *,
        training: bool,
    ) -> Tensor:
        """The free units of a node, of each member: features ``[members, units, batch]`` or maps ``[batch, members,
        units, h, w]``; or the logits."""
        op, read = node.op, node.inputs[0]
        if isinstance(op, Add):
            return own[read] + own[node.inputs[1]]
        if isinstance(op, Layer):
            names = self._parts.reads[op.name]
            shared: Reading | None = (old[read], self.parameters[names["old"]]) if "old" in names else None
            each: Reading | None = (own[read], self.parameters[names["free"]]) if "free" in names else None
            bias = self.parameters.get(f"{op.name}.bias", self._parts.frozen.get(f"{op.name}.bias"))
            return dense(shared, each, bias) if op.kind == "dense" else conv(op, shared, each, bias)
        if isinstance(op, Norm):
            return norm(op, own[read], _of(op, {**self.parameters, **self._statistics}), training=training)
        return self._plain(node, own[read], kept, self._parts.free)

    def _plain(self, node: Node, x: Tensor, kept: Tensor | None, units: Mapping[str, Tensor]) -> Tensor:
        module = self._modules[node]
        if isinstance(module, nn.Dropout):
            return x if kept is None else dropout(x, self._kept(node, x, kept, units), self._dropped[node])
        if isinstance(module, nn.Flatten):
            return _flattened(x)
        # A pooling knows no members: they are further samples to it.
        maps = x.flatten(0, 1) if x.dim() == 5 else x
        if isinstance(module, nn.AdaptiveAvgPool2d) and x.is_cuda:
            result = adaptive_average(maps, module.output_size)
        else:
            result = module(maps)
        return result.reshape(*x.shape[:2], *result.shape[1:]) if x.dim() == 5 else result

    def _noise(
        self, node: Node, old: Mapping[int, Tensor], own: Mapping[int, Tensor], noise: torch.Generator
    ) -> Tensor:
        """What a Dropout keeps of all the units of a node, old and free: bool ``[units, batch]``, or ``[batch, units,
        h, w]`` of maps. So the masks are the same however many units are free."""
        read, group = node.inputs[0], node.group
        x = own[read].select(0 if own[read].dim() == 3 else 1, 0) if read in own else old[read]
        shape, at = list(x.shape), 0 if x.dim() == 2 else 1
        if group is not None:
            held = len((self._parts.free if read in own else self._parts.old)[group])
            shape[at] = shape[at] // held * self._units(group)
        return noise_mask(tuple(shape), self._dropped[node], noise)

    def _kept(self, node: Node, x: Tensor, kept: Tensor, units: Mapping[str, Tensor]) -> Tensor:
        """Of the units of a node that a Dropout keeps, the old or the free ones, shaped as ``x``."""
        if node.group is not None and len(units[node.group]) < (every := self._units(node.group)):
            if kept.dim() == 2:  # A unit may have several features.
                kept = kept.view(every, -1, kept.shape[1])[units[node.group]].flatten(0, 1)
            else:
                kept = kept[:, units[node.group]]
        return kept.unsqueeze(1) if x.dim() == 5 else kept

    def _units(self, group: str) -> int:
        return len(self._parts.old[group]) + len(self._parts.free[group])


def _of(op: Norm, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a BatchNorm keeps, by kind."""
    return {kind: values[name] for kind in NORM_ENTRIES if (name := f"{op.name}.{kind}") in values}


def _maps_or_features(x: Tensor) -> Tensor:
    """Samples of another number of sizes are flattened before a layer reads them."""
    return x if x.dim() in (2, 4) else x.reshape(len(x), 1, x.shape[1], -1)


def _turned(value: Tensor) -> Tensor:
    """Features with samples first, or last if they were first; maps as they are."""
    return value.t() if value.dim() == 2 else value


def _flattened(x: Tensor) -> Tensor:
    """Maps, samples first, to features, samples last; what is flat stays."""
    if x.dim() == 4:
        return x.flatten(1).t()
    return x.flatten(2).permute(1, 2, 0) if x.dim() == 5 else x
