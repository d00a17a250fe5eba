"""What the records so far say of what is to come: the time that is left, and the task at which a layer is full."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import mean

from clnp.budget import expected_claim
from search.experiment import Experiment
from search.grid import cells
from search.records import CommitRecord
from search.reports.common import Known

__all__ = ["Forecast", "forecast", "forecast_after", "seconds_left"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a hidden group runs out, if every task to come claims as many units as those so far did on average.

    Attributes:
        claimed: Units that a task is expected to claim: :func:`clnp.budget.expected_claim`.
        free: Units still free, in the open task.
        tasks: How many of ``count`` tasks are still to be committed: of the run's, or of those that the budget rule
            shares the units among, where these are more.
        grows: Whether units are added where they run out: then it is never full.
        budgeted: Whether ``count`` is that of the budget rule.
    """

    layer: str
    claimed: Fraction
    free: int
    tasks: int
    count: int
    grows: bool
    budgeted: bool = False

    @property
    def more(self) -> float | None:
        """How many tasks beyond ``count`` the units would last for, below 0: fewer; None: for any number."""
        return float(self.free / self.claimed - self.tasks) if self.claimed else None

    @property
    def full(self) -> int | None:
        """The first task (from 1) that would find fewer free units than it claims; None: none of them."""
        if self.grows or not self.claimed or self.free >= self.claimed * self.tasks:
            return None
        return self.count - self.tasks + int(self.free // self.claimed) + 1


def forecast(known: Known, replica: int, experiment: Experiment | None = None) -> list[Forecast]:
    """One forecast a hidden group, empty before the replica's first commit.

    Args:
        experiment: What the run is to go on with; without it, what it has been run with.
    """
    return forecast_after(experiment or known.experiment, known.commits(replica), known.room(replica)[1])


def forecast_after(experiment: Experiment, commits: Sequence[CommitRecord], free: Sequence[int]) -> list[Forecast]:
    """The same after the first commits of a replica, in order, that left these units of each group ``free``."""
    if not commits:
        return []
    claims = zip(*(record.claimed for record in commits), strict=True)
    groups = zip(experiment.outline.group_names, claims, free, strict=True)
    count = max(experiment.tasks.count, experiment.rule.tasks or 0)
    left, grows, budgeted = count - len(commits), experiment.grow is not None, count > experiment.tasks.count
    return [
        Forecast(layer, expected_claim(before), units, left, count, grows, budgeted) for layer, before, units in groups
    ]


def seconds_left(known: Known) -> float | None:
    """Seconds until an open run is over, from the mean durations so far; None while there is nothing to judge by.

    A cell's share of its stack's time and the time of a commit are averaged over the whole run, and what is left is
    divided by how many jobs ran at the same time on average while any ran.
    """
    stacks = _stacks(known)
    if known.row.state != "open" or not stacks:
        return None
    a_cell = sum(end - start for start, end, _ in stacks) / sum(cells for _, _, cells in stacks)
    commits = [(record.started, record.ended) for record in known.history.commits.values()]
    a_commit = mean(end - start for start, end in commits) if commits else 0.0
    work = sum(
        _cells_left(known, replica) * a_cell + _tasks_left(known, replica) * a_commit for replica in known.replicas
    )
    return work / _parallelism([*((start, end) for start, end, _ in stacks), *commits])


def _stacks(known: Known) -> list[tuple[float, float, int]]:
    """When each stack that ran began and ended, and how many records came of it."""
    found: dict[tuple[int, int, tuple[int, ...], float], tuple[float, int]] = {}
    for (replica, task), records in known.history.cells.items():
        for record in records.values():
            key = (replica, task, tuple(record.provenance.stack), record.started)
            ended, count = found.get(key, (record.ended, 0))
            found[key] = (max(ended, record.ended), count + 1)
    return [(start, end, count) for (*_, start), (end, count) in found.items()]


def _cells_left(known: Known, replica: int) -> int:
    """Cells without a record, those of tasks that are not open yet included."""
    commits = known.commits(replica)
    first = commits[0].winner if commits else None
    left = 0
    for task in range(len(commits), known.experiment.tasks.count):
        opening = known.opening(replica, task)
        if opening is None and task > 0 and first is None:
            first = cells(known.experiment, 0)[0]  # any will do: it is counted, not trained
        grid = cells(known.experiment, task, first) if opening is None else opening.cells
        left += len(grid) - len(known.cells(replica, task))
    return left


def _tasks_left(known: Known, replica: int) -> int:
    return known.experiment.tasks.count - len(known.commits(replica))


def _parallelism(spans: list[tuple[float, float]]) -> float:
    """How many jobs ran at the same time, on average over the moments at which any ran."""
    busy, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return max(1.0, sum(end - start for start, end in spans) / busy) if busy > 0 else 1.0
