"""The events of a run in words: what was written down, one line each for people."""

from collections.abc import Sequence

from search.grid import gains
from search.records import Cell, CellRecord, CommitJob, CommitRecord, Measured, Opening, StackJob
from search.snapshot import Event, EventKind
from search.text import MANY, group_list, number, numbers, pace_text, plural, size, theta

__all__ = ["of_cell", "of_commit", "of_measured", "of_opening", "of_winner"]


def of_opening(opening: Opening, groups: Sequence[str], before: Sequence[int]) -> Event:
    """A task opened.

    Args:
        groups: The hidden groups' names.
        before: Their units before it opened.
    """
    text = f"{plural(len(opening.cells), 'cell')} in {plural(len(opening.stacks), 'stack')}"
    grown = [each for each in zip(groups, before, opening.widths, strict=True) if each[1] != each[2]]
    text += f", units grown: {_grown(grown)}" if grown else ""
    return Event("task opened", text, opening.replica, opening.task)


def of_measured(measured: Measured, members: int | None, share: float) -> Event:
    """What a stack takes is known: of ``share`` of a GPU, which holds ``members``, and of time."""
    memory, pace, parts = measured.memory, measured.pace, list[str]()
    if memory is not None and members is not None:
        parts.append(
            f"a stack takes {size(memory.fixed)} and {size(memory.member)} a cell; {number(share)} GPU of "
            f"{size(memory.total)} holds {plural(members, 'cell')}"
        )
    if pace is not None:
        parts.append(pace_text(pace.members, pace.together / pace.alone, gains=gains(pace)))
    return Event("stack measured", "; ".join(parts) or "there was no memory for a stack")


def of_cell(job: StackJob, record: CellRecord) -> Event:
    """A cell has its record."""
    if record.dropped is not None:
        kind: EventKind = "cell dropped"
        text = f"{_cell(record.cell)}: {record.dropped}"
    elif record.score is None:
        kind = "cell diverged"
        text = f"{_cell(record.cell)}: {record.diverged}"
    else:
        kind = "cell finished"
        text = f"{_cell(record.cell)}: {record.score.correct} of {record.score.total} right"
    return Event(kind, text, job.replica, job.task, record.cell.index)


def of_winner(job: CommitJob) -> Event:
    """A winner was chosen."""
    text = (
        f"{_cell(job.winner)} at θ={theta(job.point.theta)}: {job.point.correct} of {job.score.total} right "
        f"(best {job.best}, needed {job.needed}), {_units(job.point.claimed, 'new units')}"
        f"{_over(job.over_budget)}"
    )
    return Event("winner chosen", text, job.replica, job.task, job.winner.index)


def of_commit(record: CommitRecord) -> Event:
    """A task is committed."""
    many = len(record.claimed) > MANY
    claimed = f"{sum(record.claimed):,} units" if many else _units(record.claimed, "units")
    text = f"test {record.test.correct} of {record.test.total} right, claimed {claimed}, {_units(record.free, 'free')}"
    text += _tuned(record)
    text += _over(record.over_budget)
    return Event("task committed", text, record.replica, record.task, record.winner.index)


def _tuned(record: CommitRecord) -> str:
    """What fine-tuning made of it: ``, fine-tuned in 1 round: 812 → 820 of 900 right``."""
    if not record.rounds:
        return ""
    now = record.validation
    right = f"{record.point.correct} → {now.correct} of {now.total} right"
    return f", fine-tuned in {plural(len(record.rounds), 'round')}: {right}"


def _cell(cell: Cell) -> str:
    """A cell's values, written for people; of many layers the least and the largest α stand for all."""
    alpha = ",".join(map(number, cell.alpha))
    if len(cell.alpha) > MANY:
        least, largest = number(min(cell.alpha)), number(max(cell.alpha))
        alpha = f"{least if least == largest else f'{least} – {largest}'} in {len(cell.alpha)} layers"
    return f"alpha={alpha} learning_rate={number(cell.learning_rate)}"


def _units(counts: Sequence[int], noun: str) -> str:
    """Units of every group: ``80 + 102 new units``; of many groups their sum: ``1,234 new units in 20 groups``."""
    if len(counts) <= MANY:
        return f"{numbers(counts)} {noun}"
    return f"{sum(counts):,} {noun} in {len(counts)} groups"


def _over(names: Sequence[str]) -> str:
    """What of the budget a commit exceeds: ``, over budget in hidden2``."""
    return f", over budget in {group_list(names)}" if names else ""


def _grown(groups: Sequence[tuple[str, int, int]]) -> str:
    """What grew, ``(name, was, is)`` a group; of many their sums."""
    if len(groups) <= MANY:
        return ", ".join(f"{name} from {was} to {now}" for name, was, now in groups)
    before, after = sum(was for _, was, _ in groups), sum(now for _, _, now in groups)
    return f"from {before:,} to {after:,} in {len(groups)} groups"
