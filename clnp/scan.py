"""A fast scan over thresholds: bounds on the right answers that the canonical evaluator would count at each.

It proposes, the canonical evaluator scores (:mod:`clnp.thresholds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clnp.network import Network
from clnp.shrinking import Influences, Shrinking
from clnp.tasks.task import Split

__all__ = ["scan"]

_STRIDES = (128, 16)
"""How many thresholds are looked at together, stretches within stretches; in the last, they are gone through singly."""

_PIECE_BYTES = {"dense": 2**25, "conv": 2**23}
"""The largest value of one piece of the validation split on a CPU: enough samples that a step costs more than its
calls; maps of one piece stay in its cache."""

_ELSEWHERE = 2**28


def scan(
    network: Network, activity: Mapping[str, Tensor], thetas: Sequence[float | None], split: Split, *, tolerance: float
) -> list[tuple[int, int]]:
    """Bounds ``(low, high)`` on the canonical number of right answers, one for each threshold.

    Units go one after another as θ rises. While a few quiet ones go, a logit moves by at most the sum, over them, of
    what each says times the absolute weights on its way to the logit: most samples are too clear to be answered
    differently, and are decided for a whole stretch of thresholds at once. The others are followed into shorter
    stretches, and in the end from threshold to threshold. For a 784-400-400-10 network the 470 to 680 thresholds cost
    1.7 to 4 canonical scorings of the full network, 0.6 to 1 of it the forward pass at the width that θ = 0 leaves.

    The numbers differ from the canonical ones by rounding. A sample counts as surely right, or wrong, where its right
    class is ahead of, or behind, the best other one by more than ``tolerance`` times the largest number around it;
    else it may go either way. That number is, of the sample, the largest logit and the largest sum of a logit's
    absolute summands so far: what cancels leaves its rounding behind.

    A threshold that is skipped for its bounds is never scored, so the exactness of the staircase rests on them. Where
    the pre-activations of deeper hidden layers cancel, the tolerance alone has to cover it. To keep every unit is
    always scored: its bounds are 0 and all.

    Args:
        network: With its open task trained.
        activity: By hidden layer's name: float64 ``[units]`` on the CPU.
        thetas: Rising, None (keep every unit) first.
        split: The validation split, on the network's device.
        tolerance: Relative; far above float32 rounding.
    """
    low, high = (torch.zeros(len(thetas), dtype=torch.int64, device=network.device) for _ in range(2))
    high[0] = len(split)
    if len(thetas) > 1:
        plan = Shrinking.of(network, activity, thetas, split.x[:1])
        search = _Search(plan, tolerance, low, high)
        kind = "conv" if any(layer.kind == "conv" for layer in network.layers) else "dense"
        room = _PIECE_BYTES[kind] if network.device.type == "cpu" else _ELSEWHERE
        piece = max(1, room // (4 * plan.widest))
        with torch.inference_mode():
            for x, y in zip(torch.split(split.x, piece), torch.split(split.y, piece), strict=True):
                samples = _Samples(plan.start(x, plan.live[1]), y, torch.zeros_like(y, dtype=network.dtype))
                search.follow(samples, range(1, len(thetas)), _STRIDES)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@dataclass(slots=True)
class _Samples:
    """Some samples on their way from threshold to threshold.

    Attributes:
        values: The network's kept values, see :class:`clnp.shrinking.Shrinking`.
        y: Their classes, ``[batch]``.
        scale: The largest number that the rounding of their logits may come from, ``[batch]``.
    """

    values: dict[int, Tensor]
    y: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class _Search:
    """Counts right answers into ``low`` and ``high``, int64 ``[thresholds]``."""

    plan: Shrinking
    tolerance: float
    low: Tensor
    high: Tensor

    def follow(
        self, samples: _Samples, thresholds: range, strides: Sequence[int], influences: Influences | None = None
    ) -> None:
        """Count samples, which stand at the first of some thresholds, at all of them.

        Args:
            samples: They are brought along, to the last stretch.
            thresholds: Consecutive.
            strides: The lengths of the stretches, and of those within them.
            influences: Of the network at an earlier threshold.
        """
        plan, live = self.plan, self.plan.live
        stride, *finer = strides
        for first in thresholds[::stride]:
            if first > thresholds.start:
                plan.shrink(samples.values, live[first - stride], live[first])
            if finer or influences is None:
                influences = plan.influences(live[first])
            samples.scale = torch.maximum(samples.scale, plan.reach(samples.values, live[first]))
            stretch = range(first, min(first + stride, thresholds.stop))
            left = self._decide(samples, stretch, influences)
            if len(left):
                rest = _Samples(plan.select(samples.values, left, live[first]), samples.y[left], samples.scale[left])
                if finer:
                    self.follow(rest, stretch, finer, influences)
                else:
                    self._count(rest, stretch)

    def _decide(self, samples: _Samples, stretch: range, influences: Influences) -> Tensor:
        """Count the samples whose answers are the same all along a stretch; the others are returned, int64 ``[n]``."""
        plan, before, after = self.plan, self.plan.live[stretch.start], self.plan.live[stretch.stop - 1]
        logits = samples.values[len(plan.nodes) - 1].T
        rise, fall = plan.drift(samples.values, influences, before, after)
        scale = torch.maximum(samples.scale, logits.abs().amax(0))
        slack = self.tolerance * (scale + torch.maximum(rise, fall).amax(0))
        index = samples.y.unsqueeze(0)
        # The rounding of these bounds is far below the tolerance.
        least, most = logits - fall, logits + rise
        right = least.gather(0, index).squeeze(0) - most.scatter(0, index, -torch.inf).amax(0) > slack
        wrong = most.gather(0, index).squeeze(0) - least.scatter(0, index, -torch.inf).amax(0) < -slack
        found = right.sum()
        self.low[stretch.start : stretch.stop] += found
        self.high[stretch.start : stretch.stop] += found
        return (~(right | wrong)).nonzero().squeeze(1)

    def _count(self, samples: _Samples, stretch: range) -> None:
        """Count samples, which stand at the first of some thresholds, at one after the other."""
        plan, live = self.plan, self.plan.live
        last = samples.values[len(plan.nodes) - 1]
        logits = last.new_empty(len(stretch), last.shape[1], len(last))
        logits[0] = last.T
        for step, at in enumerate(stretch[1:], 1):
            plan.shrink(samples.values, live[at - 1], live[at])
            logits[step] = samples.values[len(plan.nodes) - 1].T
        # An update keeps the rounding of every larger number that it was computed from.
        largest = logits.abs().amax(1).cummax(0).values
        slack = self.tolerance * torch.maximum(largest, samples.scale)
        index = samples.y.expand(len(stretch), 1, -1)
        right = logits.gather(1, index)
        ahead = (right - logits.scatter_(1, index, -torch.inf).amax(1, keepdim=True)).squeeze(1)
        # A NaN is neither ahead nor behind: it may go either way.
        self.low[stretch.start : stretch.stop] += (ahead > slack).sum(1)
        self.high[stretch.start : stretch.stop] += (~(ahead < -slack)).sum(1)
