"""What the records alone decide (Promise 4): a task's winner, whose tensors go, and which groups of units grow."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from clnp.budget import budget, choose_within
from clnp.errors import NothingToCommit
from clnp.forgetting import Choice, Sparsity, Trial, choose
from search.experiment import Experiment
from search.records import CellRecord, CommitRecord
from search.text import plural

__all__ = [
    "budget_of",
    "dropped",
    "exceeded",
    "free_units",
    "grown_widths",
    "losers",
    "pick_at_margin",
    "pick_winner",
]


def pick_winner(
    experiment: Experiment,
    records: Mapping[int, CellRecord],
    *,
    earlier: Sequence[CommitRecord],
    widths: Sequence[int],
) -> Choice:
    """The run's own rule on the finished cells of one task: from the records alone (Promise 4, Sec. 2.2).

    A task that a fork was given is decided by the rule of the run that it comes from.

    Args:
        records: The finished cells, by their place in the grid.
        earlier: The replica's commits before this task, in order.
        widths: Units of each hidden group while the task is open.

    Raises:
        clnp.errors.NothingToCommit: None of them is worth committing.
        clnp.errors.Damaged: A staircase is not that of its trial.
    """
    task = len(earlier)
    most, margin = budget_of(experiment, earlier, widths), experiment.margin(task)
    sparsity = experiment.of(task).rule.sparsity
    if most is None:
        return pick_at_margin(records, margin, sparsity)
    return choose_within(budget=most, floor=margin, sparsity=sparsity, **_scored(records))


def pick_at_margin(records: Mapping[int, CellRecord], margin: Fraction, sparsity: Sparsity) -> Choice:
    """The margin rule on the finished cells of one task, whatever the run's own rule is.

    Raises:
        As :func:`pick_winner`.
    """
    return choose(margin=margin, sparsity=sparsity, **_scored(records))


def _scored(records: Mapping[int, CellRecord]) -> dict[str, Any]:
    """The cells that were trained to their end, in grid order, as the rules take them."""
    gone = dropped(records)
    if gone and all(record.score is None for record in records.values()):
        raise NothingToCommit(
            f"{len(gone)} of {plural(len(records), 'trial')} of the task were dropped by halving, and every other one "
            "diverged; lower the learning rates or α, or leave training.halving out"
        )
    scored = [(records[index], score) for index in sorted(records) if (score := records[index].score) is not None]
    return {
        "trials": [Trial(record.cell.index, score.correct, record.staircase) for record, score in scored],
        "total": scored[0][1].total if scored else 0,
        "majority": max((record.majority for record, _ in scored), default=0),
    }


def dropped(records: Mapping[int, CellRecord]) -> tuple[int, ...]:
    """The cells that halving dropped, in grid order."""
    return tuple(index for index in sorted(records) if records[index].dropped is not None)


def budget_of(experiment: Experiment, earlier: Sequence[CommitRecord], widths: Sequence[int]) -> tuple[int, ...] | None:
    """The most new units of each hidden group that a task may claim under the budget rule; None under another.

    Args:
        earlier: The replica's commits before this task, in order.
        widths: Units of each hidden group while the task is open: what growth added may be claimed too.
    """
    rule = experiment.of(len(earlier)).rule
    if rule.kind != "budget" or rule.tasks is None:
        return None
    claims = [record.claimed for record in earlier]
    return budget(free_units(earlier, widths), last=experiment.outline.last, tasks=rule.tasks, earlier=claims)


def exceeded(experiment: Experiment, choice: Choice) -> tuple[str, ...]:
    """The hidden groups of which the winner claims more than their budget, by name."""
    return tuple(experiment.outline.group_names[place] for place in choice.exceeds)


def free_units(earlier: Sequence[CommitRecord], widths: Sequence[int]) -> tuple[int, ...]:
    """Units of each hidden group that are free while a task is open: what the last commit left, and what was added.

    Args:
        earlier: The replica's commits before the task, in order.
        widths: Units of each hidden group while it is open.
    """
    if not earlier:
        return tuple(widths)
    last = earlier[-1]
    return tuple(free + now - was for free, now, was in zip(last.free, widths, last.widths, strict=True))


def losers(
    keep: Literal["winners", "candidates", "all"], records: Mapping[int, CellRecord], commit: CommitRecord
) -> tuple[str, ...]:
    """The tensors of a committed task that are not kept: those of every cell but the winner, or but the candidates."""
    if keep == "all":
        return ()
    kept = {commit.winner.index, *(commit.candidates if keep == "candidates" else ())}
    needed = {commit.artifact, *(record.artifact for index, record in records.items() if index in kept)}
    artifacts = (records[index].artifact for index in sorted(records))
    return tuple(dict.fromkeys(artifact for artifact in artifacts if artifact and artifact not in needed))


def grown_widths(experiment: Experiment, last: CommitRecord) -> tuple[int, ...]:
    """Units of each hidden group in the task after a commit: those that ran out of free ones grow (Sec. 4)."""
    grow = experiment.grow
    if grow is None:
        return last.widths
    return tuple(
        now + (grow.units(first) if free < grow.below else 0)
        for now, free, first in zip(last.widths, last.free, experiment.outline.widths, strict=True)
    )
