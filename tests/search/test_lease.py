"""The lease. Promise 6: one writer."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import delete, update

import search.database
import search.lease
from search.errors import BadInput, Held, LeaseLost
from search.lease import Lease, this_process
from search.ledger import Leases, Runs
from search.store import Store, open_store

ROOT = Path(__file__).parents[2]

HOLD = """
import os, signal, socket, sys, threading
from search.database import Database
from search.errors import LeaseLost
from search.store import open_store
url, artifacts, host, seconds = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
lock, retry = threading.RLock(), Database.retry
def retry_alone(*arguments, **settings):
    with lock:
        return retry(*arguments, **settings)
Database.retry = retry_alone
writer = open_store(url, artifacts, lease=float(seconds)).take("run", experiment_json={}, data="d", versions={})
print("won", flush=True)
for line in sys.stdin:
    if line == "stop\\n":
        with lock:
            os.kill(os.getpid(), signal.SIGSTOP)
        continue
    try:
        writer.note(line)
        print("written", flush=True)
    except LeaseLost as error:
        print("lost:", error, flush=True)
"""
"""Holds the lease of a run and writes a note for each line that it is given. At "stop" it stops itself outside of any
transaction, its lease's thread with it."""

TAKE = """
import os, signal, sys
from search.errors import Held
from search.store import open_store
store = open_store(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
try:
    writer = store.take("run", experiment_json={}, data="d", versions={})
except Held as error:
    print("held", flush=True)
    sys.exit(error.exit_code)
print("won", flush=True)
sys.stdin.readline()
"""


def _say(process: subprocess.Popen[str], line: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _stop(process: subprocess.Popen[str]) -> None:
    """A process stopped within a transaction would lock everybody else out of a SQLite file."""
    _say(process, "stop")
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None
        time.sleep(0.01)


def _move(store: Store, **values: object) -> None:
    """Make the lease look as if another process held it."""
    with store.database.engine.begin() as connection:
        connection.execute(update(Leases).values(**values))


def test_of_processes_that_race_one_wins(
    storage_url: str, tmp_path: Any, child: Callable[..., subprocess.Popen[str]]
) -> None:
    children = [child(TAKE, storage_url, str(tmp_path / "artifacts")) for _ in range(2)]
    assert [_hear(process) for process in children] == ["ready"] * 2
    for process in children:
        _say(process)
    assert sorted(map(_hear, children)) == ["held", "won"]
    with open_store(storage_url, create=False) as store:
        holder = store.holder("run")
    assert holder is not None
    assert holder.live
    assert holder.pid in [process.pid for process in children]


def test_a_killed_process_is_taken_over_at_once(
    make_store: Callable[..., Store],
    storage_url: str,
    tmp_path: Any,
    child: Callable[..., subprocess.Popen[str]],
    make: Any,
) -> None:
    process = child(TAKE, storage_url, str(tmp_path / "artifacts"))
    _hear(process)
    _say(process)
    assert _hear(process) == "won"
    store = make_store()
    began = time.monotonic()
    with pytest.raises(Held, match=rf"run run is held by process {process.pid} on host .*--name"):
        store.take("run", **make.take, wait=pytest.fail)
    assert time.monotonic() - began < 2
    process.send_signal(signal.SIGKILL)  # not waited for: a zombie is dead too
    time.sleep(0.2)
    holder = store.holder("run")
    assert holder is not None
    assert not holder.live
    store.take("run", **make.take, wait=pytest.fail).release("done")
    assert [attempt.outcome for attempt in store.attempts("run")] == ["died", "done"]


def test_a_stopped_process_is_waited_for(
    make_store: Callable[..., Store],
    storage_url: str,
    tmp_path: Any,
    child: Callable[..., subprocess.Popen[str]],
    make: Any,
) -> None:
    """It lives but renews nothing: exit 4 only while the lease is being renewed. Woken up it writes nothing."""
    store = make_store(lease=5.0)
    process = _hold(child, storage_url, tmp_path, seconds=5.0)
    _stop(process)
    with pytest.raises(Held, match="which is running"):
        store.take("run", **make.take, wait=pytest.fail)
    time.sleep(1.8)
    holder = store.holder("run")
    assert holder is not None
    assert holder.live
    told: list[str] = []
    with store.take("run", **make.take, wait=told.append) as writer:
        assert len(told) == 1
        assert f"held by process {process.pid} on host" in told[0]
        process.send_signal(signal.SIGCONT)
        _say(process)
        assert re.match(rf"lost: .*taken over by process {os.getpid()} on host", _hear(process))
        writer.note("in time")
    assert [(attempt.outcome, attempt.notes) for attempt in store.attempts("run")] == [
        ("died", ()),
        ("ended", ("in time",)),
    ]


def test_a_process_that_renews_late_keeps_it(make_store: Callable[..., Store], make: Any) -> None:
    store = make_store(lease=30)
    writer = store.take("run", **make.take)
    with store.database.engine.begin() as connection:
        connection.execute(update(Leases).values(expires=store.database.now + 2.0))
    threading.Timer(0.2, writer.note, ["late, but there"]).start()
    told: list[str] = []
    with pytest.raises(Held, match="which is running"):
        store.take("run", **make.take, wait=told.append)
    assert told == []
    writer.release("done")


def test_a_lease_that_ran_out_is_not_live_and_not_waited_for(make_store: Callable[..., Store], make: Any) -> None:
    store = make_store(lease=0.5)
    writer = store.take("run", **make.take)
    writer._lease.stop()
    time.sleep(0.7)
    holder = store.holder("run")
    assert holder is not None
    assert not holder.live
    store.take("run", **make.take, wait=pytest.fail).release("done")


def test_a_run_that_is_gone_is_not_waited_for(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row goes between its making and the lease: neither before a look nor after one is it tried for ever."""
    store.take("run", **make.take).release("done")

    def gone() -> None:
        with store.database.engine.begin() as connection:
            for table in reversed(Runs.metadata.sorted_tables):
                connection.execute(delete(table))

    with monkeypatch.context() as patch:
        acquire = Lease.acquire
        patch.setattr(Lease, "acquire", lambda *arguments, **options: (gone(), acquire(*arguments, **options))[1])
        with pytest.raises(BadInput, match="run run was deleted just now; the same command makes it anew"):
            store.take("run", **make.take)
    looks = iter([lambda: (None, 0.0)])
    look = search.lease._look
    monkeypatch.setattr(search.lease, "_look", lambda *arguments: next(looks, lambda: look(*arguments))())
    began = time.monotonic()
    with pytest.raises(BadInput, match="was deleted just now"):
        Lease.acquire(store.database, 7, "run")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "elsewhere", [{"host": "elsewhere"}, {"namespace": "another container"}, {"boot": "another host of that name"}]
)
def test_a_lease_elsewhere_is_waited_for(
    make_store: Callable[..., Store], make: Any, elsewhere: dict[str, str]
) -> None:
    store = make_store(lease=3.5)
    writer = store.take("run", **make.take)
    writer._lease.stop()
    _move(store, **elsewhere)
    told: list[str] = []
    began = time.monotonic()
    other = store.take("run", **make.take, wait=told.append)
    assert 2 < time.monotonic() - began < 8
    assert len(told) == 1
    assert f"held by process {os.getpid()} on host" in told[0]
    assert "waiting for the end of its lease at" in told[0]
    with pytest.raises(LeaseLost, match="was taken over by process"):
        writer.note("late")
    other.release("done")


def test_a_lease_elsewhere_that_is_renewed_is_held(make_store: Callable[..., Store], make: Any) -> None:
    """Exit 4 only while it is being renewed."""
    store = make_store()
    writer = store.take("run", **make.take)
    _move(store, host="elsewhere")
    for take_over in (False, True):
        began = time.monotonic()
        with pytest.raises(Held, match="being renewed; end it first, or give a new run another --name") as caught:
            store.take("run", **make.take, wait=pytest.fail, take_over=take_over)
        assert caught.value.exit_code == 4
        assert time.monotonic() - began < 2
    with pytest.raises(Held):
        store.delete("run")
    writer.release("done")


def _hold(
    child: Callable[..., subprocess.Popen[str]], url: str, folder: Path, place: str = "", seconds: float = 30
) -> subprocess.Popen[str]:
    """A process that holds the lease: here, or as if it were elsewhere; of its own, where the kernel says so too."""
    host, prefix = "elsewhere" if place == "another host" else "", ()
    if place.startswith("another") and not host:
        if shutil.which("unshare") is None or os.geteuid() != 0:
            pytest.skip("needs unshare(1) and root")
        name = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
        prefix = name if "host" in place else ["unshare", "--pid", "--fork", "--kill-child"]
    process = child(HOLD, url, str(folder / "artifacts"), host, str(seconds), prefix=prefix)
    assert _hear(process) == "won"
    return process


COMMAND = """
import sys
from pathlib import Path
from search.cli import main
code = main(sys.argv[2:])
schedule = Path("/proc/self/schedstat")
Path(sys.argv[1]).write_text(schedule.read_text().split()[1] if schedule.exists() else "0")
sys.exit(code)
"""
"""A command that writes down how many nanoseconds it waited for a processor."""


OTHERS = ["another host of its own", pytest.param("another container", marks=pytest.mark.slow)]


@pytest.mark.parametrize("place", ["this host", *OTHERS])
def test_a_second_driver_is_refused_in_under_two_seconds(
    storage_url: str, tmp_path: Path, child: Callable[..., subprocess.Popen[str]], place: str
) -> None:
    """The whole command, but for what it waits while others use the processors; the best of three."""
    _hold(child, storage_url, tmp_path, place)
    waited, took = tmp_path / "waited", []
    words = [sys.executable, "-c", COMMAND, str(waited), "run", "quickstart", "--name", "run", "--backend", "inline"]
    while not took or (min(took) >= 2 and len(took) < 3):
        began = time.monotonic()
        environment = {**os.environ, "CLNP_SEARCH_STORAGE": storage_url}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
        took.append(time.monotonic() - began - int(waited.read_text()) / 1e9)
        assert done.returncode == 4
        assert done.stdout == ""
        why = "which is running" if place == "this host" else "whose lease is being renewed"
        expected = rf"clnp-search: run run is held by process \d+ on host \S+, {why}; end it first, .*--name\n"
        assert re.fullmatch(expected, done.stderr)
    # A machine with more to do than it can says nothing about how long a command takes.
    assert min(took) < 2 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1)


@pytest.mark.parametrize("place", OTHERS)
def test_a_driver_that_was_killed_elsewhere_is_followed_at_the_end_of_its_lease(
    make_store: Callable[..., Store],
    storage_url: str,
    tmp_path: Path,
    child: Callable[..., subprocess.Popen[str]],
    make: Any,
    place: str,
) -> None:
    process = _hold(child, storage_url, tmp_path, place, 4.0)
    process.kill()
    process.wait()
    store = make_store(lease=4.0)
    holder = store.holder("run")
    assert holder is not None
    told: list[str] = []
    with store.take("run", **make.take, wait=told.append):
        (text,) = told
        assert re.search(
            r"waiting for the end of its lease at [\d:]+ \(\d s\); if that process is known to be gone, --take-over",
            text,
        )
        mine = store.holder("run")
        assert mine is not None
        assert -0.1 < mine.since - holder.until < 2


@pytest.mark.parametrize("place", ["another host", pytest.param("another host of its own", marks=pytest.mark.slow)])
def test_the_lease_of_a_driver_that_is_gone_is_taken_over(
    store: Store,
    storage_url: str,
    tmp_path: Path,
    child: Callable[..., subprocess.Popen[str]],
    make: Any,
    place: str,
) -> None:
    """Promise 6: without waiting for its end. Were it not gone, it would write no more."""
    process = _hold(child, storage_url, tmp_path, place)
    _say(process)
    assert _hear(process) == "written"
    _stop(process)
    told: list[str] = []
    began = time.monotonic()
    with store.take("run", **make.take, wait=told.append, take_over=True) as writer:
        assert 1.5 < time.monotonic() - began < 6
        (text,) = told
        expected = (
            rf"took over the lease of process {process.pid} on host elsewhere, which had not renewed it for \d+ s"
        )
        assert re.match(expected, text)
        process.send_signal(signal.SIGCONT)
        _say(process)
        assert re.match(rf"lost: .*taken over by process {os.getpid()} on host", _hear(process))
        writer.note("in time")
    assert [(attempt.outcome, attempt.notes) for attempt in store.attempts("run")] == [
        ("died", ("go\n",)),
        ("ended", (text, "in time")),
    ]


def test_a_driver_that_is_seen_is_not_taken_over_from(make_store: Callable[..., Store], make: Any) -> None:
    """It may have been stopped by hand."""
    store = make_store()
    writer = store.take("run", **make.take)
    writer._lease.stop()
    with store.database.engine.begin() as connection:
        connection.execute(update(Leases).values(expires=store.database.now + 20.0))
    with pytest.raises(Held, match=r"which is there, though .*; end it first: --take-over is for"):
        store.take("run", **make.take, wait=pytest.fail, take_over=True)
    writer.release("done")


@pytest.mark.slow
def test_a_driver_that_is_stopped_within_a_transaction_locks_nobody_out(
    postgres_url: str, tmp_path: Path, child: Callable[..., subprocess.Popen[str]], make: Any
) -> None:
    """Nor does one whose host is gone: the server ends what is idle in a transaction."""
    settings = "SET idle_in_transaction_session_timeout = '1s'"
    assert settings.replace("1s", "15s") in search.database._POSTGRES_SESSION
    script = f"import search.database\nsearch.database._POSTGRES_SESSION = {settings!r}\n{HOLD}"
    script = script.replace("for line", "writer._lease.check(writer._database.engine.begin().__enter__())\nfor line")
    process = child(script, postgres_url, str(tmp_path / "artifacts"), "elsewhere", "2")
    assert _hear(process) == "won"
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    with open_store(postgres_url, str(tmp_path / "artifacts"), lease=2) as store:
        began = time.monotonic()
        store.take("run", **make.take, wait=lambda _: None).release("done")
        assert time.monotonic() - began < 10


def test_waiting_ends_when_nobody_wants_to_wait(make_store: Callable[..., Store], make: Any) -> None:
    store = make_store(lease=30)
    writer = store.take("run", **make.take)
    _move(store, host="elsewhere")
    writer._lease.stop()
    threading.Timer(2.5, store.database.hurry).start()
    began = time.monotonic()
    with pytest.raises(Held, match="not waited for"):
        store.take("run", **make.take, wait=print)
    assert time.monotonic() - began < 5
    writer.release("done")


def test_one_that_is_renewed_after_a_look_is_not_taken(store: Store, make: Any) -> None:
    """Promise 6: what was seen of it must still stand."""
    with store.take("run", **make.take) as writer:
        writer._lease.stop()
        _move(store, host="elsewhere")
        watch = store.watch("run")
        assert watch is not None
        writer.note("there")
        assert not search.lease._seize(store.database, watch.run_id, watch.seen, "another", 30)
        writer.note("still there")
        watch = store.watch("run")
        assert watch is not None
        assert search.lease._seize(store.database, watch.run_id, watch.seen, "another", 30)


def test_the_thread_renews_it(make_store: Callable[..., Store], make: Any) -> None:
    store = make_store(lease=0.6)
    writer = store.take("run", **make.take)
    first = store.holder("run")
    time.sleep(1.2)
    later = store.holder("run")
    assert first is not None
    assert later is not None
    assert later.until > first.until + 0.5
    writer.release("done")
    assert store.holder("run") is None
    assert not writer._lease._thread.is_alive()


def test_a_lost_lease_writes_nothing(store: Store, make: Any) -> None:
    writer = store.take("run", **make.take)
    writer.open_task(make.opening())
    writer.add_cell(0, 0, make.record(0))
    before = store.history("run"), store.run("run"), store.attempts("run"), store.jobs("run")
    _move(store, token="another", host="elsewhere", pid=7)
    writes: list[Callable[[], object]] = [
        lambda: writer.open_task(make.opening(task=1)),
        lambda: writer.hand_out("stack", 0, 0, (0, 1)),
        lambda: writer.close_job(1, "done"),
        lambda: writer.progress(1, "here", 1, 0.5),
        lambda: writer.add_cell(0, 0, make.record(1)),
        lambda: writer.add_commit(make.commit()),
        lambda: writer.update_run({}),
        lambda: writer.finish("finished"),
        lambda: writer.note("late"),
        lambda: writer.remove_artifacts(["a" * 64]),
    ]
    for write in writes:
        with pytest.raises(LeaseLost, match="taken over by process 7 on host elsewhere") as caught:
            write()
        assert caught.value.exit_code == 4
    writer.release("late")
    assert (store.history("run"), store.run("run"), store.attempts("run"), store.jobs("run")) == before


def test_optuna_writes_stand_or_fall_with_the_lease(store: Store, make: Any) -> None:
    """The lease is lost between our check and Optuna's transaction: no study, no trial."""
    writer = store.take("run", **make.take)
    writer.open_task(make.opening())
    studies = writer._studies
    study = studies.open("run/replica-0/task-00", writer._lease.check)
    _move(store, token="another")
    with pytest.raises(LeaseLost):
        studies.add(study, make.record(0), layers=("a", "b", "c"), grid=make.opening().cells, check=writer._lease.check)
    with pytest.raises(LeaseLost):
        studies.open("run/replica-0/task-01", writer._lease.check)
    assert study.trials == []
    assert [summary.study_name for summary in studies._storage.get_all_studies()] == ["run/replica-0/task-00"]
    writer.release("late")


def test_a_process_is_known_by_its_start(child: Callable[..., subprocess.Popen[str]]) -> None:
    here = this_process()
    assert here.standing() == "alive"
    assert replace(here, started=here.started - 60).standing() == "dead"
    assert replace(here, pid=2**22 - 1).standing() == "dead"
    assert replace(here, host="elsewhere").standing() == "unknown"
    assert replace(here, namespace="another").standing() == "unknown"
    assert replace(here, boot="another").standing() == "unknown"
    other = child("import search.lease as l; p = l.this_process(); print(p.pid, p.started, flush=True); input()")
    pid, started = _hear(other).split()
    seen = replace(here, pid=int(pid), started=float(started))
    assert seen.standing() == "alive"
    os.kill(seen.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert seen.standing() == "dead"


@pytest.mark.parametrize("raised", [psutil.NoSuchProcess, psutil.AccessDenied])
def test_a_process_that_is_hidden_is_not_held_to_be_dead(raised: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, where /proc is mounted with ``hidepid=2`` or ``hidepid=1``: its lease would be taken."""
    here, see, ask = this_process(), psutil.Process, os.kill
    theirs = replace(here, pid=2**22 - 1)

    def look(pid: int) -> psutil.Process:
        if pid == theirs.pid:
            raise raised(pid)
        return see(pid)

    def kill(pid: int, number: int) -> None:
        if pid == theirs.pid:
            assert number == 0
            raise PermissionError
        ask(pid, number)

    monkeypatch.setattr("search.lease.psutil.Process", look)
    monkeypatch.setattr("search.lease.os.kill", kill)
    assert theirs.standing() == "unknown"


def test_cannot_be_pickled(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        for thing in (writer, writer._lease, writer._studies):
            with pytest.raises(TypeError, match="database credentials"):
                pickle.dumps(thing)
    assert isinstance(writer._lease, Lease)
