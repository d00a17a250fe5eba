"""A fast scan over thresholds: bounds on the right answers that the canonical evaluator would count at each.

It proposes, the canonical evaluator scores (:mod:`clnp.thresholds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.network import Network
from clnp.ownership import active, masked
from clnp.tasks.task import Split

__all__ = ["scan"]

_GROUP = 64
"""Thresholds that are scored together. Each group starts from a forward pass, so that rounding does not pile up."""

_PIECE_BYTES = 2**21
"""The widest layer's outputs of one piece of the validation split on a CPU, so that they stay in its cache."""


def scan(
    network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None], split: Split, *, tolerance: float
) -> list[tuple[int, int]]:
    """Bounds ``(low, high)`` on the canonical number of right answers, one for each threshold.

    Units go one after another as θ rises, and taking unit j out of layer l is a rank-one update of layer l+1's
    pre-activations; what lies deeper is computed again at the width that is left. For a 784-400-400-10 network
    the 500 to 700 thresholds cost as much as 6 to 10 forward passes, where each alone would cost up to one.

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
    chain = _Chain.of(network, activity, thetas)
    device = network.device
    low, high = (torch.zeros(len(thetas), dtype=torch.int64, device=device) for _ in range(2))
    widest = max(chain.live[0])
    piece = max(1, _PIECE_BYTES // (4 * widest)) if device.type == "cpu" else len(split)
    with torch.inference_mode():
        for x, y in zip(torch.split(split.x, piece), torch.split(split.y, piece), strict=True):
            first = chain.first(x)
            for start in range(0, len(thetas), _GROUP):
                logits, reach = _logits(chain, first, chain.live[start : start + _GROUP])
                sure, possible = _count(logits, reach, y, tolerance)
                low[start : start + _GROUP] += sure
                high[start : start + _GROUP] += possible
    return list(zip(low.tolist(), high.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Chain:
    """The open task's network with each layer's units in the order in which they stay: what is left is a prefix.

    Attributes:
        weights: One a layer, the output's last: ``[inputs, units]``, so that a unit's outgoing weights are a row.
        biases: ``[units, 1]`` each.
        live: For each threshold the number of units left in each hidden layer.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    live: list[tuple[int, ...]]

    @classmethod
    def of(cls, network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None]) -> "_Chain":
        weights, biases, live = [], [], []
        source: Tensor | None = None
        for layer in network.layers:
            linear = network.linear(layer, network.task)
            weight = linear.weight.T if source is None else linear.weight.T[source]
            bias: Tensor = linear.bias if linear.bias is not None else torch.zeros_like(linear.weight[:, 0])
            if layer != network.output:
                # Old units stay whatever θ is, unless the task does not read them at all.
                owned = active(network, layer).cpu()
                means = activity[layer.name].masked_fill(owned, -1.0 if masked(network, layer) else torch.inf)
                means, order = means.sort(descending=True, stable=True)
                left = [-0.5 if theta is None else theta for theta in thetas]
                live.append((means.unsqueeze(0) > torch.tensor(left, dtype=means.dtype).unsqueeze(1)).sum(1).tolist())
                source = order.to(network.device)
                weight, bias = weight[:, source], bias[source]
            weights.append(weight.contiguous())
            biases.append(bias.unsqueeze(1))
        return cls(weights, biases, list(zip(*live, strict=True)))

    def first(self, x: Tensor) -> Tensor:
        """The first hidden layer's outputs ``[units, batch]``: they depend on no threshold."""
        return torch.relu_(self.into(0, x.T, x.shape[1], self.live[0][0]))

    def into(self, place: int, outputs: Tensor, inputs: int, units: int) -> Tensor:
        """Pre-activations ``[units, batch]`` of layer ``place`` from the layer before, both as far as they are left."""
        return torch.addmm(self.biases[place][:units], self.weights[place][:inputs, :units].T, outputs[:inputs])


def _logits(chain: _Chain, first: Tensor, live: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """One group of thresholds: a forward pass for its first, updates for the others.

    Returns:
        The logits ``[thresholds, classes, batch]``, and the largest sum of a logit's absolute summands at the first
        threshold, ``[]``.
    """
    output = chain.weights[-1]
    outputs, sums = [first], []
    for place in range(1, len(live[0])):
        sums.append(chain.into(place, outputs[-1], live[0][place - 1], live[0][place]))
        outputs.append(torch.relu(sums[-1]))
    read, classes = live[0][-1], output.shape[1]
    sums.append(chain.into(len(live[0]), outputs[-1], read, classes))
    reach = (output[:read].abs().T @ outputs[-1][:read]).amax()
    logits = torch.empty(len(live), classes, first.shape[1], dtype=first.dtype, device=first.device)
    logits[0] = sums[-1]
    for step in range(1, len(live)):
        _take_out(chain, outputs, sums, live[step - 1], live[step])
        logits[step] = sums[-1]
    return logits, reach


def _take_out(
    chain: _Chain, outputs: list[Tensor], sums: list[Tensor], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Bring outputs and pre-activations, in place, from the units left before to those left after."""
    again = False
    for place, (was, left) in enumerate(zip(before, after, strict=True)):
        weight = chain.weights[place + 1]
        last = place + 1 == len(after)
        units = weight.shape[1] if last else after[place + 1]
        target = sums[place][:units]
        if again:
            torch.addmm(chain.biases[place + 1][:units], weight[:left, :units].T, outputs[place][:left], out=target)
        elif left < was:
            target.addmm_(weight[left:was, :units].T, outputs[place][left:was], alpha=-1)
            again = True
        if again and not last:
            torch.clamp_min(target, 0, out=outputs[place + 1][:units])


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
