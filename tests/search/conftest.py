"""Storage for tests: every test that asks for ``storage_url`` runs on SQLite and on a real PostgreSQL server."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import NullPool, create_engine

from clnp.forgetting import Point
from clnp.halving import Dropped
from clnp.usage import GroupUse, LayerUse, Usage
from search.ledger import create_tables
from search.records import Cell, CellRecord, CommitRecord, Opening, Provenance, Score
from search.store import Store, open_store

ROOT = Path(__file__).parents[2]

PASSWORD = "s3cret/p@ss{w}%rd"
"""Needs escaping in a URL, in str.format and in configparser."""


@dataclass(frozen=True)
class Postgres:
    """A server of our own, reached through TCP with a password."""

    programs: Path
    data: Path
    port: int

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://tester:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def run(self, *command: str) -> None:
        program = [str(self.programs / command[0]), *command[1:]]
        # initdb and pg_ctl refuse to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        subprocess.run(program, check=True, user=user, cwd="/", capture_output=True, timeout=60)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "-D", str(self.data), "-l", str(self.data / "log"), "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def execute(self, *statements: str) -> None:
        # None is kept: a statement that fails leaves no connection either.
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


def _programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture
def hung_up() -> Iterator[None]:
    """A closed terminal tells, as it does where the tests themselves do not run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server program on the path or in /usr/lib/postgresql/*/bin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # pytest's own temporary folders are closed to the user postgres.
    data = Path(tempfile.mkdtemp(prefix="clnp-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(data, "postgres")
    server = Postgres(programs, data, port)
    password = data.with_suffix(".password")
    password.write_text(PASSWORD)
    password.chmod(0o644)
    started = False
    try:
        server.run("initdb", "-D", str(data), "-U", "tester", "-A", "scram-sha-256", "--pwfile", str(password), "-N")
        server.start()
        started = True
        yield server
    finally:
        if started:
            server.stop()
        shutil.rmtree(data, ignore_errors=True)
        password.unlink()


def _make_tables(url: str) -> None:
    with open_store(url) as store:
        create_tables(store.database)
        store.database.rdb_storage().engine.dispose()


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """A database that holds our tables and Optuna's, to copy from: Optuna takes half a second to make its own."""
    postgres.execute("CREATE DATABASE prepared")
    _make_tables(postgres.url("prepared"))
    return "prepared"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a SQLite file."""
    path = tmp_path_factory.mktemp("template") / "prepared.db"
    _make_tables(f"sqlite:///{path}")
    # A connection that awaits the garbage collector would keep part of it in the log beside it.
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@contextmanager
def _database(postgres: Postgres, template: str) -> Iterator[str]:
    name = f"test_{os.urandom(6).hex()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    """A database on the server that holds no run."""
    with _database(postgres, postgres_template) as url:
        yield url


@pytest.fixture
def new_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Makes databases that hold no run, of the kind asked for."""
    with ExitStack() as undo:

        def make(kind: str) -> str:
            if kind == "sqlite":
                path = tmp_path / f"{os.urandom(6).hex()}.db"
                shutil.copy(request.getfixturevalue("sqlite_template"), path)
                return f"sqlite:///{path}"
            server, template = request.getfixturevalue("postgres"), request.getfixturevalue("postgres_template")
            return undo.enter_context(_database(server, template))

        yield make


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database on the server that holds no table."""
    with _database(postgres, "template1") as url:
        yield url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite file that holds no run."""
    shutil.copy(sqlite_template, tmp_path / "store.db")
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database of either kind that holds no run."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of either kind that holds no table, or is still to be made."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture(scope="session")
def s3_server_and_environment() -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "s3cret/key",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(f"{environment['AWS_ENDPOINT_URL']}/bucket")
        yield server, environment
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_environment(s3_server_and_environment: tuple["subprocess.Popen[bytes]", dict[str, str]]) -> dict[str, str]:
    """Where boto3 finds a server of our own, with a bucket named ``bucket``; nothing is set yet."""
    return s3_server_and_environment[1]


@pytest.fixture(scope="session")
def s3_server(
    s3_server_and_environment: tuple["subprocess.Popen[bytes]", dict[str, str]],
) -> "subprocess.Popen[bytes]":
    """That server's process."""
    return s3_server_and_environment[0]


def _make_bucket(url: str) -> None:
    """Once the server answers."""
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a bucket in which nothing lies."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{os.urandom(6).hex()}"


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where artifacts may lie, of either kind; nothing does."""
    return str(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "artifacts")


@pytest.fixture
def make_store(storage_url: str, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens the same storage again and again."""
    stores: list[Store] = []

    def make(artifacts: Path | str = tmp_path / "artifacts", **options: object) -> Store:
        stores.append(open_store(storage_url, str(artifacts), **options))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()


class Make:
    """Records that hang together: replica 0, a grid of so many learning rates, stacks of two."""

    provenance = Provenance((0, 1), "cpu", 1, {"torch": "2.13.0"})
    take: dict[str, object] = {  # noqa: RUF012
        "experiment_json": {"name": "run", "alpha": 1e-5, "third": 1 / 3},
        "data": "d" * 64,
        "versions": {"torch": "2.13.0"},
    }

    @staticmethod
    def cell(index: int) -> Cell:
        return Cell(index, (1e-4, 1e-3, 1 / 3), 0.001 * (index + 1))

    @classmethod
    def opening(cls, task: int = 0, cells: int = 4, replica: int = 0) -> Opening:
        stacks = tuple((index, index + 1) for index in range(0, cells, 2))
        return Opening(replica, task, "d" * 64, tuple(map(cls.cell, range(cells))), stacks, (9, 9))

    @classmethod
    def record(cls, index: int, *, artifact: str | None = None, correct: int = 90) -> CellRecord:
        return CellRecord(
            cell=cls.cell(index),
            diverged=None,
            score=Score(correct, 100),
            majority=12,
            epochs=(50, correct, 80),
            epoch=2,
            staircase=(Point(None, correct, (9, 9), 7), Point(0.1 + 0.2, 60, (3, 2), 700)),
            artifact=artifact or f"{index:064x}",
            size=1234,
            provenance=cls.provenance,
            started=1_700_000_000.25,
            ended=1_700_000_060.5,
        )

    @classmethod
    def diverged(cls, index: int) -> CellRecord:
        return CellRecord(
            cell=cls.cell(index),
            diverged="not finite after epoch 3",
            score=None,
            majority=12,
            epochs=(),
            epoch=0,
            staircase=(),
            artifact=None,
            size=0,
            provenance=cls.provenance,
            started=1_700_000_000.0,
            ended=1_700_000_030.0,
        )

    @classmethod
    def dropped(cls, index: int) -> CellRecord:
        found = cls.diverged(index)
        return replace(found, diverged=None, epochs=(20, 30), dropped=Dropped(2, 30, 90, 89, 100))

    @classmethod
    def commit(cls, winner: int = 0, *, task: int = 0, artifact: str = "c" * 64) -> CommitRecord:
        return CommitRecord(
            replica=0,
            task=task,
            winner=cls.cell(winner),
            point=Point(0.1 + 0.2, 60, (3, 2), 700),
            unpruned=Score(90, 100),
            validation=Score(60, 100),
            test=Score(55, 100),
            best=90,
            needed=60,
            candidates=(0, 1),
            missing=(),
            widths=(9, 9),
            claimed=(3, 2),
            free=(6, 7),
            usage=Usage(
                (GroupUse("hidden1", 3, 0, 6), GroupUse("hidden2", 2, 0, 7)), (LayerUse("output", 9, 0, 0, 1 / 3),)
            ),
            artifact=artifact,
            size=99,
            fingerprints=("f" * 64,) * (task + 1),
            changed=0,
            matrix=(Score(55, 100),) * (task + 1),
            provenance=cls.provenance,
            started=1_700_000_100.0,
            ended=1_700_000_101.0,
        )


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another Python process with a script and its arguments, after the words of ``prefix``; whatever still runs
    at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()
        process.communicate()


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Gives up root's rights when called, until the test ends: root may read and write whatever the mode says."""
    changed = False

    def become() -> None:
        nonlocal changed
        if os.geteuid() == 0:
            for folder in (tmp_path, *list(tmp_path.parents)[:3]):
                if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
                    folder.chmod(folder.stat().st_mode | 0o055)
            os.seteuid(65534)
            changed = True

    yield become
    if changed:
        os.seteuid(0)
