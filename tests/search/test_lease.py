"""The lease. Promise 6: one writer."""

import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, update

import search.lease
from search.errors import BadInput, Held, LeaseLost
from search.lease import Lease, this_process
from search.ledger import Leases, Runs
from search.store import Store, open_store

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


STOP = """
import sys
from search.errors import LeaseLost
from search.store import open_store
store = open_store(sys.argv[1], sys.argv[2], lease=1.8)
writer = store.take("run", experiment_json={}, data="d", versions={})
print("won", flush=True)
sys.stdin.readline()
try:
    writer.note("late")
except LeaseLost:
    print("lost", flush=True)
"""
"""Renews for the first time 0.6 seconds after it won: it can be stopped outside of any transaction."""


def _say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


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
    store = open_store(storage_url, create=False)
    holder = store.holder("run")
    assert holder is not None
    assert holder.live
    assert holder.pid in [process.pid for process in children]
    store.close()


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
    process = child(STOP, storage_url, str(tmp_path / "artifacts"))
    assert _hear(process) == "won"
    process.send_signal(signal.SIGSTOP)
    store = make_store(lease=1.8)
    with pytest.raises(Held, match="which is running"):
        store.take("run", **make.take, wait=pytest.fail)
    time.sleep(1.0)
    holder = store.holder("run")
    assert holder is not None
    assert holder.live
    with pytest.raises(Held, match=r"whose lease lasts for another [01] s; end it first"):
        store.delete("run")
    told: list[str] = []
    with store.take("run", **make.take, wait=told.append) as writer:
        assert len(told) == 1
        assert f"held by process {process.pid} on host" in told[0]
        process.send_signal(signal.SIGCONT)
        _say(process)
        assert _hear(process) == "lost"
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
    assert len(told) == 1
    writer.release("done")


def test_a_lease_that_ran_out_is_not_live_and_taken_at_once(make_store: Callable[..., Store], make: Any) -> None:
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
        Lease.acquire(store.database, 7, "run", poll=0.1)
    assert 0.1 < time.monotonic() - began < 2


def test_a_host_that_was_started_anew_is_taken_over_at_once(store: Store, make: Any) -> None:
    writer = store.take("run", **make.take)
    _move(store, boot="an earlier one")
    store.take("run", **make.take, wait=pytest.fail).release("done")
    with pytest.raises(LeaseLost):
        writer.note("late")


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": "another container"}])
def test_a_lease_elsewhere_is_waited_for(
    make_store: Callable[..., Store], make: Any, elsewhere: dict[str, str]
) -> None:
    store = make_store(lease=1.5)
    writer = store.take("run", **make.take)
    writer._lease.stop()
    _move(store, **elsewhere)
    told: list[str] = []
    began = time.monotonic()
    other = store.take("run", **make.take, wait=told.append)
    assert 0.5 < time.monotonic() - began < 4
    assert len(told) == 1
    assert f"held by process {os.getpid()} on host" in told[0]
    assert "waiting for the end of its lease at" in told[0]
    with pytest.raises(LeaseLost, match="was taken over by process"):
        writer.note("late")
    other.release("done")


def test_a_lease_elsewhere_that_is_renewed_is_held(make_store: Callable[..., Store], make: Any) -> None:
    """Exit 4 only while it is being renewed."""
    store = make_store(lease=3.0)
    writer = store.take("run", **make.take)
    _move(store, host="elsewhere")
    told: list[str] = []
    with pytest.raises(Held, match="being renewed") as caught:
        store.take("run", **make.take, wait=told.append)
    assert caught.value.exit_code == 4
    assert len(told) == 1
    with pytest.raises(Held):
        store.delete("run")
    writer.release("done")


def test_waiting_ends_when_nobody_wants_to_wait(make_store: Callable[..., Store], make: Any) -> None:
    store = make_store(lease=30)
    writer = store.take("run", **make.take)
    _move(store, host="elsewhere")
    threading.Timer(0.3, store.database.hurry).start()
    began = time.monotonic()
    with pytest.raises(Held, match="not waited for"):
        store.take("run", **make.take, wait=print)
    assert time.monotonic() - began < 3
    writer.release("done")


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


def test_a_process_is_known_by_its_start(child: Callable[..., subprocess.Popen[str]]) -> None:
    here = this_process()
    assert here.standing() == "alive"
    assert replace(here, started=here.started - 60).standing() == "dead"
    assert replace(here, pid=2**22 - 1).standing() == "dead"
    assert replace(here, host="elsewhere").standing() == "unknown"
    assert replace(here, namespace="another").standing() == "unknown"
    assert replace(here, boot="another").standing() == "dead"
    other = child("import search.lease as l; p = l.this_process(); print(p.pid, p.started, flush=True); input()")
    pid, started = _hear(other).split()
    seen = replace(here, pid=int(pid), started=float(started))
    assert seen.standing() == "alive"
    os.kill(seen.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert seen.standing() == "dead"


def test_cannot_be_pickled(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        for thing in (writer, writer._lease, writer._studies):
            with pytest.raises(TypeError, match="database credentials"):
                pickle.dumps(thing)
    assert isinstance(writer._lease, Lease)
