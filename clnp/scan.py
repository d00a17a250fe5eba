"""A fast scan over thresholds: bounds on the right answers that the canonical evaluator would count at each.

It proposes, the canonical evaluator scores (:mod:`clnp.thresholds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from clnp.graph import INPUT, Add, Layer, Node, Norm, Plain
from clnp.network import Network
from clnp.ownership import active, masked
from clnp.tasks.task import Split

__all__ = ["scan"]

_GROUP = 64
"""Thresholds that are scored together. Each group starts from a forward pass, so that rounding does not pile up."""

_PIECE_BYTES = {"cpu": 2**21}
"""The largest outputs of one piece of the validation split; on a CPU, that they stay in its cache."""

_ELSEWHERE = 2**28


def scan(
    network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None], split: Split, *, tolerance: float
) -> list[tuple[int, int]]:
    """Bounds ``(low, high)`` on the canonical number of right answers, one for each threshold.

    Units go one after another as θ rises, and taking unit j out of what a layer reads is a rank-one update of its
    pre-activations, or a convolution of one channel; what lies deeper is computed again at the width that is left. For
    a 784-400-400-10 network the 500 to 700 thresholds cost as much as 6 to 10 forward passes, where each alone would
    cost up to one.

    The numbers differ from the canonical ones by rounding. A sample counts as surely right, or wrong, where its right
    class is ahead of, or behind, the best other one by more than ``tolerance`` times the largest number around it;
    else it may go either way. That number is, in the sample's piece, the larger of the largest logit in its group of
    thresholds so far, and the largest sum of a logit's absolute summands at the group's first: what cancels leaves its
    rounding behind.

    A threshold that is skipped for its bounds is never scored, so the exactness of the staircase rests on them. Where
    the pre-activations of deeper hidden layers cancel, the tolerance alone has to cover it.

    Args:
        network: With its open task trained.
        activity: By hidden layer's name: float64 ``[units]`` on the CPU.
        thetas: Rising, None (keep every unit) first.
        split: The validation split, on the network's device.
        tolerance: Relative; far above float32 rounding.
    """
    plan = _Plan.of(network, activity, thetas, split.x[:1])
    device = network.device
    low, high = (torch.zeros(len(thetas), dtype=torch.int64, device=device) for _ in range(2))
    piece = max(1, _PIECE_BYTES.get(device.type, _ELSEWHERE) // (4 * plan.widest))
    with torch.inference_mode():
        for x, y in zip(torch.split(split.x, piece), torch.split(split.y, piece), strict=True):
            prefix = plan.start(x)
            for start in range(0, len(thetas), _GROUP):
                logits, reach = _logits(plan, prefix, plan.live[start : start + _GROUP])
                sure, possible = _count(logits, reach, y, tolerance)
                low[start : start + _GROUP] += sure
                high[start : start + _GROUP] += possible
    return list(zip(low.tolist(), high.tolist(), strict=True))


Live = Mapping[str | None, int]
"""By group the number of units that are left; the network's input and the output layer's classes stay."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The open task's network with each group's units in the order in which they stay: what is left is a prefix.

    Values are ``[features, batch]`` of what is flat and ``[batch, channels, h, w]`` of maps. A value may hold units
    that have gone since: as many as :attr:`live` counts are read.

    Attributes:
        nodes: The network's.
        output: The place of its output layer.
        weights: By layer: dense ``[inputs, units]``, so that a unit's outgoing weights are a row, convolutions as torch
            has them.
        biases: By layer ``[units]``.
        affine: By BatchNorm its scale and shift in evaluation mode, ``[units]`` each.
        modules: By place the modules without entries.
        positions: By place how many features a unit has.
        fixed: The places of the nodes that no threshold changes, but for the units that go.
        widest: Numbers of a sample in the largest value.
        live: For each threshold the units left.
    """

    nodes: tuple[Node, ...]
    output: int
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    affine: dict[str, tuple[Tensor, Tensor]]
    modules: dict[int, nn.Module]
    positions: dict[int, int]
    fixed: frozenset[int]
    widest: int
    live: list[Live]

    @classmethod
    def of(
        cls, network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None], sample: Tensor
    ) -> "_Plan":
        graph, task = network.graph, network.task
        orders, counts = _orders(network, activity, thetas)
        weights, biases, affine = {}, {}, {}
        for layer in network.layers:
            module = network.weights(layer, task)
            weight, bias = module.weight, module.bias
            rows = orders.get(layer.group)
            if layer.source is not None:
                if layer == network.output and masked(network, layer.source) and not graph.chain:
                    # Old units stay for the other layers that read them.
                    old = layer.columns(active(network, layer.source))
                    weight = weight.masked_fill(old.view(1, -1, *[1] * len(layer.kernel)), 0.0)
                weight = weight.index_select(1, _features(orders[layer.source], layer.positions))
            if rows is not None:
                weight, bias = weight[rows], None if bias is None else bias[rows]
            weights[layer.name] = (weight.T if layer.kind == "dense" else weight).contiguous()
            biases[layer.name] = weight.new_zeros(len(weight)) if bias is None else bias
        for norm in network.norms:
            stored, rows = network.norm(norm), orders[norm.group]
            if stored.running_mean is None or stored.running_var is None:
                raise TypeError(f"{norm.name} has no running statistics")
            scale = torch.rsqrt(stored.running_var + norm.eps)
            scale = scale * stored.weight if norm.affine else scale
            shift = -stored.running_mean * scale
            affine[norm.name] = (scale[rows], (shift + stored.bias if norm.affine else shift)[rows])
        units = {group.name: group.units for group in network.groups}
        positions, widest = {}, sample.numel()
        with torch.inference_mode():
            for place, node, value in network.values(sample, task):
                widest = max(widest, value.numel())
                flat = value.dim() == 2 and node.group in units
                positions[place] = value.shape[1] // units[str(node.group)] if flat else 1
        fixed: set[int] = {INPUT}
        for place, node in enumerate(graph.nodes):
            moving = isinstance(node.op, Layer) and node.op.source is not None
            if not moving and all(read in fixed for read in node.inputs):
                fixed.add(place)
        classes: dict[str | None, int] = {network.output.group: network.output.units}
        return cls(
            graph.nodes,
            next(place for place, node in enumerate(graph.nodes) if node.op == network.output),
            weights,
            biases,
            affine,
            {place: node.op.module() for place, node in enumerate(graph.nodes) if isinstance(node.op, Plain)},
            positions,
            frozenset(fixed - {INPUT}),
            widest,
            [{**classes, **dict(zip(units, left, strict=True))} for left in counts],
        )

    def start(self, x: Tensor) -> dict[int, Tensor]:
        """The values of the nodes that no threshold changes, of samples ``[batch, *shape]``."""
        if x.dim() not in (2, 4):  # Samples such as [28, 28], which a Flatten reads: one channel.
            x = x.reshape(len(x), 1, x.shape[1], -1)
        values = {INPUT: x.T if x.dim() == 2 else x}
        for place in sorted(self.fixed):
            values[place] = self.value(place, values, self.live[0])
        return values

    def left(self, place: int, values: Mapping[int, Tensor], live: Live) -> Tensor:
        """A node's value as far as it is left."""
        group = None if place == INPUT else self.nodes[place].group
        if group is None:
            return values[place]
        return _part(values[place], 0, live[group] * self.positions[place])

    def value(self, place: int, values: dict[int, Tensor], live: Live) -> Tensor:
        """A node's value, computed anew from those that it reads; in the memory of its last one where that is flat."""
        node, old = self.nodes[place], values.get(place)
        inputs = [self.left(read, values, live) for read in node.inputs]
        x, op = inputs[0], node.op
        units = live.get(node.group, 0) * self.positions[place]
        out = None if old is None or old.dim() != 2 else old[:units]
        if isinstance(op, Add):
            return inputs[0] + inputs[1]
        if isinstance(op, Layer):
            bias = self.biases[op.name][:units]
            if op.kind == "dense":
                return torch.addmm(bias.unsqueeze(1), self.weights[op.name][: len(x), :units].T, x, out=out)
            return _convolve(op, x, self.weights[op.name][:units, : x.shape[1]], bias)
        if isinstance(op, Norm):
            ending = (1, 1) if x.dim() == 4 else (1,)
            scale, shift = (kept[:units].view(-1, *ending) for kept in self.affine[op.name])
            return torch.addcmul(shift, x, scale)
        if isinstance(self.modules[place], nn.ReLU):
            return torch.clamp_min(x, 0, out=out)
        if isinstance(self.modules[place], nn.Flatten):
            return x.flatten(1).T if x.dim() == 4 else x
        result: Tensor = self.modules[place](x)
        return result

    def take_out(self, place: int, values: dict[int, Tensor], before: Live, after: Live) -> Tensor | None:
        """A layer's value when units that it reads have gone, or None where none has."""
        op, read = self.nodes[place].op, self.nodes[place].inputs[0]
        if not isinstance(op, Layer) or (was := before[op.source]) == (left := after[op.source]):
            return None
        units, each = after[op.group], self.positions[read]
        gone, target = _part(values[read], left * each, was * each), _part(values[place], 0, units)
        weight = self.weights[op.name]
        if op.kind == "dense":
            return target.addmm_(weight[left * each : was * each, :units].T, gone, alpha=-1)
        return target - _convolve(op, gone, weight[:units, left:was], None)


def _orders(
    network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None]
) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """By group its units in the order in which they stay, and for each threshold how many of each group are left."""
    orders, live = {}, []
    left = [-0.5 if theta is None else theta for theta in thetas]
    for group in network.groups:
        # Old units stay whatever θ is, unless the task does not read them at all.
        unread = masked(network, group) and network.graph.chain
        means = activity[group.name].masked_fill(active(network, group).cpu(), -1.0 if unread else torch.inf)
        means, order = means.sort(descending=True, stable=True)
        live.append((means.unsqueeze(0) > torch.tensor(left, dtype=means.dtype).unsqueeze(1)).sum(1).tolist())
        orders[group.name] = order.to(network.device)
    return orders, list(zip(*live, strict=True))


def _features(units: Tensor, positions: int) -> Tensor:
    """The features of units, in their order."""
    if positions == 1:
        return units
    return (units.unsqueeze(1) * positions + torch.arange(positions, device=units.device)).flatten()


def _part(value: Tensor, start: int, end: int) -> Tensor:
    """Some features of what is flat ``[features, batch]``, or some channels of maps ``[batch, channels, h, w]``."""
    return value[start:end] if value.dim() == 2 else value[:, start:end]


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _logits(plan: _Plan, prefix: Mapping[int, Tensor], live: Sequence[Live]) -> tuple[Tensor, Tensor]:
    """One group of thresholds: a forward pass for its first, updates for the others.

    Returns:
        The logits ``[thresholds, classes, batch]``, and the largest sum of a logit's absolute summands at the first
        threshold, ``[]``.
    """
    values, moving = dict(prefix), [place for place in range(len(plan.nodes)) if place not in plan.fixed]
    for place in moving:
        values[place] = plan.value(place, values, live[0])
    reach = _reach(plan, values, live[0])
    last = values[len(plan.nodes) - 1]
    logits = last.new_empty(len(live), *last.shape)
    logits[0] = last
    for step in range(1, len(live)):
        before, after = live[step - 1], live[step]
        changed: set[int] = set()
        for place in moving:
            if changed.isdisjoint(plan.nodes[place].inputs):
                value = plan.take_out(place, values, before, after)
            else:
                value = plan.value(place, values, after)
            if value is not None:
                values[place] = value
                changed.add(place)
        logits[step] = values[len(plan.nodes) - 1]
    return logits, reach


def _reach(plan: _Plan, values: Mapping[int, Tensor], live: Live) -> Tensor:
    """The largest sum of a logit's absolute summands."""
    op = plan.nodes[plan.output].op
    if not isinstance(op, Layer):
        raise TypeError(f"the output is a {type(op).__name__}")
    x, weight = plan.left(plan.nodes[plan.output].inputs[0], values, live).abs(), plan.weights[op.name].abs()
    found = weight[: len(x)].T @ x if op.kind == "dense" else _convolve(op, x, weight[:, : x.shape[1]], None)
    return found.amax()


def _count(logits: Tensor, reach: Tensor, y: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """How many samples are surely and possibly right, int64 ``[thresholds]`` each. Overwrites the logits."""
    # An update keeps the rounding of every larger number that it was computed from.
    largest = logits.abs().amax((1, 2)).cummax(0).values
    slack = tolerance * torch.maximum(largest, reach).unsqueeze(1)
    index = y.expand(len(logits), 1, -1)
    right = logits.gather(1, index)
    ahead = (right - logits.scatter_(1, index, -torch.inf).amax(1, keepdim=True)).squeeze(1)
    # A NaN is neither ahead nor behind: it may go either way.
    return (ahead > slack).sum(1), (~(ahead < -slack)).sum(1)
