"""The plain dataclasses that driver and worker exchange, and their JSON."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, TypeAdapter

from clnp.forgetting import Point
from clnp.halving import Dropped
from clnp.pace import Pace
from clnp.rounds import Round
from clnp.usage import Usage

__all__ = [
    "Cell",
    "CellRecord",
    "CommitJob",
    "CommitRecord",
    "Committed",
    "Failure",
    "Job",
    "JobKind",
    "JobResult",
    "MeasureJob",
    "Measured",
    "Memory",
    "Opening",
    "Progress",
    "Provenance",
    "Score",
    "StackJob",
    "dump",
    "load",
    "load_job",
]

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a task's grid: one α a layer, the output layer's last, and a learning rate."""

    index: int
    alpha: tuple[float, ...]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Opening:
    """What is written down when a task opens.

    Attributes:
        stacks: Which cells, by index, train as one.
        widths: Units of each hidden group while the task is open.
    """

    replica: int
    task: int
    data: str
    cells: tuple[Cell, ...]
    stacks: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a record's bits depend on beside its cell: stack mates, device, threads, versions, and the precision of the
    products in training steps."""

    stack: tuple[int, ...]
    device: str
    threads: int
    versions: dict[str, str]
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers out of so many."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True, slots=True)
class CellRecord:
    """A finished cell.

    Attributes:
        diverged: Why there are no finite numbers, or None. Where given, score, artifact and staircase are empty.
        dropped: Why it was not trained to its end, or None. Where given, they are empty too.
        score: The unpruned network on the validation split.
        majority: Right answers on it of always naming its most frequent class.
        epochs: Right answers on it after every epoch, as counted while training.
        epoch: The epoch kept, from 1.
        artifact: SHA-256 of the member's free tensors; ``size`` is their bytes.
        started, ended: Seconds since 1970.
    """

    cell: Cell
    diverged: str | None
    score: Score | None
    majority: int
    epochs: tuple[int, ...]
    epoch: int
    staircase: tuple[Point, ...]
    artifact: str | None
    size: int
    provenance: Provenance
    started: float
    ended: float
    dropped: Dropped | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a worker needs of an earlier commit: where its tensors are, what they must hash to, and the units of each
    hidden group then."""

    task: int
    artifact: str
    fingerprint: str
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StackJob:
    """Train these cells as one stack.

    Attributes:
        id: The ledger's.
        widths: Units of each hidden group while the task is open.
        experiment: See :meth:`search.experiment.Experiment.to_json`.
    """

    id: int
    replica: int
    task: int
    cells: tuple[Cell, ...]
    commits: tuple[Committed, ...]
    widths: tuple[int, ...]
    data: str
    experiment: dict[str, Any]
    kind: Literal["stack"] = "stack"


@dataclass(frozen=True, slots=True)
class CommitJob:
    """Prune the winner at its threshold, claim, freeze and measure every task again.

    Attributes:
        data: What the task's data hashed to when it opened; ``earlier``: those of the tasks before it, in order.
        over_budget: See :class:`CommitRecord`.
    """

    id: int
    replica: int
    task: int
    winner: Cell
    point: Point
    artifact: str
    score: Score
    best: int
    needed: int
    candidates: tuple[int, ...]
    missing: tuple[int, ...]
    commits: tuple[Committed, ...]
    widths: tuple[int, ...]
    data: str
    earlier: tuple[str, ...]
    experiment: dict[str, Any]
    over_budget: tuple[str, ...] = ()
    kind: Literal["commit"] = "commit"


@dataclass(frozen=True, slots=True)
class MeasureJob:
    """Find out what a stack takes of a GPU's memory and how much longer its steps are than one member's, before the
    first one is formed.

    Attributes:
        cell: The one that is trained for it, in one and in several members.
        members: Of the stack whose steps are timed, where memory holds as many; 1: none are.
    """

    id: int
    replica: int
    task: int
    cell: Cell
    members: int
    commits: tuple[Committed, ...]
    widths: tuple[int, ...]
    data: str
    experiment: dict[str, Any]
    kind: Literal["measure"] = "measure"


Job = StackJob | CommitJob | MeasureJob

JobKind = Literal["stack", "commit", "measure"]
"""The jobs' kinds."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a stack takes of a GPU, in bytes: ``fixed + members · member`` of ``total``.

    Attributes:
        total: What the whole GPU has.
        device: Where it was measured.
    """

    fixed: int
    member: int
    total: int
    device: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a stack takes, as a run's ledger keeps it.

    Attributes:
        memory: Of a GPU; None on a CPU.
        pace: Of its steps; None where it was not measured: there was no stack to time, or no memory for one.
    """

    memory: Memory | None
    pace: Pace | None


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The durable record of a task.

    Attributes:
        winner: The winning cell, pruned at ``point`` (``point.theta``).
        unpruned, validation, test: Scores of the winner before pruning and of what was committed.
        best, needed: Right answers of the best trial of the grid, and the cut line.
        candidates: Cell indices within the margin, unpruned.
        missing: Cell indices without a record, where that was allowed.
        widths: Units of each hidden group while the task was open.
        claimed, free: New and still free units, one number a hidden group.
        usage: What the task uses of the network, and what of it is its own.
        artifact: SHA-256 of the tensors that the task added; ``size`` is their bytes.
        fingerprints: Of every task so far, this one last, measured after the commit.
        changed: How many earlier fingerprints or logits differ from before. Anything but 0 is never written.
        matrix: Test scores of every task so far, this one last, measured after the commit.
        over_budget: Under the budget rule, the hidden groups of which the winner claims more than their budget: no
            point above the floor fits.
        rounds: Of fine-tuning, in order; what the last one kept was committed.
    """

    replica: int
    task: int
    winner: Cell
    point: Point
    unpruned: Score
    validation: Score
    test: Score
    best: int
    needed: int
    candidates: tuple[int, ...]
    missing: tuple[int, ...]
    widths: tuple[int, ...]
    claimed: tuple[int, ...]
    free: tuple[int, ...]
    usage: Usage
    artifact: str
    size: int
    fingerprints: tuple[str, ...]
    changed: int
    matrix: tuple[Score, ...]
    provenance: Provenance
    started: float
    ended: float
    over_budget: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()

    @property
    def fingerprint(self) -> str:
        return self.fingerprints[-1]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job cannot succeed however often it is tried; the kind decides the exit code of the run."""

    kind: Literal["damage", "impossible", "input"]
    text: str


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a worker returns: records of its cells or of the commit.

    Attributes:
        failures: Cell index → why this member raised; the other members' records stand.
        failure: Given instead of records.
        too_large: Given instead of records: why a stack of several members found no memory.
        measured: Of a :class:`MeasureJob`.
    """

    cells: tuple[CellRecord, ...] = ()
    commit: CommitRecord | None = None
    failures: dict[int, str] = field(default_factory=dict)
    failure: Failure | None = None
    too_large: str | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come: epochs done of so many, its best member's validation accuracy, and where it runs.

    Attributes:
        waiting: What it waits for instead of working; empty: nothing.
    """

    worker: str
    epoch: int
    epochs: int
    accuracy: float | None
    waiting: str = ""


def _with_pace(note: object) -> object:
    """A note of a version that measured memory alone."""
    return {"memory": note, "pace": None} if isinstance(note, dict) and "fixed" in note else note


_ADAPTERS: dict[type, TypeAdapter[Any]] = {Measured: TypeAdapter(Annotated[Measured, BeforeValidator(_with_pace)])}


def _adapter(kind: type) -> TypeAdapter[Any]:
    # Building one costs a millisecond, using it microseconds.
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump(record: object) -> str:
    """The record as JSON; floats keep every bit."""
    return _adapter(type(record)).dump_json(record).decode()


def load(kind: type[Record], text: str) -> Record:
    """A record of ``kind`` from its JSON.

    Raises:
        pydantic.ValidationError: The text is not such a record.
    """
    record: Record = _adapter(kind).validate_json(text)
    return record


_JOBS: dict[str, type[Job]] = {"stack": StackJob, "commit": CommitJob, "measure": MeasureJob}


def load_job(kind: str, text: str) -> Job:
    """A job of a kind from its JSON.

    Raises:
        pydantic.ValidationError: The text is not such a job.
    """
    return load(_JOBS[kind], text)
