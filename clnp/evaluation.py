"""The canonical evaluator: the one path on which answers are counted and compared."""

import torch
from torch import Tensor, nn

from clnp.network import Network
from clnp.ownership import masked, reads
from clnp.subnetwork import before_mask, check_committed, subnetwork
from clnp.tasks.task import Split

__all__ = ["Scorer", "count_correct", "full_width_agrees", "full_width_difference", "full_width_logits", "logits"]

_BATCH = 500

_KEPT_BYTES = 2**28
"""Of values that a :class:`Scorer` keeps from one network to the next."""

_TOLERANCE = 1e-5

_ROUNDING = 1e-3
"""More than float32 loses in any network: no second look is taken."""


def logits(module: nn.Module, x: Tensor) -> Tensor:
    """The module's answers ``[n, classes]`` to ``x`` ``[n, *shape]``.

    One path: evaluation mode, the order of ``x``, batches of a fixed size, on the module's device. Only numbers that
    went this same way, on one device with one number of threads, can be compared bit for bit: another batch size or
    another width moves logits by about 1e-6.
    """
    like = next(module.parameters())
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(piece.to(like)) for piece in torch.split(x, _BATCH)])
    finally:
        module.train(training)


def count_correct(module: nn.Module, split: Split) -> int:
    """How many samples of ``split`` the module answers right; of equal logits the first class counts as the answer."""
    answers = logits(module, split.x).argmax(1)
    return int((answers == split.y.to(answers.device)).sum())


class Scorer:
    """Scores one network after another on the same samples, bit for bit as :func:`logits` and :func:`count_correct` do.

    A ``nn.Sequential`` that begins as the one before it did is computed from where they part: the same modules give the
    same numbers. Where units go one by one, most of them in the last layers, that is most of a network.

    Args:
        split: The samples, in the dtype and on the device of the networks.
    """

    def __init__(self, split: Split) -> None:
        self._pieces = torch.split(split.x, _BATCH)
        self._y = split.y
        self._steps: list[nn.Module] = []
        self._kept: dict[int, list[Tensor]] = {}

    def count_correct(self, module: nn.Module) -> int:
        """How many samples the module answers right, see :func:`count_correct`."""
        return int((self.logits(module).argmax(1) == self._y).sum())

    def logits(self, module: nn.Module) -> Tensor:
        """The module's answers ``[n, classes]``; it is in evaluation mode."""
        steps = list(module) if isinstance(module, nn.Sequential) else [module]
        common = 0
        for step, before in zip(steps, self._steps, strict=False):
            if not _same(step, before):
                break
            common += 1
        self._kept = {place: values for place, values in self._kept.items() if place <= common}
        begin = max(self._kept, default=0)
        read = [place for place in range(begin + 1, len(steps)) if _has_entries(steps[place])]
        found: dict[int, list[Tensor]] = {place: [] for place in read if any(map(_has_entries, steps[:place]))}
        answers: list[Tensor] = []
        with torch.no_grad():
            for value in self._kept.get(begin, self._pieces):
                for place in range(begin, len(steps)):
                    if place in found:
                        found[place].append(value)
                    value = steps[place](value)
                if not answers:
                    self._make_room(found)
                answers.append(value)
        self._kept |= found
        self._steps = steps
        return torch.cat(answers)

    def _make_room(self, found: dict[int, list[Tensor]]) -> None:
        """Of what is kept and what is found, of which the first piece is there, leave what will fit: the deepest first,
        which saves most."""
        room = _KEPT_BYTES
        for place in sorted({*self._kept, *found}, reverse=True):
            first = (found.get(place) or self._kept[place])[0]
            room -= first[0].nbytes * len(self._y)
            if room < 0:
                found.pop(place, None)
                self._kept.pop(place, None)


def _has_entries(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules compute the same, bit for bit."""
    if repr(one) != repr(other):
        return False
    mine, others = one.state_dict(), other.state_dict()
    return all(torch.equal(value, others[name]) for name, value in mine.items())


def full_width_logits(network: Network, x: Tensor, task: int) -> Tensor:
    """A committed task's logits ``[n, classes]`` from the network at full width, under the task's mask (Fig. 2).

    The free and the later units are computed too, and what they send into the task's units counts: a connection that
    was not severed shows here and not in the sub-network. The mask selects, since 0 · NaN is NaN; what nothing but the
    mask reads is not computed.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    output, mask, short = network.output, None, None
    if masked(network, network.last):
        if network.graph.chain and output.positions == 1:
            short = before_mask(network, task)
        else:
            mask = output.columns(reads(network, output, task))
    answers = []
    with torch.no_grad():
        for samples in torch.split(x, _BATCH):
            piece = samples.to(network.device, network.dtype)
            if short is not None:
                found = short(piece)
            else:
                for _, _, value in network.values(piece, task, mask=mask):
                    found = value
            answers.append(found)
    return torch.cat(answers)


def full_width_agrees(network: Network, x: Tensor, task: int, *, narrow: Tensor | None = None) -> bool:
    """Whether the network at full width gives a committed task the answers of its sub-network.

    The logits must agree within 1e-5 of the largest one (of 1, if that is larger), and the predictions wherever a
    sub-network's two largest logits are not a tie within rounding. Rounding grows with depth: samples that differ by
    more in float32, up to 1e-3, are answered again in float64, where a missing cut shows all the same. Arguments and
    errors are those of :func:`full_width_difference`.
    """
    # Logits this close give the same prediction, unless the two largest are within twice the tolerance of each other.
    found = _differences(network, x, task, narrow)
    if bool((found <= _TOLERANCE).all()):
        return True
    if network.dtype == torch.float64 or not bool((found <= _ROUNDING).all()):
        return False
    exact = _differences(network.copy().double(), x[(found > _TOLERANCE).to(x.device)], task, None)
    return bool((exact <= _TOLERANCE).all())


def full_width_difference(network: Network, x: Tensor, task: int, *, narrow: Tensor | None = None) -> float:
    """The largest difference of a committed task's logits at full width from those of its sub-network.

    Relative to the largest of the latter, or to 1 if that is larger. It is infinite or NaN where an answer is not
    finite: with a finite ``narrow``, a unit that the task does not read overflows on ``x``, and a severed weight of 0
    times infinity is NaN. A missing cut alone gives a finite one.

    Args:
        network: With the task committed.
        x: Samples ``[n, *shape]``, at least one.
        task: A committed task.
        narrow: The canonical logits ``[n, classes]`` of its sub-network on ``x``; computed here without.

    Raises:
        IndexError: The task is not committed.
    """
    return float(_differences(network, x, task, narrow).max())


def _differences(network: Network, x: Tensor, task: int, narrow: Tensor | None) -> Tensor:
    """By sample, ``[n]``."""
    wide = full_width_logits(network, x, task)
    if narrow is None:
        narrow = logits(subnetwork(network, task), x)
    return (wide - narrow).abs().amax(1) / max(1.0, float(narrow.abs().max()))
