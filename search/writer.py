"""The one writer of a run: every write checks the lease in its own transaction."""

import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

from sqlalchemy import Connection, Update, func, insert, select, update

from search.artifacts import Artifacts
from search.attributes import Carried, read_carried, write_carried
from search.book import JobEnd, Place, place
from search.database import Database
from search.errors import Damage, LeaseLost
from search.lease import Lease, this_process
from search.ledger import Attempts, Cells, Commits, Jobs, Openings, Runs, delete_rows, read
from search.names import cell_key, study_name
from search.records import CellRecord, CommitRecord, JobKind, Opening, Provenance, dump
from search.rows import read_cell, read_opening
from search.studies import Studies
from search.trials import finished

__all__ = ["Writer"]

Result = TypeVar("Result")

_FEW = 1000
"""So many values fit into a query."""

# A row of progress a second and job is enough for anybody who looks on.
_PROGRESS_INTERVAL = 1.0


class Writer:
    """What may write to a run: there is one only while its lease is held.

    Each method is one durable step. It raises:

    - :class:`~search.errors.LeaseLost` once another driver has the run; nothing was written then.
    - :class:`~search.errors.Unavailable` where the database stayed away for as long as the patience lasts.

    Each may be called again after an error: what is there already is not written twice. Usable from several threads,
    one write at a time; not picklable, since it holds credentials. Leaving it as a context manager releases it.

    Args:
        layers: The name of each layer, the output layer last; empty: ``hidden1``, …, ``output``.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        run_id: int,
        name: str,
        artifacts: Artifacts,
        *,
        layers: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.artifacts = artifacts
        self._database = database
        self._lease = lease
        self._run = run_id
        self._layers = tuple(layers)
        self._studies = Studies(database)
        self._openings: dict[Place, Opening] = {}
        self._progress: dict[int, float] = {}
        self._attempt = 0
        self._released = False
        self._lock = threading.RLock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Writer holds database credentials and cannot be pickled")

    def __repr__(self) -> str:
        return f"Writer({self.name!r}, {self._database!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._released:
            self.release("ended" if kind is None else f"failed: {kind.__name__}")

    def begin(self, versions: dict[str, str], *, artifacts: str) -> None:
        """Start an attempt: open the run and close what drivers that are gone left open.

        Their jobs are given back, not lost: what ended them was not the job.

        Args:
            versions: What this attempt runs with.
            artifacts: Where the run's folder lies from now on, as the ledger keeps it.
        """

        def work(connection: Connection) -> int:
            now = self._database.now
            mine = Attempts.token == self._lease.token
            connection.execute(
                update(Jobs)
                .where(Jobs.run_id == self._run, Jobs.state == "open")
                .values(state="given back", ended=now, note="its driver ended without a word")
            )
            connection.execute(
                update(Attempts)
                .where(Attempts.run_id == self._run, Attempts.ended.is_(None), ~mine)
                .values(ended=now, outcome=func.coalesce(Attempts.outcome, "died"))
            )
            connection.execute(
                update(Runs)
                .where(Runs.id == self._run)
                .values(state="open", reason="", artifacts=artifacts, updated=now)
            )
            found = connection.execute(select(Attempts.id).where(mine)).scalar()
            if found is not None:
                return found
            here = this_process()
            values = {"run_id": self._run, "token": self._lease.token, "host": here.host, "pid": here.pid}
            made = connection.execute(
                insert(Attempts).values(**values, started=now, versions=versions, notes=[]).returning(Attempts.id)
            )
            return made.scalar_one()

        self._attempt = self._write(work)
        self.artifacts.sweep()
        self._remove_given_up(self.artifacts.list())

    def open_task(self, opening: Opening) -> None:
        """Write down a task's cells and stacks, and make its study.

        Raises:
            Damage: It is open already with others.
        """
        text, here = dump(opening), (opening.replica, opening.task)

        def work(connection: Connection) -> None:
            known = read_opening(connection, self._run, *here, self._where(*here))
            if known is None:
                key = {"run_id": self._run, "replica": opening.replica, "task": opening.task}
                connection.execute(insert(Openings).values(**key, record=text))
            elif dump(known) != text:
                raise Damage(
                    f"{self._where(opening.replica, opening.task)} is open already, with other cells, stacks or data"
                )

        with self._lock:
            self._write(work)
            self._openings[opening.replica, opening.task] = opening
            self._studies.open(study_name(self.name, opening.replica, opening.task), self._lease.check)

    def hand_out(self, kind: JobKind, replica: int, task: int, cells: tuple[int, ...]) -> int:
        """Open a job's row and give its id."""
        nonce = secrets.token_hex(16)

        def work(connection: Connection) -> int:
            known = connection.execute(select(Jobs.id).where(Jobs.nonce == nonce)).scalar()
            if known is not None:
                return known
            row = insert(Jobs).values(
                nonce=nonce,
                run_id=self._run,
                attempt_id=self._attempt,
                kind=kind,
                replica=replica,
                task=task,
                cells=list(cells),
                state="open",
                worker="",
                epoch=0,
                started=self._database.now,
                note="",
            )
            return connection.execute(row.returning(Jobs.id)).scalar_one()

        return self._write(work)

    def close_job(self, job: int, state: JobEnd, note: str = "") -> None:
        """Close a job; a closed one stays as it is. ``lost`` counts against its cells, ``given back`` does not; what is
        ``split`` goes out in halves."""
        self._write(
            lambda connection: connection.execute(
                update(Jobs)
                .where(Jobs.id == job, Jobs.run_id == self._run, Jobs.state == "open")
                .values(state=state, note=note, ended=self._database.now)
            )
        )
        self._progress.pop(job, None)

    def progress(self, job: int, worker: str, epoch: int, accuracy: float | None) -> None:
        """Note where a job runs and how far it has come. More than one note a second is left out."""
        now = time.monotonic()
        if now - self._progress.get(job, -_PROGRESS_INTERVAL) < _PROGRESS_INTERVAL:
            return
        self._progress[job] = now
        self._write(
            lambda connection: connection.execute(
                update(Jobs)
                .where(Jobs.id == job, Jobs.run_id == self._run, Jobs.state == "open")
                .values(worker=worker, epoch=epoch, accuracy=accuracy)
            )
        )

    def add_cell(self, replica: int, task: int, record: CellRecord, *, given_up: bool = False) -> None:
        """Write a finished cell: its row with the staircase, then its trial. Its tensors are in the store already.

        Args:
            given_up: They are not, and nobody will need them.

        Raises:
            Damage: It has a trial already, with other results.
        """
        name, where = study_name(self.name, replica, task), self._where(replica, task)

        def work(connection: Connection) -> Opening | None:
            known_opening = self._openings.get((replica, task))
            opening = known_opening or read_opening(connection, self._run, replica, task, where)
            if opening is None:
                raise Damage(f"{where} has a finished cell but was never opened")
            self._openings[replica, task] = opening
            known = read_cell(connection, self._run, replica, task, record.cell.index, where)
            if known is not None and (name, cell_key(record.cell)) in finished(connection, [name]):
                if _results(known) != _results(record):
                    raise Damage(
                        f"{where}: cell {record.cell.index} ({cell_key(record.cell)}) is recorded "
                        f"already, with other results: {known.score} and {record.score}; the first ones stand"
                    )
                return None
            self._put_cell(connection, replica, task, record, known is not None, given_up)
            return opening

        with self._lock:
            opening = self._write(work)
            if opening is not None:
                study = self._studies.open(name, self._lease.check)
                layers = self._layers or _default_layers(record)
                self._studies.add(study, record, layers=layers, grid=opening.cells, check=self._lease.check)

    def add_commit(self, record: CommitRecord) -> None:
        """Write a commit: the task is finished.

        Raises:
            Damage: There is another one.
        """

        def work(connection: Connection) -> None:
            mine = Commits.run_id == self._run, Commits.replica == record.replica, Commits.task == record.task
            known = connection.execute(select(Commits.record).where(*mine)).scalar()
            if known is None:
                row = insert(Commits).values(run_id=self._run, replica=record.replica, task=record.task)
                row = row.values(winner=record.winner.index, artifact=record.artifact, record=dump(record))
                connection.execute(row)
                return
            where = self._where(record.replica, record.task)
            if _results(read(CommitRecord, known, where)) != _results(record):
                raise Damage(f"{where} is committed already, with other results; the first ones stand")

        self._write(work)

    def carry(self, replica: int, task: int, change: Callable[[Carried], Carried]) -> bool:
        """Change what a task's study carries beside its trials, in one step; False where the study is gone.

        Args:
            change: What it carries → what of it is set anew. May be called more than once.
        """
        name = study_name(self.name, replica, task)

        def work(connection: Connection) -> bool:
            held = read_carried(connection, name)
            if held is not None:
                write_carried(connection, change(held))
            return held is not None

        return self._write(work)

    def remove_artifacts(self, artifacts: Collection[str]) -> None:
        """Give up these tensors (SHA-256) of committed tasks.

        What is gone already is no error. What a commit, a winner or a cell of an open task needs stays.
        """
        with self._lock:
            if artifacts:
                self._write(lambda connection: self._give_up(connection, artifacts))
                self._remove_given_up(artifacts)

    def update_run(self, experiment_json: dict[str, Any], *, surplus: Collection[str] = ()) -> None:
        """Write down the experiment as it is now: more replicas or tasks, other workers.

        Args:
            surplus: The tensors that it keeps no longer, given up in the same step; see :meth:`remove_artifacts`.
        """

        def work(connection: Connection) -> None:
            row = update(Runs).where(Runs.id == self._run)
            connection.execute(row.values(experiment=experiment_json, updated=self._database.now))
            self._give_up(connection, surplus)

        with self._lock:
            self._write(work)
            if surplus:
                self._remove_given_up(surplus)

    def finish(self, state: Literal["finished", "stopped"], reason: str = "") -> None:
        """Write down how the run ended: every task committed, or stopped for a reason that a person has to see.

        The attempt ends with it, as by :meth:`release`, in one transaction: nobody goes on with a run that is finished,
        so a lease that was left behind would stay.
        """
        end = update(Runs).where(Runs.id == self._run).values(state=state, reason=reason, updated=self._database.now)
        with self._lock:
            self._end(state, end)
            self._released = True
            self.close()

    def note(self, text: str) -> None:
        """Add a note to this attempt; one that repeats the last is left out."""

        def work(connection: Connection) -> None:
            attempt = Attempts.id == self._attempt
            notes = connection.execute(select(Attempts.notes).where(attempt)).scalar_one()
            if notes[-1:] != [text]:
                connection.execute(update(Attempts).where(attempt).values(notes=[*notes, text]))

        self._write(work)

    def release(self, outcome: str) -> None:
        """End the attempt, give back the jobs that are still open, and release the lease.

        Nothing is written if the lease was lost, or after :meth:`finish`.
        """
        with self._lock:
            if self._released:
                return
            self._released = True
            try:
                self._end(outcome)
            except LeaseLost:
                return
            finally:
                self.close()

    def delete(self, studies: Sequence[str]) -> tuple[int, int]:
        """Remove everything: studies, then artifacts, then rows, the run's last, so that it can be done again.

        Returns:
            How many rows and artifacts that were.
        """
        with self._lock:
            deleting = update(Runs).where(Runs.id == self._run).values(state="deleting", updated=self._database.now)
            self._write(lambda connection: connection.execute(deleting))
            for name in studies:
                self._studies.delete(name, self._lease.check)
            artifacts = self.artifacts.discard()
            rows = self._delete_rows()
            self._released = True
            self._lease.stop()
            self.close()
            return rows, artifacts

    def close(self) -> None:
        """Close every idle connection of its own; nothing is written."""
        self._studies.close()

    def _delete_rows(self) -> int:
        """With the lease's row, so that a second try, after an answer that was lost, finds none to check."""
        rows = 0

        def attempt() -> None:
            nonlocal rows
            with self._database.engine.begin() as connection:
                if rows and connection.execute(select(Runs.id).where(Runs.id == self._run)).first() is None:
                    return
                self._lease.check(connection)
                rows = delete_rows(connection, self._run)

        self._database.retry(attempt)
        return rows

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        def attempt() -> Result:
            with self._database.engine.begin() as connection:
                self._lease.check(connection)
                return work(connection)

        with self._lock:
            return self._database.retry(attempt)

    def _end(self, outcome: str, *also: Update) -> None:
        """End the attempt, in one transaction with ``also``."""
        mine = Attempts.id == self._attempt

        def attempt() -> None:
            with self._database.engine.begin() as connection:
                ended = connection.execute(select(Attempts.outcome).where(mine, Attempts.ended.is_not(None))).scalar()
                if ended == outcome:
                    return  # by a write whose answer was lost
                self._lease.check(connection)
                for each in also:
                    connection.execute(each)
                now = self._database.now
                connection.execute(
                    update(Jobs)
                    .where(Jobs.run_id == self._run, Jobs.state == "open")
                    .values(state="given back", ended=now, note="its driver ended")
                )
                connection.execute(update(Attempts).where(mine).values(ended=now, outcome=outcome))
                self._lease.drop(connection)

        self._lease.stop()
        self._database.retry(attempt)

    def _give_up(self, connection: Connection, artifacts: Collection[str]) -> None:
        committed = select(Commits.run_id).where(
            Commits.run_id == Cells.run_id,
            Commits.replica == Cells.replica,
            Commits.task == Cells.task,
            Commits.winner != Cells.cell,
        )
        mine = update(Cells).where(Cells.run_id == self._run, committed.exists()).values(given_up=True)
        every = list(artifacts)
        for begin in range(0, len(every), _FEW):
            connection.execute(mine.where(Cells.artifact.in_(every[begin : begin + _FEW])))

    def _put_cell(
        self, connection: Connection, replica: int, task: int, record: CellRecord, known: bool, given_up: bool
    ) -> None:
        values = {
            "key": cell_key(record.cell),
            "artifact": record.artifact,
            "given_up": given_up,
            "record": dump(record),
        }
        if known:
            row = Cells.run_id == self._run, Cells.replica == replica, Cells.task == task
            connection.execute(update(Cells).where(*row, Cells.cell == record.cell.index).values(**values))
        else:
            key = {"run_id": self._run, "replica": replica, "task": task, "cell": record.cell.index}
            connection.execute(insert(Cells).values(**key, **values))

    def _remove_given_up(self, among: Collection[str]) -> None:
        """Of these tensors, remove those that were given up and that no row still needs."""

        def needed(connection: Connection) -> set[str]:
            # Of a task's losers only their rows are looked at, however many the run has; a start looks at all of them.
            few = [Cells.artifact.in_(among)] if len(among) <= _FEW else []
            mine = Cells.run_id == self._run, Cells.artifact.is_not(None), *few
            given_up = set(connection.execute(select(Cells.artifact).where(*mine, Cells.given_up)).scalars())
            kept = set(connection.execute(select(Cells.artifact).where(*mine, ~Cells.given_up)).scalars())
            commits = set(connection.execute(select(Commits.artifact).where(Commits.run_id == self._run)).scalars())
            return {sha256 for sha256 in given_up - kept - commits if sha256}

        for sha256 in sorted(self._write(needed).intersection(among)):
            self.artifacts.remove(sha256)

    def _where(self, replica: int, task: int) -> str:
        return f"run {self.name}, {place(replica, task)}"


def _default_layers(record: CellRecord) -> tuple[str, ...]:
    return (*(f"hidden{index}" for index in range(1, len(record.cell.alpha))), "output")


def _results(record: CellRecord | CommitRecord) -> str:
    """A record without how, where and when it came about."""
    return dump(replace(record, provenance=Provenance((), "", 0, {}), started=0.0, ended=0.0))
