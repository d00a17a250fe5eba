"""The events of a run in words: what was written down, one line each for people."""

from collections.abc import Sequence

from search.names import cell_key
from search.records import Cell, CellRecord, CommitJob, CommitRecord, Opening, StackJob
from search.snapshot import Event, EventKind
from search.text import MANY, number, plural, theta, units

__all__ = ["of_cell", "of_commit", "of_opening", "of_winner"]


def of_opening(opening: Opening, groups: Sequence[str], before: Sequence[int]) -> Event:
    """A task opened.

    Args:
        groups: The hidden groups' names.
        before: Their units before it opened.
    """
    text = f"{plural(len(opening.cells), 'cell')} in {plural(len(opening.stacks), 'stack')}"
    widths = zip(groups, before, opening.widths, strict=True)
    grown = [f"{name} from {was} to {now}" for name, was, now in widths if was != now]
    text += f", units grown: {', '.join(grown)}" if grown else ""
    return Event("task opened", text, opening.replica, opening.task)


def of_cell(job: StackJob, record: CellRecord) -> Event:
    """A cell has its record."""
    if record.score is None:
        kind: EventKind = "cell diverged"
        text = f"{_cell(record.cell)}: {record.diverged}"
    else:
        kind = "cell finished"
        text = f"{_cell(record.cell)}: {record.score.correct} of {record.score.total} right"
    return Event(kind, text, job.replica, job.task, record.cell.index)


def of_winner(job: CommitJob) -> Event:
    """A winner was chosen."""
    text = (
        f"{_cell(job.winner)} at θ={theta(job.point.theta)}: {job.point.correct} of {job.score.total} right "
        f"(best {job.best}, needed {job.needed}), {units(job.point.claimed)} new units"
    )
    return Event("winner chosen", text, job.replica, job.task, job.winner.index)


def of_commit(record: CommitRecord) -> Event:
    """A task is committed."""
    text = (
        f"test {record.test.correct} of {record.test.total} right, claimed {units(record.claimed)} units, "
        f"{units(record.free)} free"
    )
    return Event("task committed", text, record.replica, record.task, record.winner.index)


def _cell(cell: Cell) -> str:
    """A cell by its key; of many layers the least and the largest α stand for all."""
    if len(cell.alpha) <= MANY:
        return cell_key(cell)
    least, largest = number(min(cell.alpha)), number(max(cell.alpha))
    alpha = least if least == largest else f"{least} – {largest}"
    return f"alpha={alpha} in {len(cell.alpha)} layers learning_rate={cell.learning_rate!r}"
