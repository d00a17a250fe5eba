"""What readers get of the ledger: plain rows, and the history that a run goes on from."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from search.book import Place, place
from search.ledger import Attempts, Cells, Commits, Jobs, Openings, read
from search.names import study_name
from search.records import CellRecord, CommitRecord, JobKind, Measured, Opening
from search.trials import finished

__all__ = [
    "AttemptRow",
    "History",
    "JobRow",
    "Loss",
    "RunRow",
    "Tensors",
    "read_attempts",
    "read_cell",
    "read_history",
    "read_jobs",
    "read_opening",
    "read_tensors",
]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. ``artifacts`` is the folder of its tensors; times are seconds since 1970."""

    name: str
    experiment: dict[str, Any]
    data: str
    state: Literal["open", "finished", "stopped", "deleting"]
    reason: str
    artifacts: str
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job that is handed out, and how far it has come."""

    id: int
    kind: JobKind
    replica: int
    task: int
    cells: tuple[int, ...]
    worker: str
    epoch: int
    accuracy: float | None
    started: float


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """A driver that ran the run.

    ``outcome`` is ``finished``, ``stopped``, ``died`` (seen by the next one), or what it said when it let go.
    """

    host: str
    pid: int
    started: float
    ended: float | None
    outcome: str | None
    versions: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """A job that was lost with its worker."""

    kind: JobKind
    replica: int
    task: int
    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class History:
    """What the database holds of a run, by (replica, task).

    Attributes:
        cells: Cell index → record, the finished cells only: those that have their trial.
        given_up: Of finished cells, as (replica, task, cell): those whose tensors were.
        losses: Since the run last stopped for a reason, oldest first: who continues it then gets fresh retries.
        splits: The stacks that found no memory and went out in halves, oldest first.
        measured: What a stack takes, if it was measured.
    """

    openings: dict[Place, Opening]
    cells: dict[Place, dict[int, CellRecord]]
    commits: dict[Place, CommitRecord]
    losses: list[Loss]
    splits: list[Loss] = field(default_factory=list)
    measured: Measured | None = None
    given_up: set[tuple[int, int, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a row of the ledger says of an artifact: whose it is (a commit's has no cell), whether it is given up."""

    replica: int
    task: int
    cell: int | None
    artifact: str
    given_up: bool


def read_tensors(connection: Connection, run_id: int | None) -> list[Tensors]:
    """Every artifact that the rows of a run name, of cells without a trial too."""
    cells = select(Cells.replica, Cells.task, Cells.cell, Cells.artifact, Cells.given_up)
    cells = cells.where(Cells.run_id == run_id, Cells.artifact.is_not(None))
    commits = select(Commits.replica, Commits.task, Commits.artifact).where(Commits.run_id == run_id)
    found = [Tensors(row.replica, row.task, row.cell, row.artifact, row.given_up) for row in connection.execute(cells)]
    found += [Tensors(row.replica, row.task, None, row.artifact, False) for row in connection.execute(commits)]
    return found


def read_jobs(connection: Connection, run_id: int | None) -> list[JobRow]:
    """The open jobs of a run, the oldest first."""
    jobs = select(*Jobs.__table__.columns).where(Jobs.run_id == run_id, Jobs.state == "open").order_by(Jobs.id)
    return [
        JobRow(
            id=row.id,
            kind=row.kind,
            replica=row.replica,
            task=row.task,
            cells=tuple(row.cells),
            worker=row.worker,
            epoch=row.epoch,
            accuracy=row.accuracy,
            started=row.started,
        )
        for row in connection.execute(jobs)
    ]


def read_attempts(connection: Connection, run_id: int | None) -> list[AttemptRow]:
    """The attempts of a run, the oldest first."""
    attempts = select(*Attempts.__table__.columns).where(Attempts.run_id == run_id).order_by(Attempts.id)
    return [
        AttemptRow(row.host, row.pid, row.started, row.ended, row.outcome, row.versions, tuple(row.notes))
        for row in connection.execute(attempts)
    ]


def read_history(connection: Connection, run_id: int | None, name: str) -> History:
    """The history of a run.

    Read in the opposite order of writing, so that a driver that goes on meanwhile leaves no commit without its cells
    and no trial without its row in it.

    Raises:
        Damage: A row cannot be read.
    """
    events = _losses(connection, run_id), _splits(connection, run_id), _measured(connection, run_id, name)
    history = History({}, {}, {}, *events)
    for row, where in _rows(connection, Commits, run_id, name):
        history.commits[row.replica, row.task] = read(CommitRecord, row.record, where)
    places = connection.execute(select(Cells.replica, Cells.task).where(Cells.run_id == run_id).distinct())
    studies = {study_name(name, replica, task): (replica, task) for replica, task in places}
    trials = {(studies[study], key) for study, key in finished(connection, tuple(studies))}
    cells: dict[Place, dict[int, CellRecord]] = defaultdict(dict)
    for row, where in _rows(connection, Cells, run_id, name):
        here = row.replica, row.task
        if (here, row.key) in trials:
            cells[here][row.cell] = read(CellRecord, row.record, where)
            if row.given_up:
                history.given_up.add((*here, row.cell))
    history.cells.update(cells)
    for row, where in _rows(connection, Openings, run_id, name):
        history.openings[row.replica, row.task] = read(Opening, row.record, where)
    return history


def read_opening(connection: Connection, run_id: int, replica: int, task: int, where: str) -> Opening | None:
    """A task's opening, or None. ``where`` is for messages.

    Raises:
        Damage: The row cannot be read.
    """
    row = Openings.run_id == run_id, Openings.replica == replica, Openings.task == task
    text = connection.execute(select(Openings.record).where(*row)).scalar()
    return None if text is None else read(Opening, text, where)


def read_cell(connection: Connection, run_id: int, replica: int, task: int, cell: int, where: str) -> CellRecord | None:
    """The row of a cell, which counts once its trial is there, or None. ``where`` is for messages.

    Raises:
        Damage: The row cannot be read.
    """
    row = Cells.run_id == run_id, Cells.replica == replica, Cells.task == task, Cells.cell == cell
    text = connection.execute(select(Cells.record).where(*row)).scalar()
    return None if text is None else read(CellRecord, text, where)


def _rows(
    connection: Connection, table: type[Cells | Commits | Openings], run_id: int | None, name: str
) -> Iterator[tuple[Row[Any], str]]:
    order = list(table.__table__.primary_key)
    for row in connection.execute(select(*table.__table__.columns).where(table.run_id == run_id).order_by(*order)):
        yield row, f"run {name}, {place(row.replica, row.task)}"


def _losses(connection: Connection, run_id: int | None) -> list[Loss]:
    stopped = select(func.coalesce(func.max(Attempts.id), 0)).where(
        Attempts.run_id == run_id, Attempts.outcome == "stopped"
    )
    jobs = (
        select(*Jobs.__table__.columns)
        .where(Jobs.run_id == run_id, Jobs.state == "lost", Jobs.attempt_id > stopped.scalar_subquery())
        .order_by(Jobs.id)
    )
    return [_loss(row) for row in connection.execute(jobs)]


def _splits(connection: Connection, run_id: int | None) -> list[Loss]:
    jobs = select(*Jobs.__table__.columns).where(Jobs.run_id == run_id, Jobs.state == "split").order_by(Jobs.id)
    return [_loss(row) for row in connection.execute(jobs)]


def _measured(connection: Connection, run_id: int | None, name: str) -> Measured | None:
    done = select(Jobs.note).where(Jobs.run_id == run_id, Jobs.kind == "measure", Jobs.state == "done")
    note = connection.execute(done.order_by(Jobs.id.desc()).limit(1)).scalar()
    return None if note is None else read(Measured, note, f"run {name}")


def _loss(row: Row[Any]) -> Loss:
    return Loss(row.kind, row.replica, row.task, tuple(row.cells))
