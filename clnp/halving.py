"""Halving: at stated epochs the worse half of a stack is dropped, as far as it is hopeless. Pure, in whole numbers.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) looks for the best alone and drops a whole half each time.
What wins here is the sparsest candidate, and a candidate is any cell within the margin of the best (Sec. 2.2): only
those outside it go. They go by what they have right then, which is a bet on what they will have in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from clnp.forgetting import needed

__all__ = ["Dropped", "Halving", "halve"]


@dataclass(frozen=True, slots=True)
class Halving:
    """When members of a stack are dropped, and which are not.

    Attributes:
        epochs: After which of them, rising, from 1.
        margin: Percentage points, exact: a member within it of the best one stays.

    Raises:
        ValueError: There is no epoch, they do not rise from 1, or the margin is not from 0 to 100.
    """

    epochs: tuple[int, ...]
    margin: Fraction

    def __post_init__(self) -> None:
        if not self.epochs or any(now <= before for before, now in zip((0, *self.epochs), self.epochs, strict=False)):
            raise ValueError(f"the epochs of halving are {list(self.epochs)}; give at least one, rising, from 1")
        if not 0 <= self.margin <= 100:
            raise ValueError(f"the margin of halving is {self.margin} percentage points; give one from 0 to 100")


@dataclass(frozen=True, slots=True)
class Dropped:
    """When and why a member was dropped, in right answers on the validation split.

    Attributes:
        epoch: After which one, from 1.
        correct: Its own.
        best: Those of the best member of its stack then.
        needed: The fewest within the margin of these.
        total: Samples of the split.
    """

    epoch: int
    correct: int
    best: int
    needed: int
    total: int

    def __str__(self) -> str:
        return (
            f"after epoch {self.epoch}: {self.correct:,} of {self.total:,} right, {self.needed:,} needed "
            f"(the best of its stack: {self.best:,})"
        )


def halve(
    training: Sequence[int], ended: Sequence[int], *, epoch: int, total: int, margin: Fraction
) -> dict[int, Dropped]:
    """The members to drop: of those that still train the worse half that is not within the margin of the best.

    At least half of them stay, rounded up; of equal ones the earlier stays.

    Args:
        training: Right answers of each member that still trains, in grid order.
        ended: Those of each that has ended by itself and keeps what it has: none of them goes, but one may be the best.
        epoch: The epoch that they were counted after.
        total: Samples of the validation split.
        margin: Percentage points, exact.

    Returns:
        By its place in ``training``.

    Raises:
        ValueError: The margin is not from 0 to 100, or a count not from 0 to ``total``.
    """
    if not training:
        return {}
    best = max([*training, *ended])
    line = needed(best, total, margin)
    ranked = sorted(range(len(training)), key=lambda place: (-training[place], place))
    worse = ranked[(len(ranked) + 1) // 2 :]
    return {
        place: Dropped(epoch, training[place], best, line, total) for place in sorted(worse) if training[place] < line
    }
