"""The database: engine, pragmas, retries, and the one place that knows its password."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, literal_column, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

from search.errors import BadInput, Damage, SearchError, Unavailable
from search.urls import check_file, dialect, read_url

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

__all__ = ["PASSWORD_VARIABLE", "PATIENCE", "Database"]

PASSWORD_VARIABLE = "PGPASSWORD"
"""Where PostgreSQL's programs, and this one, look for a password that the URL does not give."""

PATIENCE = 60.0
"""Seconds for which what fails is tried again, where nobody says otherwise."""

Result = TypeVar("Result")

# Seconds that SQLite waits for a lock before the retries take over: a signal is answered between them.
_BUSY_TIMEOUT = 3.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds between two tries: doubled from one to the other."""

_QUIET = 1.0
"""Seconds that an outage lasts before it is told."""

# A server's host that vanishes would else hold a write for two hours (the kernel's keep-alive).
_POSTGRES_CONNECT = {
    "fallback_application_name": "clnp-search",
    "connect_timeout": 4,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# The same the other way round: a client that vanishes, or is stopped, within a transaction would else keep the rows it
# locked, the lease's among them.
_POSTGRES_SESSION = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; "
    "SET idle_in_transaction_session_timeout = '15s'; SET lock_timeout = '5s'"
)

_POSTGRES_PASSING = {"25006"}  # READ ONLY SQL TRANSACTION: a standby that is about to become the server

_POSTGRES_LACKING = {"42501", "3F000"}  # INSUFFICIENT PRIVILEGE, and INVALID SCHEMA NAME: none that it may use

# What is said of a server that is away, or that is there and will soon take connections. Whatever else a first
# connection ends with, time does not mend it.
_AWAY = (
    "timeout expired",
    "timed out",
    "No route to host",
    "is unreachable",
    "Connection reset",
    "closed the connection",
    "Temporary failure in name resolution",
    "Is the server running",
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "is starting up",
    "not yet accepting connections",
    "is shutting down",
    "in recovery mode",
)

_SQLITE_PASSING = {5, 6, 10, 13, 15}  # BUSY, LOCKED, IOERR, FULL, PROTOCOL: time may mend them
_SQLITE_REFUSED = {3, 8, 14, 23}  # PERM, READONLY, CANTOPEN, AUTH
_SQLITE_DAMAGED = {11, 26}  # CORRUPT, NOTADB

_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
}


class Database:
    """A database that can be reached: SQLite or PostgreSQL, shared with Optuna's own tables.

    It holds credentials: it cannot be pickled, and :attr:`url`, ``repr`` and every message show none.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`` (``postgresql://`` means the
            same; without a password the variable ``PGPASSWORD`` gives it). A SQLite path becomes absolute.
        create: Whether a SQLite file may be missing and must be one that can be written. Nothing is made or changed
            before :meth:`prepare`.
        patience: Seconds for which :meth:`retry` tries again.
        on_outage: Told once an outage, in a line, that the database cannot be used, why, and how long it is waited for.

    Raises:
        BadInput: A malformed URL, an unknown or missing driver, a file, folder, host or database that is missing,
            refuses or is something else.
        Unavailable: See :meth:`retry`.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        patience: float = PATIENCE,
        on_outage: Callable[[str], None] | None = None,
    ) -> None:
        self._address, secrets = read_url(url)
        self._storages: list[RDBStorage] = []
        self.dialect: Literal["sqlite", "postgresql"] = dialect(self._address)
        # As people write it: the one driver of SQLite need not be named.
        self.url = self._address.render_as_string(hide_password=True).replace("sqlite+pysqlite:", "sqlite:", 1)
        for key in secrets:
            self.url += f"{'&' if '?' in self.url else '?'}{key}=***"
        if self.dialect == "postgresql" and not (self._address.password or "password" in secrets):
            # Taken now and not by the driver at each connection: it is on its way out of the environment.
            given = os.environ.get(PASSWORD_VARIABLE)
            secrets |= {"password": given} if given else {}
        self.on_outage = on_outage
        self._secrets = [text for text in (self._address.password, *secrets.values()) if text]
        self._patience = patience
        self._hurried = threading.Event()
        self._outage = threading.Lock()
        self._failing = 0
        self._announced = False
        self._given_up = False
        if self.dialect == "sqlite":
            check_file(self._address, create)
            self._connect_args: dict[str, Any] = {"timeout": _BUSY_TIMEOUT}
        else:
            self._connect_args = {**_POSTGRES_CONNECT, **secrets}
        self.engine = self._make_engine()
        if not self.missing:
            self._reach()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds database credentials and cannot be pickled")

    @property
    def path(self) -> Path | None:
        """The SQLite file, or None on a server."""
        return Path(str(self._address.database)) if self.dialect == "sqlite" else None

    @property
    def missing(self) -> bool:
        """Whether the SQLite file is still to be made: to connect would make it."""
        return self.path is not None and not self.path.exists()

    @property
    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression: seconds since 1970."""
        return literal_column(_NOW[self.dialect])

    def clock(self, connection: Connection) -> float:
        """The database's clock: seconds since 1970. Drivers on several hosts agree on it."""
        return float(connection.execute(select(self.now)).scalar_one())

    def prepare(self) -> None:
        """Make ready for writing: a SQLite file is made where it is missing, and keeps a write-ahead log from now on.

        Raises:
            Unavailable, BadInput: See :meth:`retry`.
        """

        def set_log() -> None:
            with self.engine.connect() as connection:
                # Kept in the file: other connections and Optuna's find it set. A result that is not read to its end
                # would keep the pooled connection from committing.
                connection.exec_driver_sql("PRAGMA journal_mode = WAL").all()

        if self.dialect == "sqlite":
            self.retry(set_log)

    def rdb_storage(self) -> "RDBStorage":
        """Optuna's storage on this database; its tables are made where they are missing.

        Raises:
            BadInput: The tables belong to another version of Optuna.
            Unavailable: See :meth:`retry`.
        """
        from optuna.storages import RDBStorage

        # Optuna runs str.format over the URL.
        url = self._address.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        arguments = {
            "pool_size": 1,
            "pool_pre_ping": True,
            "hide_parameters": True,
            "connect_args": self._connect_args,
        }
        try:
            storage = self.build(lambda: RDBStorage(url, engine_kwargs=dict(arguments)))
        except RuntimeError as error:
            raise BadInput(f"Optuna's tables in {self.url} do not fit the Optuna installed here: {error}") from None
        self._prepare_connections(storage.engine)
        storage.remove_session()
        storage.engine.dispose()  # what it opened so far was opened without that
        self._storages.append(storage)
        return storage

    def retry(self, work: Callable[[], Result], *, longest: float = _LONGEST_PAUSE) -> Result:
        """What ``work`` returns, tried again with growing pauses while the database is busy, full or away.

        ``work`` must bear being run again after it succeeded unnoticed: a commit whose answer is lost looks like one
        that failed.

        After one that was given up, none waits before one has succeeded again.

        Args:
            longest: Seconds between two tries at most.

        Raises:
            Unavailable: The database could not be reached for as long as the patience lasts.
            Damage, BadInput: The database file is damaged, or may not be read or written; or the user lacks a right.
        """
        began = time.monotonic()
        pause = _FIRST_PAUSE
        failing = False
        try:
            while True:
                try:
                    result = work()
                except _errors() as error:
                    cause = _cause(error)
                    if not _passes(cause):
                        raise self._translate(cause) or error from None
                    waited = time.monotonic() - began
                    self._go_on_failing(cause, waited, failing)
                    failing = True
                    self.pause(min(pause, self._patience - waited))
                    pause = min(2 * pause, longest)
                else:
                    self._given_up = False
                    return result
        finally:
            if failing:
                self._end_failing()

    def _go_on_failing(self, cause: BaseException, waited: float, failing: bool) -> None:
        """Say once an outage that there is one.

        Raises:
            Unavailable: It has lasted long enough.
        """
        with self._outage:
            self._failing += not failing
            over = waited >= self._patience
            if over or self._given_up or self._hurried.is_set():
                self._given_up = self._given_up or over
                self._failing -= not failing
                raise Unavailable(
                    f"{self.url} could not be used for {waited:.0f} s: {self.redact(cause)}; "
                    "nothing that was recorded is lost, the same command continues"
                ) from None
            tell = waited > _QUIET and not self._announced
            self._announced = self._announced or tell
        if tell and self.on_outage is not None:
            patience = f"{self._patience:.0f} s" if self._patience < 120 else f"{self._patience / 60:.0f} min"
            self.on_outage(f"{self.url} cannot be used ({self.redact(cause)}); waiting for it, for {patience} at most")

    def _end_failing(self) -> None:
        """An outage is over when nobody waits any more: of several threads the others may still meet it."""
        with self._outage:
            self._failing -= 1
            self._announced = self._announced and self._failing > 0

    def build(self, work: Callable[[], Result]) -> Result:
        """Like :meth:`retry`, for making tables: of two processes that make the same ones, one finds them made."""
        for _ in range(4):
            try:
                return self.retry(work)
            except _errors() as error:
                if not isinstance(_cause(error), OperationalError | ProgrammingError | IntegrityError):
                    raise
                self.pause(0.2)
        return self.retry(work)

    def pause(self, seconds: float) -> bool:
        """Sleep; False, at once, when nobody wants to wait any longer (:meth:`hurry`)."""
        return not self._hurried.wait(seconds)

    def hurry(self) -> None:
        """Wait for nothing from now on: a write that fails is given up at once. For a driver that was told to end."""
        self._hurried.set()

    def redact(self, text: object) -> str:
        """The first line of an error's text, without any password."""
        if isinstance(text, DBAPIError):
            text = text.orig
        line = next(iter(str(text).strip().splitlines()), "")
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line

    def close(self) -> None:
        """Close every idle connection, those of Optuna's storages too."""
        for storage in self._storages:
            storage.remove_session()
            storage.engine.dispose()
        self.engine.dispose()

    def _translate(self, error: BaseException) -> SearchError | None:
        code = _sqlite_code(error)
        if code in _SQLITE_DAMAGED:
            return Damage(f"{self.path} is not a sound SQLite database: {self.redact(error)}")
        if code in _SQLITE_REFUSED:
            return BadInput(f"{self.path} cannot be used: {self.redact(error)}; check the rights of file and folder")
        if _postgres_code(error) in _POSTGRES_LACKING:
            return BadInput(
                f"{self.url}: this user lacks a right: {self.redact(error)}; have the database's owner GRANT it, or "
                "use the role that made the tables"
            )
        return None

    def _make_engine(self) -> Engine:
        try:
            # Two are kept: the driver's thread and the lease's. More are opened where they are needed.
            engine = create_engine(
                self._address,
                pool_size=2,
                pool_pre_ping=True,
                hide_parameters=True,
                connect_args=self._connect_args,
            )
        except ImportError:
            raise BadInput(
                f"{self.url} needs the driver psycopg, which is not installed: pip install 'clnp-search[postgres]'"
            ) from None
        self._prepare_connections(engine)
        return engine

    def _prepare_connections(self, engine: Engine) -> None:
        """Have every connection of this engine begin as ours do."""

        @event.listens_for(engine, "connect")
        def _begin(connection: Any, _: object) -> None:
            if self.dialect == "sqlite":
                connection.execute("PRAGMA foreign_keys = ON").close()
                return
            connection.autocommit = True  # else a rollback takes the settings back
            connection.execute(_POSTGRES_SESSION)
            connection.autocommit = False

    def _reach(self) -> None:
        """Wait until it answers.

        Raises:
            Unavailable: It does not.
            BadInput: It never will.
        """

        def look() -> None:
            try:
                with self.engine.connect() as connection:
                    if self.dialect == "sqlite":
                        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").all()
            except DBAPIError as error:
                # A host of several addresses: what the last one said is said first.
                said = str(error.orig).partition("Multiple connection attempts failed")[0]
                if self.dialect == "postgresql" and not any(words in said for words in _AWAY):
                    raise BadInput(self._refused(said, self.redact(error))) from None
                raise

        try:
            self.retry(look)
        except Damage as error:
            raise BadInput(str(error)) from None

    def _refused(self, said: str, text: str) -> str:
        """What is wrong by what the server or the driver ``said``, which ``text`` shows."""
        if "no password supplied" in said:
            where = f"it stands in the URL, or in the variable {PASSWORD_VARIABLE}"
            return f"{self.url} refuses the user or the password: no password supplied; {where}"
        if "authentication failed" in said:
            return f"{self.url} refuses the user or the password: {text}"
        if f'database "{self._address.database}" does not exist' in said:
            return f"{self.url}: there is no such database; make it with: createdb {self._address.database}"
        if "failed to resolve host" in said:
            return f"{self.url} cannot be reached: {text}; is the host's name right?"
        return f"{self.url} cannot be used: {text}; check the URL, its options after the '?' too"


def _errors() -> tuple[type[Exception], ...]:
    """What a database's work raises. Optuna's own error is looked for only where somebody imported Optuna: readers do
    not."""
    optuna = sys.modules.get("optuna.exceptions")
    return (DBAPIError,) if optuna is None else (DBAPIError, optuna.StorageInternalError)


def _cause(error: BaseException) -> BaseException:
    """The database's own error: Optuna wraps it."""
    return error if isinstance(error, DBAPIError) or error.__cause__ is None else error.__cause__


def _sqlite_code(error: BaseException) -> int | None:
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _postgres_code(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _passes(error: BaseException) -> bool:
    """Whether time may mend an error: a lock, a deadlock, a server that is away."""
    if not isinstance(error, DBAPIError):
        return False
    code = _sqlite_code(error)
    if code is not None:
        return code in _SQLITE_PASSING
    if _postgres_code(error) in _POSTGRES_PASSING:
        return True
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
