"""The budget rule: the most accurate winner that leaves enough units to the tasks to come. Pure, in whole numbers.

The margin rule (:mod:`clnp.forgetting`) keeps a task as small as its margin allows, whatever is left. With a number of
tasks in mind that gives up accuracy where units abound, and too little where they do not. Here the units that are left
decide how far a task is pruned, and the margin, now called the floor, only says what it may cost at most.
"""

from collections.abc import Sequence
from fractions import Fraction

from clnp.forgetting import Choice, Pick, Point, Sparsity, Trial, shortlist, size, sparsest, sparsest_point

__all__ = ["budget", "choose_within", "expected_claim"]


def expected_claim(claims: Sequence[int]) -> Fraction:
    """Units that a task to come is expected to claim of a group: what the tasks since the first did on average.

    The first task is left out as soon as it is not alone: it learns the features that later ones use again, and claims
    far more of the early layers than any of them (Sec. 3.1).

    Args:
        claims: New units of the group, one number a task, in order.

    Raises:
        ValueError: There is no task yet.
    """
    if not claims:
        raise ValueError("no task has claimed anything yet; give the claims of one at least")
    counted = claims[1:] or claims
    return Fraction(sum(counted), len(counted))


def budget(free: Sequence[int], *, last: int, tasks: int, earlier: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The most new units of each hidden group that a task may claim, so that the units last for ``tasks`` tasks.

    With k tasks to come, this one included, and f free units of a group:

    - The group that the head reads: an equal share, claimed · k ≤ f. With a single head each task needs units of its
      own there, so that it is the group that ends a run. The share never shrinks while claims stay within it.
    - Another group in the first task: half of it, 2 · claimed ≤ f, or all where no other task is to come. Nothing is
      known yet, an equal share would refuse the features that every later task uses again (Sec. 3.1), and half still
      leaves each of them half an equal share at least.
    - Another group in a later task: an equal share always fits. So does what lets the group last if every task to come
      claims as many as those since the first did on average, this one included:
      claimed + (k - 1) · :func:`expected_claim` ≤ f. Tasks that are alike claim little there, and the room that they
      leave may go to one that is not.

    Each is solved for its largest whole number. A share below one unit is 0: a task that needs one there exceeds it.

    Args:
        free: Units of each hidden group that are free in the open task, what growth has added included.
        last: The place of the group that the head reads.
        tasks: For how many tasks the units are to last, those before included. Beyond them a task may claim all.
        earlier: New units of each group, for every task before in order.

    Raises:
        ValueError: ``tasks`` is below 1, or an earlier task has another number of groups.
    """
    if tasks < 1:
        raise ValueError(f"the units are to last for {tasks} tasks; give 1 or more")
    left = max(1, tasks - len(earlier))
    claims = zip(*earlier, strict=True) if earlier else ((),) * len(free)
    return tuple(
        units // left if place == last else _limit(units, left, before)
        for place, (units, before) in enumerate(zip(free, claims, strict=True))
    )


def _limit(free: int, left: int, before: Sequence[int]) -> int:
    """The budget of a group that the head does not read; ``before`` are its claims in earlier tasks."""
    if not before:
        return free // 2 if left > 1 else free
    # claimed + (left - 1) · (others + claimed) / count ≤ free, where count tasks since the first include this one.
    others, count = sum(before[1:]), len(before)
    return max(free // left, (count * free - (left - 1) * others) // (count + left - 1))


def choose_within(
    trials: Sequence[Trial],
    *,
    budget: Sequence[int],
    total: int,
    majority: int,
    floor: Fraction,
    sparsity: Sparsity = "units",
) -> Choice:
    """Pick a task's winner under a budget: the most accurate that fits it, but never below the floor.

    Cut line, candidates and refusals are those of :func:`clnp.forgetting.choose` (Sec. 2.2), the floor in place of the
    margin. Each candidate is pruned to the most accurate point of its staircase that fits, of equal ones to that with
    the larger threshold, or to its sparsest point above the floor where none does. Of those that fit the most accurate
    wins; ties go to the sparser, then to the earlier grid point. Where no candidate fits, the sparsest wins, as under
    the margin rule, and ``Choice.exceeds`` names the groups.

    Args:
        trials: Those of the grid that did not diverge, in any order.
        budget: The most new units of each hidden group, see :func:`budget`.
        total: Samples of the validation split.
        majority: Right answers on it of always naming its most frequent class.
        floor: Percentage points of validation accuracy given up at most, exact.
        sparsity: ``"units"`` or ``"weights"``.

    Raises:
        NothingToCommit, Damaged, ValueError: As :func:`clnp.forgetting.choose`; also ValueError where a point has
            another number of groups than the budget.
    """
    found = shortlist(trials, total=total, majority=majority, margin=floor)
    picks = tuple(_pick(trial, found.needed, budget) for trial in found.candidates)
    fitting = [pick for pick in picks if pick.fits]
    if fitting:
        winner = min(fitting, key=lambda pick: (-pick.point.correct, size(pick.point, sparsity), pick.index))
    else:
        winner = sparsest(picks, sparsity)
    return Choice(found.best, found.needed, picks, winner)


def _pick(trial: Trial, line: int, budget: Sequence[int]) -> Pick:
    last = sparsest_point(trial, line)
    above = [point for point in reversed(trial.staircase) if point.correct >= line]
    fitting = [point for point in above if not _exceeded(point, budget)]
    if not fitting:
        return Pick(trial.index, last, _exceeded(last, budget))
    # Of equal ones max gives the first, which has the larger threshold.
    return Pick(trial.index, max(fitting, key=lambda point: point.correct))


def _exceeded(point: Point, budget: Sequence[int]) -> tuple[int, ...]:
    """Places of the groups of which the point claims more than the budget."""
    pairs = enumerate(zip(point.claimed, budget, strict=True))
    return tuple(place for place, (claimed, most) in pairs if claimed > most)
