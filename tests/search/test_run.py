"""A run, job by job: whatever the order, and whatever happens in between, the records stay whole."""

import random
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clnp.errors import DataUnavailable
from clnp.pace import Pace
from search.backends.simulated import World
from search.errors import BadInput, Damage, Held, Impossible, LeaseLost, SearchError, Unavailable
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import CommitJob, Failure, Job, JobResult, Measured, MeasureJob, Memory, Progress, StackJob
from search.run import Run
from search.snapshot import Event

REASON = "its node is gone"


def experiment(**changes: Any) -> Experiment:
    plain = {
        "tasks": {"count": 2},
        "model": {"hidden": [20, 10]},
        "replicas": 2,
        "grid": {"alpha": [1e-4, 1e-3], "learning_rate": [1e-3, 2e-3]},
        "training": {"epochs": 2},
        "worker": {"cells": 3},
        "retries": 1,
    }
    return Experiment.model_validate({**plain, **changes})


def data(replica: int, task: int) -> str:
    return f"data {replica} {task}"


def new_run(book: MemoryBook, **changes: Any) -> Run:
    settings: dict[str, Any] = {"data": data, "workers": 2, **changes}
    return Run(settings.pop("experiment", experiment()), book.take(), book, **settings)


def next_job(run: Run) -> Job:
    job = run.next_job()
    assert job is not None, run.stopped
    return job


def result(world: World, job: Job, raised: dict[int, str] | None = None) -> JobResult:
    if isinstance(job, CommitJob):
        return world.commit(job, 0.0, 1.0)
    return world.stack(job, raised or {}, 0.0, 1.0)


def finish(run: Run, world: World) -> None:
    while (job := run.next_job()) is not None:
        run.take(job.id, result(world, job))


def results(book: MemoryBook) -> object:
    """What must not depend on what happened on the way: bits of a cell alone do, its score does not in this world."""
    cells = {
        place: {index: (record.score, record.staircase) for index, record in sorted(cells.items())}
        for place, cells in sorted(book.cells.items())
    }
    commits = [(place, commit.winner, commit.point) for place, commit in sorted(book.commits.items())]
    return book.openings, cells, commits


def undisturbed() -> object:
    world = World()
    book = MemoryBook(world.artifacts)
    run = new_run(book)
    finish(run, world)
    assert run.finished
    return results(book)


EXPECTED = undisturbed()


class Killed(Exception):
    """The driver's process is gone."""


class Driving(RuleBasedStateMachine):
    """Everything a backend may do, in any order, with the driver killed at any durable step.

    The book refuses what would break the records: a second record for a cell, a job before its opening, a commit from a
    partial grid, a commit's tensors removed, a job closed twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.until_killed: int | None = None
        self.book = MemoryBook(self.world.artifacts, self.step)
        self.taken: list[tuple[Job, JobResult]] = []

    @initialize()
    def start(self) -> None:
        self.run = new_run(self.book)
        self.out: dict[int, Job] = {}

    def step(self, _what: str) -> None:
        if self.until_killed is not None:
            self.until_killed -= 1
            if self.until_killed < 0:
                raise Killed

    def attempt(self, act: Any, *arguments: Any) -> Any:
        """Do it; killed in between, go on with what the book holds. Its workers' late results may still come."""
        try:
            return act(*arguments)
        except Killed:
            self.until_killed = None
            self.taken += [(job, result(self.world, job)) for job in self.out.values()]
            self.start()
            return None

    def pick(self, place: int) -> Job:
        return self.out.pop(sorted(self.out)[place % len(self.out)])

    @rule()
    def hand_out(self) -> None:
        job = self.attempt(self.run.next_job)
        if job is not None:
            self.out[job.id] = job

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 9))
    def take(self, place: int) -> None:
        job = self.pick(place)
        self.taken.append((job, result(self.world, job)))
        self.attempt(self.run.take, *(job.id, self.taken[-1][1]))

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 9), members=st.sets(st.integers(0, 3), min_size=1))
    def take_with_raised(self, place: int, members: set[int]) -> None:
        job = self.pick(place)
        self.attempt(self.run.take, job.id, result(self.world, job, dict.fromkeys(members, "raised")))

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 9))
    def lose(self, place: int) -> None:
        self.attempt(self.run.lost, self.pick(place).id, REASON)

    @precondition(lambda self: self.taken)
    @rule(place=st.integers(0, 99))
    def come_late(self, place: int) -> None:
        """A second time, or from a worker of a driver that is gone: ids are never used twice."""
        job, late = self.taken[place % len(self.taken)]
        before = results(self.book), self.book.open_jobs
        self.run.take(job.id, late)
        self.run.lost(job.id, REASON)
        self.run.progress(job.id, Progress("late", 1, 2, None))
        assert (results(self.book), self.book.open_jobs) == before

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 9))
    def tell_progress(self, place: int) -> None:
        job_id = sorted(self.out)[place % len(self.out)]
        self.attempt(self.run.progress, job_id, Progress("worker", 1, 2, 0.5))

    @rule(steps=st.integers(0, 8))
    def kill_soon(self, steps: int) -> None:
        self.until_killed = steps

    @precondition(lambda self: self.run.stopped is not None)
    @rule()
    def continue_stopped(self) -> None:
        self.book.stop()
        self.end_and_start()

    @rule()
    def end_and_start(self) -> None:
        """Ctrl-C, and the same command again."""
        self.until_killed = None
        self.taken += [(job, result(self.world, job)) for job in self.out.values()]
        self.run.give_back()
        assert not self.book.open_jobs
        assert self.run.next_job() is None
        self.start()

    @invariant()
    def only_losses_stop_it(self) -> None:
        assert self.run.stopped is None or isinstance(self.run.stopped, Unavailable)

    @invariant()
    def jobs_out_are_the_open_rows(self) -> None:
        assert sorted(self.out) == self.book.open_jobs

    @invariant()
    def no_cell_is_out_twice(self) -> None:
        """Of two jobs with the same cell only one may want its record: a stack that runs again for other members."""
        running = self.run.snapshot().running
        commits = Counter((job.replica, job.task) for job in running if job.kind == "commit")
        assert max(commits.values(), default=1) == 1
        stacks = [(job.replica, job.task, job.cells) for job in running if job.kind == "stack"]
        assert len(stacks) == len(set(stacks))

    def teardown(self) -> None:
        """Promise 3: left alone from here, it ends with the records of a run to which nothing happened."""
        if not hasattr(self, "run"):
            return
        self.until_killed = None
        self.run.give_back()
        self.book.stop()
        run = new_run(self.book)
        finish(run, self.world)
        assert run.stopped is None
        assert run.finished
        assert not self.book.open_jobs
        assert results(self.book) == EXPECTED


Driving.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDriving = Driving.TestCase


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def book(world: World) -> MemoryBook:
    return MemoryBook(world.artifacts)


def test_replicas_interleave_and_commits_come_first(book: MemoryBook, world: World) -> None:
    run = new_run(book)
    first = [next_job(run) for _ in range(4)]
    assert [job.replica for job in first] == [0, 1, 0, 1]
    assert run.next_job() is None
    for job in (first[0], first[2]):
        run.take(job.id, result(world, job))
    run.lost(first[1].id, REASON)
    commit = next_job(run)
    assert (commit.kind, commit.replica) == ("commit", 0), "before the stack of the one that is behind"
    run.take(commit.id, result(world, commit))
    assert (0, 1) in book.openings, "the next task opens with the commit"
    assert [next_job(run).replica for _ in range(3)] == [1, 0, 0], "the one that is behind"


def test_a_raising_member_is_lost_alone(book: MemoryBook, world: World) -> None:
    run = new_run(book, experiment=experiment(replicas=1, worker={"cells": 4}))
    job = next_job(run)
    run.take(job.id, result(world, job, {2: "out of memory"}))
    assert sorted(book.cells[0, 0]) == [0, 1, 3]
    assert [(loss.cells, loss.note) for loss in book.losses] == [((2,), "out of memory")]
    assert book.jobs[job.id].state == "done"
    alone = next_job(run)
    assert isinstance(alone, StackJob)
    assert [cell.index for cell in alone.cells] == [2]
    assert run.next_job() is None
    run.take(alone.id, result(world, alone, {2: "out of memory"}))
    assert isinstance(run.stopped, Unavailable)
    assert "lost 2 times" in str(run.stopped)
    assert [loss.cells for loss in book.losses] == [(2,), (2,)]


def test_a_result_without_its_records_is_a_loss(book: MemoryBook, world: World) -> None:
    run = new_run(book, experiment=experiment(replicas=1, worker={"cells": 4}))
    job = next_job(run)
    run.take(job.id, JobResult())
    assert {loss.note for loss in book.losses} == {"its worker returned no record"}
    for _ in range(4):
        job = next_job(run)
        run.take(job.id, result(world, job))
    commit = next_job(run)
    run.take(commit.id, JobResult())
    assert book.losses[-1].note == "its worker returned no commit"
    assert next_job(run).kind == "commit"


@pytest.mark.parametrize(("kind", "error"), [("damage", Damage), ("input", BadInput)])
def test_a_failure_stops_the_run_and_what_runs_is_taken_in(
    book: MemoryBook, world: World, kind: Any, error: type[SearchError]
) -> None:
    run = new_run(book)
    failing, other = next_job(run), next_job(run)
    run.take(failing.id, JobResult(failure=Failure(kind, "it cannot be done")))
    assert type(run.stopped) is error
    assert str(run.stopped) == "replica 1, task 1: it cannot be done"
    assert book.jobs[failing.id].state == "given back"
    assert run.next_job() is None
    assert not run.over, "the other job is still to be taken in"
    run.take(other.id, result(world, other))
    assert len(book.cells[1, 0]) == len(other.cells if isinstance(other, StackJob) else ())
    assert run.over
    assert not run.finished


def test_what_is_impossible_stops_one_replica_and_the_others_go_on(book: MemoryBook, world: World) -> None:
    events: list[Event] = []
    run = new_run(book, on_event=events.append)
    failing = next_job(run)
    assert failing.replica == 0
    beside = [next_job(run) for _ in range(3)]
    run.take(failing.id, JobResult(failure=Failure("impossible", "it cannot be done. Try another")))
    assert run.stopped is None
    assert book.jobs[failing.id].state == "given back"
    why = "replica 1, task 1: it cannot be done. Try another"
    assert [state.stopped for state in run.snapshot().replicas] == [why, None]
    for job in beside:
        run.take(job.id, result(world, job))
    assert sum(len(cells) for place, cells in book.cells.items() if place[0] == 0) > 0, "what ran is taken in"
    finish(run, world)
    assert isinstance(run.stopped, Impossible)
    assert str(run.stopped) == why
    assert run.over
    assert not run.finished
    assert sorted(book.commits) == [(1, 0), (1, 1)]
    ends = [(event.kind, event.text, event.replica, event.task) for event in events if "stopped" in event.kind]
    assert ends == [
        ("replica stopped", "it cannot be done", 0, 0),
        ("run stopped", "1 of 2 replicas cannot go on", None, None),
    ]


def test_a_task_with_nothing_to_commit_stops_each_replica_before_the_commit(book: MemoryBook) -> None:
    world = World(diverges=lambda *_: True)
    run = new_run(book)
    finish(run, world)
    assert isinstance(run.stopped, Impossible)
    assert run.stopped.exit_code == 5
    first, second = str(run.stopped).splitlines()
    assert first.startswith("replica 1, task 1: every trial of the task diverged; lower")
    assert second.startswith("replica 2, task 1: every trial of the task diverged; lower")
    assert not book.commits
    assert len(book.openings) == 2
    again = new_run(book)
    assert again.next_job() is None
    assert isinstance(again.stopped, Impossible)
    assert again.over


def budgeted(tasks: int, count: int = 4) -> Experiment:
    return experiment(
        tasks={"count": count}, model={"hidden": [40, 24]}, rule={"kind": "budget", "tasks": tasks, "floor": 2.0}
    )


@pytest.mark.parametrize("tasks", [4, 6, 8])
def test_a_run_under_a_budget_keeps_every_task_within_its_share(book: MemoryBook, world: World, tasks: int) -> None:
    """The claims in this world are at most a quarter of a layer, and a task has points that claim less."""
    finish(run := new_run(book, experiment=budgeted(tasks)), world)
    assert run.finished
    for (_, task), commit in book.commits.items():
        before = commit.free[1] + commit.claimed[1]
        assert bool(commit.over_budget) == (commit.claimed[1] * (tasks - task) > before)
        assert commit.best - commit.point.correct <= 20, "2 points of 1000 samples"
    assert any(not commit.over_budget for commit in book.commits.values())
    margin = MemoryBook(world.artifacts)
    loose = budgeted(tasks).model_copy(update={"rule": experiment(rule={"margin": 2.0}).rule})
    finish(new_run(margin, experiment=loose), world)
    units, right = (
        [sum(of(commit) for commit in one.commits.values()) for one in (book, margin)]
        for of in (lambda commit: sum(commit.claimed), lambda commit: commit.point.correct)
    )
    assert units[0] > units[1]
    assert right[0] > right[1], "the budget gives up less accuracy than its floor where units abound"


def test_a_budget_that_cannot_be_met_is_kept_in_every_commit(book: MemoryBook, world: World) -> None:
    """100 tasks share 24 units: each commit claims more, is the sparsest above the floor, and says so."""
    finish(run := new_run(book, experiment=budgeted(100)), world)
    assert run.finished
    loose = budgeted(100).model_copy(update={"rule": experiment(rule={"margin": 2.0}).rule})
    margin = MemoryBook(world.artifacts)
    finish(new_run(margin, experiment=loose), world)
    assert all("hidden2" in commit.over_budget for commit in book.commits.values())
    assert [(commit.winner, commit.point) for commit in book.commits.values()] == [
        (commit.winner, commit.point) for commit in margin.commits.values()
    ]


@pytest.mark.parametrize("tasks", [6, 100])
def test_a_run_under_a_budget_that_is_killed_anywhere_ends_the_same(tasks: int) -> None:
    """Promises 3 and 4: what is left to share is read from the commits."""

    def records(after: int) -> object:
        left = [after]

        def step(_what: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        world = World()
        book = MemoryBook(world.artifacts, step)
        try:
            finish(new_run(book, experiment=budgeted(tasks, count=3)), world)
        except Killed:
            finish(new_run(book, experiment=budgeted(tasks, count=3)), world)
        return results(book), [(place, commit.over_budget) for place, commit in sorted(book.commits.items())]

    expected = records(-1)
    for after in range(1, 80, 3):
        assert records(after) == expected


def test_a_commit_that_changes_an_old_task_is_not_written(book: MemoryBook, world: World) -> None:
    """Promise 1: the run stops with the commit unwritten; continued, the commit is made again."""
    run = new_run(book, experiment=experiment(replicas=1))
    while True:
        job = next_job(run)
        good = result(world, job)
        if isinstance(job, CommitJob) and job.task == 1:
            break
        run.take(job.id, good)
    assert good.commit is not None
    run.take(job.id, JobResult(commit=replace(good.commit, changed=1)))
    assert isinstance(run.stopped, Damage)
    assert (0, 1) not in book.commits
    assert book.jobs[job.id].state == "given back"
    again = new_run(book, experiment=experiment(replicas=1))
    finish(again, world)
    assert again.finished


def test_a_record_of_another_cell_is_not_written(book: MemoryBook, world: World) -> None:
    run = new_run(book)
    job = next_job(run)
    records = result(world, job).cells
    run.take(job.id, JobResult((records[0], replace(records[1], cell=replace(records[1].cell, learning_rate=9.0)))))
    assert isinstance(run.stopped, Damage)
    assert not book.cells[0, 0]
    assert not book.open_jobs


def test_data_other_than_the_runs_are_refused(book: MemoryBook) -> None:
    run = new_run(book)
    next_job(run)
    run.give_back()
    other = new_run(book, data=lambda *_: "other")
    assert other.next_job() is None
    assert isinstance(other.stopped, BadInput)
    assert "replica 1, task 1: the data are other than the run's" in str(other.stopped)
    assert not book.open_jobs
    assert new_run(book).next_job() is not None


def test_unavailable_data_are_bad_input(book: MemoryBook) -> None:
    def absent(_replica: int, _task: int) -> str:
        raise DataUnavailable("mnist is not in /nowhere")

    run = new_run(book, data=absent)
    assert run.next_job() is None
    assert isinstance(run.stopped, BadInput)
    assert "mnist is not in /nowhere" in str(run.stopped)
    assert not book.openings


def test_a_lost_lease_ends_it_at_once(world: World) -> None:
    """Promise 6: nothing more can be written, so nothing is waited for."""
    lost: list[SearchError] = []

    def check(_step: str) -> None:
        if lost:
            raise lost[0]

    book = MemoryBook(world.artifacts, check)
    run = new_run(book)
    job, other = next_job(run), next_job(run)
    lost.append(LeaseLost("another driver has it"))
    run.take(job.id, result(world, job))
    assert isinstance(run.stopped, Held)
    assert run.over
    run.take(other.id, result(world, other))
    run.give_back()
    assert run.stopped is lost[0]
    assert not any(book.cells.values())


def test_an_error_while_writing_stops_it_and_a_new_run_goes_on(world: World) -> None:
    """The outcome of the write is unknown: only what the book holds decides what is done again (Promise 3)."""
    away = [False]

    def check(step: str) -> None:
        if away[0] and step == "after the trial":
            raise Unavailable("the database is away")

    book = MemoryBook(world.artifacts, check)
    run = new_run(book)
    job = next_job(run)
    away[0] = True
    run.take(job.id, result(world, job))
    assert isinstance(run.stopped, Unavailable)
    assert len(book.cells[0, 0]) == 1
    away[0] = False
    again = new_run(book)
    finish(again, world)
    assert again.finished
    assert results(book) == EXPECTED


def test_events_tell_what_happened_outside_the_lock(book: MemoryBook, world: World) -> None:
    events: list[Event] = []
    threads: list[bool] = []

    def listen(event: Event) -> None:
        events.append(event)
        other = threading.Thread(target=lambda: threads.append(bool(run.snapshot().replicas)), daemon=True)
        other.start()
        other.join(5.0)

    run = new_run(book, experiment=experiment(replicas=1, tasks={"count": 1}), on_event=listen)
    job = next_job(run)
    run.lost(job.id, REASON)
    finish(run, world)
    kinds = [event.kind for event in events]
    assert kinds == [
        "task opened",
        "job lost",
        *["cell finished"] * 4,
        "winner chosen",
        "task committed",
        "run finished",
    ]
    assert events[1].text.split(": ") in (["cells 0–1", REASON], ["cells 0–2", REASON])
    assert threads == [True] * len(events), "another thread may look while an event is told"
    assert [event.cell for event in events[2:6]] == [0, 1, 2, 3]
    assert all((event.replica, event.task) == (0, 0) for event in events[:-1])


MIDDLE: dict[str, Any] = {"model": {"hidden": [300, 300]}, "worker": {"gpu": 0}, "replicas": 1}
"""112,200 weights: whether a stack gains is measured."""


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (
            Measured(None, Pace(0.002, 0.0028, 4)),
            "a stack of 4 takes 1.4 times as long a step as one cell: cells train as stacks",
        ),
        (
            Measured(None, Pace(0.2, 0.2, 1)),
            "one cell's steps are too slow for a stack to gain by: each cell trains alone",
        ),
        (
            Measured(Memory(2**30, 2**28, 4 * 2**30, "cuda"), Pace(0.002, 0.007, 4)),
            "a stack takes 1.1 GB and 268.4 MB a cell; 1 GPU of 4.3 GB holds 10 cells; a stack of 4 takes 3.5 times as "
            "long a step as one cell: each cell trains alone",
        ),
        (Measured(None, None), "there was no memory for a stack"),
    ],
)
def test_what_a_stack_takes_is_told(book: MemoryBook, measured: Measured, text: str) -> None:
    events: list[Event] = []
    chosen = experiment(**{**MIDDLE, "worker": {"gpu": 1 if measured.memory else 0}})
    run = new_run(book, experiment=chosen, workers=1, on_event=events.append)
    job = next_job(run)
    assert run.next_job() is None, "no task opens before its stacks can be formed"
    run.take(job.id, JobResult(measured=measured))
    assert [(event.kind, event.text) for event in events[:1]] == [("stack measured", text)]
    assert book.measured == measured


def test_a_measurement_without_a_result_is_a_loss(book: MemoryBook) -> None:
    run = new_run(book, experiment=experiment(**MIDDLE, retries=0), workers=1)
    run.take(next_job(run).id, JobResult())
    assert isinstance(run.stopped, Unavailable)
    assert (
        "the measurement of a stack was lost once (retries: 0), the last time because: its worker returned no"
        in str(run.stopped)
    )


def test_tasks_that_are_open_keep_their_stacks_and_the_next_is_measured(book: MemoryBook, world: World) -> None:
    """Promise 3: a run of a version that measured nothing goes on as it began, until its next task opens."""
    run = new_run(book, experiment=experiment(**{**MIDDLE, "worker": {"cells": 3}}), workers=1)
    run.take((job := next_job(run)).id, result(world, job))
    run.give_back()
    run = new_run(book, experiment=experiment(**MIDDLE), workers=1)
    kinds = list[str]()
    while (job := run.next_job()) is not None:
        kinds.append(job.kind)
        run.take(job.id, world.measure(job) if isinstance(job, MeasureJob) else result(world, job))
    assert run.finished
    assert kinds == ["stack", "commit", "measure", "stack", "commit"]
    assert [len(book.openings[0, task].stacks) for task in range(2)] == [2, 1]


def test_workers_that_wait_for_the_same_are_told_of_once(book: MemoryBook, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    written: list[str] = []
    monkeypatch.setattr(book, "progress", lambda _, worker, *__: written.append(worker))
    run = new_run(book, experiment=experiment(replicas=2), on_event=events.append)
    first, second = next_job(run), next_job(run)
    waits = Progress("here:1", 1, 2, None, "the store is away; waiting for it")
    for job, progress in (
        (first, waits),
        (second, replace(waits, worker="here:2")),
        (first, waits),
        (first, replace(waits, waiting="")),
        (second, replace(waits, waiting="")),
        (second, waits),
    ):
        run.progress(job.id, progress)
    told = [event.text for event in events if event.kind == "worker waits"]
    assert told == ["here:1: the store is away; waiting for it"] * 2
    by_job = {running.id: running.waiting for running in run.snapshot().running}
    assert by_job == {first.id: "", second.id: waits.waiting}
    assert written[-2:] == ["here:1", "here:1 (waiting)"]


def test_a_snapshot_shows_where_it_stands(book: MemoryBook, world: World) -> None:
    run = new_run(book, experiment=experiment(replicas=1))
    job = next_job(run)
    assert run.snapshot().running[0].worker is None
    run.progress(job.id, Progress("node 3", 1, 2, 0.875))
    (running,) = run.snapshot().running
    assert (running.id, running.kind, running.worker) == (job.id, "stack", "node 3")
    assert (running.epoch, running.epochs, running.accuracy) == (1, 2, 0.875)
    assert book.jobs[job.id].epoch == 1
    run.take(job.id, result(world, job))
    (state,) = run.snapshot().replicas
    assert (state.committed, state.tasks, state.finished, state.cells) == (0, 2, len(running.cells), 4)
    finish(run, world)
    (state,) = run.snapshot().replicas
    assert (state.committed, state.cells, len(state.tests)) == (2, 0, 2)
    assert state.free == book.commits[0, 1].free
    assert not run.snapshot().running


def test_a_complete_history_is_finished_after_the_removal_is_done_again(book: MemoryBook, world: World) -> None:
    finish(new_run(book), world)
    winners = {book.cells[place][commit.winner.index].artifact for place, commit in book.commits.items()}
    loser = next(record for record in book.cells[1, 1].values() if record.artifact not in winners)
    assert loser.artifact is not None
    world.artifacts[loser.artifact] = ()
    run = new_run(book)
    assert run.next_job() is None
    assert run.finished
    assert run.over
    assert loser.artifact not in world.artifacts


def test_more_replicas_and_tasks_go_on_from_a_finished_run(book: MemoryBook, world: World) -> None:
    finish(new_run(book), world)
    run = new_run(book, experiment=experiment(replicas=3, tasks={"count": 3}))
    finish(run, world)
    assert run.finished
    assert sorted(book.commits) == [(replica, task) for replica in range(3) for task in range(3)]


def test_many_threads_share_a_run(world: World) -> None:
    """Their writes never overlap."""
    writing = threading.Lock()
    overlaps: list[str] = []

    def step(what: str) -> None:
        if writing.acquire(blocking=False):
            time.sleep(1e-4)
            writing.release()
        else:
            overlaps.append(what)

    book = MemoryBook(world.artifacts, step)
    run = new_run(book)

    def work(seed: int) -> None:
        draw = random.Random(seed)
        while not run.over:
            job = run.next_job()
            if job is not None:
                run.progress(job.id, Progress(str(seed), 1, 2, None))
                answer = result(world, job)
                if draw.random() < 0.05 and job.kind == "stack":
                    run.take(job.id, answer)
                run.take(job.id, answer)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert not overlaps
    assert run.finished
    assert results(book) == EXPECTED
    assert {job.state for job in book.jobs.values()} == {"done"}
