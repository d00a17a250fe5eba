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
from typing import Any, Literal, NoReturn, TypeAlias

import psutil
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from search.database import Database
from search.errors import BadInput, Held, LeaseLost, SearchError
from search.ledger import Leases, Runs

__all__ = ["DURATION", "Holder", "Lease", "Process", "Watch", "holder", "holders", "this_process"]

DURATION = 30.0
"""Seconds that a lease lasts beyond its last renewal."""

_INTERVAL = 0.5
"""Seconds between two renewals at most: who looks on has to see soon that the holder is there."""

_WATCH = 4
"""So many intervals without a renewal, and its holder is silent."""

_POLL = 0.1
"""Seconds between two looks."""

_END = 5.0
"""Seconds that the thread which renews may take to end: a try to connect lasts 4. One that outlives its database's
close would leave it a connection that nobody closes."""

Standing: TypeAlias = Literal["alive", "dead", "unknown"]

_INSTEAD = "end it first, or give a new run another --name"

# Start times come from a clock of 10 ms and a boot time in whole seconds.
_SAME_START = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process that another one, on this host or elsewhere, can tell from every other.

    Attributes:
        host: The host's name.
        boot: The kernel's name for this boot; empty where it has none. Two hosts may share a name, but not this.
        namespace: The process-id namespace: containers share a host and its boot, but cannot see each other's.
        started: Seconds after the host's start, which no change of its clock moves.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: float

    def standing(self) -> Standing:
        """Whether it runs, as far as this process can see."""
        here = this_process()
        # Another boot: this host was started anew since, which takes as long as a lease lasts, or two have one name.
        if (self.host, self.boot, self.namespace) != (here.host, here.boot, here.namespace):
            return "unknown"
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return "dead"
            return "alive" if abs(_start(process) - self.started) < _SAME_START else "dead"
        except psutil.AccessDenied:
            return "unknown"
        except psutil.NoSuchProcess:
            return "unknown" if _is_hidden(self.pid) else "dead"


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
        self.taken_over = ""
        """Whose it was, and since when that one is silent, where its end was not waited for."""
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
        watch: "Watch | None" = None,
        take_over: bool = False,
        wait: Callable[[str], None] | None = None,
    ) -> "Lease":
        """Take the lease: at once if nobody holds it or its holder is seen to be dead, else when it has run out and
        nobody renews it any more.

        One that lives and no longer renews it, such as a stopped process, loses it too: its writes check the token.

        Args:
            duration: Seconds that it lasts beyond its last renewal.
            watch: One that was begun before.
            take_over: Do not wait for the end of a lease that nobody renews, unless its holder is seen to be alive.
            wait: Told, once, who holds it and until when, before it is waited for; and from whom it was taken over.
                Without it there is no waiting.

        Raises:
            Held: Its holder is renewing it; or would have to be waited for, or is alive, and must not.
            BadInput: The run is there no longer.
        """
        token = secrets.token_hex(16)
        if watch is None or watch.run_id != run_id:
            watch = Watch(database, run_id, name, duration)
        told = False
        while True:
            state = watch.look()
            over = state == "silent" and take_over and not watch.ended
            if over:
                watch.refuse_alive()
            if over or state == "free" or (state == "silent" and watch.ended):
                seen = watch.seen
                if database.retry(lambda seen=seen: _seize(database, run_id, seen, token, duration)):  # type: ignore[misc]
                    lease = cls(database, run_id, name, token, duration)
                    lease.taken_over = watch.describe_over() if over else ""
                    return lease
            elif state == "silent" and not told:
                told = True
                watch.tell(wait)
            if not database.pause(_POLL):
                raise Held(f"{watch.who}; not waited for")

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
        """Renew it from now on, twice a second."""
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
            self._thread.join(timeout=_END)

    def _renew(self) -> None:
        def renew() -> None:
            if self._released.is_set():
                return
            with self._database.engine.begin() as connection:
                if not self._released.is_set():
                    self.check(connection)

        interval = _interval(self._duration)
        while not self._released.wait(interval):
            try:
                # After an outage this is heard of before anybody takes the lease for one that is silent.
                self._database.retry(renew, longest=interval)
            except LeaseLost:
                return
            except SearchError:
                continue  # the writer meets the same error and says so


class Watch:
    """Looks at a run's lease until it is clear whether its holder is there. It takes nothing.

    What a lease says, that it lasts until then, holds of a driver that was killed a moment ago too; and after an outage
    of the database every lease has run out. So a holder whose process cannot be seen is told from one that is gone by
    its renewals.

    Attributes:
        seen: Token and renewals of the lease as it was last seen; None: there is none.
        who: Who holds it, for messages.
    """

    def __init__(self, database: Database, run_id: int, name: str, duration: float = DURATION) -> None:
        self.run_id = run_id
        self.seen: tuple[str, int] | None = None
        self.who = f"run {name} was taken by another driver just now"
        self._database = database
        self._name = name
        self._duration = duration
        self._since = 0.0
        self._left = 0.0
        self._standing: Standing = "dead"
        self._process = ""

    @property
    def ended(self) -> bool:
        """Whether the lease had run out when last seen."""
        return self._left <= 0

    def look(self) -> Literal["free", "unclear", "silent"]:
        """``free``: nobody holds it, or one who is dead. ``silent``: its holder renews it no longer. ``unclear``: look
        again.

        Raises:
            Held: Its holder is renewing it.
            BadInput: The run is there no longer.
        """
        tries = 0

        def look() -> tuple[Row[tuple[object, ...]] | None, float]:
            nonlocal tries
            tries += 1
            return _look(self._database, self.run_id, self._name)

        row, now = self._database.retry(look)
        first, self.seen = self.seen, None if row is None else (row.token, row.renewals)
        if row is None:
            return "free"
        self._process = f"process {row.pid} on host {row.host}"
        self.who = f"run {self._name} is held by {self._process}"
        self._left = row.expires - now
        self._standing = _process(row).standing()
        if self._standing == "dead":
            return "free"
        interval = _interval(self._duration)
        renewed = first not in (None, self.seen)
        # One that is stopped is alive too, and has less left.
        if self._standing == "alive" and (renewed or self._left > self._duration - 3 * interval):
            raise Held(f"{self.who}, which is running; {_INSTEAD}")
        if renewed:
            raise Held(f"{self.who}, whose lease is being renewed; {_INSTEAD}")
        if first is None or tries > 1:  # while the database is away nobody can renew anything
            self._since = time.monotonic()
        return "silent" if time.monotonic() - self._since >= _WATCH * interval else "unclear"

    def settle(self) -> None:
        """Look until it is clear.

        Raises:
            Held, BadInput: See :meth:`look`.
        """
        while self.look() == "unclear" and self._database.pause(_POLL):
            pass

    def refuse_alive(self) -> None:
        """Refuse to take over from a process that this one can see.

        Raises:
            Held: It is there.
        """
        if self._standing == "alive":
            raise Held(
                f"{self.who}, which is there, though it renews its lease no longer; end it first: --take-over is for a "
                "holder that is gone"
            )

    def tell(self, wait: Callable[[str], None] | None) -> None:
        """Say what is waited for.

        Raises:
            Held: Nobody wants to wait.
        """
        if wait is None:
            raise Held(f"{self.who}, whose lease lasts for another {self._left:.0f} s; try again then, or {_INSTEAD}")
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + self._left))
        hint = "; if that process is known to be gone, --take-over does not wait"
        rather = "" if self._standing == "alive" else hint
        wait(f"{self.who}; waiting for the end of its lease at {until} ({self._left:.0f} s){rather}")

    def describe_over(self) -> str:
        """What is noted of a lease that was taken over before its end."""
        silent = self._duration - self._left
        return f"took over the lease of {self._process}, which had not renewed it for {silent:.0f} s (--take-over)"


def _interval(duration: float) -> float:
    return min(_INTERVAL, duration / 3)


def holder(connection: Connection, run_id: int, now: float) -> Holder | None:
    """Who holds a run's lease at ``now``, or None."""
    row = connection.execute(select(*Leases.__table__.columns).where(Leases.run_id == run_id)).first()
    return None if row is None else _holder(row, now)


def holders(connection: Connection, now: float) -> dict[int, Holder]:
    """Who holds the lease of each run at ``now``, by the run's id."""
    return {row.run_id: _holder(row, now) for row in connection.execute(select(*Leases.__table__.columns))}


def _holder(row: Row[Any], now: float) -> Holder:
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


def _is_hidden(pid: int) -> bool:
    """Whether a process that is not to be seen is there: another user's, where /proc hides these (``hidepid``)."""
    if os.name == "nt":
        return False  # where signal 0 is no question
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


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
