"""The open task's network as it shrinks unit by unit: its values brought from one threshold to the next, and how far
the logits can move on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from clnp.graph import INPUT, Add, Layer, Node, Norm, Plain
from clnp.network import Network
from clnp.ownership import active, masked

__all__ = ["Influences", "Live", "Shrinking"]

Live = Mapping[str | None, int]
"""By group the number of units that are left; the network's input and the output layer's classes stay."""

_BATCH = 500
"""Samples that start together: their values stay in a CPU's cache."""

Influences = Mapping[int, tuple[Tensor, Tensor]]
"""See :meth:`Shrinking.influences`."""

_SLOPES: dict[type[nn.Module], tuple[float, float]] = {nn.GELU: (1.13, 0.13), nn.SiLU: (1.1, 0.1)}
"""The steepest rise and fall of an activation; of others, 1 and 0."""


@dataclass(frozen=True, slots=True)
class Shrinking:
    """The network with each group's units in the order in which they stay: what is left is a prefix.

    Values are by node's place, ``[batch, features]`` or ``[batch, channels, h, w]``. A value may hold units that have
    gone since: as many as a :data:`Live` counts are read.

    Attributes:
        nodes: The network's.
        output: The place of its output layer.
        weights: By layer ``[units, inputs, *kernel]``.
        biases: By layer ``[units]``.
        influence: By layer, how far an output rises at most, and how far it falls, when all of an input rises by 1:
            ``[units, source units]`` each.
        affine: By BatchNorm its scale and shift in evaluation mode, ``[units]`` each.
        modules: By place the modules without entries.
        positions: By place how many features a unit has.
        fixed: The places of the nodes that no threshold changes, but for the units that go.
        kept: The places of the values that a change of threshold starts from.
        positive: The places of values that are never below 0.
        widest: Numbers of a sample in the largest value.
        live: For each threshold the units left.
    """

    nodes: tuple[Node, ...]
    output: int
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    influence: dict[str, tuple[Tensor, Tensor]]
    affine: dict[str, tuple[Tensor, Tensor]]
    modules: dict[int, nn.Module]
    positions: dict[int, int]
    fixed: frozenset[int]
    kept: tuple[int, ...]
    positive: frozenset[int]
    widest: int
    live: list[Live]

    @classmethod
    def of(
        cls, network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None], sample: Tensor
    ) -> "Shrinking":
        """
        Args:
            network: With its open task trained.
            activity: By hidden group's name: float64 ``[units]`` on the CPU.
            thetas: Rising, None (keep every unit) first.
            sample: ``[1, *shape]``.

        Raises:
            TypeError: A BatchNorm keeps no statistics.
        """
        nodes = network.graph.nodes
        orders, counts = _orders(network, activity, thetas)
        weights, biases, influence = {}, {}, {}
        for layer in network.layers:
            weight, biases[layer.name] = _ordered(network, layer, orders)
            weights[layer.name] = weight.contiguous()
            if layer.source is not None:
                each = weight.shape[1] // len(orders[layer.source])
                spread = weight.reshape(len(weight), -1, each, *layer.kernel).flatten(2)
                influence[layer.name] = spread.clamp_min(0).sum(2), -spread.clamp_max(0).sum(2)
        units = {group.name: group.units for group in network.groups}
        features, widest = {}, sample.numel()
        with torch.inference_mode():
            for place, node, value in network.values(sample, network.task):
                widest = max(widest, value.numel())
                flat = value.dim() == 2 and node.group in units
                features[place] = value.shape[1] // units[str(node.group)] if flat else 1
        fixed = _fixed(nodes)
        modules = {place: node.op.module() for place, node in enumerate(nodes) if isinstance(node.op, Plain)}
        classes: dict[str | None, int] = {network.output.group: network.output.units}
        return cls(
            nodes,
            next(place for place, node in enumerate(nodes) if node.op == network.output),
            weights,
            biases,
            influence,
            {norm.name: _affine(network, norm, orders[norm.group]) for norm in network.norms},
            modules,
            features,
            fixed,
            _kept(nodes, fixed),
            _positive(nodes, modules),
            widest,
            [{**classes, **dict(zip(units, left, strict=True))} for left in counts],
        )

    def start(self, x: Tensor, live: Live) -> dict[int, Tensor]:
        """The kept values of samples ``[batch, *shape]``."""
        if x.dim() not in (2, 4):  # Samples such as [28, 28], which a Flatten reads: one channel.
            x = x.reshape(len(x), 1, x.shape[1], -1)
        pieces = []
        for piece in torch.split(x, _BATCH):
            values = {INPUT: piece}
            for place in range(len(self.nodes)):
                values[place] = self._value(place, values, live)
            pieces.append([values[place] for place in self.kept])
        return dict(zip(self.kept, map(_joined, zip(*pieces, strict=True)), strict=True))

    def select(self, values: Mapping[int, Tensor], rows: Tensor, live: Live) -> dict[int, Tensor]:
        """The kept values of some samples, int64 ``[n]``, in memory of their own."""
        return {place: _rows(self._left(place, values, live), rows) for place in self.kept}

    def shrink(self, values: dict[int, Tensor], before: Live, after: Live) -> None:
        """Bring the kept values from one threshold to a larger one, in their memory where they are flat.

        What a layer reads less of is taken out of it: an update of low rank of its pre-activations, or a convolution of
        few channels. What lies deeper is computed again at the width that is left.
        """
        changed: set[int] = set()
        for place, node in enumerate(self.nodes):
            if place in self.fixed:
                continue
            if changed.isdisjoint(node.inputs):
                value = self._take_out(place, values, before, after)
            else:
                value = self._value(place, values, after)
            if value is not None:
                values[place] = value
                changed.add(place)

    def reach(self, values: Mapping[int, Tensor], live: Live) -> Tensor:
        """By sample, the largest sum of a logit's absolute summands, ``[batch]``."""
        op = self.nodes[self.output].op
        if not isinstance(op, Layer):
            raise TypeError(f"the output is a {type(op).__name__}")
        read = self.nodes[self.output].inputs[0]
        x = self._left(read, values, live)
        x = x if read in self.positive else x.abs()
        weight = self.weights[op.name][:, : x.shape[1]].abs()
        if op.kind == "dense":
            return (weight @ x.T).amax(0)
        return _convolve(op, x, weight, None).flatten(1).amax(1)

    def influences(self, live: Live) -> Influences:
        """By place of a layer, how far a logit rises at most, and how far it falls, when a unit that the layer reads
        rises by 1: ``[source units, classes]`` each. When it falls by 1, the other way round.

        Of the units that are left, so an upper bound with fewer, too.
        """
        last = len(self.nodes) - 1
        weight = self.weights[next(iter(self.weights))]
        one = torch.eye(live[self.nodes[last].group], dtype=weight.dtype, device=weight.device)
        found = {}
        slopes = {last: (one, torch.zeros_like(one))}
        for place in range(last, -1, -1):
            node, (up, down) = self.nodes[place], slopes.pop(place, (None, None))
            if up is None or down is None or place in self.fixed:
                continue
            if isinstance(node.op, Layer):
                rises, falls = (part[: len(up), : live[node.op.source]].T for part in self.influence[node.op.name])
                up, down = rises @ up + falls @ down, rises @ down + falls @ up
                found[place] = up, down
            elif isinstance(node.op, Norm):
                scale = self.affine[node.op.name][0][: len(up)].unsqueeze(1)
                rises, falls = scale.clamp_min(0), -scale.clamp_max(0)
                up, down = rises * up + falls * down, rises * down + falls * up
            elif isinstance(node.op, Plain):
                steepest, falling = _slopes(self.modules[place])
                up, down = steepest * up + falling * down, steepest * down + falling * up
            for read in node.inputs:
                before = slopes.get(read)
                slopes[read] = (up, down) if before is None else (before[0] + up, before[1] + down)
        return found

    def drift(
        self, values: Mapping[int, Tensor], influences: Influences, before: Live, after: Live
    ) -> tuple[Tensor, Tensor]:
        """By sample, how far each logit rises at most, and how far it falls, while the units between two thresholds go,
        at any threshold between them: ``[classes, batch]`` each.

        Taken out from the deepest layer on, a unit moves what reads it by its own value as it is now.
        """
        last = values[len(self.nodes) - 1]
        rise, fall = last.new_zeros(2, last.shape[1], len(last))
        for place, (up, down) in influences.items():
            node = self.nodes[place]
            read, source = node.inputs[0], node.op.source if isinstance(node.op, Layer) else None
            was, left = before[source], after[source]
            if was == left:
                continue
            each = self.positions[read]
            gone = values[read][:, left * each : was * each]
            if several := (gone.dim() == 4 or each > 1):
                gone = gone.reshape(len(gone), was - left, -1)
            # A unit that goes falls by what it is above 0, and rises by what it is below.
            up, down = up[left:was].T, down[left:was].T
            above = gone.amax(2) if several else gone
            if read not in self.positive:
                below = -(gone.amin(2) if several else gone).clamp_max(0).T
                rise.addmm_(up, below)
                fall.addmm_(down, below)
                above = above.clamp_min(0)
            rise.addmm_(down, above.T)
            fall.addmm_(up, above.T)
        return rise, fall

    def _left(self, place: int, values: Mapping[int, Tensor], live: Live) -> Tensor:
        """A node's value as far as it is left."""
        group = None if place == INPUT else self.nodes[place].group
        return values[place] if group is None else values[place][:, : live[group] * self.positions[place]]

    def _value(self, place: int, values: Mapping[int, Tensor], live: Live) -> Tensor:
        """A node's value, computed anew from those that it reads; in the memory of its last one where that is flat."""
        node, old = self.nodes[place], values.get(place)
        inputs = [self._left(read, values, live) for read in node.inputs]
        x, op = inputs[0], node.op
        units = live.get(node.group, 0) * self.positions[place]
        out = None if old is None or old.dim() != 2 else old[:, :units]
        if isinstance(op, Add):
            return inputs[0] + inputs[1]
        if isinstance(op, Layer):
            weight, bias = self.weights[op.name][:units, : x.shape[1]], self.biases[op.name][:units]
            if op.kind == "dense" and place == self.output:
                # Few classes: this way round it is four times faster.
                return torch.addmm(bias.unsqueeze(1), weight, x.T, out=None if out is None else out.T).T
            if op.kind == "dense":
                return torch.addmm(bias, x, weight.T, out=out)
            return _convolve(op, x, weight, bias)
        if isinstance(op, Norm):
            ending = (1, 1) if x.dim() == 4 else ()
            scale, shift = (kept[:units].view(-1, *ending) for kept in self.affine[op.name])
            return torch.addcmul(shift, x, scale)
        if isinstance(self.modules[place], nn.ReLU):
            return torch.clamp_min(x, 0, out=out)
        result: Tensor = self.modules[place](x)
        return result

    def _take_out(self, place: int, values: Mapping[int, Tensor], before: Live, after: Live) -> Tensor | None:
        """A layer's value when units that it reads have gone, or None where none has."""
        op, read = self.nodes[place].op, self.nodes[place].inputs[0]
        if not isinstance(op, Layer) or (was := before[op.source]) == (left := after[op.source]):
            return None
        units, each = after[op.group], self.positions[read]
        gone, target = values[read][:, left * each : was * each], values[place][:, :units]
        weight = self.weights[op.name][:units]
        if op.kind == "dense":
            return target.addmm_(gone, weight[:, left * each : was * each].T, alpha=-1)
        return target - _convolve(op, gone, weight[:, left:was], None)


def _fixed(nodes: Sequence[Node]) -> frozenset[int]:
    """The places that no threshold changes: those that no layer comes before but one that reads the input."""
    fixed: set[int] = {INPUT}
    for place, node in enumerate(nodes):
        moving = isinstance(node.op, Layer) and node.op.source is not None
        if not moving and all(read in fixed for read in node.inputs):
            fixed.add(place)
    return frozenset(fixed)


def _kept(nodes: Sequence[Node], fixed: frozenset[int]) -> tuple[int, ...]:
    """The places that a moving node reads, of the moving layers, and the last."""
    moving = [place for place in range(len(nodes)) if place not in fixed]
    kept = {place for place in moving if isinstance(nodes[place].op, Layer)} | {len(nodes) - 1}
    kept.update(read for place in moving for read in nodes[place].inputs)
    return tuple(sorted(kept))


def _positive(nodes: Sequence[Node], modules: Mapping[int, nn.Module]) -> frozenset[int]:
    """The places of ReLUs, and of what picks from these and averages."""
    positive: set[int] = set()
    for place, node in enumerate(nodes):
        if isinstance(node.op, Plain):
            picks = node.op.moves and _slopes(modules[place])[1] == 0
            if node.op.kind is nn.ReLU or (picks and node.inputs[0] in positive):
                positive.add(place)
    return frozenset(positive)


def _upright(value: Tensor) -> bool:
    """Whether a value lies in memory as ``[features, batch]``, as the logits do."""
    return value.dim() == 2 and value.stride(0) == 1


def _rows(value: Tensor, rows: Tensor) -> Tensor:
    return value.T.index_select(1, rows).T if _upright(value) else value.index_select(0, rows)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.T for piece in pieces], 1).T if _upright(pieces[0]) else torch.cat(tuple(pieces))


def _orders(
    network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None]
) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """By group its units in the order in which they stay, and for each threshold how many of each group are left."""
    orders, live = {}, []
    left = torch.tensor([-0.5 if theta is None else theta for theta in thetas], dtype=torch.float64, device="cpu")
    for group in network.groups:
        # Old units stay whatever θ is, unless the task does not read them at all.
        unread = masked(network, group) and network.graph.chain
        means = activity[group.name].masked_fill(active(network, group).cpu(), -1.0 if unread else torch.inf)
        means, order = means.sort(descending=True, stable=True)
        live.append((means.unsqueeze(0) > left.unsqueeze(1)).sum(1).tolist())
        orders[group.name] = order.to(network.device)
    return orders, list(zip(*live, strict=True))


def _ordered(network: Network, layer: Layer, orders: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias, 0 where it has none, with its units, and what it reads, in their order."""
    module = network.weights(layer, network.task)
    weight, bias = module.weight, module.bias
    if layer.source is not None:
        if layer == network.output and masked(network, layer.source) and not network.graph.chain:
            # Old units stay for the other layers that read them.
            old = layer.columns(active(network, layer.source))
            weight = weight.masked_fill(old.view(1, -1, *[1] * len(layer.kernel)), 0.0)
        weight = weight.index_select(1, _features(orders[layer.source], layer.positions))
    rows = orders.get(layer.group)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return (weight, bias) if rows is None else (weight[rows], bias[rows])


def _affine(network: Network, norm: Norm, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A BatchNorm's scale and shift in evaluation mode, in the order of its units."""
    stored = network.norm(norm)
    if stored.running_mean is None or stored.running_var is None:
        raise TypeError(f"{norm.name} has no running statistics")
    scale = torch.rsqrt(stored.running_var + norm.eps)
    scale = scale * stored.weight if norm.affine else scale
    shift = -stored.running_mean * scale
    return scale[rows], (shift + stored.bias if norm.affine else shift)[rows]


def _features(units: Tensor, positions: int) -> Tensor:
    """The features of units, in their order."""
    if positions == 1:
        return units
    return (units.unsqueeze(1) * positions + torch.arange(positions, device=units.device)).flatten()


def _slopes(module: nn.Module) -> tuple[float, float]:
    """How far the output of a module without entries rises at most, and how far it falls, when its input rises by 1."""
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, module.negative_slope), max(0.0, -module.negative_slope)
    if isinstance(module, nn.AvgPool2d) and module.divisor_override is not None:
        size = module.kernel_size
        slope = (size * size if isinstance(size, int) else size[0] * size[1]) / module.divisor_override
        return max(0.0, slope), max(0.0, -slope)
    return _SLOPES.get(type(module), (1.0, 0.0))


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
