"""The rule at another margin, from the records alone (Promise 4): what it would have picked, cost and freed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from clnp.forgetting import Choice, Point
from search.book import History, place
from search.decisions import dropped, pick_at_margin
from search.errors import BadInput, Damage
from search.experiment import Experiment
from search.names import study_name
from search.records import Cell, CellRecord, CommitRecord
from search.text import members, number, plural, points_text

__all__ = ["Replayed", "recorded_cells", "replay"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One committed task under the other margin.

    Attributes:
        outcome: ``same``: the same winner at the same θ, and the same cut line where later rounds of fine-tuning prune
            down to it. ``would differ``: another, and exactly this one: everything before was the same. ``given the
            history``: a task before would differ, so this one would have trained on other free units; what is said here
            is how its recorded trials fare.
        winner, point: What the rule picks at the other margin.
        best, needed: Right answers of the best trial of the grid, and the other cut line.
        candidates: Cell indices within the other margin, unpruned.
        committed, committed_point: The committed trial, and where the rule pruned it: before fine-tuning.
        cost: Validation samples that the pick has right fewer than that; below 0, more.
        total: Samples of the validation split.
        freed: Units that the pick claims fewer than that, one number a hidden layer; below 0, more.
    """

    replica: int
    task: int
    outcome: Literal["same", "would differ", "given the history"]
    committed: Cell
    committed_point: Point
    winner: Cell
    point: Point
    best: int
    needed: int
    candidates: tuple[int, ...]
    cost: int
    total: int
    freed: tuple[int, ...]

    @property
    def points(self) -> float:
        """The cost in percentage points of validation accuracy."""
        return 100 * self.cost / self.total


def replay(experiment: Experiment, history: History, margin: Fraction, *, name: str = "NAME") -> list[list[Replayed]]:
    """Select again in every committed task, replica by replica; nothing is trained.

    Exact up to and including the first task of a replica whose winner or θ would differ (Sec. 2.2). It is the margin
    rule that selects again, also in a run under the budget rule: a margin stands for itself, while a budget hangs on
    what the tasks before have claimed, which another choice would have changed. Fine-tuning is training, which is not
    repeated: both sides are compared as they were pruned, before it. A cell that halving dropped was behind by more
    than the margin of halving, and so by more than a smaller one: that is the bet, and it is no candidate. At a larger
    one it might be, and nobody knows.

    Args:
        name: Of the run, for messages.

    Raises:
        BadInput: Cells of a task were dropped, and the margin is larger than the one by which they were behind.
        Damage: A trial that a commit was decided on is gone.
        clnp.errors.Damaged: A staircase is not that of its trial.
        ValueError: The margin is not from 0 to 100 percentage points.
    """
    _refuse_beyond(experiment, history, margin)
    replicas = []
    for replica in range(experiment.replicas):
        tasks: list[Replayed] = []
        while (commit := history.commits.get((replica, len(tasks)))) is not None:
            records = recorded_cells(history, commit, name)
            choice = pick_at_margin(records, margin, experiment.of(commit.task).rule.sparsity)
            again = experiment.of(commit.task).fine_tuning
            # Rounds after the first prune down to the cut line.
            goes_on = again is not None and again.rounds > 1 and choice.needed != commit.needed
            tasks.append(_compare(commit, choice, records[choice.winner.index].cell, tasks, goes_on))
        replicas.append(tasks)
    return replicas


def _refuse_beyond(experiment: Experiment, history: History, margin: Fraction) -> None:
    """A margin at which a cell that was dropped might have won."""
    places = [here for here in sorted(history.commits) if here[0] < experiment.replicas]
    gone = {here: cells for here in places if (cells := dropped(history.cells.get(here, {})))}
    limits = {here: halving.margin for here in gone if (halving := experiment.halving(here[1])) is not None}
    beyond = [here for here, limit in limits.items() if margin > limit]
    if not beyond:
        return
    first, wanted = beyond[0], number(float(margin))
    others = f", and so in {plural(len(beyond) - 1, 'other task')}" if len(beyond) > 1 else ""
    raise BadInput(
        f"a margin of {wanted} cannot be replayed: in {place(*first)} halving dropped {members(gone[first])}, more "
        f"than {points_text(float(limits[first]))} behind, and at {wanted} such a cell might have won{others}; give "
        f"a margin of {number(float(min(limits.values())))} at most, or run it again with every cell trained to its "
        "end: --set training.halving=null training.halving_margin=null --name NEW"
    )


def recorded_cells(history: History, commit: CommitRecord, name: str) -> Mapping[int, CellRecord]:
    """The finished cells that a commit was decided on.

    Args:
        name: Of the run.

    Raises:
        Damage: One of them has its trial no longer, such as after its study was deleted in Optuna's dashboard.
    """
    here = commit.replica, commit.task
    records = history.cells.get(here, {})
    cells = {commit.winner.index, *commit.candidates}
    if here in history.openings:
        cells.update(cell.index for cell in history.openings[here].cells)
    gone = sorted(cells - set(commit.missing) - set(records))
    if gone:
        study = study_name(name, *here)
        whose = f"the trial of cell {gone[0]} in it" if commit.winner.index in records else "the winner's trial"
        raise Damage(
            f"{place(*here)}: its study {study} or {whose} is gone from the database; "
            "restore the database from a backup"
        )
    return records


def _compare(commit: CommitRecord, choice: Choice, winner: Cell, before: Sequence[Replayed], goes_on: bool) -> Replayed:
    point = choice.winner.point
    outcome: Literal["same", "would differ", "given the history"] = "same"
    if any(task.outcome != "same" for task in before):
        outcome = "given the history"
    elif goes_on or (winner.index, point) != (commit.winner.index, commit.point):
        outcome = "would differ"
    return Replayed(
        replica=commit.replica,
        task=commit.task,
        outcome=outcome,
        committed=commit.winner,
        committed_point=commit.point,
        winner=winner,
        point=point,
        best=choice.best,
        needed=choice.needed,
        candidates=choice.candidates,
        cost=commit.point.correct - point.correct,
        total=commit.validation.total,
        freed=tuple(was - now for was, now in zip(commit.point.claimed, point.claimed, strict=True)),
    )
