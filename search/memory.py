"""A book in memory, for simulations. It outlives the run that writes in it, as a database does."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Literal

from search.book import JobEnd, Place
from search.records import CellRecord, CommitRecord, JobKind, Measured, Opening, load

__all__ = ["MemoryBook", "MemoryJob"]


@dataclass(slots=True)
class MemoryJob:
    """A job's row."""

    kind: JobKind
    replica: int
    task: int
    cells: tuple[int, ...]
    state: Literal["out"] | JobEnd = "out"
    note: str = ""
    epoch: int = 0


class MemoryBook:
    """A :class:`~search.book.Book` and the :class:`~search.book.History` it makes, in dictionaries.

    It is stricter than it need be: a write that no correct run makes raises ``RuntimeError``.

    Args:
        artifacts: What removed artifacts are taken from.
        on_write: Told before and after every durable step; what it raises leaves just the steps before it written, as
            a driver that is killed there does.
    """

    def __init__(
        self,
        artifacts: MutableMapping[str, tuple[int, ...]] | None = None,
        on_write: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self.openings: dict[Place, Opening] = {}
        self.cells: dict[Place, dict[int, CellRecord]] = {}
        self.commits: dict[Place, CommitRecord] = {}
        self.jobs: dict[int, MemoryJob] = {}
        self._counted_from = 0
        self.staircases: dict[tuple[int, int, int], CellRecord] = {}
        self._artifacts = {} if artifacts is None else artifacts
        self._on_write = on_write

    @property
    def losses(self) -> list[MemoryJob]:
        """The jobs that were lost with their worker since the run last stopped for a reason."""
        return [job for job_id, job in self.jobs.items() if job.state == "lost" and job_id > self._counted_from]

    @property
    def splits(self) -> list[MemoryJob]:
        """The stacks that found no memory."""
        return [job for job in self.jobs.values() if job.state == "split"]

    @property
    def measured(self) -> Measured | None:
        """What a stack takes, if it was measured."""
        notes = [job.note for job in self.jobs.values() if (job.kind, job.state) == ("measure", "done")]
        return load(Measured, notes[-1]) if notes else None

    @property
    def open_jobs(self) -> list[int]:
        return [job_id for job_id, job in self.jobs.items() if job.state == "out"]

    def take(self) -> "MemoryBook":
        """What a driver does that takes the lease: the jobs of a dead one are given back."""
        for job_id in self.open_jobs:
            self.jobs[job_id].state = "given back"
        return self

    def stop(self) -> None:
        """What a driver does whose run stopped for a reason: losses so far count no more."""
        self._counted_from = len(self.jobs)

    def open_task(self, opening: Opening) -> None:
        place = (opening.replica, opening.task)
        _require(place not in self.openings, f"{place} is open already")
        _require(opening.task == 0 or (opening.replica, opening.task - 1) in self.commits, f"{place} opens too early")
        self._on_write("before opening")
        self.openings[place] = opening
        self.cells[place] = {}
        self._on_write("after opening")

    def hand_out(self, kind: JobKind, replica: int, task: int, cells: tuple[int, ...]) -> int:
        place = (replica, task)
        is_open = place in self.openings and place not in self.commits
        _require(is_open or kind == "measure", f"a job of {place}, which is not open")
        self._on_write("before handing out")
        job_id = len(self.jobs) + 1
        self.jobs[job_id] = MemoryJob(kind, replica, task, cells)
        self._on_write("after handing out")
        return job_id

    def close_job(self, job: int, state: JobEnd, note: str = "") -> None:
        _require(self.jobs[job].state == "out", f"job {job} is closed already: {self.jobs[job]}")
        self._on_write("before closing")
        self.jobs[job].state, self.jobs[job].note = state, note
        self._on_write("after closing")

    def progress(self, job: int, worker: str, epoch: int, accuracy: float | None) -> None:  # noqa: ARG002
        _require(self.jobs[job].state == "out", f"progress of job {job}, which is closed")
        self._on_write("before progress")
        self.jobs[job].epoch = epoch

    def add_cell(self, replica: int, task: int, record: CellRecord) -> None:
        place, index = (replica, task), record.cell.index
        _require(place in self.openings and place not in self.commits, f"a cell of {place}, which is not open")
        _require(record.cell == self.openings[place].cells[index], f"{record.cell} is no cell of {place}")
        _require(index not in self.cells[place], f"cell {index} of {place} has a record already")
        self._on_write("before the staircase")
        self.staircases[replica, task, index] = record
        self._on_write("after the staircase")
        self.cells[place][index] = record
        self._on_write("after the trial")

    def add_commit(self, record: CommitRecord) -> None:
        place = (record.replica, record.task)
        _require(place in self.openings and place not in self.commits, f"a commit of {place}, which is not open")
        accounted = {*self.cells[place], *record.missing}
        _require(len(accounted) == len(self.openings[place].cells), f"{place} is committed from a partial grid")
        self._on_write("before the commit")
        self.commits[place] = record
        self._on_write("after the commit")

    def remove_artifacts(self, artifacts: tuple[str, ...]) -> None:
        kept = {record.artifact for record in self.commits.values()}
        kept |= {self.cells[place][record.winner.index].artifact or "" for place, record in self.commits.items()}
        _require(kept.isdisjoint(artifacts), "a commit's tensors are removed")
        for artifact in artifacts:
            self._on_write("before removing")
            self._artifacts.pop(artifact, None)
        self._on_write("after removing")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RuntimeError(otherwise)
