"""The database: what it refuses, what it survives, what it never shows."""

import copy
import logging
import os
import pickle
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

import search.whereabouts
from search.cli import main
from search.database import Database
from search.errors import BadInput, Unavailable
from search.ledger import SCHEMA, Schema, create_tables
from search.store import open_store


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", ["'***' is not a database URL", "sqlite:///FILE", "postgresql+psycopg://"]),
        ("", ["the database URL is empty", "sqlite:///FILE"]),
        ("runs/mine.db", ["runs/mine.db is a file, not a database URL; give sqlite:///runs/mine.db"]),
        ("postgresql://host:port/db", ["is not a database URL"]),
        ("oracle://u:hush@h/db", ["unknown driver 'oracle'", "supported are"]),
        ("postgresql+psycopg2://u:hush@h/db", ["unknown driver 'postgresql+psycopg2'", "postgresql+psycopg://"]),
        ("mysql+pymysql://u:hush@h/db", ["MySQL", "not supported"]),
        ("mariadb://u:hush@h/db", ["MariaDB", "not supported"]),
        ("sqlite://", ["in memory"]),
        ("sqlite:///:memory:", ["in memory"]),
        ("sqlite:///file:x.db?uri=true", ["file: URIs"]),
        ("sqlite:////no/such/folder/x.db", ["/no/such/folder does not exist", "--storage"]),
        ("sqlite:////", ["is a folder"]),
        ("postgresql://u:hush@h", ["names no database"]),
        ("postgresql://u:hu@sh@h/db", ["%40"]),
        ("postgresql://127.0.0.1:1/db?user=u&password=hu@sE/hush", ["'postgresql://***'", "%40"]),
        ("postgresql://u:hu@s/hush@h:1/db", ["'postgresql://***'", "%40"]),
        ("postgresql://u:hu@s?hush@h/db", ["'postgresql://***'", "%40"]),
        ("postgresql://u@h/?Password=hush", ["names no database"]),
    ],
)
def test_refuses_a_url_with_its_own_message(url: str, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        Database(url)
    for word in words:
        assert word in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "hu@sh" not in str(caught.value)


def test_refuses_a_missing_file_unless_it_may_make_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no database at .*x\.db"):
        Database(f"sqlite:///{tmp_path}/x.db", create=False)
    assert not list(tmp_path.iterdir())


def test_refuses_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 1000)
    with pytest.raises(BadInput, match=r"notes\.txt is not a sound SQLite database"):
        Database(f"sqlite:///{path}")
    assert path.read_text() == "not a database " * 1000


def test_refuses_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BadInput, match=r"clnp-search\[postgres\]") as caught:
        Database("postgresql://u:hush@h/db")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("which", ["folder", "file"])
def test_refuses_files_without_permission(tmp_path: Path, which: str, as_nobody: Callable[[], None]) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    if which == "file":
        (folder / "x.db").touch(mode=0o400)
    folder.chmod(0o555)
    as_nobody()
    with pytest.raises(BadInput, match=r"no permission to .*x\.db"):
        Database(f"sqlite:///{folder}/x.db")
    if which == "file":
        with pytest.raises(BadInput, match="no permission to read"):
            Database(f"sqlite:///{folder}/x.db", create=False)


def test_a_server_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.database._QUIET", 0.1)
    told: list[str] = []
    with pytest.raises(Unavailable, match=r"could not be used for .*refused.*; .*the same command continues") as caught:
        Database("postgresql://u:hush@127.0.0.1:1/db", patience=0.6, on_outage=told.append)
    (line,) = told
    assert line.endswith("waiting for it, for 1 s at most")
    assert "hush" not in f"{caught.value} {line}"


def test_a_server_that_starts_meanwhile_is_used(postgres: Any, empty_postgres_url: str) -> None:
    postgres.stop()
    timer = threading.Timer(0.3, postgres.start)
    timer.start()
    create_tables(database := Database(empty_postgres_url))
    timer.join()
    database.close()


@pytest.mark.parametrize("said", ["is starting up", "is not yet accepting connections", "is in recovery mode"])
def test_a_server_that_is_not_ready_is_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    connect, first = psycopg.connect, [f"connection failed: FATAL:  the database system {said}"]

    def starting(*given: Any, **options: Any) -> Any:
        if first:
            raise psycopg.OperationalError(first.pop())
        return connect(*given, **options)

    monkeypatch.setattr(psycopg, "connect", starting)
    Database(postgres_url).close()
    assert not first


def test_refuses_a_wrong_password_and_a_missing_database(postgres: Any) -> None:
    with pytest.raises(BadInput, match="refuses the user or the password") as caught:
        Database(postgres.url("postgres", password="hush-hush"))
    assert "hush" not in str(caught.value)
    with pytest.raises(BadInput, match="there is no such database; make it with: createdb nowhere"):
        Database(postgres.url("nowhere"))


UNUSABLE = {
    "wrong password": ({"password": "hush"}, "refuses the user or the password: .*password authentication failed"),
    "no password": ({"password": None}, "refuses the user or the password: .*no password supplied; .*PGPASSWORD"),
    "no such user": ({"username": "nobody", "password": "hush"}, "refuses the user or the password"),
    "no such database": ({"database": "nowhere"}, "there is no such database; make it with: createdb nowhere"),
    "no such host": ({"host": "nowhere.invalid"}, "cannot be reached: .*; is the host's name right"),
    "no such option": ({"query": {"Password": "hush"}}, "cannot be used: .*invalid connection option.*; check the"),
    "no encryption": ({"query": {"sslmode": "require"}}, "cannot be used: .*SSL.*; check the URL, its options"),
    "MySQL": ({"drivername": "mysql+pymysql"}, "MySQL and MariaDB are not supported"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_database_that_cannot_be_used_is_one_line_and_ends_with_2(
    postgres: Any, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 8."""
    change, words = UNUSABLE[case]
    for variable in ("PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    url = make_url(postgres.url("postgres"))
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", url._replace(**change).render_as_string(False))
    for command in (["run", "quickstart", "--backend", "inline"], ["status"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert re.match(f"clnp-search: .*{words}", err)
        assert "hush" not in err
        assert "s3cret" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stays_away_ends_a_command_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.whereabouts._SHORT", 0.1)
    monkeypatch.setitem(search.whereabouts._PATIENCE, "run", 0.1)
    for command in (["run", "quickstart", "--backend", "inline"], ["status"]):
        assert main([*command, "--storage", "postgresql://u:hush@127.0.0.1:1/db"]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "hush" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bare(postgres: Any) -> Iterator[Callable[[str], str]]:
    """Changes a URL to that of a user who may connect to the database and no more."""
    role = f"bare_{os.urandom(6).hex()}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    yield lambda url: make_url(url).set(username=role, password="hush").render_as_string(False)
    postgres.execute(f"DROP ROLE {role}")


LACKING = "lacks a right: permission denied for {}; have the database's owner GRANT it, or use the role that made "


def test_a_user_who_may_make_no_tables_is_refused(
    postgres: Any, bare: Callable[[str], str], empty_postgres_url: str
) -> None:
    """Promise 8. Since PostgreSQL 15 only its owner makes tables in a database, and who is a member of that role."""
    database = Database(bare(empty_postgres_url))
    with pytest.raises(BadInput, match=LACKING.format("schema public")):
        create_tables(database)
    postgres.execute(f"GRANT tester TO {make_url(database.url).username}")
    create_tables(database)
    database.rdb_storage().engine.dispose()
    database.close()


@pytest.mark.parametrize("command", ["run quickstart --backend inline", "status", "dashboard --port 0"])
def test_a_user_who_may_not_use_the_tables_is_refused_in_a_line(
    postgres_url: str,
    bare: Callable[[str], str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Promise 8. They are their maker's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", bare(postgres_url))
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(LACKING.format("table clnp_schema"), err)
    assert "hush" not in err


def test_refuses_a_newer_schema(storage_url: str) -> None:
    database = Database(storage_url)
    create_tables(database)
    with database.engine.begin() as connection:
        connection.execute(Schema.__table__.update().values(version=SCHEMA + 6))
    for create in (True, False):
        with pytest.raises(BadInput, match=rf"version {SCHEMA + 6}.*knows version {SCHEMA}: .*--upgrade"):
            open_store(storage_url, create=create)
    database.close()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_reading_makes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sqlite3.connect(path).execute("CREATE TABLE other (a)").connection.close()
    before = _contents(tmp_path)
    with pytest.raises(BadInput, match="holds no runs of clnp-search"):
        open_store(f"sqlite:///{path}", create=False)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_made_or_changed_before_a_run_is_taken(tmp_path: Path, make: Any, there: bool) -> None:
    """Promise 8: another program's database is as it was, byte for byte, after whatever was refused."""
    path = tmp_path / "x.db"
    if there:
        sqlite3.connect(path).execute("CREATE TABLE other (a)").connection.close()
    before = _contents(tmp_path)
    with open_store(f"sqlite:///{path}") as store:
        assert (store.runs(), store.run("run"), store.holder("run")) == ([], None, None)
        assert (store.jobs("run"), store.attempts("run")) == ([], [])
        assert store.history("run").commits == {}
        with pytest.raises(BadInput, match="cannot name a run"):
            store.take("a/b", **make.take)
        with pytest.raises(BadInput, match="only folders and s3:// are supported"):
            open_store(f"sqlite:///{path}", "gs://bucket")
        with pytest.raises(BadInput, match=r"no run is called 'run' in .*; it holds no run yet"):
            store.delete("run")
        assert _contents(tmp_path) == before
        with store.take("run", **make.take):
            assert [row.name for row in store.runs()] == ["run"]
    assert path.exists()


def test_a_newer_schema_is_refused_before_anything_is_changed(tmp_path: Path, make: Any) -> None:
    """Also where its tables came after the store was opened."""
    path = tmp_path / "x.db"
    with open_store(f"sqlite:///{path}") as store:
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE clnp_schema (id INTEGER PRIMARY KEY, version INTEGER)")
        other.execute(f"INSERT INTO clnp_schema VALUES (1, {SCHEMA + 1})")
        other.commit()
        other.close()
        before = _contents(tmp_path)
        with pytest.raises(BadInput, match=rf"version {SCHEMA + 1}.*--upgrade"):
            store.take("run", **make.take)
    assert _contents(tmp_path) == before


def test_passwords_are_never_shown(
    postgres: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Passwords in URLs are never printed, logged or pickled."""
    caplog.set_level(logging.DEBUG)
    password = "s3cret/p@ss{w}%rd"
    url = postgres.url("postgres")
    store = open_store(url + "?application_name=x")
    shown = [repr(store), str(store), repr(store.database), store.url, repr(store.database.engine)]
    with pytest.raises(ProgrammingError) as caught:
        store.database.retry(lambda: store.database.engine.connect().execute(text("SELECT no_such_column")))
    shown += [str(caught.value), repr(caught.value)]
    with pytest.raises(BadInput) as refused:
        Database(url.replace("/postgres", "/nowhere") + "?sslpassword=othersecret")
    shown += [str(refused.value), repr(refused.value)]
    with pytest.raises(BadInput) as malformed:
        Database(f"postgresql:/tester:{password}@h/db")
    shown += [str(malformed.value)]
    for thing in (store, store.database):
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="holds database credentials"):
                leak(thing)
    store.close()
    printed = capfd.readouterr()
    for place in (*shown, caplog.text, printed.out, printed.err):
        assert "s3cret" not in place
        assert "rd@" not in place
        assert "othersecret" not in place


def test_a_password_in_the_query_part_works_and_is_not_shown(postgres: Any) -> None:
    port = postgres.port
    database = Database(f"postgresql://tester@127.0.0.1:{port}/postgres?password=s3cret%2Fp%40ss%7Bw%7D%25rd")
    assert "s3cret" not in f"{database} {database.url} {database.engine!r}"
    database.rdb_storage().engine.dispose()
    database.close()


def test_an_option_that_may_be_a_password_is_not_shown(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db?Password=hush&timeout=3")
    assert database.url == f"sqlite:///{tmp_path}/x.db?timeout=3&Password=***"
    assert database.redact("what hush says") == "what *** says"
    database.close()


def test_a_password_in_an_error_is_taken_out(postgres: Any) -> None:
    database = Database(postgres.url("postgres") + "?sslpassword=othersecret")
    error = OperationalError("SELECT 1", {}, RuntimeError("no: s3cret/p@ss{w}%rd, othersecret\nand more"))
    assert database.redact(error) == "no: ***, ***"
    database.close()


def test_a_path_with_braces_is_one_file_for_us_and_optuna(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/{{x}}.db")
    create_tables(database)
    database.rdb_storage().engine.dispose()
    database.close()
    assert [path.name for path in tmp_path.glob("*.db")] == ["{x}.db"]


def test_clock_is_in_seconds_since_1970(storage_url: str) -> None:
    database = Database(storage_url)
    with database.engine.connect() as connection:
        first = database.clock(connection)
        time.sleep(0.02)
        assert 0.01 < database.clock(connection) - first < 5
    assert abs(first - time.time()) < 5
    database.close()


def test_sqlite_pragmas(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    assert database.missing
    database.prepare()
    assert not database.missing
    with database.engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal", 1, 3000]
    database.close()


def test_making_ready_leaves_no_statement_open(tmp_path: Path) -> None:
    """The pooled connection can commit whenever the garbage collector frees the cursors."""
    database = Database(f"sqlite:///{tmp_path}/x.db", patience=1.0)
    cursors: list[object] = []
    event.listen(database.engine, "after_cursor_execute", lambda _, cursor, *__: cursors.append(cursor))
    create_tables(database)
    assert cursors
    database.close()


def test_waits_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever reads "database is locked"."""
    monkeypatch.setattr("search.database._BUSY_TIMEOUT", 0.2)
    database = Database(f"sqlite:///{tmp_path}/x.db")
    create_tables(database)
    other = sqlite3.connect(tmp_path / "x.db", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.8, other.commit)
    timer.start()

    def write() -> None:
        with database.engine.begin() as connection:
            connection.execute(insert(Schema).values(id=2, version=0))

    database.retry(write)
    timer.join()
    other.close()
    with database.engine.connect() as connection:
        assert connection.execute(select(Schema.version).where(Schema.id == 2)).scalar() == 0
    database.close()


def test_the_password_of_the_environment_is_taken_once_and_not_shown(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 6: what connects later does so without the variable; nothing shows the password."""
    whole = make_url(empty_postgres_url)
    password = str(whole.password)
    url = whole._replace(password=None).render_as_string()
    assert "@" in url
    assert "***" not in url
    monkeypatch.setenv("PGPASSWORD", password)
    database = Database(url)
    monkeypatch.delenv("PGPASSWORD")
    create_tables(database)
    database.engine.dispose()
    with database.engine.connect() as connection:
        assert connection.execute(select(Schema.version)).scalars().all()
    database.rdb_storage().engine.dispose()
    for shown in (repr(database), database.url, database.redact(f"no {password} here")):
        assert password not in shown
    database.close()


def _away() -> OperationalError:
    return OperationalError("SELECT 1", {}, RuntimeError("server closed the connection"))


class Fails:
    """Work that fails so often."""

    def __init__(self, times: int, error: Callable[[], DBAPIError] = _away) -> None:
        self.left = times
        self.error = error

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error()
        return "done"


def test_tries_again_until_it_works_and_tells_an_outage_once(tmp_path: Path) -> None:
    told: list[str] = []
    database = Database(f"sqlite:///{tmp_path}/x.db", on_outage=told.append)
    assert database.retry(Fails(3)) == "done"
    assert told == []  # half a second is nothing to speak of
    assert database.retry(Fails(6)) == "done"
    assert len(told) == 1
    assert "server closed the connection" in told[0]
    database.close()


def test_gives_up_when_the_patience_ends_or_nobody_wants_to_wait(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db", patience=0.2)
    with pytest.raises(Unavailable, match="the same command continues"):
        database.retry(Fails(100))
    patient = Database(f"sqlite:///{tmp_path}/x.db", patience=60)
    threading.Timer(0.2, patient.hurry).start()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        patient.retry(Fails(100))
    assert time.monotonic() - began < 2
    database.close()
    patient.close()


def test_does_not_try_again_what_time_cannot_mend(storage_url: str) -> None:
    database = Database(storage_url)
    began = time.monotonic()
    with pytest.raises((OperationalError, ProgrammingError)):
        database.retry(lambda: database.engine.connect().execute(text("SELECT * FROM no_such_table")))
    assert time.monotonic() - began < 1
    database.close()


def test_says_that_a_file_is_damaged(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    create_tables(database)
    database.close()
    (tmp_path / "y.db").write_bytes((tmp_path / "x.db").read_bytes()[:100] + b"\xff" * 8000)
    with pytest.raises(BadInput, match=r"y\.db is not a sound SQLite database"):
        open_store(f"sqlite:///{tmp_path}/y.db")


def test_survives_a_restart_of_the_server(postgres: Any, postgres_url: str) -> None:
    told: list[str] = []
    store = open_store(postgres_url, on_outage=told.append)
    postgres.stop()
    timer = threading.Timer(1.0, postgres.start)
    timer.start()
    assert store.runs() == []
    timer.join()
    store.close()
