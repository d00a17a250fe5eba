"""What a live view is told of a run: its events, and its state at one moment."""

from dataclasses import dataclass
from typing import Literal

from search.records import JobKind, Score

__all__ = ["Event", "EventKind", "ReplicaState", "RunningJob", "Snapshot"]

EventKind = Literal[
    "task opened",
    "cell finished",
    "cell diverged",
    "cell dropped",
    "job lost",
    "stack split",
    "worker waits",
    "stack measured",
    "winner chosen",
    "task committed",
    "replica stopped",
    "run finished",
    "run stopped",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, after it was written down.

    Attributes:
        text: One line for people, without the place.
        replica, task, cell: Where, from 0; None where it concerns all of them.
    """

    kind: EventKind
    text: str
    replica: int | None = None
    task: int | None = None
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that is with a worker, and the last it told. Before it told anything, ``worker`` is None.

    Attributes:
        epoch, epochs: Epochs done of so many.
        accuracy: Of its best member on the validation split.
        waiting: What it waits for instead of working; empty: nothing.
    """

    id: int
    kind: JobKind
    replica: int
    task: int
    cells: tuple[int, ...]
    worker: str | None = None
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """How far a replica has come.

    Attributes:
        committed, tasks: Tasks committed of so many.
        finished, cells: Of the open task, cells with a record (``diverged`` of them without numbers, ``dropped``
            of them not trained to their end) of so many; 0 where none is open.
        tests: The test score of every committed task, when it was committed.
        free: Free units after the last commit, one number a hidden layer; empty before the first.
        stopped: Why it cannot go on while other replicas may, or None.
    """

    index: int
    committed: int
    tasks: int
    finished: int
    diverged: int
    cells: int
    tests: tuple[Score, ...]
    free: tuple[int, ...]
    stopped: str | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    replicas: tuple[ReplicaState, ...]
    running: tuple[RunningJob, ...]
