"""The state machine of one replica: given the records, what is next.

Pure: it reads and writes nothing, so that it can be rebuilt from what the database holds at any moment (Promise 3). A
replica goes through its tasks in order, and through these steps in each::

    Open → Train, Train, … (a stack each) → Commit → Remove (the losers' tensors) → the next task opens
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Choice
from clnp.pace import Pace
from search.book import History, Place, place
from search.decisions import exceeded, free_units, grown_widths, losers, pick_winner
from search.errors import Damage, Impossible, Unavailable
from search.experiment import Experiment
from search.grid import cells, stacks
from search.names import cell_key
from search.records import (
    Cell,
    CellRecord,
    CommitJob,
    CommitRecord,
    Committed,
    Job,
    JobKind,
    MeasureJob,
    Opening,
    Score,
    StackJob,
)
from search.text import plural, times

__all__ = [
    "NOT_CELLS",
    "Commit",
    "Measure",
    "Open",
    "Remove",
    "Replica",
    "Step",
    "Train",
]

Record = TypeVar("Record")

STACK_LOSSES = 2
"""How often a stack may be lost before its cells go out one by one."""

NOT_CELLS: Mapping[JobKind, str] = {"commit": "the commit", "measure": "the measurement of a stack"}
"""What the jobs are that train no cell of the grid."""

Stack = tuple[int, ...]
"""The cells, by index, that train as one."""


@dataclass(frozen=True, slots=True)
class Open:
    """Write down the cells of the next task, the stacks that they will train in, and the units of each group."""

    task: int
    cells: tuple[Cell, ...]
    stacks: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Train ``stack`` (cell indices) and take the records of ``wanted``; the others in it already have theirs."""

    task: int
    stack: tuple[int, ...]
    wanted: frozenset[int]


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit the winner; ``missing`` are cells without a record, where that is allowed."""

    task: int
    choice: Choice
    winner: Cell
    score: Score
    artifact: str
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove these tensors (SHA-256): they belong to cells that were not committed."""

    task: int
    artifacts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure what a stack of ``members`` takes, before the task opens; ``data`` is the SHA-256 of its data and
    splits."""

    task: int
    cell: Cell
    members: int
    widths: tuple[int, ...]
    data: str


Step = Open | Train | Commit | Remove


class Replica:
    """What one replica has done, what is out with workers, and from both what is next.

    Args:
        index: From 0.
        history: What the database holds. Nothing of it is changed.
        workers: How many workers the run has; new tasks form their stacks by it, and by what ``worker.gpu`` became.
        allow_missing: Commit without cells that were lost too often, instead of stopping.

    Raises:
        Damage: The history has a commit without the ones before it, or without its opening.
    """

    def __init__(
        self,
        index: int,
        experiment: Experiment,
        history: History,
        *,
        workers: int,
        allow_missing: bool = False,
    ) -> None:
        self.index = index
        self.openings = _in_order(index, "opening", history.openings)
        self.commits = _in_order(index, "commit", history.commits)
        if not 0 <= len(self.openings) - len(self.commits) <= 1:
            raise Damage(
                f"replica {index + 1}: the ledger holds {len(self.openings)} openings and {len(self.commits)} commits, "
                f"but a task opens after the commit before it; restore the database from a backup"
            )
        self.records = [dict(history.cells.get((index, task), {})) for task in range(len(self.openings))]
        self._experiment = experiment
        self._resolved = experiment.to_json()
        self._workers = workers
        self._allow_missing = allow_missing
        self._out: dict[int, Train | Commit | Measure] = {}
        self._losses = Counter(
            (loss.kind, loss.task, tuple(loss.cells)) for loss in history.losses if loss.replica == index
        )
        self.fits: int | None = None
        """Members that a worker's memory holds, once that is known: new tasks form no larger stacks."""
        self.pace: Pace | None = None
        """Of a stack's steps, once that is known: new tasks form stacks where they gain."""
        self._splits = {(split.task, tuple(split.cells)) for split in history.splits if split.replica == index}
        self._stopped: Impossible | None = None
        # What was asked since the last change: a run asks every replica before every job.
        self._next: Train | Commit | None = None
        self._next_known = False
        # Losers go before the next task opens: only the last commit's removal can have been cut off.
        self._removed = len(self.commits) - (0 if self.is_open else min(1, len(self.commits)))

    @property
    def task(self) -> int:
        """The number of tasks committed, so also the index of the task that is open or opens next."""
        return len(self.commits)

    @property
    def is_open(self) -> bool:
        """Whether the task after the last commit has been opened."""
        return len(self.openings) > len(self.commits)

    @property
    def finished(self) -> bool:
        """Whether every task is committed and the last one's losers are removed."""
        return self.task == self._experiment.tasks.count and self._removed == self.task

    @property
    def stopped(self) -> Impossible | None:
        """Why it cannot go on, or None."""
        return self._stopped

    @property
    def reached(self) -> tuple[int, int]:
        """How far it has come: tasks committed, and cells of the open task that have a record or are out."""
        out = sum(len(step.wanted) for step in self._out.values() if isinstance(step, Train))
        return self.task, (len(self.records[self.task]) if self.is_open else 0) + out

    def next(self) -> Step | None:
        """The next step, or None: there is none, or none before a job that is out has ended.

        Raises:
            Impossible: No unit of the group that the head reads is left for a task with a single head; or every cell
                has its record, and none is worth committing.
            Damage: A record contradicts itself.
            Unavailable: Every cell was lost too often.
        """
        if self._next_known:
            return self._next
        step = self._find_next()
        if not isinstance(step, Open | Remove):
            self._next, self._next_known = step, True
        return step

    def _find_next(self) -> Step | None:
        if self._removed < self.task:
            return Remove(self._removed, self._losers(self._removed))
        if self.task == self._experiment.tasks.count or self._stopped is not None:
            return None
        self._check_room()
        if not self.is_open:
            return self._open()
        waiting = next(self._waiting(), None)
        if waiting is not None or self._out:
            return waiting
        return self._commit()

    def opened(self, opening: Opening) -> None:
        """The opening is in the ledger."""
        self._next_known = False
        self.openings.append(opening)
        self.records.append({})

    def hand_out(self, job_id: int, step: Train | Commit | Measure) -> Job:
        """The step as a job for a worker. It is out until it has :meth:`returned`."""
        self._next_known = False
        self._out[job_id] = step
        commits = tuple(
            Committed(record.task, record.artifact, record.fingerprint, record.widths) for record in self.commits
        )
        if isinstance(step, Measure):
            return MeasureJob(
                id=job_id,
                replica=self.index,
                task=step.task,
                cell=step.cell,
                members=step.members,
                commits=commits,
                widths=step.widths,
                data=step.data,
                experiment=self._resolved,
            )
        opening = self.openings[step.task]
        if isinstance(step, Train):
            return StackJob(
                id=job_id,
                replica=self.index,
                task=step.task,
                cells=tuple(opening.cells[index] for index in step.stack),
                commits=commits,
                widths=opening.widths,
                data=opening.data,
                experiment=self._resolved,
            )
        return CommitJob(
            id=job_id,
            replica=self.index,
            task=step.task,
            winner=step.winner,
            point=step.choice.winner.point,
            artifact=step.artifact,
            score=step.score,
            best=step.choice.best,
            needed=step.choice.needed,
            candidates=step.choice.candidates,
            missing=step.missing,
            commits=commits,
            widths=opening.widths,
            data=opening.data,
            earlier=tuple(one.data for one in self.openings[: step.task]),
            experiment=self._resolved,
            over_budget=exceeded(self._experiment, step.choice),
        )

    def returned(self, job: int) -> None:
        """The job is with its worker no longer: lost, given back, or about to be taken in."""
        self._next_known = False
        del self._out[job]

    def recorded(self, record: CellRecord) -> None:
        """The cell's trial is in the database."""
        self._next_known = False
        self.records[self.task][record.cell.index] = record

    def committed(self, record: CommitRecord) -> None:
        """The commit is in the ledger: the task is finished."""
        self._next_known = False
        self.commits.append(record)

    def removed(self) -> None:
        """The losers of the last commit are gone."""
        self._next_known = False
        self._removed = self.task

    def lost(self, kind: JobKind, cells: tuple[int, ...], reason: str) -> None:
        """A job of the open task was lost, and the ledger knows.

        A stack lost twice falls into its cells: :meth:`next` hands them out one by one. Any other job is tried
        ``retries`` times more. The count is the ledger's, so it outlives a driver that is killed; a run that
        stopped here and is continued begins a new one.

        Raises:
            Unavailable: It was lost once more than ``retries`` allows, and it may not be missing.
        """
        self._next_known = False
        key = (kind, self.task, cells)
        self._losses[key] += 1
        may_be_missing = kind == "stack" and (len(cells) > 1 or self._allow_missing)
        if may_be_missing or self._losses[key] <= self._experiment.retries:
            return
        if kind == "stack":
            cell = self.openings[self.task].cells[cells[0]]
            what = f"cell {cell.index} ({cell_key(cell)})"
            remedy = "; --allow-missing commits without such a cell"
        else:
            what, remedy = NOT_CELLS[kind], ""
        raise Unavailable(
            f"{place(self.index, self.task)}: {what} was lost {times(self._losses[key])} "
            f"(retries: {self._experiment.retries}), the last time because: {reason.removesuffix('.')}. "
            f"The same command tries again{remedy}"
        )

    def split(self, stack: Stack) -> None:
        """A stack of the open task found no memory, and the ledger knows: :meth:`next` hands out its halves. The tasks
        after it form no larger ones."""
        self._next_known = False
        self._splits.add((self.task, stack))

    def stop(self, error: Impossible) -> None:
        """It cannot go on: there is no next step but to take in what is out."""
        self._next_known = False
        self._stopped = error

    def _check_room(self) -> None:
        """The last commit says whether the next task finds a unit to claim: no worker need find out."""
        outline = self._experiment.outline
        widths, free = self._room()
        if self._experiment.head == "single" and free[outline.last] == 0:
            raise Impossible(
                f"{place(self.index, self.task)}: no free unit left in {outline.group_names[outline.last]}: all "
                f"{widths[outline.last]} are owned, and with a single head a task reads only new ones. The tasks "
                f"committed so far are kept. To go on with this run give the same command with grow: in the experiment "
                f"(such as --set grow.by=0.25), which adds units; {self._harder()}or give another --name to a new run "
                f"that is wider, prunes harder or has a head a task"
            )

    def _harder(self) -> str:
        """A fork that prunes harder where there was still room: before the last commit."""
        limit = "floor" if self._experiment.rule.kind == "budget" else "margin"
        if self.task < 2:
            return ""
        return (
            f"to prune harder (a larger α or {limit}) while there was room, begin with fewer of its tasks: --from NAME "
            f"--task {self.task - 1} --name NEW; "
        )

    def _room(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Units of each hidden group in the task that is open or opens next, and how many of them are free.

        An open task keeps what it opened with, whatever ``grow`` says now (Promise 3). The first one never grows.
        """
        outline = self._experiment.outline
        if not self.commits:
            return outline.widths, outline.widths
        last = self.commits[-1]
        widths = self.openings[self.task].widths if self.is_open else grown_widths(self._experiment, last)
        return widths, free_units(self.commits, widths)

    def _full_groups(self) -> list[str]:
        """The hidden groups without a free unit."""
        names = self._experiment.outline.group_names
        return [name for name, units in zip(names, self._room()[1], strict=True) if units == 0]

    def _open(self) -> Open:
        first = self.commits[0].winner if self.commits else None
        grid = cells(self._experiment, self.task, first)
        known = [] if self.fits is None else [self.fits]
        fits = min([*known, *(len(_halves(stack)[1]) for _, stack in self._splits)], default=None)
        formed = stacks(self._experiment, grid, workers=self._workers, most=fits, pace=self.pace)
        return Open(self.task, grid, formed, self._room()[0])

    def _waiting(self) -> Iterator[Train]:
        """The stacks, and the cells on their own, that still lack records and are not out."""
        records = self.records[self.task]
        out = {cell for step in self._out.values() if isinstance(step, Train) for cell in step.wanted}
        for stack in self._formed():
            missing = [cell for cell in stack if cell not in records and cell not in out]
            single = [cell for cell in missing if self._goes_alone(cell, stack)]
            together = frozenset(missing).difference(single)
            if together:
                yield Train(self.task, stack, together)
            for cell in single:
                if not self._given_up(cell):
                    yield Train(self.task, (cell,), frozenset((cell,)))

    def _formed(self) -> Iterator[Stack]:
        """The stacks of the open task; of those that found no memory the halves."""
        left = list(reversed(self.openings[self.task].stacks))
        while left:
            stack = left.pop()
            if (self.task, stack) in self._splits:
                left += reversed(_halves(stack))
            else:
                yield stack

    def _goes_alone(self, cell: int, stack: tuple[int, ...]) -> bool:
        return len(stack) == 1 or self._lost_stack(stack) >= STACK_LOSSES or self._lost_stack((cell,)) > 0

    def _lost_stack(self, cells: tuple[int, ...]) -> int:
        return self._losses["stack", self.task, cells]

    def _given_up(self, cell: int) -> bool:
        return self._allow_missing and self._lost_stack((cell,)) > self._experiment.retries

    def _commit(self) -> Commit:
        records = self.records[self.task]
        missing = tuple(cell.index for cell in self.openings[self.task].cells if cell.index not in records)
        if not records:
            raise Unavailable(
                f"{place(self.index, self.task)}: each of its {plural(len(missing), 'cell')} was lost more than "
                f"{times(self._experiment.retries)}, so there is nothing to commit even with cells missing; "
                f"the same command tries them again"
            )
        try:
            widths = self.openings[self.task].widths
            choice = pick_winner(self._experiment, records, earlier=self.commits, widths=widths)
        except NothingToCommit as error:
            remedy = "Change the grid and give the new run another --name"
            if self.task:
                kept = "task committed so far is" if self.task == 1 else "tasks committed so far are"
                remedy = f"The {kept} kept; to go on with another grid: --from NAME --task {self.task} --name NEW"
            raise Impossible(f"{place(self.index, self.task)}: {error}{self._crowding()}. {remedy}") from error
        except Damaged as error:
            raise Damage(f"{place(self.index, self.task)}: {error}") from error
        record = records[choice.winner.index]
        if record.score is None or record.artifact is None:
            raise Damage(f"{place(self.index, self.task)}: its winner, cell {record.cell.index}, has no tensors")
        return Commit(self.task, choice, record.cell, record.score, record.artifact, missing)

    def _crowding(self) -> str:
        """What may have kept the trials from learning, if any came to an end: a layer without a free unit."""
        full = self._full_groups() if any(record.score for record in self.records[self.task].values()) else []
        return "".join(f"; {layer} has no free unit left: widen it or prune harder" for layer in full)

    def _losers(self, task: int) -> tuple[str, ...]:
        return losers(self._experiment.keep, self.records[task], self.commits[task])


def _halves(stack: Stack) -> tuple[Stack, Stack]:
    """Of a stack of at least two; the second is the larger one."""
    middle = len(stack) // 2
    return stack[:middle], stack[middle:]


def _in_order(index: int, what: str, records: Mapping[Place, Record]) -> list[Record]:
    found = sorted(task for replica, task in records if replica == index)
    if found != list(range(len(found))):
        raise Damage(
            f"replica {index + 1}: the ledger holds the {what} of task {found[-1] + 1}, but not one of every task "
            f"before it (tasks {', '.join(str(task + 1) for task in found)}); restore the database from a backup"
        )
    return [records[index, task] for task in found]
