"""The store of runs: reads without a lease, and hands out the one writer of a run."""

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeVar

from sqlalchemy import Connection, Row, insert, select
from sqlalchemy.exc import IntegrityError

from search.artifacts import Artifacts
from search.database import Database
from search.errors import BadInput
from search.lease import DURATION, Holder, Lease, holder
from search.ledger import Runs, create_tables, has_tables
from search.names import check_run_name
from search.rows import AttemptRow, History, JobRow, Loss, RunRow, read_attempts, read_history, read_jobs
from search.studies import study_names
from search.writer import Writer

__all__ = ["AttemptRow", "Deleted", "History", "Holder", "JobRow", "Loss", "RunRow", "Store", "Writer", "open_store"]

Result = TypeVar("Result")

ARTIFACTS = "clnp-search-artifacts"
"""The folder of tensors, beside the SQLite file or else in the current folder."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """How much was removed."""

    studies: int
    rows: int
    artifacts: int


class Store:
    """The runs of a database. Reading needs no lease and starts nothing; it holds credentials, so no pickling.

    Args:
        artifacts: The folder in which new runs make theirs, or None: :data:`ARTIFACTS`.
        lease: Seconds that a lease lasts beyond its last renewal.
    """

    def __init__(self, database: Database, artifacts: str | None = None, *, lease: float = DURATION) -> None:
        self.database = database
        self._home = os.getcwd() if database.path is None else str(database.path.parent)
        self._given = None if artifacts is None else Artifacts(artifacts).location
        self._lease = lease
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
        """The folder in which new runs make theirs."""
        return self._given or os.path.join(self._home, ARTIFACTS)

    def runs(self) -> list[RunRow]:
        """Every run, the oldest first."""
        runs = select(*Runs.__table__.columns).order_by(Runs.id)
        return self._read(lambda connection: [self._run_row(row) for row in connection.execute(runs)], [])

    def run(self, name: str) -> RunRow | None:
        """The run of that name, or None."""
        runs = select(*Runs.__table__.columns).where(Runs.name == name)

        def look(connection: Connection) -> RunRow | None:
            row = connection.execute(runs).first()
            return None if row is None else self._run_row(row)

        return self._read(look, None)

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

    def attempts(self, name: str) -> list[AttemptRow]:
        """Every driver that ran it, the first one first."""
        return self._read(lambda connection: read_attempts(connection, _id(connection, name)), [])

    def holder(self, name: str) -> Holder | None:
        """Who holds the run's lease, or None."""

        def look(connection: Connection) -> Holder | None:
            run_id = _id(connection, name)
            return None if run_id is None else holder(connection, run_id, self.database.clock(connection))

        return self._read(look, None)

    def take(
        self,
        name: str,
        *,
        experiment_json: dict[str, Any],
        data: str,
        artifacts: str | None = None,
        versions: dict[str, str],
        wait: Callable[[str], None] | None = None,
        layers: Sequence[str] = (),
    ) -> Writer:
        """Take a run into this process's hands: make its row if it is new, take the lease, close dead jobs.

        This is the first thing that writes: file and tables are made here where they are missing.

        The row of a run that is there stays as it is: compare it with the experiment once the lease is taken.

        Args:
            artifacts: The folder in which the run's own lies or is made; None: where it is, or :attr:`artifacts`.
            versions: What this attempt runs with.
            wait: Told, once, whose lease is waited for and until when.
            layers: See :class:`Writer`.

        Raises:
            Held: A live driver has it.
            BadInput: A bad name, a folder that cannot be written or lacks the run's tensors, a run being deleted,
                tables of another version.
        """
        check_run_name(name)
        given = self._given if artifacts is None else Artifacts(artifacts).location
        create_tables(self.database)
        parent = self._relative(given or self.artifacts)
        run_id = self.database.retry(lambda: self._make_run(name, experiment_json, data, parent))
        lease = Lease.acquire(self.database, run_id, name, duration=self._lease, wait=wait)
        with ExitStack() as undo:
            undo.callback(lease.release)
            row = self.run(name)
            if row is None or row.state == "deleting":
                raise BadInput(f"run {name} is being deleted; end that first: clnp-search delete {name}")
            location = row.artifacts if given is None else self._moved(row, given)
            folder = Artifacts(location)
            folder.prepare()
            writer = Writer(self.database, lease, run_id, name, folder, layers=layers)
            writer.begin(versions, artifacts=self._relative(os.path.dirname(location)))
            lease.keep()
            undo.pop_all()
        return writer

    def delete(self, name: str) -> Deleted:
        """Remove a run: its studies, artifacts and rows. Cut off in between, it can be done again.

        Raises:
            Held: A driver has it.
            BadInput: There is none of that name.
        """
        run_id = self._read(lambda connection: _id(connection, name), None)
        row = self.run(name)
        if run_id is None or row is None:
            raise BadInput(f"there is no run {name} in {self.url}")
        lease = Lease.acquire(self.database, run_id, name, duration=self._lease)
        with ExitStack() as undo:
            undo.callback(lease.release)
            writer = Writer(self.database, lease, run_id, name, Artifacts(row.artifacts))
            lease.keep()
            studies: list[str] = self._read(lambda connection: study_names(connection, f"{name}/replica-"), [])
            rows, removed = writer.delete(studies)
            undo.pop_all()
        return Deleted(len(studies), rows, removed)

    def close(self) -> None:
        """Close every idle connection."""
        self.database.close()

    def _read(self, look: Callable[[Connection], Result], nothing: Result) -> Result:
        """What ``look`` finds, or ``nothing`` before the first run made the tables."""
        self._has_tables = self._has_tables or has_tables(self.database)
        if not self._has_tables:
            return nothing

        def attempt() -> Result:
            with self.database.engine.connect() as connection:
                return look(connection)

        return self.database.retry(attempt)

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
            artifacts=os.path.join(self._home, row.artifacts, row.folder),
            created=row.created,
            updated=row.updated,
        )

    def _relative(self, folder: str) -> str:
        """A folder as the ledger keeps it: one beside the SQLite file moves with it."""
        if self.database.path is not None and os.path.commonpath([folder, self._home]) == self._home:
            return os.path.relpath(folder, self._home)
        return folder

    def _moved(self, row: RunRow, parent: str) -> str:
        """The run's folder in ``parent``: where it lies already, or where somebody moved it, or where nothing was."""
        location = os.path.join(parent, os.path.basename(row.artifacts))
        if row.artifacts in (location, parent):
            return row.artifacts
        if not os.path.isdir(location) and Artifacts(row.artifacts).list():
            raise BadInput(
                f"the tensors of run {row.name} are in {row.artifacts}; move that folder to {location} first"
            )
        return location


def open_store(
    url: str,
    artifacts: str | None = None,
    *,
    create: bool = True,
    lease: float = DURATION,
    patience: float = 60.0,
    on_outage: Callable[[str], None] | None = None,
) -> Store:
    """The store in a database. Nothing is made or changed before somebody takes or deletes a run.

    Args:
        url: See :class:`~search.database.Database`.
        artifacts: See :class:`Store`.
        create: Whether file and tables may still be missing: the first run that is taken makes them.
        lease: See :class:`Store`.
        patience: Seconds for which an operation is tried again while the database is away.
        on_outage: Told once an outage.

    Raises:
        BadInput: The database cannot be used, is of another schema, or, without ``create``, is not there.
    """
    database = Database(url, create=create, patience=patience, on_outage=on_outage)
    if not has_tables(database) and not create:
        raise BadInput(f"{database.url} holds no runs of clnp-search; `clnp-search run` makes the tables")
    return Store(database, artifacts, lease=lease)


def _id(connection: Connection, name: str) -> int | None:
    return connection.execute(select(Runs.id).where(Runs.name == name)).scalar()
