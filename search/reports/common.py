"""What the reports share: a run as the database holds it, and the small pieces that they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.decisions import free_units
from search.errors import BadInput
from search.experiment import Experiment
from search.records import Cell, CellRecord, CommitRecord, Opening, Provenance, Score
from search.text import up_to

if TYPE_CHECKING:
    # Not loaded for its types alone: `experiments` needs no database.
    from search.store import History, RunRow, Store

__all__ = ["Known", "Report", "cell", "find_commit", "layers", "provenance", "read_run", "score"]

Report = dict[str, Any]
"""A report: what JSON can hold, and no more."""


@dataclass(frozen=True, slots=True)
class Known:
    """A run as the database holds it."""

    row: "RunRow"
    experiment: Experiment
    history: "History"

    @property
    def replicas(self) -> range:
        return range(self.experiment.replicas)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The names of the groups whose units are claimed; in a chain of layers those of the layers."""
        return self.experiment.outline.group_names

    def commits(self, replica: int) -> list[CommitRecord]:
        """The commits of a replica, in order."""
        found = (record for (place, _), record in self.history.commits.items() if place == replica)
        return sorted(found, key=lambda record: record.task)

    def room(self, replica: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Units of each hidden group, what growth added included, and how many are free: now, in the open task."""
        commits, first = self.commits(replica), self.experiment.outline.widths
        opening = self.opening(replica, len(commits))
        before = commits[-1].widths if commits else first
        now = before if opening is None else opening.widths
        return now, free_units(commits, now)

    def opening(self, replica: int, task: int) -> Opening | None:
        return self.history.openings.get((replica, task))

    def cells(self, replica: int, task: int) -> Mapping[int, CellRecord]:
        """The finished cells of a task, by their place in the grid."""
        return self.history.cells.get((replica, task), {})


def read_run(store: "Store", name: str) -> Known:
    """The run called ``name``, whole.

    Raises:
        BadInput: There is none.
        Damage: A row cannot be read.
    """
    row = store.find(name)
    return Known(row, Experiment.from_json(row.experiment), store.history(name))


def find_commit(known: Known, task: int | None, replica: int | None) -> CommitRecord:
    """The commit of a task (from 1, the last one for None) of a replica (from 1, the first one for None).

    Raises:
        BadInput: There is no such replica, or the task is not committed.
    """
    name, count = known.row.name, known.experiment.replicas
    replica = 1 if replica is None else replica
    if not 1 <= replica <= count:
        raise BadInput(f"--replica {replica}: run {name!r} has {up_to(count, 'replica')}")
    if task is not None and not 1 <= task <= known.experiment.tasks.count:
        raise BadInput(f"--task {task}: run {name!r} has {up_to(known.experiment.tasks.count, 'task')}")
    commits = known.commits(replica - 1)
    if not commits or (task or 1) > len(commits):
        wanted = f"task {task}" if task else "no task"
        so_far = f"; {up_to(len(commits), 'task', verb=True)}" if commits else ""
        verb = "is not committed yet" if task else "is committed yet"
        raise BadInput(f"run {name!r}, replica {replica}: {wanted} {verb}{so_far}; status {name} says how far it is")
    return commits[task - 1 if task else -1]


def score(found: Score) -> Report:
    return {"correct": found.correct, "total": found.total, "accuracy": found.accuracy}


def cell(found: Cell, experiment: Experiment) -> Report:
    """A cell with one α a named layer."""
    alpha = dict(zip(experiment.outline.layer_names, found.alpha, strict=True))
    return {"cell": found.index, "alpha": alpha, "learning_rate": found.learning_rate}


def layers(names: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    """One number a hidden group, by its name."""
    return dict(zip(names, counts, strict=True))


def provenance(found: Provenance) -> Report:
    return {
        "stack": list(found.stack),
        "device": found.device,
        "threads": found.threads,
        "versions": dict(found.versions),
        "precision": found.precision,
    }
