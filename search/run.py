"""All replicas of a run: the next job, and the records taken in. Knows no Ray, and of the database its book."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from clnp.errors import DataUnavailable
from search.book import Book, History, place
from search.checks import check_cells, check_commit
from search.errors import BadInput, Damage, Held, Impossible, SearchError
from search.events import of_cell, of_commit, of_measured, of_opening, of_winner
from search.experiment import Experiment
from search.grid import measured_for, members_that_fit, to_measure
from search.records import (
    CommitJob,
    CommitRecord,
    Job,
    JobKind,
    JobResult,
    Measured,
    MeasureJob,
    Opening,
    Progress,
    StackJob,
    dump,
)
from search.replica import NOT_CELLS, Commit, Measure, Open, Remove, Replica, Train
from search.snapshot import Event, EventKind, ReplicaState, RunningJob, Snapshot
from search.text import first_sentence, members, plural

__all__ = ["Run"]


@dataclass(slots=True)
class _Out:
    """A job that is with a worker; of a stack, the cells whose records are wanted."""

    job: Job
    replica: Replica
    wanted: frozenset[int]
    progress: Progress | None = None


_LOOK = 0.05
"""Seconds that who wants a snapshot waits for a turn to end. One that writes may last as long as an outage."""

_ERRORS: dict[str, type[SearchError]] = {"damage": Damage, "impossible": Impossible, "input": BadInput}


class Run:
    """A run from its records on: hands out jobs and takes their results in, until every task is committed.

    Holds no state that is not in the book: a run built from what the book holds goes on where the other was (Promise
    3). May be called from several threads; each call is one turn, and a turn's writes are in order.

    No method raises a :class:`SearchError`: it becomes :attr:`stopped`, after which nothing is handed out. What runs
    then may still be taken in. An ``Impossible`` is one replica's alone: the others go on to their end, then it stops
    the run.

    Args:
        experiment: The resolved experiment: ``worker.gpu`` says what auto became.
        writer: Where records go.
        history: What the database held when the lease was taken.
        data: (replica, task) → SHA-256 of that task's data and splits. May raise ``DataUnavailable``.
        workers: How many workers share the jobs.
        allow_missing: Commit without cells that were lost too often.
        on_event: Told what happened, one event at a time, outside the run's lock: it may ask :meth:`snapshot`.

    Raises:
        Damage: The history contradicts itself.
    """

    def __init__(
        self,
        experiment: Experiment,
        writer: Book,
        history: History,
        *,
        data: Callable[[int, int], str],
        workers: int,
        allow_missing: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._experiment = experiment
        self._writer = writer
        self._data = data
        self._on_event = on_event
        self._replicas = [
            Replica(index, experiment, history, workers=workers, allow_missing=allow_missing)
            for index in range(experiment.replicas)
        ]
        self._workers = workers
        self._share = 0.0 if experiment.worker.gpu == "auto" else float(experiment.worker.gpu)
        self._measured = measured_for(experiment, history.measured)
        self._fit()
        self._unchecked = {replica.index for replica in self._replicas if replica.is_open}
        self._out: dict[int, _Out] = {}
        self._stopped: SearchError | None = None
        self._given_back = False
        self._told_end = False
        self._lock = threading.RLock()
        self._events: deque[Event] = deque()
        self._telling = threading.RLock()
        self._last_look = self._look()

    @property
    def finished(self) -> bool:
        """Whether every task of every replica is committed, and nothing is left to remove.

        Of a complete history it turns true with the first :meth:`next_job`, which removes what a cut-off run left.
        """
        with self._lock:
            return all(replica.finished for replica in self._replicas)

    @property
    def stopped(self) -> SearchError | None:
        """Why the run cannot go on, or None: the first error."""
        return self._stopped

    @property
    def over(self) -> bool:
        """Whether a backend is done: finished, given back, or stopped with no job out that could still be taken in."""
        with self._lock:
            stopped = self._stopped is not None and (not self._out or isinstance(self._stopped, Held))
            return self._given_back or stopped or self.finished

    def next_job(self) -> Job | None:
        """The next job, or None: nothing to hand out now.

        Commits and measurements come before stacks; among these the replica that is furthest behind comes first.
        """
        with self._turn():
            if self._stopped is None and not self._given_back:
                ready = self._settle()
                if ready:
                    return self._hand_out(*min(ready, key=_urgency))
        return None

    def take(self, job_id: int, result: JobResult) -> None:
        """Take a result in: its records are written one by one, then the job is closed.

        Ignored for a job that is not out: one taken, lost or given back before. A cell that has its record keeps it.
        """
        with self._turn():
            out = self._out.pop(job_id, None)
            if out is None:
                return
            out.replica.returned(job_id)
            try:
                self._check(out, result)
            except Impossible as error:
                self._stop_replica(out.replica, error)
            else:
                self._take_in(out, result)
            if self._stopped is None and not self._given_back:
                self._settle()

    def lost(self, job_id: int, reason: str, *, blame: bool = True) -> None:
        """A job's worker died or raised: hand it out again, or stop after too many losses. Ignored if it is not out.

        Args:
            blame: Whether it may have been the job's doing: without, it is not counted.
        """
        with self._turn():
            out = self._out.pop(job_id, None)
            if out is None:
                return
            out.replica.returned(job_id)
            if blame:
                self._lose(out.replica, out.job, reason)
            else:
                self._writer.close_job(job_id, "given back", reason)
                what = NOT_CELLS.get(out.job.kind) or members(_indices(out.job))
                self._tell("job lost", f"{what}: {reason}; not counted", out.replica.index, out.replica.task)

    def progress(self, job_id: int, progress: Progress) -> None:
        """Note how far a job has come. Ignored if it is not out."""
        with self._turn():
            out = self._out.get(job_id)
            if out is not None:
                self._tell_waiting(progress)
                out.progress = progress
                where = f"{progress.worker} (waiting)" if progress.waiting else progress.worker
                self._writer.progress(job_id, where, progress.epoch, progress.accuracy)

    def _tell_waiting(self, progress: Progress) -> None:
        """Once, however many workers wait for the same."""
        told = (out.progress.waiting for out in self._out.values() if out.progress is not None)
        if progress.waiting and progress.waiting not in told:
            self._tell("worker waits", f"{progress.worker}: {progress.waiting}")

    def give_back(self) -> None:
        """Close every job that is still out, without blame, and hand out no more."""
        with self._turn():
            self._given_back = True
            while self._out:
                job_id, out = self._out.popitem()
                out.replica.returned(job_id)
                self._writer.close_job(job_id, "given back")

    def snapshot(self) -> Snapshot:
        """The run at this moment, for a live view; the last one given where a turn waits for the database."""
        if self._lock.acquire(timeout=_LOOK):
            try:
                self._last_look = self._look()
            finally:
                self._lock.release()
        return self._last_look

    def _look(self) -> Snapshot:
        return Snapshot(
            tuple(_state(replica, self._experiment.tasks.count) for replica in self._replicas),
            tuple(_running(out) for out in self._out.values()),
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time; an error stops the run; events are told once the lock is free."""
        with self._lock:
            try:
                yield
            except SearchError as error:
                self._stop(error)
        if self._on_event is not None:
            with self._telling:
                while self._events:
                    self._on_event(self._events.popleft())

    def _fit(self) -> None:
        """How many members a worker's share of a GPU holds and whether stacks gain is known once it was measured."""
        if self._measured is not None:
            for replica in self._replicas:
                replica.fits, replica.pace = self._fits, self._measured.pace

    @property
    def _fits(self) -> int | None:
        memory = None if self._measured is None else self._measured.memory
        return None if memory is None else members_that_fit(memory, self._share)

    def _settle(self) -> list[tuple[Replica, Train | Commit | Measure]]:
        """Write what needs no worker (open tasks, remove losers), then say what each replica has for one.

        Raises:
            Impossible: No replica can go on, and not all are finished.
        """
        ready = []
        for replica in self._replicas:
            try:
                step = self._advance(replica)
            except Impossible as error:
                self._stop_replica(replica, error)
            else:
                if step is not None:
                    ready.append((replica, step))
        if not self._told_end and self.finished:
            self._told_end = True
            self._tell("run finished", f"all tasks are committed: {self._experiment.tasks.count} in each replica")
        errors = [replica.stopped for replica in self._replicas if replica.stopped is not None]
        if errors and all(replica.finished or replica.stopped for replica in self._replicas):
            raise errors[0] if len(errors) == 1 else Impossible("\n".join(map(str, errors)))
        return ready

    def _advance(self, replica: Replica) -> Train | Commit | Measure | None:
        """Write what this replica has before its next job, then give that."""
        if replica.index in self._unchecked:
            self._check_data(replica)
        step = replica.next()
        while isinstance(step, Open | Remove):
            if isinstance(step, Open):
                members = 0 if self._measured else to_measure(self._experiment, step.cells, workers=self._workers)
                if members:
                    return self._measure(replica, step, members)
                self._open_task(replica, step)
            else:
                self._writer.remove_artifacts(step.artifacts)
                replica.removed()
            step = replica.next()
        return step

    def _measure(self, replica: Replica, step: Open, members: int) -> Measure | None:
        """Of all replicas one finds out for all of them; the others wait."""
        if any(isinstance(out.job, MeasureJob) for out in self._out.values()):
            return None
        return Measure(step.task, step.cells[0], members, step.widths, self._hash_data(replica.index, step.task))

    def _open_task(self, replica: Replica, step: Open) -> None:
        """Write the opening before any job of the task (Promise 3)."""
        data = self._hash_data(replica.index, step.task)
        opening = Opening(replica.index, step.task, data, step.cells, step.stacks, step.widths)
        self._writer.open_task(opening)
        replica.opened(opening)
        outline = self._experiment.outline
        before = replica.commits[-1].widths if replica.commits else outline.widths
        self._queue(of_opening(opening, outline.group_names, before))

    def _check_data(self, replica: Replica) -> None:
        """The data of a task that opened earlier must still be what it opened with."""
        opening = replica.openings[-1]
        now = self._hash_data(replica.index, opening.task)
        if now != opening.data:
            raise BadInput(
                f"{place(replica.index, opening.task)}: the data are other than the run's: their SHA-256 is {now}, and "
                f"was {opening.data} when the task opened. Bring the old data back, or give a new run another --name"
            )
        self._unchecked.discard(replica.index)

    def _hash_data(self, replica: int, task: int) -> str:
        try:
            return self._data(replica, task)
        except DataUnavailable as error:
            raise BadInput(f"{place(replica, task)}: {error}") from error

    def _hand_out(self, replica: Replica, step: Train | Commit | Measure) -> Job:
        """Write the job's row, then give the job."""
        if isinstance(step, Measure):
            job_id = self._writer.hand_out("measure", replica.index, step.task, ())
        elif isinstance(step, Train):
            job_id = self._writer.hand_out("stack", replica.index, step.task, step.stack)
        else:
            job_id = self._writer.hand_out("commit", replica.index, step.task, (step.winner.index,))
        job = replica.hand_out(job_id, step)
        self._out[job_id] = _Out(job, replica, step.wanted if isinstance(step, Train) else frozenset())
        if isinstance(job, CommitJob):
            self._queue(of_winner(job))
        return job

    def _check(self, out: _Out, result: JobResult) -> None:
        """Refuse a result that cannot be taken in, before anything of it is written: the run stops."""
        job = out.job
        try:
            if result.failure is not None:
                raise _ERRORS[result.failure.kind](f"{place(job.replica, job.task)}: {result.failure.text}")
            if isinstance(job, StackJob):
                check_cells(job, result.cells)
            elif isinstance(job, CommitJob) and result.commit is not None:
                check_commit(job, result.commit, out.replica.commits)
        except SearchError as error:
            self._writer.close_job(job.id, "given back", str(error))
            raise

    def _take_in(self, out: _Out, result: JobResult) -> None:
        if result.too_large is not None:
            self._split(out.replica, out.job, result.too_large)
        elif isinstance(out.job, MeasureJob):
            self._take_measured(out.replica, out.job, result.measured)
        elif isinstance(out.job, CommitJob):
            self._take_commit(out.replica, out.job, result.commit)
        else:
            self._take_cells(out.replica, out.job, out.wanted, result)

    def _take_cells(self, replica: Replica, job: StackJob, wanted: frozenset[int], result: JobResult) -> None:
        """Add the records that are wanted; a member that has none was lost alone, the others' records stand."""
        records = {record.cell.index: record for record in result.cells}
        for index in sorted(wanted & records.keys()):
            self._writer.add_cell(job.replica, job.task, records[index])
            replica.recorded(records[index])
            self._queue(of_cell(job, records[index]))
        reasons = {
            index: result.failures.get(index, "its worker returned no record")
            for index in sorted(wanted - records.keys())
        }
        if reasons and len(job.cells) == 1:
            self._lose(replica, job, next(iter(reasons.values())))
        else:
            self._lose_members(replica, job, reasons)

    def _lose_members(self, replica: Replica, job: StackJob, reasons: dict[int, str]) -> None:
        """Close a stack; each of its members that raised gets a row of its own, lost, so that the ledger counts it."""
        for index, reason in reasons.items():
            row = self._writer.hand_out("stack", job.replica, job.task, (index,))
            self._writer.close_job(row, "lost", reason)
        self._writer.close_job(job.id, "done")
        for index, reason in reasons.items():
            self._count_loss(replica, "stack", (index,), reason)

    def _split(self, replica: Replica, job: Job, reason: str) -> None:
        """A stack found no memory: its halves go out. What cannot be halved is lost."""
        cells = _indices(job)
        if len(cells) == 1:
            self._lose(replica, job, reason)
            return
        self._writer.close_job(job.id, "split", reason)
        replica.split(cells)
        self._tell("stack split", f"{members(cells)}: {reason}", replica.index, replica.task)

    def _take_measured(self, replica: Replica, job: MeasureJob, measured: Measured | None) -> None:
        """Write down what a stack takes: from now on tasks open."""
        if measured is None:
            self._lose(replica, job, "its worker returned no measurement")
            return
        self._writer.close_job(job.id, "done", dump(measured))
        self._measured = measured
        self._fit()
        self._queue(of_measured(measured, self._fits, self._share))

    def _take_commit(self, replica: Replica, job: CommitJob, record: CommitRecord | None) -> None:
        """Add the commit: the task is finished."""
        if record is None:
            self._lose(replica, job, "its worker returned no commit")
            return
        self._writer.add_commit(record)
        replica.committed(record)
        self._writer.close_job(job.id, "done")
        self._queue(of_commit(record))

    def _lose(self, replica: Replica, job: Job, reason: str) -> None:
        self._writer.close_job(job.id, "lost", reason)
        self._count_loss(replica, job.kind, _indices(job), reason)

    def _count_loss(self, replica: Replica, kind: JobKind, cells: tuple[int, ...], reason: str) -> None:
        what = NOT_CELLS.get(kind) or members(cells)
        self._tell("job lost", f"{what}: {reason}", replica.index, replica.task)
        replica.lost(kind, cells, reason)

    def _stop_replica(self, replica: Replica, error: Impossible) -> None:
        """One replica cannot go on: what of it still runs is taken in, and the others have their turns."""
        if replica.stopped is None:
            replica.stop(error)
            text = str(error).removeprefix(f"{place(replica.index, replica.task)}: ")
            self._tell("replica stopped", first_sentence(text), replica.index, replica.task)

    def _stop(self, error: SearchError) -> None:
        if self._stopped is None:
            self._stopped = error
            # With what could be done it is what a driver ends with; of its replicas it was told.
            stuck = sum(replica.stopped is not None for replica in self._replicas)
            of_replicas = f"{stuck} of {plural(len(self._replicas), 'replica')} cannot go on"
            self._tell("run stopped", of_replicas if isinstance(error, Impossible) else first_sentence(str(error)))

    def _tell(
        self, kind: EventKind, text: str, replica: int | None = None, task: int | None = None, cell: int | None = None
    ) -> None:
        self._queue(Event(kind, text, replica, task, cell))

    def _queue(self, event: Event) -> None:
        if self._on_event is not None:
            self._events.append(event)


def _urgency(ready: tuple[Replica, Train | Commit | Measure]) -> tuple[bool, tuple[int, int], int]:
    replica, step = ready
    return isinstance(step, Train), replica.reached, replica.index


def _state(replica: Replica, tasks: int) -> ReplicaState:
    records = replica.records[replica.task].values() if replica.is_open else ()
    return ReplicaState(
        index=replica.index,
        committed=replica.task,
        tasks=tasks,
        finished=len(records),
        diverged=sum(record.diverged is not None for record in records),
        cells=len(replica.openings[replica.task].cells) if replica.is_open else 0,
        tests=tuple(record.test for record in replica.commits),
        free=replica.commits[-1].free if replica.commits else (),
        stopped=None if replica.stopped is None else str(replica.stopped),
        dropped=sum(record.dropped is not None for record in records),
    )


def _indices(job: Job) -> tuple[int, ...]:
    if isinstance(job, StackJob):
        return tuple(cell.index for cell in job.cells)
    return (job.winner.index,) if isinstance(job, CommitJob) else ()


def _running(out: _Out) -> RunningJob:
    job, told = out.job, out.progress
    quiet = RunningJob(job.id, job.kind, job.replica, job.task, _indices(job))
    if told is None:
        return quiet
    return replace(
        quiet,
        worker=told.worker,
        epoch=told.epoch,
        epochs=told.epochs,
        accuracy=told.accuracy,
        waiting=told.waiting,
    )
