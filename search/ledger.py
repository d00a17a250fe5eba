"""Our tables beside Optuna's in the same database: runs, lease, attempts, openings, jobs, cells and commits."""

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import (
    Connection,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    delete,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from search.database import Database
from search.errors import BadInput, Damage
from search.records import load

__all__ = [
    "SCHEMA",
    "Attempts",
    "Cells",
    "Commits",
    "Jobs",
    "Leases",
    "Openings",
    "Runs",
    "Schema",
    "create_tables",
    "delete_rows",
    "has_tables",
    "read",
]

SCHEMA = 2
"""The version of these tables and of the records in them. A database with another one is refused."""

Record = TypeVar("Record")


class Json(TypeDecorator[Any]):
    """JSON text, the same on every database. Numbers keep every bit; what is not finite is refused."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


class Table(DeclarativeBase):
    """The base of all of them. Times are seconds since 1970 by the database's clock."""

    # Text columns of unbounded length; short keys say so themselves.
    type_annotation_map = {str: Text, dict[str, Any]: Json, dict[str, str]: Json, list[int]: Json, list[str]: Json}  # noqa: RUF012


class Schema(Table):
    """One row: the version of the tables."""

    __tablename__ = "clnp_schema"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]


class Runs(Table):
    """A row a run.

    ``artifacts`` is the folder that all runs share, relative to the SQLite file where it lies beside it; ``folder`` is
    the run's own in it. A folder of its own keeps one run's removals away from another's tensors, even where two
    databases share the parent folder.
    """

    __tablename__ = "clnp_runs"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    experiment: Mapped[dict[str, Any]]
    data: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    artifacts: Mapped[str]
    folder: Mapped[str] = mapped_column(String(120))
    created: Mapped[float]
    updated: Mapped[float]


class Leases(Table):
    """Who drives a run now; no row: nobody. ``started`` is the process's start, in seconds after its host's."""

    __tablename__ = "clnp_leases"

    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"), primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    host: Mapped[str]
    boot: Mapped[str]
    namespace: Mapped[str]
    pid: Mapped[int]
    started: Mapped[float]
    taken: Mapped[float]
    expires: Mapped[float]
    renewals: Mapped[int]


class Attempts(Table):
    """A row for each driver that ran it. ``token`` is its lease's."""

    __tablename__ = "clnp_attempts"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"), index=True)
    token: Mapped[str] = mapped_column(String(32), unique=True)
    host: Mapped[str]
    pid: Mapped[int]
    started: Mapped[float]
    ended: Mapped[float | None]
    outcome: Mapped[str | None]
    versions: Mapped[dict[str, str]]
    notes: Mapped[list[str]]


class Openings(Table):
    """A row a task that was opened: its cells and stacks."""

    __tablename__ = "clnp_openings"

    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"), primary_key=True)
    replica: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[int] = mapped_column(primary_key=True)
    record: Mapped[str]


class Jobs(Table):
    """A row a job that was handed out. ``nonce`` finds it again after a write whose outcome is unknown."""

    __tablename__ = "clnp_jobs"
    __table_args__ = (Index("ix_clnp_jobs_run_state", "run_id", "state"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(String(32), unique=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"))
    attempt_id: Mapped[int] = mapped_column(ForeignKey("clnp_attempts.id"))
    kind: Mapped[str] = mapped_column(String(16))
    replica: Mapped[int]
    task: Mapped[int]
    cells: Mapped[list[int]]
    state: Mapped[str] = mapped_column(String(16))
    worker: Mapped[str]
    epoch: Mapped[int]
    accuracy: Mapped[float | None]
    started: Mapped[float]
    ended: Mapped[float | None]
    note: Mapped[str]


class Cells(Table):
    """A row a cell that a worker finished. It counts once its Optuna trial is there, which carries the same ``key``.

    ``given_up``: its tensors were, after the commit.
    """

    __tablename__ = "clnp_cells"
    # Databases that were made before it do without: what it finds is then looked for among the run's rows.
    __table_args__ = (
        UniqueConstraint("run_id", "replica", "task", "key"),
        Index("ix_clnp_cells_artifact", "run_id", "artifact"),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"), primary_key=True)
    replica: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[int] = mapped_column(primary_key=True)
    cell: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    artifact: Mapped[str | None] = mapped_column(String(64))
    # The column keeps the name that it was made with.
    given_up: Mapped[bool] = mapped_column("dropped", key="given_up")
    record: Mapped[str]


class Commits(Table):
    """A row a task that is finished."""

    __tablename__ = "clnp_commits"

    run_id: Mapped[int] = mapped_column(ForeignKey("clnp_runs.id"), primary_key=True)
    replica: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[int] = mapped_column(primary_key=True)
    winner: Mapped[int]
    artifact: Mapped[str] = mapped_column(String(64))
    record: Mapped[str]


def has_tables(database: Database) -> bool:
    """Whether the database holds these tables.

    Raises:
        BadInput: They are of another version.
    """

    def look() -> int | None:
        with database.engine.connect() as connection:
            if not inspect(connection).has_table(Schema.__tablename__):
                return None
            return connection.execute(select(Schema.version)).scalar_one_or_none()

    version = None if database.missing else database.retry(look)
    if version is not None and version > SCHEMA:
        raise BadInput(
            f"{database.url} has clnp-search tables of version {version}, made by a newer clnp-search; this one knows "
            f"version {SCHEMA}: pip install --upgrade clnp-search"
        )
    if version is not None and version < SCHEMA:
        raise BadInput(
            f"{database.url} has clnp-search tables of version {version}, made by an older clnp-search; this one knows "
            f"version {SCHEMA}: give another --storage, or go on with the clnp-search that made it"
        )
    return version is not None


def create_tables(database: Database) -> None:
    """Make the database ready for writing, and the tables where they are missing.

    Raises:
        BadInput: They are of another version; nothing was written.
    """
    found = has_tables(database)
    database.prepare()
    if found:
        return

    def create() -> None:
        with database.engine.begin() as connection:
            Table.metadata.create_all(connection)
            if connection.execute(select(Schema.version)).scalar_one_or_none() is None:
                connection.execute(insert(Schema).values(id=1, version=SCHEMA))

    database.build(create)


def read(kind: type[Record], text: str, where: str) -> Record:
    """A record from its row.

    Raises:
        Damage: The row does not hold one.
    """
    try:
        return load(kind, text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damage(
            f"{where}: the ledger's {kind.__name__} cannot be read ({place}: {first['msg']}); "
            "restore the database from a backup"
        ) from None


def delete_rows(connection: Connection, run_id: int) -> int:
    """Remove a run's rows, the lease and the run's own last, and say how many they were beside the lease."""
    rows = 0
    for table in (Commits, Cells, Jobs, Openings, Attempts):
        rows += connection.execute(delete(table).where(table.run_id == run_id)).rowcount
    connection.execute(delete(Leases).where(Leases.run_id == run_id))
    return rows + connection.execute(delete(Runs).where(Runs.id == run_id)).rowcount
