"""The database goes away, is locked or full, loses an answer: what runs waits, says so in one line, loses nothing."""

import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import psycopg.errors
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

import search.database
from search.database import Database
from search.driver import run_experiment
from search.errors import Held, Unavailable
from search.experiment import Experiment
from search.ledger import create_tables
from search.store import Store, open_store
from search.view import open_view

ROOT = Path(__file__).parents[2]

SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [40, 30]},
    "replicas": 2,
    "grid": {"alpha": [1e-3], "learning_rate": [0.005, 0.01]},
    "training": {"epochs": 30},
    "rule": {"margin": 3},
    "worker": {"gpu": 0, "cells": 1},
}

AWAY = re.compile(r"\d\d:\d\d:\d\d  \S+ cannot be used \(.+\); waiting for it, for 10 min at most\n")


def records(store: Store, *, replicas: int = 2, tasks: int = 2) -> Any:
    """All that a run leaves, but for when it came about; no job is left open and no trial there twice or running."""
    row = store.run("small")
    assert row is not None
    assert (row.state, store.jobs("small"), store.holder("small")) == ("finished", [], None)
    history = store.history("small")
    storage = store.database.rdb_storage()
    trials = {}
    for place in ((replica, task) for replica in range(replicas) for task in range(tasks)):
        study = optuna.load_study(study_name="small/replica-{}/task-{:02}".format(*place), storage=storage)
        trials[place] = sorted((trial.user_attrs["cell"], trial.state.name, trial.values) for trial in study.trials)
        assert len({cell for cell, *_ in trials[place]}) == len(trials[place]) == len(history.openings[place].cells)
        assert {state for _, state, _ in trials[place]} <= {"COMPLETE", "FAIL"}
    storage.engine.dispose()
    cells = {
        (place, index): replace(record, started=0.0, ended=0.0)
        for place, found in history.cells.items()
        for index, record in found.items()
    }
    commits = {place: replace(record, started=0.0, ended=0.0) for place, record in history.commits.items()}
    return history.openings, cells, commits, trials


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    with open_store(f"sqlite:///{folder}/store.db") as store, open(os.devnull, "w") as nowhere:
        with open_view(nowhere) as view:
            run_experiment(store, Experiment.model_validate(SMALL), name="small", backend="inline", view=view)
        return records(store)


class Command:
    """``clnp-search run`` in a process of its own; what it says is read as it comes."""

    def __init__(self, folder: Path, url: str, *options: str, **changes: Any) -> None:
        home = folder / "home"
        home.mkdir(exist_ok=True)
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        (folder / "small.yaml").write_text(json.dumps({**SMALL, **changes}))
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search", "run", "small.yaml", "--artifacts", "artifacts", *options],
            cwd=folder,
            env={
                **os.environ,
                "HOME": str(home),
                "CLNP_SEARCH_STORAGE": url,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def outages(self) -> list[str]:
        return [line for line in self.lines if AWAY.fullmatch(line)]

    def until(self, what: Callable[[], Any], seconds: float = 150) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < end, self.lines
            time.sleep(0.05)

    def until_works(self, url: str) -> None:
        """A worker trains, as far as the database says."""
        with open_store(url, patience=60) as store:
            self.until(lambda: any(job.epoch for job in store.jobs("small")))

    def end(self, *, outages: int, code: int = 0) -> None:
        """It ends well, and has told of outages, one line each, and else of nothing but events."""
        assert self.process.wait(600) == code, self.lines
        self._reader.join()
        assert len(self.outages) == outages, self.lines
        others = [line for line in self.lines if line not in self.outages]
        event = re.compile(r"\d\d:\d\d:\d\d  (replica \d|run (small|finished)|since the last attempt)")
        assert [line for line in others if not event.match(line)] == []


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(url: str, *options: str, **changes: Any) -> Command:
        started.append(Command(tmp_path, url, *options, **changes))
        return started[-1]

    yield start
    for each in started:
        with each.process:  # which closes its pipes
            each.process.kill()
            each._reader.join()


# A server that stops


@pytest.mark.parametrize(
    ("backend", "times", "seconds", "epochs"),
    [
        ("inline", 1, 3, 12),
        pytest.param("inline", 2, 3, 30, marks=pytest.mark.slow),
        pytest.param("tune", 2, 3, 100, marks=pytest.mark.slow),
        pytest.param("inline", 5, 30, 150, marks=pytest.mark.slow),
        pytest.param("tune", 5, 30, 1500, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1800)
def test_a_run_survives_a_server_that_stops(
    postgres: Any,
    postgres_url: str,
    tmp_path: Path,
    command: Callable[..., Command],
    undisturbed: Any,
    backend: str,
    times: int,
    seconds: float,
    epochs: int,
) -> None:
    """Promise 3: nothing is lost, and nothing said but one line an outage."""
    run = command(postgres_url, "--backend", backend, training={"epochs": epochs})
    for _ in range(times):
        run.until_works(postgres_url)
        postgres.stop()
        try:
            time.sleep(seconds)
        finally:
            postgres.start()
        time.sleep(min(seconds, 6))  # else one thread's pause could last from one outage to the next
    run.end(outages=times)
    if epochs != SMALL["training"]["epochs"]:
        other = tmp_path / "other"
        other.mkdir()
        with open_store(f"sqlite:///{other}/store.db") as store, open(os.devnull, "w") as nowhere:
            chosen = Experiment.model_validate({**SMALL, "training": {"epochs": epochs}})
            with open_view(nowhere) as view:
                run_experiment(store, chosen, name="small", backend="inline", view=view)
            undisturbed = records(store)
    with open_store(postgres_url) as store:
        assert records(store) == undisturbed


@pytest.mark.parametrize("backend", ["inline", pytest.param("tune", marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_that_waits(
    postgres: Any, postgres_url: str, command: Callable[..., Command], backend: str
) -> None:
    run = command(postgres_url, "--backend", backend, training={"epochs": 10**6})
    run.until_works(postgres_url)
    postgres.stop()
    try:
        run.until(lambda: run.outages)
        began = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 143
        assert time.monotonic() - began < 5
    finally:
        postgres.start()
    run._reader.join()
    assert run.lines[-1].startswith("interrupted; continue with: clnp-search resume small")


def test_an_outage_longer_than_the_lease_does_not_cost_it(
    postgres: Any, postgres_url: str, tmp_path: Path, make: Any
) -> None:
    """Promise 6: who meets a lease that ran out meanwhile looks whether it is renewed before it takes it."""
    with (
        open_store(postgres_url, str(tmp_path), lease=1.5) as store,
        open_store(postgres_url, str(tmp_path), lease=1.5) as other,
    ):
        writer = store.take("run", **make.take)
        with store.database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE clnp_leases SET host = 'elsewhere'")
        refused: list[bool] = []

        def take() -> None:
            with pytest.raises(Held, match="being renewed"):
                other.take("run", **make.take, wait=pytest.fail)
            refused.append(True)

        postgres.stop()
        thread = threading.Thread(target=take)
        try:
            thread.start()
            time.sleep(3)
        finally:
            postgres.start()
        thread.join()
        assert refused == [True]
        writer.note("still there")
        writer.release("done")


# Answers that are lost


@dataclass
class Lossy:
    """A way to a server that hands on every COMMIT, and of some loses the answer with the connection."""

    server: tuple[str, int]
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    lost: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def open(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.1)
            thread = threading.Thread(target=self._listen, args=(listener,))
            thread.start()
            try:
                yield int(listener.getsockname()[1])
            finally:
                self._ended.set()
                thread.join()

    def _listen(self, listener: socket.socket) -> None:
        threads = []
        while not self._ended.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threads.append(threading.Thread(target=self._carry, args=(client,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.server) as server:
            while not self._ended.is_set():
                for source in select.select([client, server], [], [], 0.1)[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and b"COMMIT\0" in data and self.draw.random() < 0.4:
                        server.recv(1 << 16)  # it is done
                        self.lost += 1
                        return


def write_all(store: Store, make: Any) -> Any:
    """Every kind of write; what the ledger then holds."""
    writer = store.take("run", **make.take)
    writer.open_task(make.opening())
    for stack in ((0, 1), (2, 3)):
        job = writer.hand_out("stack", 0, 0, stack)
        writer.progress(job, "here:1", 1, 0.5)
        for cell in stack:
            writer.add_cell(0, 0, make.record(cell))
        writer.close_job(job, "done")
    lost = writer.hand_out("commit", 0, 0, (0,))
    writer.close_job(lost, "lost", "its worker died")
    writer.add_commit(make.commit())
    writer.note("a note")
    writer.remove_artifacts([make.record(3).artifact])
    writer.finish("finished")
    writer.release("ended")
    with store.database.engine.connect() as connection:
        columns = "id, attempt_id, kind, replica, task, cells, state, worker, epoch, accuracy, note"
        jobs = connection.exec_driver_sql(f"SELECT {columns} FROM clnp_jobs ORDER BY id").all()
        trials = connection.exec_driver_sql("SELECT state, number FROM trials ORDER BY number").all()
    row = store.run("run")
    assert row is not None
    attempts = [(attempt.outcome, attempt.notes) for attempt in store.attempts("run")]
    found = store.history("run"), jobs, trials, attempts, row.state, store.holder("run"), len(store.runs())
    return *found, store.delete("run"), len(store.runs())


def test_writes_whose_answers_are_lost_are_written_once(
    new_url: Callable[[str], str], tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: each was done, looked like one that failed, and was tried again."""
    monkeypatch.setattr(search.database, "_FIRST_PAUSE", 0.001)
    with open_store(new_url("postgresql"), str(tmp_path / "one")) as store:
        expected = write_all(store, make)
    url = make_url(new_url("postgresql"))
    lossy = Lossy(("127.0.0.1", int(url.port or 0)))
    with lossy.open() as port, open_store(url.set(port=port).render_as_string(False), str(tmp_path / "two")) as store:
        assert write_all(store, make) == expected
    assert lossy.lost > 5


# A file that is locked, a disk that is full


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, 40])
def test_a_run_waits_for_a_file_that_another_process_has_locked(
    sqlite_url: str,
    tmp_path: Path,
    command: Callable[..., Command],
    child: Callable[..., subprocess.Popen[str]],
    undisturbed: Any,
    seconds: float,
) -> None:
    run = command(sqlite_url, "--backend", "inline")
    run.until_works(sqlite_url)
    process = child(LOCK, str(tmp_path / "store.db"), str(seconds))
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    process.wait()
    run.end(outages=1)
    assert "database is locked" in run.outages[0]
    with open_store(sqlite_url) as store:
        assert records(store) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("needs root to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_run_waits_for_room_on_a_full_disk(
    sqlite_url: str, tmp_path: Path, small_disk: Path, command: Callable[..., Command], undisturbed: Any
) -> None:
    shutil.copy(tmp_path / "store.db", small_disk)
    url = f"sqlite:///{small_disk}/store.db"
    run = command(url, "--backend", "inline")
    run.until_works(url)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    run.until(lambda: run.outages)
    time.sleep(1)
    ballast.unlink()
    run.end(outages=1)
    assert re.search("full|disk I/O error", run.outages[0])
    with open_store(url) as store:
        assert records(store) == undisturbed


# Who is told, and how long it is waited for


class Broken:
    """Work that fails until it is mended."""

    def __init__(self) -> None:
        self.mended = threading.Event()

    def __call__(self) -> str:
        if not self.mended.is_set():
            raise OperationalError("SELECT 1", {}, RuntimeError("server closed the connection"))
        return "done"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    one = Database(f"sqlite:///{tmp_path}/x.db")
    create_tables(one)
    yield one
    one.close()


def test_an_outage_that_several_threads_meet_is_told_once(database: Database) -> None:
    """Also while some of them succeed, such as those that only read."""
    told: list[str] = []
    database.on_outage = told.append
    for outage in (1, 2):
        work = [Broken() for _ in range(3)]
        threads = [threading.Thread(target=database.retry, args=(each,), kwargs={"longest": 0.2}) for each in work]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 3
        while len(told) < outage and time.monotonic() < end:
            time.sleep(0.02)
        work[0].mended.set()
        threads[0].join()
        for _ in range(5):
            assert database.retry(lambda: "read") == "read"
            time.sleep(0.1)
        for each, thread in zip(work, threads, strict=True):
            each.mended.set()
            thread.join()
        assert len(told) == outage
    assert told[0].endswith("x.db cannot be used (server closed the connection); waiting for it, for 60 s at most")


def test_after_the_patience_has_ended_nothing_waits_for_it_again(tmp_path: Path) -> None:
    """Else a driver that gives up would wait once more for each thing that it still wants to write down."""
    told: list[str] = []
    database = Database(f"sqlite:///{tmp_path}/x.db", patience=2.5, on_outage=told.append)
    with pytest.raises(Unavailable):
        database.retry(Broken())
    began = time.monotonic()
    for _ in range(10):
        with pytest.raises(Unavailable):
            database.retry(Broken())
    assert time.monotonic() - began < 1
    assert database.retry(lambda: "back") == "back"
    work = Broken()
    threading.Timer(0.3, work.mended.set).start()
    assert database.retry(work) == "done"
    assert len(told) == 1
    database.close()


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("", {}, psycopg.errors.DiskFull()),
        OperationalError("", {}, psycopg.errors.TooManyConnections()),
        OperationalError("", {}, psycopg.errors.AdminShutdown()),
        OperationalError("", {}, psycopg.errors.LockNotAvailable()),
        OperationalError("", {}, psycopg.errors.DeadlockDetected()),
        InternalError("", {}, psycopg.errors.ReadOnlySqlTransaction()),
    ],
    ids=lambda error: type(error.orig).__name__,
)
def test_what_time_mends_is_tried_again(database: Database, error: DBAPIError) -> None:
    failures = iter([error])

    def work() -> str:
        for each in failures:
            raise each
        return "done"

    assert database.retry(work) == "done"


def test_a_server_that_has_no_room_for_another_connection_is_waited_for(postgres: Any, postgres_url: str) -> None:
    """Many drivers at one server: the one that comes too many waits."""
    postgres.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 1", "GRANT tester TO few")
    url = make_url(postgres_url).set(username="few", password="few")
    try:
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(False)) as connection:
            threading.Timer(1.0, connection.close).start()
            began = time.monotonic()
            Database(url.render_as_string(False)).close()
            assert time.monotonic() - began > 0.9
    finally:
        postgres.execute("DROP ROLE few")


@pytest.mark.slow
def test_how_many_connections_a_driver_has(postgres_url: str, tmp_path: Path, command: Callable[..., Command]) -> None:
    """Five at most, and three while it has little to write: of 100, PostgreSQL's default, 20 drivers have enough."""
    run = command(postgres_url, "--backend", "inline", training={"epochs": 10**6})
    run.until_works(postgres_url)
    time.sleep(2)
    with psycopg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False)) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'clnp-search' "
        found = connection.execute(query).fetchone()
    assert found is not None
    assert 1 <= found[0] <= 5


@pytest.mark.slow
def test_a_locked_file_is_waited_for_with_a_short_patience_by_who_reads(tmp_path: Path) -> None:
    """An exclusive lock keeps readers out too; they wait for seconds, not for minutes."""
    path = tmp_path / "x.db"
    database = Database(f"sqlite:///{path}")
    create_tables(database)
    database.close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    done = subprocess.run(
        [sys.executable, "-m", "search", "status", "--storage", f"sqlite:///{path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    other.close()
    assert done.returncode == 1
    assert re.search(r"could not be used for 1\d s: database is locked", done.stderr)
