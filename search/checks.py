"""What a worker's result must be before anything of it is written."""

from collections.abc import Sequence

from search.book import place
from search.errors import Damage
from search.names import cell_key
from search.records import CellRecord, CommitJob, CommitRecord, StackJob

__all__ = ["check_cells", "check_commit"]


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
    decided = {name: getattr(job, name) for name in ("best", "needed", "candidates", "missing")}
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
    if (record.validation.correct, record.validation.total) != (job.point.correct, job.score.total):
        raise Damage(
            f"{here}: {job.point.correct} of {job.score.total} were right when cell {job.winner.index} was scored at "
            f"θ={job.point.theta}, {record.validation.correct} of {record.validation.total} when it was committed (on "
            f"{record.provenance.device}). Nothing was committed; continue on the device kind that trained the cell"
        )
