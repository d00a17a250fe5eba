"""The graceful-forgetting rule (Sec. 2.2): records in, winner out. Pure Python and whole numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from clnp.errors import Damaged, NothingToCommit

__all__ = [
    "Choice",
    "Pick",
    "Point",
    "Shortlist",
    "Sparsity",
    "Trial",
    "choose",
    "needed",
    "shortlist",
    "size",
    "sparsest",
    "sparsest_point",
]

Sparsity = Literal["units", "weights"]
"""What "highest sparsity" means: the fewest new units, or the most weights into units that are still free."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a staircase: a trial pruned at ``theta``.

    Attributes:
        theta: The activity threshold; units with a mean activity at or below it go. ``None`` keeps every unit.
        correct: Right answers on the validation split, scored by the canonical evaluator.
        claimed: New units, one number a hidden layer.
        free_weights: Weights into units that would still be free after this commit.
    """

    theta: float | None
    correct: int
    claimed: tuple[int, ...]
    free_weights: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What the rule knows of a trial that did not diverge.

    Attributes:
        index: Its cell's place in the task's grid.
        unpruned: Right answers on the validation split with every unit kept.
        staircase: Ascending in theta, strictly falling in right answers.
    """

    index: int
    unpruned: int
    staircase: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Pick:
    """A candidate at the point that the rule prunes it to: of the margin rule the largest threshold within the margin.

    Attributes:
        exceeds: Places of the hidden groups of which the point claims more than the budget; without one none.
    """

    index: int
    point: Point
    exceeds: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every group's new units are within the budget, or there is none."""
        return not self.exceeds


@dataclass(frozen=True, slots=True)
class Shortlist:
    """What the rules share: the cut line, and who reaches it.

    Attributes:
        best: Right answers of the best unpruned trial of the whole grid.
        needed: The cut line: the fewest right answers within the margin of ``best``.
        candidates: The trials that reach it unpruned, in grid order.
    """

    best: int
    needed: int
    candidates: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rule made of a task's trials.

    Attributes:
        best: Right answers of the best unpruned trial of the whole grid.
        needed: The cut line: the fewest right answers within the margin of ``best``.
        picks: One a candidate, in grid order.
        winner: The sparsest of them; under a budget the most accurate of those that fit it.
    """

    best: int
    needed: int
    picks: tuple[Pick, ...]
    winner: Pick

    @property
    def candidates(self) -> tuple[int, ...]:
        """The indices of the trials within the margin, unpruned, in grid order."""
        return tuple(pick.index for pick in self.picks)

    @property
    def exceeds(self) -> tuple[int, ...]:
        """Places of the hidden groups whose budget the winner exceeds."""
        return self.winner.exceeds


def needed(best: int, total: int, margin: Fraction) -> int:
    """The fewest right answers whose accuracy is within ``margin`` percentage points of ``best``, Sec. 2.2.

    The smallest whole n with ``n/total >= best/total - margin/100``, computed without rounding.

    Args:
        best: Right answers of the best unpruned trial.
        total: Samples of the validation split.
        margin: Percentage points, 0 to 100, exact: ``Fraction("0.05")``.

    Raises:
        ValueError: ``margin`` is not from 0 to 100, or ``best`` not from 0 to ``total``.
    """
    if not 0 <= margin <= 100:
        raise ValueError(f"the margin is {margin} percentage points; give one from 0 to 100")
    if not 0 <= best <= total:
        raise ValueError(f"the best trial has {best} right answers out of {total}")
    return max(0, math.ceil(best - Fraction(margin) * total / 100))


def choose(
    trials: Sequence[Trial], *, total: int, majority: int, margin: Fraction, sparsity: Sparsity = "units"
) -> Choice:
    """Pick a task's winner by graceful forgetting, Sec. 2.2.

    The best unpruned accuracy of the whole grid sets the cut line. Every trial that reaches it unpruned is a candidate,
    pruned at the highest threshold that still reaches it. The sparsest wins: the fewest new units over all hidden
    layers (``"units"``; the old ones are common to all), or the most weights left free (``"weights"``). Ties go to the
    higher pruned accuracy, then to the earlier grid point.

    Args:
        trials: Those of the grid that did not diverge, in any order.
        total: Samples of the validation split.
        majority: Right answers on it of always naming its most frequent class.
        margin: Percentage points, exact.
        sparsity: ``"units"`` or ``"weights"``.

    Raises:
        NothingToCommit: Every trial diverged, or the best is no better than naming the most frequent class.
        Damaged: A candidate's staircase has no point at the cut line, so it is not that trial's.
        ValueError: ``margin`` or ``sparsity`` is not one of those above.
    """
    found = shortlist(trials, total=total, majority=majority, margin=margin)
    picks = tuple(Pick(trial.index, sparsest_point(trial, found.needed)) for trial in found.candidates)
    return Choice(found.best, found.needed, picks, sparsest(picks, sparsity))


def shortlist(trials: Sequence[Trial], *, total: int, majority: int, margin: Fraction) -> Shortlist:
    """The cut line and the candidates of a task, Sec. 2.2; the arguments are those of :func:`choose`.

    Raises:
        NothingToCommit: Every trial diverged, or the best is no better than naming the most frequent class.
        ValueError: ``margin`` is not from 0 to 100.
    """
    if not trials:
        raise NothingToCommit("every trial of the task diverged; lower the learning rates or α")
    best = max(trial.unpruned for trial in trials)
    if best <= majority:
        raise NothingToCommit(
            f"the best trial has {best} of {total} validation samples right, no more than always naming the most "
            f"frequent class ({majority}); lower α, or train longer"
        )
    line = needed(best, total, margin)
    candidates = sorted((trial for trial in trials if trial.unpruned >= line), key=lambda trial: trial.index)
    return Shortlist(best, line, tuple(candidates))


def sparsest(picks: Sequence[Pick], sparsity: Sparsity) -> Pick:
    """The sparsest pick; ties go to the more accurate, then to the earlier grid point.

    Raises:
        ValueError: ``sparsity`` is neither ``"units"`` nor ``"weights"``, or there is no pick.
    """
    return min(picks, key=lambda pick: (size(pick.point, sparsity), -pick.point.correct, pick.index))


def size(point: Point, sparsity: Sparsity) -> int:
    """A number that is the smaller, the sparser a point is: its new units, or the weights left free, negative.

    Raises:
        ValueError: ``sparsity`` is neither ``"units"`` nor ``"weights"``.
    """
    if sparsity not in ("units", "weights"):
        raise ValueError(f'sparsity is {sparsity!r}; it can be "units" or "weights"')
    return sum(point.claimed) if sparsity == "units" else -point.free_weights


def sparsest_point(trial: Trial, line: int) -> Point:
    """The point of the highest threshold that reaches the cut line.

    Raises:
        Damaged: There is none, so the staircase is not that trial's.
    """
    for point in reversed(trial.staircase):
        if point.correct >= line:
            return point
    raise Damaged(
        f"trial {trial.index} has {trial.unpruned} right answers unpruned, but no point of its staircase reaches "
        f"{line}; its staircase and its score are not of the same network"
    )
