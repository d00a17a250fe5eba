"""The whole orchestration in virtual time: orders of completion, losses, failures and kills, two replicas."""

import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.pace import Pace
from search.backends.simulated import Fate, Simulated, World
from search.errors import Impossible, Unavailable
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import CellRecord, CommitJob, CommitRecord, Failure, Job, Measured, Memory, StackJob
from search.run import Run
from search.sections import Model, Training, Worker

EXPERIMENT = Experiment.model_validate(
    {
        "tasks": {"count": 3},
        "model": {"hidden": [60, 40]},
        "replicas": 2,
        "grid": {"alpha": [1e-4, 1e-3, 1e-2], "learning_rate": [1e-3, 2e-3]},
        "training": {"epochs": 2},
        "rule": {"margin": [1.0, 2.0, 0.5]},
        "worker": {"cells": 4},
        "retries": 2,
    }
)
STEPS = 400
"""More durable steps than an undisturbed run of it takes."""


class Killed(Exception):
    """The driver's process is gone."""


@dataclass
class Disk:
    """What outlives a driver: its book and its artifacts. ``kills`` are the durable steps at which it dies."""

    kills: frozenset[int] = frozenset()
    steps: int = 0
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.book = MemoryBook(self.world.artifacts, self.step)

    def step(self, _what: str) -> None:
        self.steps += 1
        if self.steps in self.kills:
            raise Killed


def play(
    disk: Disk,
    plan: Callable[[Job, int], Fate] = lambda _job, _attempt: Fate(),
    *,
    experiment: Experiment = EXPERIMENT,
    workers: int = 2,
    allow_missing: bool = False,
) -> Run:
    """Run until the driver does not die any more, each time from what the disk holds."""
    while True:
        book = disk.book.take()
        run = Run(
            experiment,
            book,
            book,
            data=lambda replica, task: f"data {replica} {task}",
            workers=workers,
            allow_missing=allow_missing,
        )
        try:
            Simulated(workers=workers, plan=plan, world=disk.world).execute(run)
            run.give_back()
        except Killed:
            continue
        assert not book.open_jobs
        if run.stopped is not None:
            book.stop()
        return run


def records(book: MemoryBook) -> dict[str, object]:
    """Everything that is recorded, without the times."""

    def timeless(record: CellRecord | CommitRecord) -> object:
        return replace(record, started=0.0, ended=0.0)

    return {
        "openings": book.openings,
        "cells": {place: {i: timeless(cell) for i, cell in cells.items()} for place, cells in book.cells.items()},
        "commits": {place: timeless(commit) for place, commit in book.commits.items()},
    }


def choices(book: MemoryBook) -> object:
    """What was scored and picked, whoever shared the stacks."""
    return [
        (place, commit.winner, commit.point, commit.candidates, commit.missing)
        for place, commit in sorted(book.commits.items())
    ]


@functools.cache
def undisturbed() -> Disk:
    disk = Disk()
    assert play(disk, workers=1).finished
    return disk


class Weather:
    """Durations, losses and raising members, drawn by a seed; every kind of job at most so often in all."""

    def __init__(self, seed: int, *, stacks: int, singles: int, commits: int, raising: float = 0.0) -> None:
        self._random = random.Random(seed)
        self._limits = {"stack": stacks, "single": singles, "commit": commits}
        self._raising = raising
        self._lost: Counter[object] = Counter()

    def __call__(self, job: Job, _attempt: int) -> Fate:
        duration = self._random.choice([0.1, 1.0, 5.0, self._random.uniform(0.0, 10.0)])
        indices = (job.winner.index,) if isinstance(job, CommitJob) else tuple(cell.index for cell in job.cells)
        kind = "single" if job.kind == "stack" and len(indices) == 1 else job.kind
        key = (kind, job.replica, job.task, indices)
        if self._lost[key] < self._limits[kind] and self._random.random() < 0.3:
            self._lost[key] += 1
            return Fate(duration, lost="its node is gone")
        if kind == "stack" and self._random.random() < self._raising:
            raised = {index: "out of memory" for index in indices if self._room(job, index)}
            return Fate(duration, raised=raised)
        return Fate(duration)

    def _room(self, job: Job, index: int) -> bool:
        """Whether this member may raise: that is a loss of it alone."""
        key = ("single", job.replica, job.task, (index,))
        if self._lost[key] >= self._limits["single"] or self._random.random() < 0.5:
            return False
        self._lost[key] += 1
        return True


def test_an_undisturbed_run_is_complete() -> None:
    """Every cell of every task has its record and every task its commit; losers' tensors are gone, winners' are not."""
    disk = undisturbed()
    book = disk.book
    places = [(replica, task) for replica in range(2) for task in range(3)]
    assert sorted(book.openings) == sorted(book.commits) == places
    assert all(sorted(cells) == list(range(6)) for cells in book.cells.values())
    assert {job.state for job in book.jobs.values()} == {"done"}
    assert disk.steps < STEPS
    kept: set[str | None] = {commit.artifact for commit in book.commits.values()}
    kept |= {book.cells[place][commit.winner.index].artifact for place, commit in book.commits.items()}
    assert set(disk.world.artifacts) == kept


HALVED = EXPERIMENT.model_copy(update={"training": Training(epochs=30, halving=(20, 25), halving_margin=0.5)})


@functools.cache
def halved() -> Disk:
    disk = Disk()
    assert play(disk, experiment=HALVED, workers=1).finished
    return disk


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, STEPS), max_size=12),
)
def test_a_dropped_cell_is_finished_whatever_happens(seed: int, workers: int, kills: frozenset[int]) -> None:
    """Promise 3: with halving too, the same records, hash for hash; who was dropped is no candidate."""
    book = halved().book
    gone = {place: {i for i, cell in cells.items() if cell.dropped} for place, cells in book.cells.items()}
    assert any(gone.values())
    assert all(not gone[place] & {*commit.candidates, commit.winner.index} for place, commit in book.commits.items())
    disk = Disk(kills)
    assert play(disk, Weather(seed, stacks=1, singles=2, commits=2), experiment=HALVED, workers=workers).finished
    assert records(disk.book) == records(book)
    assert set(disk.world.artifacts) == set(halved().world.artifacts)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, STEPS), max_size=12),
)
def test_orders_losses_and_kills_end_with_the_same_records(seed: int, workers: int, kills: frozenset[int]) -> None:
    """Promise 3: killed at any moment and started again, with the same records, hash for hash."""
    disk = Disk(kills)
    weather = Weather(seed, stacks=1, singles=2, commits=2)
    assert play(disk, weather, workers=workers).finished
    assert records(disk.book) == records(undisturbed().book)
    assert set(disk.world.artifacts) == set(undisturbed().world.artifacts)


@pytest.mark.parametrize("moment", range(1, STEPS, 7))
def test_killed_at_one_moment(moment: int) -> None:
    """Promise 3, at every seventh durable step; the other ones come with the seeds of the test above."""
    disk = Disk(frozenset({moment}))
    assert play(disk).finished
    assert records(disk.book) == records(undisturbed().book)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, 2 * STEPS), max_size=5),
)
def test_stacks_that_fall_apart_pick_the_same_winners(seed: int, workers: int, kills: frozenset[int]) -> None:
    """A stack lost twice and members that raise go out cell by cell: other bits, recorded, and the same scores here."""
    disk = Disk(kills)
    weather = Weather(seed, stacks=9, singles=2, commits=2, raising=0.3)
    assert play(disk, weather, workers=workers).finished
    assert choices(disk.book) == choices(undisturbed().book)
    for place, cells in disk.book.cells.items():
        stacks = {*disk.book.openings[place].stacks, *((index,) for index in cells)}
        assert {record.provenance.stack for record in cells.values()} <= stacks


@settings(max_examples=30, deadline=None)
@given(most=st.integers(1, 5), workers=st.integers(1, 5), kills=st.frozensets(st.integers(1, STEPS), max_size=9))
def test_stacks_that_find_no_memory_are_split(most: int, workers: int, kills: frozenset[int]) -> None:
    """Promise 3: killed at any moment, the same stacks train in the end; each task fails once at most for each size."""

    def plan(job: Job, _attempt: int) -> Fate:
        large = isinstance(job, StackJob) and len(job.cells) > most
        return Fate(too_large="out of memory") if large else Fate()

    undisturbed_split, disk = Disk(), Disk(kills)
    assert play(undisturbed_split, plan, workers=1).finished
    assert play(disk, plan, workers=workers).finished
    assert records(disk.book) == records(undisturbed_split.book)
    assert choices(disk.book) == choices(undisturbed().book)
    trained = {record.provenance.stack for cells in disk.book.cells.values() for record in cells.values()}
    assert max(map(len, trained)) <= most
    assert {job.task for job in disk.book.splits} <= {0}, "the tasks after it form no larger ones"
    assert disk.book.losses == []


@settings(max_examples=20, deadline=None)
@given(
    holds=st.integers(1, 9),
    share=st.sampled_from([0.25, 1, 2]),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, STEPS), max_size=9),
)
def test_memory_is_measured_once_and_stacks_fit_it(
    holds: int, share: float, workers: int, kills: frozenset[int]
) -> None:
    """Promise 3: killed at any moment, the memory is known from the ledger and the same stacks form."""
    room = int(0.9 * min(share, 1) * 10**9)
    memory = Memory(fixed=room % holds, member=room // holds, total=10**9, device="simulated")
    disk = Disk(kills, world=World(memory=memory))
    shared = EXPERIMENT.model_copy(update={"worker": Worker(gpu=share)})
    assert play(disk, workers=workers, experiment=shared).finished
    trained = {record.provenance.stack for cells in disk.book.cells.values() for record in cells.values()}
    assert max(map(len, trained)) <= holds
    assert all(len(opening.stacks) >= -(-len(opening.cells) // holds) for opening in disk.book.openings.values())
    measured = [job for job in disk.book.jobs.values() if job.kind == "measure"]
    assert [job.state for job in measured].count("done") == 1
    found = disk.book.measured
    assert found is not None
    assert found.memory == memory


@settings(max_examples=20, deadline=None)
@given(
    gain=st.sampled_from([0.5, 1.19, 1.2, 4.0]),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, STEPS), max_size=9),
)
def test_pace_is_measured_once_and_stacks_go_by_it(gain: float, workers: int, kills: frozenset[int]) -> None:
    """Promise 3: killed at any moment, on a CPU too, the pace is known from the ledger and the same stacks form."""
    middle = EXPERIMENT.model_copy(update={"worker": Worker(gpu=0), "model": Model(hidden=(300, 300))})
    quiet, disk = Disk(world=World(gain=gain)), Disk(kills, world=World(gain=gain))
    for each in (quiet, disk):
        assert play(each, workers=workers, experiment=middle).finished
    assert records(disk.book) == records(quiet.book)
    members = min(8, -(-6 // -(-workers // 2)))
    stacks = -(-workers // 2) if gain >= 1.2 else 6
    assert {len(opening.stacks) for opening in disk.book.openings.values()} == {stacks}
    assert disk.book.measured == Measured(None, Pace(1.0, members / gain, members))
    measured = [job.state for job in disk.book.jobs.values() if job.kind == "measure"]
    assert measured.count("done") == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), kills=st.frozensets(st.integers(1, STEPS), max_size=3))
def test_a_run_stopped_by_losses_is_continued(seed: int, kills: frozenset[int]) -> None:
    """However often it stops for lost jobs, the same command continues, and ends with the same winners."""
    disk = Disk(kills)
    weather = Weather(seed, stacks=9, singles=7, commits=7)
    for _ in range(500):
        run = play(disk, weather)
        if run.finished:
            break
        assert isinstance(run.stopped, Unavailable)
    assert run.finished
    assert choices(disk.book) == choices(undisturbed().book)


def of_replica(book: MemoryBook, replica: int) -> dict[str, object]:
    """What is recorded of one replica, without the times."""
    return {
        what: {place: record for place, record in found.items() if place[0] == replica}
        for what, found in records(book).items()
        if isinstance(found, dict)
    }


@settings(max_examples=60, deadline=None)
@given(
    why=st.sampled_from(["full", "diverged", "failure"]),
    replica=st.integers(0, 1),
    task=st.integers(0, 2),
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 5),
    kills=st.frozensets(st.integers(1, STEPS), max_size=6),
)
def test_a_replica_that_cannot_go_on_leaves_the_others_whole(
    why: str, replica: int, task: int, seed: int, workers: int, kills: frozenset[int]
) -> None:
    """It stops at its task, the other ends with the records of a run in which nothing happened; exit code 5."""
    here = (replica, task)
    world = World(
        diverges=lambda job, _cell: why == "diverged" and (job.replica, job.task) == here,
        fills=lambda job: why == "full" and (job.replica, job.task + 1) == here,
    )
    weather = Weather(seed, stacks=1, singles=2, commits=2)

    def plan(job: Job, attempt: int) -> Fate:
        if why == "failure" and job.kind == "stack" and (job.replica, job.task) == here:
            return Fate(failure=Failure("impossible", "it cannot be done"))
        return weather(job, attempt)

    disk = Disk(kills, world=world)
    run = play(disk, plan, workers=workers)
    if why == "full" and task == 0:
        assert run.finished, "no commit comes before the first task"
        return
    assert isinstance(run.stopped, Impossible)
    assert f"replica {replica + 1}, task {task + 1}: " in str(run.stopped)
    assert not run.finished
    other = 1 - replica
    assert of_replica(disk.book, other) == of_replica(undisturbed().book, other)
    assert [place for place in sorted(disk.book.commits) if place[0] == replica] == [(replica, t) for t in range(task)]
    assert (here in disk.book.openings) == (why != "full"), "where no unit is left no task opens"
    again = play(disk, plan, workers=workers)
    assert str(again.stopped) == str(run.stopped)


def test_a_cell_that_is_always_lost_is_missing_where_that_is_allowed() -> None:
    def plan(job: Job, _attempt: int) -> Fate:
        lost = job.kind == "stack" and job.task == 1 and any(cell.index == 2 for cell in job.cells)
        return Fate(lost="its node is gone" if lost else None)

    disk = Disk()
    run = play(disk, plan)
    assert isinstance(run.stopped, Unavailable)
    assert "replica 1, task 2" in str(run.stopped)
    assert "cell 2 (alpha=" in str(run.stopped)
    assert "--allow-missing" in str(run.stopped)
    assert (0, 1) not in disk.book.commits
    assert play(disk, plan, allow_missing=True).finished
    for (_, task), commit in disk.book.commits.items():
        assert commit.missing == ((2,) if task == 1 else ())


def test_two_workers_share_replicas_evenly_and_stay_busy() -> None:
    """The replica that is furthest behind comes first, so neither waits for the other's slow cell."""
    backend = Simulated(workers=2, plan=lambda job, _: Fate(10.0 if job.replica == 0 else 1.0))
    disk = Disk(world=backend.world)
    run = Run(EXPERIMENT, disk.book, disk.book, data=lambda *_: "data", workers=2)
    backend.execute(run)
    assert run.finished
    assert backend.busy == pytest.approx(9 * 10.0 + 9 * 1.0)
    # Replica 1's nine jobs run beside replica 0's, and 0's two stacks of a task beside each other in the end.
    assert backend.time < 9 * 10.0


def test_diverged_cells_are_results() -> None:
    world = World(diverges=lambda job, cell: cell.learning_rate == 2e-3 and job.task > 0)
    disk = Disk(world=world)
    assert play(disk).finished
    assert {job.state for job in disk.book.jobs.values()} == {"done"}
    diverged = [record for record in disk.book.cells[1, 2].values() if record.diverged is not None]
    assert len(diverged) == 3
    assert all(commit.winner.learning_rate == 1e-3 for (_, task), commit in disk.book.commits.items() if task > 0)


def test_lost_tensors_stop_the_run_before_anything_is_written() -> None:
    disk = Disk()

    def plan(job: Job, _attempt: int) -> Fate:
        if isinstance(job, CommitJob) and job.task == 1:
            disk.world.artifacts.pop(job.artifact, None)
        return Fate()

    run = play(disk, plan)
    assert run.stopped is not None
    assert run.stopped.exit_code == 3
    assert "is not in the store" in str(run.stopped)
    assert not {(0, 1), (1, 1)} <= set(disk.book.commits)


def test_the_stop_event_ends_it_and_jobs_are_given_back() -> None:
    disk = Disk()
    backend = Simulated(workers=3, world=disk.world)
    run = Run(
        EXPERIMENT,
        disk.book,
        disk.book,
        data=lambda replica, task: f"data {replica} {task}",
        workers=2,
        on_event=lambda event: backend.stop.set() if event.kind == "task committed" else None,
    )
    backend.execute(run)
    assert disk.book.open_jobs
    run.give_back()
    assert run.over
    assert not run.finished
    assert not disk.book.open_jobs
    assert run.next_job() is None
    assert play(disk).finished
    assert records(disk.book) == records(undisturbed().book)
