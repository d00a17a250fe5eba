"""The store of runs: reads without a lease, and hands out the one writer of a run."""

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from sqlalchemy import Connection, Row, insert, select
from sqlalchemy.exc import IntegrityError

from search.artifacts import Artifacts, is_bucket, join, parent
from search.book import Place
from search.database import PATIENCE, Database
from search.errors import BadInput
from search.lease import DURATION, Holder, Lease, Watch, holder
from search.ledger import Runs, create_tables, has_tables
from search.names import check_run_name
from search.noted import Noted, read_noted, read_unnoted
from search.overview import Overview, read_overview
from search.rows import (
    AttemptRow,
    History,
    JobRow,
    Loss,
    RunRow,
    Tensors,
    read_attempts,
    read_history,
    read_jobs,
    read_tensors,
)
from search.trials import study_names

if TYPE_CHECKING:
    from search.writer import Writer

__all__ = [
    "AttemptRow",
    "Deleted",
    "History",
    "Holder",
    "JobRow",
    "Loss",
    "Overview",
    "RunRow",
    "Store",
    "Watch",
    "open_store",
]

Result = TypeVar("Result")

ARTIFACTS = "clnp-search-artifacts"
"""The folder of tensors, beside the SQLite file or else in the current folder."""

_LISTED = 10
"""So many names of runs a message lists."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """How much was removed."""

    studies: int
    rows: int
    artifacts: int


class Store:
    """The runs of a database. Reading needs no lease and starts nothing; it holds credentials, so no pickling.

    Args:
        artifacts: In what every run's own folder lies or is made, a folder or ``s3://BUCKET/PREFIX``; None: where it
            is already, and of a new run :data:`ARTIFACTS`.
        lease: Seconds that a lease lasts beyond its last renewal.
        patience: Seconds for which artifacts are tried again while they cannot be reached.
    """

    def __init__(
        self,
        database: Database,
        artifacts: str | None = None,
        *,
        lease: float = DURATION,
        patience: float = PATIENCE,
    ) -> None:
        self.database = database
        self._home = os.getcwd() if database.path is None else str(database.path.parent)
        self._given = None if artifacts is None else Artifacts(artifacts).location
        self._lease = lease
        self._patience = patience
        self._has_tables = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Store holds database credentials and cannot be pickled")

    def __repr__(self) -> str:
        return f"Store({self.database!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The database's URL without its password."""
        return self.database.url

    @property
    def artifacts(self) -> str:
        """The folder, or the place in a bucket, in which every new run makes one of its own."""
        return self._given or os.path.join(self._home, ARTIFACTS)

    def place(self, name: str) -> str:
        """The folder, or the place in a bucket, in which the run of that name has its artifacts, or will have them."""
        row = self.run(name)
        return self.artifacts if row is None or self._given is not None else parent(row.artifacts)

    def runs(self) -> list[RunRow]:
        """Every run, the oldest first."""
        runs = select(*Runs.__table__.columns).order_by(Runs.id)
        return self._read(lambda connection: [self._run_row(row) for row in connection.execute(runs)], [])

    def overview(self) -> list[Overview]:
        """Every run in short, the oldest first."""
        return self._read(lambda connection: read_overview(connection, self.database), [])

    def run(self, name: str) -> RunRow | None:
        """The run of that name, or None."""
        runs = select(*Runs.__table__.columns).where(Runs.name == name)

        def look(connection: Connection) -> RunRow | None:
            row = connection.execute(runs).first()
            return None if row is None else self._run_row(row)

        return self._read(look, None)

    def find(self, name: str) -> RunRow:
        """The run of that name.

        Raises:
            BadInput: There is none; the message lists those that there are.
        """
        row = self.run(name)
        if row is None:
            raise self._unknown(name)
        return row

    def history(self, name: str) -> History:
        """What the database holds of a run; nothing where there is none of that name.

        Raises:
            Damage: A row cannot be read.
        """
        nothing = History({}, {}, {}, [])
        return self._read(lambda connection: read_history(connection, _id(connection, name), name), nothing)

    def jobs(self, name: str) -> list[JobRow]:
        """The jobs that are handed out. Where :meth:`holder` is not live, nobody works on them any more."""
        return self._read(lambda connection: read_jobs(connection, _id(connection, name)), [])

    def tensors(self, name: str) -> list[Tensors]:
        """Every artifact that the run's rows name."""
        return self._read(lambda connection: read_tensors(connection, _id(connection, name)), [])

    def attempts(self, name: str) -> list[AttemptRow]:
        """Every driver that ran it, the first one first."""
        return self._read(lambda connection: read_attempts(connection, _id(connection, name)), [])

    def unnoted(self, name: str) -> list[Place]:
        """The committed tasks, as (replica, task), whose study lacks its note: see :mod:`search.noted`."""
        return self._read(lambda connection: read_unnoted(connection, _id(connection, name), name), [])

    def noted(self, name: str, replica: int, task: int) -> Noted | None:
        """What the note of a committed task is made from; None where its commit or its study is gone.

        Raises:
            Damage: A row cannot be read.
        """
        return self._read(lambda connection: read_noted(connection, _id(connection, name), name, replica, task), None)

    def holder(self, name: str) -> Holder | None:
        """Who holds the run's lease, or None."""

        def look(connection: Connection) -> Holder | None:
            run_id = _id(connection, name)
            return None if run_id is None else holder(connection, run_id, self.database.clock(connection))

        return self._read(look, None)

    def watch(self, name: str) -> Watch | None:
        """A look at the run's lease: the first one, so that a later one can tell whether its holder is there; None:
        there is no such run.

        Raises:
            Held: A live driver has it.
            BadInput: It was deleted just now.
        """
        run_id = self._read(lambda connection: _id(connection, name), None)
        if run_id is None:
            return None
        watch = Watch(self.database, run_id, name, self._lease)
        watch.look()
        return watch

    def take(
        self,
        name: str,
        *,
        experiment_json: dict[str, Any],
        data: str,
        versions: dict[str, str],
        watch: Watch | None = None,
        take_over: bool = False,
        wait: Callable[[str], None] | None = None,
        layers: Sequence[str] = (),
    ) -> "Writer":
        """Take a run into this process's hands: make its row if it is new, take the lease, close dead jobs.

        This is the first thing that writes: file and tables are made here where they are missing.

        The row of a run that is there stays as it is: compare it with the experiment once the lease is taken.

        Args:
            versions: What this attempt runs with.
            watch: What :meth:`watch` gave.
            take_over: Take the lease of a holder that is gone without waiting for its end.
            wait: Told, once, whose lease is waited for and until when; and from whom it was taken over.
            layers: See :class:`Writer`.

        Raises:
            Held: A live driver has it.
            BadInput: A bad name, a folder or bucket that cannot be used or lacks the run's tensors, a run being
                deleted, tables of another version.
        """
        from search.writer import Writer  # with Optuna, which who only reads need not wait for

        check_run_name(name)
        if self.run(name) is None:
            # Before there is a row of a run that could not begin.
            self.open_artifacts(self.artifacts).prepare()
        create_tables(self.database)
        place = self._relative(self.artifacts)
        run_id = self.database.retry(lambda: self._make_run(name, experiment_json, data, place))
        lease = Lease.acquire(
            self.database, run_id, name, duration=self._lease, watch=watch, take_over=take_over, wait=wait
        )
        with ExitStack() as undo:
            undo.callback(lease.release)
            lease.keep()
            row = self.run(name)
            if row is None or row.state == "deleting":
                raise BadInput(f"run {name} is being deleted; end that first: clnp-search delete {name}")
            location = row.artifacts if self._given is None else self._moved(row, self._given)
            self._prepare(name, location)
            mine = self.open_artifacts(location, prepared=True)
            writer = Writer(self.database, lease, run_id, name, mine, layers=layers)
            writer.begin(versions, artifacts=self._relative(parent(location)))
            if lease.taken_over:
                writer.note(lease.taken_over)
                if wait is not None:
                    wait(lease.taken_over)
            undo.pop_all()
        return writer

    def annotate(self, name: str) -> "Writer":
        """Take a run to write what its studies carry; its state and its attempts stay as they are.

        Raises:
            Held: A driver has it.
            BadInput: There is none of that name.
        """
        return self._hold(name)[0]

    def delete(self, name: str) -> Deleted:
        """Remove a run: its studies, artifacts and rows. Cut off in between, it can be done again.

        Raises:
            Held: A driver has it.
            BadInput: There is none of that name.
        """
        writer, lease = self._hold(name)
        with ExitStack() as undo:
            undo.callback(lease.release)
            undo.callback(writer.close)
            studies: list[str] = self._read(lambda connection: study_names(connection, f"{name}/replica-"), [])
            rows, removed = writer.delete(studies)
            undo.pop_all()
        return Deleted(len(studies), rows, removed)

    def open_artifacts(self, location: str, *, prepared: bool = False) -> Artifacts:
        """Artifacts that are waited for as the database is: told in the same place, and not for who is to end.

        Args:
            prepared: See :class:`~search.artifacts.Artifacts`.

        Raises:
            BadInput: See :class:`~search.artifacts.Artifacts`.
        """
        return Artifacts(
            location, prepared=prepared, patience=self._patience, on_wait=self._tell, pause=self.database.pause
        )

    def keeps_tensors(self, name: str) -> bool:
        """Whether rows of the run of that name, if there is one, name tensors that are kept."""
        return any(not each.given_up for each in self.tensors(name))

    def is_away(self, row: RunRow) -> bool:
        """Whether rows of the run name tensors that are kept, and the folder where they are is not there.

        Raises:
            Unavailable: The place cannot be read.
        """
        return not self.open_artifacts(row.artifacts).exists() and self.keeps_tensors(row.name)

    def look(self, work: Callable[[Connection], Result]) -> Result:
        """What ``work`` reads of Optuna's tables, tried again while the database is away. It writes nothing.

        Raises:
            Unavailable: See :meth:`~search.database.Database.retry`.
        """

        def attempt() -> Result:
            with self.database.engine.connect() as connection:
                return work(connection)

        return self.database.retry(attempt)

    def close(self) -> None:
        """Close every idle connection."""
        self.database.close()

    def _hold(self, name: str) -> "tuple[Writer, Lease]":
        """Take the lease of a run that is there, as it is."""
        from search.writer import Writer

        run_id = self._read(lambda connection: _id(connection, name), None)
        row = self.run(name)
        if run_id is None or row is None:
            raise self._unknown(name)
        lease = Lease.acquire(self.database, run_id, name, duration=self._lease)
        with ExitStack() as undo:
            undo.callback(lease.release)
            lease.keep()
            writer = Writer(self.database, lease, run_id, name, self.open_artifacts(row.artifacts))
            undo.pop_all()
        return writer, lease

    def _unknown(self, name: str) -> BadInput:
        others = sorted(other.name for other in self.runs())
        listed = ", ".join(others[:_LISTED])
        more = len(others) - _LISTED
        hint = f"it holds {listed}" if others else "it holds no run yet"
        hint += f" and {more:,} more: clnp-search status lists them" if more > 0 else ""
        return BadInput(f"no run is called {name!r} in {self.url}; {hint}")

    def _tell(self, text: str) -> None:
        if self.database.on_outage is not None:
            self.database.on_outage(text)

    def _read(self, look: Callable[[Connection], Result], nothing: Result) -> Result:
        """What ``look`` finds, or ``nothing`` before the first run made the tables."""
        self._has_tables = self._has_tables or has_tables(self.database)
        if not self._has_tables:
            return nothing

        return self.look(look)

    def _make_run(self, name: str, experiment: dict[str, Any], data: str, artifacts: str) -> int:
        """The run's id; its row is made where it is missing."""
        now = self.database.now
        folder = f"{name}-{secrets.token_hex(4)}"
        row = insert(Runs).values(name=name, experiment=experiment, data=data, state="open", reason="")
        row = row.values(artifacts=artifacts, folder=folder, created=now, updated=now)
        while True:
            try:
                with self.database.engine.begin() as connection:
                    found = _id(connection, name)
                    return found or connection.execute(row.returning(Runs.id)).scalar_one()
            except IntegrityError:
                continue  # another process made it in between

    def _run_row(self, row: Row[Any]) -> RunRow:
        return RunRow(
            name=row.name,
            experiment=row.experiment,
            data=row.data,
            state=row.state,
            reason=row.reason,
            artifacts=join(self._home, row.artifacts, row.folder),
            created=row.created,
            updated=row.updated,
        )

    def _relative(self, place: str) -> str:
        """A folder as the ledger keeps it: one beside the SQLite file moves with it."""
        if self.database.path is None or is_bucket(place):
            return place
        beside = os.path.commonpath([place, self._home]) == self._home
        return os.path.relpath(place, self._home) if beside else place

    def _prepare(self, name: str, location: str) -> None:
        """Make the run's own folder, or see that it can be used still.

        Raises:
            BadInput, Unavailable: It cannot.
        """
        kept = self.keeps_tensors(name)
        artifacts = self.open_artifacts(location, prepared=kept)
        if kept:
            artifacts.list()  # waits for a share that is away, beneath which prepare would make another folder
        artifacts.prepare(again=True)

    def _moved(self, row: RunRow, given: str) -> str:
        """Where in ``given`` the run's tensors are: where they are already, or were moved to, or where none were."""
        location = join("", given, os.path.basename(row.artifacts))
        if row.artifacts in (location, given):
            return row.artifacts
        there = self.keeps_tensors(row.name) or self.open_artifacts(row.artifacts).list()
        if there and not self.open_artifacts(location).exists():
            what = "copy" if is_bucket(row.artifacts) or is_bucket(location) else "move"
            raise BadInput(
                f"the tensors of run {row.name} are in {row.artifacts}; {what} that folder to {location} first"
            )
        return location


def open_store(
    url: str,
    artifacts: str | None = None,
    *,
    create: bool = True,
    lease: float = DURATION,
    patience: float = PATIENCE,
    on_outage: Callable[[str], None] | None = None,
) -> Store:
    """The store in a database. Nothing is made or changed before somebody takes or deletes a run.

    Args:
        url: See :class:`~search.database.Database`.
        artifacts: See :class:`Store`.
        create: Whether file and tables may still be missing: the first run that is taken makes them.
        lease: See :class:`Store`.
        patience: Seconds for which an operation is tried again while database or artifacts are away.
        on_outage: Told once an outage.

    Raises:
        BadInput: The database cannot be used, is of another schema, or, without ``create``, is not there.
    """
    database = Database(url, create=create, patience=patience, on_outage=on_outage)
    with ExitStack() as undo:
        undo.callback(database.close)
        if not has_tables(database) and not create:
            raise BadInput(f"{database.url} holds no runs of clnp-search; `clnp-search run` makes the tables")
        store = Store(database, artifacts, lease=lease, patience=patience)
        undo.pop_all()
    return store


def _id(connection: Connection, name: str) -> int | None:
    return connection.execute(select(Runs.id).where(Runs.name == name)).scalar()
