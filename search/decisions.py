"""What the records alone decide (Promise 4): a task's winner, whose tensors go, and which groups of units grow."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from clnp.forgetting import Choice, Sparsity, Trial, choose
from search.experiment import Experiment
from search.records import CellRecord, CommitRecord

__all__ = ["grown_widths", "losers", "pick_winner"]


def pick_winner(records: Mapping[int, CellRecord], margin: Fraction, sparsity: Sparsity) -> Choice:
    """The rule on the finished cells of one task, in grid order: from the records alone (Promise 4, Sec. 2.2).

    Raises:
        clnp.errors.NothingToCommit: None of them is worth committing.
        clnp.errors.Damaged: A staircase is not that of its trial.
    """
    scored = [(records[index], score) for index in sorted(records) if (score := records[index].score) is not None]
    return choose(
        [Trial(record.cell.index, score.correct, record.staircase) for record, score in scored],
        total=scored[0][1].total if scored else 0,
        majority=max((record.majority for record, _ in scored), default=0),
        margin=margin,
        sparsity=sparsity,
    )


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
