"""What a run reads from the database and writes to it, as the state machine sees it."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from search.records import CellRecord, CommitRecord, JobKind, Measured, Opening

__all__ = ["Book", "History", "JobEnd", "Loss", "Place", "place"]

Place = tuple[int, int]
"""A replica and a task, both from 0."""

JobEnd = Literal["done", "lost", "given back", "split"]


class Loss(Protocol):
    """A job that ended with its worker, as the ledger holds it; jobs given back or cut off with the driver are none."""

    @property
    def kind(self) -> str: ...
    @property
    def replica(self) -> int: ...
    @property
    def task(self) -> int: ...
    @property
    def cells(self) -> tuple[int, ...]: ...


class History(Protocol):
    """What the database holds of a run, by (replica, task).

    Cells are those whose trial is there: the finished ones. Losses are those since the run last stopped for a reason.
    Splits are the stacks that found no memory, ever; measured is what one takes, once that is known.
    """

    @property
    def openings(self) -> Mapping[Place, Opening]: ...
    @property
    def cells(self) -> Mapping[Place, Mapping[int, CellRecord]]: ...
    @property
    def commits(self) -> Mapping[Place, CommitRecord]: ...
    @property
    def losses(self) -> Sequence[Loss]: ...
    @property
    def splits(self) -> Sequence[Loss]: ...
    @property
    def measured(self) -> Measured | None: ...


class Book(Protocol):
    """Where a run writes: one write is one durable step, and a driver that is killed between any two loses no record.

    Every method may raise a :class:`SearchError` (the lease was lost, the database cannot be reached): the run stops.
    """

    def open_task(self, opening: Opening) -> None:
        """Write down a task's cells and stacks."""

    def hand_out(self, kind: JobKind, replica: int, task: int, cells: tuple[int, ...]) -> int:
        """Open a job's row and give its id."""

    def close_job(self, job: int, state: JobEnd, note: str = "") -> None:
        """Close it. ``lost`` counts against its cells, ``given back`` does not; of what is ``split`` the halves go
        out."""

    def progress(self, job: int, worker: str, epoch: int, accuracy: float | None) -> None:
        """Note where a job runs and how far it has come."""

    def add_cell(self, replica: int, task: int, record: CellRecord) -> None:
        """Write a finished cell: its staircase, then its trial."""

    def add_commit(self, record: CommitRecord) -> None:
        """Write a commit: the task is finished."""

    def remove_artifacts(self, artifacts: tuple[str, ...]) -> None:
        """Remove tensors, those that are gone already and those that another record needs excepted."""


def place(replica: int, task: int) -> str:
    """A replica and a task as people are told them, both from 1."""
    return f"replica {replica + 1}, task {task + 1}"
