"""Prune and train what is left again, on the same task, once or several times (Sec. 2.2 "fine-tuning", Sec. 3.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from clnp.activity import mean_activity
from clnp.errors import Diverged
from clnp.evaluation import count_correct
from clnp.narrowing import narrow, put_back, within
from clnp.network import Network
from clnp.ownership import Claims, active, with_free
from clnp.rounds import Round
from clnp.subnetwork import cut
from clnp.tasks.task import Split
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, train

__all__ = ["FineTuned", "Order", "fine_tune"]

Order = Callable[[Network, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Of a network and the mean activity of its units, by hidden group's name the numbers that θ is compared with."""


@dataclass(frozen=True, slots=True)
class FineTuned:
    """What is to be committed.

    Attributes:
        network: The wide network with the open task as the last round kept it.
        claims: The units left then, by hidden group's name.
        rounds: In order, at least one.
    """

    network: Network
    claims: Claims
    rounds: tuple[Round, ...]


def fine_tune(
    network: Network,
    claims: Claims,
    training: Split,
    validation: Split,
    member: Member,
    settings: Settings,
    *,
    seed: int,
    needed: int,
    theta: float | None = None,
    rounds: int = 1,
    order: Order = lambda _, activity: activity,
    on_epoch: Callable[[int, int, int], None] | None = None,
) -> FineTuned:
    """Train what is left of the open task again, "only updating the weights which survive sparsification" (Sec. 2.2).

    ::

        claims → trained again, the better by validation kept (ties: before) → pruned at the largest θ with ``needed``
        right answers, by the mean activity of what is left → trained again, the better kept → …

    so that what a round keeps has ``needed`` right answers or more whenever ``claims`` has. It ends after ``rounds``
    rounds, or before one that would prune nothing ("iterate the pruning and fine-tuning steps", Ref. [7]).

    Args:
        network: Opened and trained, of the full width. It is not changed.
        claims: Those of the first round: bool ``[units]`` by hidden group's name, on the network's device.
        training: The training split of the open task.
        validation: Its validation split.
        member: What every round trains with.
        settings: How every round is trained.
        seed: Of the replica. Every round has an order of samples and a dropout noise of its own.
        needed: The fewest right answers that a later round may prune to: the task's cut line.
        theta: Where ``claims`` were made; it is recorded.
        rounds: At the most; at least 1.
        order: What θ is compared with in later rounds, such as :func:`clnp.activity.by_layer`; the activity itself
            without.
        on_epoch: Called after every epoch with the round and the epoch, both from 1, and the right answers then (0 once
            it has diverged).

    Raises:
        ValueError: ``rounds`` is not at least 1, the claims leave nothing of a group, or what :func:`train` refuses.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    done: list[Round] = []
    for number in range(1, rounds + 1):
        if number > 1:
            further = _prune(narrow(network, claims), training, validation, needed, order)
            if further is None:
                break
            theta, claims = further[0], within(network, claims, further[1])
        left = narrow(network, claims)
        pruned = count_correct(cut(left, left.task), validation)

        def tell(epoch: int, correct: tuple[int, ...], number: int = number) -> None:
            if on_epoch is not None:
                on_epoch(number, epoch, correct[0])

        (found,) = train(left, training, validation, [member], settings, seed=seed, stage=number, on_epoch=tell)
        again = None if found.diverged is not None else _finite(with_free(left, found.free), training)
        tuned = None if again is None else count_correct(cut(again, again.task), validation)
        counts = tuple(int(claims[group.name].sum()) for group in network.groups)
        done.append(Round(theta, counts, pruned, tuned))
        if again is not None and done[-1].better:
            network = put_back(network, again, claims)
    return FineTuned(network, claims, tuple(done))


def _prune(
    left: Network, training: Split, validation: Split, needed: int, order: Order
) -> tuple[float | None, Claims] | None:
    """The largest θ at which what is left still has ``needed`` right answers, and the units that it leaves; None where
    these are all of them, or an activity is beyond float32."""
    try:
        values = order(left, mean_activity(left, training.samples))
    except Diverged:
        return None
    reaching = [point for point in staircase(left, values, validation).points if point.correct >= needed]
    if not reaching or sum(reaching[-1].claimed) == sum(int((~active(left, group)).sum()) for group in left.groups):
        return None
    return reaching[-1].theta, claims_at(left, values, reaching[-1].theta)


def _finite(network: Network, training: Split) -> Network | None:
    """The network, or None where a unit is beyond float32 on some training sample: that is a trial which diverged."""
    try:
        mean_activity(network, training.samples)
    except Diverged:
        return None
    return network
