"""What a worker's result must be before anything of it is written."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from clnp.halving import Dropped, halve
from search.book import place
from search.errors import Damage
from search.experiment import Experiment
from search.names import cell_key
from search.records import CellRecord, CommitJob, CommitRecord, StackJob

__all__ = ["check_cells", "check_commit", "unsound_halving", "unsound_rounds"]


def check_cells(job: StackJob, records: Sequence[CellRecord]) -> None:
    """Refuse records of other cells than the job's.

    Raises:
        Damage: There is one.
    """
    cells = {cell.index: cell for cell in job.cells}
    for record in records:
        if cells.get(record.cell.index) != record.cell:
            raise Damage(
                f"{place(job.replica, job.task)}: the worker's record is of cell {record.cell.index} "
                f"({cell_key(record.cell)}), which is none of the stack's ({', '.join(map(str, cells))})"
            )


def check_commit(job: CommitJob, record: CommitRecord, commits: Sequence[CommitRecord]) -> None:
    """Refuse a commit that changes an earlier task by a bit (Promise 1) or is not what was scored (Promise 2).

    Raises:
        Damage: It is one of these, or the answer to another job.
    """
    here = place(job.replica, job.task)
    if (record.replica, record.task, record.winner, record.point) != (job.replica, job.task, job.winner, job.point):
        raise Damage(
            f"{here}: cell {job.winner.index} was to be committed at θ={job.point.theta}, but the worker's commit is "
            f"of {place(record.replica, record.task)}, cell {record.winner.index} at θ={record.point.theta}"
        )
    decided = {name: getattr(job, name) for name in ("best", "needed", "candidates", "missing", "over_budget")}
    came = {name: getattr(record, name) for name in decided}
    if came != decided:
        raise Damage(f"{here}: the rule decided {decided}, but the worker's commit says {came}")
    if record.widths != job.widths:
        raise Damage(
            f"{here}: its groups had {list(job.widths)} units when the task opened, but the worker's commit says "
            f"{list(record.widths)}"
        )
    if len(record.fingerprints) != job.task + 1 or len(record.matrix) != job.task + 1:
        raise Damage(
            f"{here}: the commit must measure {job.task + 1} tasks again, but came with {len(record.fingerprints)} "
            f"fingerprints and {len(record.matrix)} test scores"
        )
    for earlier, now in zip(commits, record.fingerprints, strict=False):
        if earlier.fingerprint != now:
            raise Damage(
                f"{here}: the commit would change task {earlier.task + 1}: its fingerprint is "
                f"{now} instead of {earlier.fingerprint}. Nothing was committed"
            )
    if record.changed:
        raise Damage(
            f"{here}: the commit would change {record.changed} earlier fingerprints or logits (0 are allowed). "
            f"Nothing was committed"
        )
    asked = job.experiment.get("fine_tuning")
    if (problem := unsound_rounds(record, 0 if asked is None else asked["rounds"])) is not None:
        raise Damage(f"{here}: {problem}. Nothing was committed")
    scored, what = job.point.correct, f"when cell {job.winner.index} was scored at θ={job.point.theta}"
    if record.rounds:
        scored, what = record.rounds[-1].correct, "after the last round of fine-tuning"
    if (record.validation.correct, record.validation.total) != (scored, job.score.total):
        raise Damage(
            f"{here}: {scored} of {job.score.total} were right {what}, {record.validation.correct} of "
            f"{record.validation.total} when it was committed (on {record.provenance.device}). Nothing was committed; "
            f"continue on the device kind that trained the cell"
        )


def unsound_rounds(record: CommitRecord, asked: int) -> str | None:
    """What is wrong with a commit's rounds of fine-tuning, or with the units that it claims after them; None: nothing.

    The first prunes at the rule's point. A later one prunes more of what is left, and none below the cut line.

    Args:
        asked: Rounds at the most; 0 where the run does not fine-tune.
    """
    point, rounds = record.point, record.rounds
    if bool(rounds) != bool(asked) or len(rounds) > asked:
        return f"it was fine-tuned in {len(rounds)} rounds where {asked} were asked for"
    first = rounds[0] if rounds else None
    if first and (first.theta, first.claimed, first.pruned) != (point.theta, point.claimed, point.correct):
        return (
            f"fine-tuning began with {first.pruned} right answers and {list(first.claimed)} units at θ={first.theta}, "
            f"but the rule's point has {point.correct} and {list(point.claimed)} at θ={point.theta}"
        )
    for number, (before, now) in enumerate(itertools.pairwise(rounds), start=2):
        pairs = list(zip(before.claimed, now.claimed, strict=True))
        if any(left > was for was, left in pairs) or before.claimed == now.claimed:
            return f"round {number} of fine-tuning pruned {list(before.claimed)} units to {list(now.claimed)}"
        if now.pruned < record.needed:
            return f"round {number} of fine-tuning pruned to {now.pruned} right answers, but {record.needed} are needed"
    claimed = rounds[-1].claimed if rounds else point.claimed
    if record.claimed != claimed:
        return f"{list(claimed)} units were left when it was scored, but {list(record.claimed)} are claimed"
    return None


def unsound_halving(experiment: Experiment, task: int, records: Mapping[int, CellRecord]) -> str | None:
    """Why what halving dropped of a task does not follow from the right answers of its stacks; None where it does.

    A stack of which a record is missing, or came about elsewhere than the others, says nothing.
    """
    for stack in dict.fromkeys(record.provenance.stack for record in records.values()):
        members = [records[index] for index in stack if index in records]
        if len(members) < len(stack) or any(one.provenance != members[0].provenance for one in members):
            continue
        expected = dict(_halved(experiment, task, members))
        for record in members:
            why = expected.get(record.cell.index)
            if record.dropped != why:
                now, was = ("stays" if one is None else f"is dropped {one}" for one in (why, record.dropped))
                return f"cell {record.cell.index}: by the counts of its stack it {now}, by its own record it {was}"
    return None


def _halved(experiment: Experiment, task: int, members: Sequence[CellRecord]) -> Iterator[tuple[int, Dropped]]:
    """Whom the counts of a whole stack drop, by cell's index, as :func:`clnp.training.train` does."""
    training, halving = experiment.of(task).training, experiment.halving(task)

    def standing(record: CellRecord, epoch: int) -> int:
        counts = record.epochs[:epoch]
        return max(counts) if training.early_stopping else counts[-1]

    def out_of_patience(record: CellRecord) -> bool:
        counts, patience = record.epochs, training.patience
        return patience is not None and len(counts) - 1 - counts.index(max(counts)) >= patience

    total = max((score.total for record in members if (score := record.score or record.dropped)), default=0)
    if halving is None or not total:
        return
    for epoch in halving.epochs:
        begun = [record for record in members if record.epochs]
        ended = [record for record in begun if len(record.epochs) <= epoch and out_of_patience(record)]
        going = [record for record in begun if len(record.epochs) >= epoch and record not in ended]
        found = halve(
            [standing(record, epoch) for record in going],
            [standing(record, epoch) for record in ended],
            epoch=epoch,
            total=total,
            margin=halving.margin,
        )
        yield from ((going[place].cell.index, why) for place, why in found.items())
