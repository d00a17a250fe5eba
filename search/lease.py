"""The lease: one driver a run. It names a process, is renewed by a thread, and every write checks it."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

import psutil
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from search.database import Database
from search.errors import BadInput, Held, LeaseLost, SearchError
from search.ledger import Leases, Runs

__all__ = ["DURATION", "Holder", "Lease", "Process", "holder"]

DURATION = 30.0
"""Seconds that a lease lasts beyond its last renewal."""

_POLL = 0.5

# Start times come from a clock of 10 ms and a boot time in whole seconds.
_SAME_START = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process that another one, on this host or elsewhere, can tell from every other.

    Attributes:
        host: The host's name.
        boot: The kernel's name for this boot; empty where it has none.
        namespace: The process-id namespace: containers share a host and its boot, but cannot see each other's.
        started: Seconds after the host's start, which no change of its clock moves.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: float

    def standing(self) -> Literal["alive", "dead", "unknown"]:
        """Whether it runs, as far as this process can see."""
        here = this_process()
        if self.host != here.host:
            return "unknown"
        if self.boot != here.boot:
            return "dead"  # the host was started anew since
        if self.namespace != here.namespace:
            return "unknown"
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return "dead"
            return "alive" if abs(_start(process) - self.started) < _SAME_START else "dead"
        except psutil.NoSuchProcess:
            return "dead"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run's lease, since when and until when unless renewed (seconds since 1970).

    Attributes:
        live: Whether the lease runs, as far as its holder is not seen to be dead.
    """

    host: str
    pid: int
    since: float
    until: float
    live: bool


class Lease:
    """A lease that this process holds until :meth:`release`, or until :attr:`lost`.

    Made by :meth:`acquire`; :meth:`keep` starts the thread that renews it.
    """

    def __init__(self, database: Database, run_id: int, name: str, token: str, duration: float) -> None:
        self.token = token
        self.lost = False
        self._database = database
        self._run_id = run_id
        self._name = name
        self._duration = duration
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {name}", daemon=True)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Lease holds database credentials and cannot be pickled")

    @classmethod
    def acquire(
        cls,
        database: Database,
        run_id: int,
        name: str,
        *,
        duration: float = DURATION,
        wait: Callable[[str], None] | None = None,
        poll: float = _POLL,
    ) -> "Lease":
        """Take the lease: at once if nobody holds it or its holder is seen to be dead, else when it has run out.

        One that lives and no longer renews it, such as a stopped process, loses it too: its writes check the token.

        Args:
            duration: Seconds that it lasts beyond its last renewal.
            wait: Told, once, who holds it and until when, before it is waited for. Without it there is no waiting.
            poll: Seconds between looks while waiting.

        Raises:
            Held: Its holder is renewing it.
            BadInput: The run is there no longer.
        """
        token = secrets.token_hex(16)
        first: tuple[str, int] | None = None
        while True:
            row, now = database.retry(lambda: _look(database, run_id, name))
            seen = None if row is None else (row.token, row.renewals)
            standing = "dead" if row is None else _process(row).standing()
            if row is None or standing == "dead" or row.expires <= now:
                if database.retry(lambda seen=seen: _seize(database, run_id, seen, token, duration)):  # type: ignore[misc]
                    return cls(database, run_id, name, token, duration)
                who = f"run {name} was taken by another driver just now"
            else:
                who = f"run {name} is held by process {row.pid} on host {row.host}"
                left = row.expires - now
                why = f"whose lease lasts for another {left:.0f} s" if wait is None else ""
                if first not in (None, seen):
                    why = "whose lease is being renewed"
                if standing == "alive" and left > duration / 2:  # one that is stopped is alive too, and has less left
                    why = "which is running"
                if why or wait is None:
                    raise Held(f"{who}, {why}; end it first, or give this run another --name")
                if first is None:
                    first = seen
                    until = time.strftime("%H:%M:%S", time.localtime(row.expires))
                    wait(f"{who}; waiting for the end of its lease at {until} ({left:.0f} s)")
            if not database.pause(poll):
                raise Held(f"{who}; not waited for")

    def check(self, connection: Connection) -> None:
        """Renew the lease within a transaction, whose writes then stand or fall with it: the row stays locked.

        Raises:
            LeaseLost: Another driver has it.
        """
        if not self.lost:
            expires = self._database.now + self._duration
            found = connection.execute(
                update(Leases)
                .where(Leases.run_id == self._run_id, Leases.token == self.token)
                .values(expires=expires, renewals=Leases.renewals + 1)
            )
            if found.rowcount == 1:
                return
            self.lost = True
        row = connection.execute(select(Leases.host, Leases.pid).where(Leases.run_id == self._run_id)).first()
        who = "another driver" if row is None else f"process {row.pid} on host {row.host}"
        raise LeaseLost(f"run {self._name} was taken over by {who}; this driver writes no more")

    def keep(self) -> None:
        """Renew it from now on, three times in its duration."""
        self._thread.start()

    def release(self) -> None:
        """Give it back. Nothing happens if it was lost."""
        self.stop()

        def give() -> None:
            with self._database.engine.begin() as connection:
                self.drop(connection)

        self._database.retry(give)

    def drop(self, connection: Connection) -> None:
        """Remove the lease's row within a transaction."""
        connection.execute(delete(Leases).where(Leases.run_id == self._run_id, Leases.token == self.token))

    def stop(self) -> None:
        """Renew it no longer."""
        self._released.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _renew(self) -> None:
        def renew() -> None:
            with self._database.engine.begin() as connection:
                if not self._released.is_set():
                    self.check(connection)

        while not self._released.wait(self._duration / 3):
            try:
                self._database.retry(renew)
            except LeaseLost:
                return
            except SearchError:
                continue  # the writer meets the same error and says so


def holder(connection: Connection, run_id: int, now: float) -> Holder | None:
    """Who holds a run's lease at ``now``, or None."""
    row = connection.execute(select(*Leases.__table__.columns).where(Leases.run_id == run_id)).first()
    if row is None:
        return None
    live = row.expires > now and _process(row).standing() != "dead"
    return Holder(row.host, row.pid, row.taken, row.expires, live)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def this_process() -> Process:
    """The process that runs this."""
    pid = os.getpid()
    return Process(socket.gethostname(), _boot(), _namespace(), pid, _start(psutil.Process(pid)))


def _start(process: psutil.Process) -> float:
    # Both are by the host's clock, so a change of it cancels out.
    return process.create_time() - psutil.boot_time()


def _process(row: Row[tuple[object, ...]]) -> Process:
    return Process(row.host, row.boot, row.namespace, row.pid, row.started)


def _look(database: Database, run_id: int, name: str) -> tuple[Row[tuple[object, ...]] | None, float]:
    with database.engine.connect() as connection:
        # Without the run's row no lease can be put, whoever tries.
        if connection.execute(select(Runs.id).where(Runs.id == run_id)).first() is None:
            raise BadInput(f"run {name} was deleted just now; the same command makes it anew")
        row = connection.execute(select(*Leases.__table__.columns).where(Leases.run_id == run_id)).first()
        return row, database.clock(connection)


def _seize(database: Database, run_id: int, seen: tuple[str, int] | None, token: str, duration: float) -> bool:
    """Put our token where what was seen still stands. Of several that try, one succeeds."""
    here = this_process()
    try:
        with database.engine.begin() as connection:
            if connection.execute(select(Leases.token).where(Leases.run_id == run_id)).scalar() == token:
                return True  # by a write whose answer was lost
            values = {
                "token": token,
                "host": here.host,
                "boot": here.boot,
                "namespace": here.namespace,
                "pid": here.pid,
                "started": here.started,
                "taken": database.now,
                "expires": database.now + duration,
                "renewals": 0,
            }
            if seen is None:
                connection.execute(insert(Leases).values(run_id=run_id, **values))
                return True
            held = Leases.run_id == run_id, Leases.token == seen[0], Leases.renewals == seen[1]
            return connection.execute(update(Leases).where(*held).values(**values)).rowcount == 1
    except IntegrityError:
        return False
