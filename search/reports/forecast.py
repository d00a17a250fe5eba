"""What the records so far say of what is to come: the time that is left, and the task at which a layer is full."""

from dataclasses import dataclass
from statistics import mean

from search.grid import cells
from search.reports.common import Known

__all__ = ["Forecast", "forecast", "seconds_left"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a hidden group runs out, if every task to come claims as many units as those so far did on average.

    Attributes:
        claimed: Units a task claimed so far, on average.
        free: Units still free.
        full: The first task (from 1) that would find fewer free units than it claims; None: none of this run, such as
            where the network grows.
    """

    layer: str
    claimed: float
    free: int
    full: int | None


def forecast(known: Known, replica: int) -> list[Forecast]:
    """One forecast a hidden group, empty before the replica's first commit."""
    commits = known.commits(replica)
    if not commits:
        return []
    found = []
    for place, layer in enumerate(known.hidden):
        claimed = mean(record.claimed[place] for record in commits)
        free = known.room(replica)[1][place]
        left = int(free // claimed) if claimed else known.experiment.tasks.count
        full = len(commits) + left + 1
        never = known.experiment.grow is not None or full > known.experiment.tasks.count
        found.append(Forecast(layer, claimed, free, None if never else full))
    return found


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
