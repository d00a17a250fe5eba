"""Promise 6: the password of a database is nowhere but in the driver's memory and in what it was given with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from search.store import open_store

ROOT = Path(__file__).parents[2]

PASSWORD = "Zx9/hush@{hush}%hush"
SHOWN = [PASSWORD, quote(PASSWORD, safe=""), "hush"]
"""As it is, as it stands in a URL, and what every other way to quote it would leave."""

SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 1},
    "model": {"hidden": [40, 30]},
    "grid": {"alpha": [1e-3], "learning_rate": [0.005]},
    "training": {"epochs": 10**6},
    "rule": {"margin": 3},
    "worker": {"gpu": 0},
}

COMMAND = """
import os, sys
from search.cli import main
from search.writer import Writer


def break_(name):
    real = getattr(Writer, name)

    def broken(self, *arguments):
        if os.path.exists("broken"):
            raise ZeroDivisionError("an injected bug")
        return real(self, *arguments)

    setattr(Writer, name, broken)


break_("progress")
break_("close_job")
sys.exit(main(sys.argv[1:]))
"""
"""A command whose driver ends with a bug once there is a file."""


@pytest.fixture
def hushed_url(postgres: Any, postgres_url: str) -> Iterator[str]:
    """A database and a user with that password."""
    role = f"quiet{os.getpid()}"
    quoted = PASSWORD.replace("%", "%%")
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{quoted}'")
    yield make_url(postgres_url).set(username=role, password=PASSWORD).render_as_string(False)
    postgres.execute(f"DROP ROLE {role}")


def found(text: bytes | str) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [shown for shown in SHOWN if shown.encode() in data]


def in_files(folder: Path, but: Path | None) -> list[tuple[Path, list[str]]]:
    """The files under a folder that show it."""
    places = []
    for path in folder.rglob("*"):
        if path == but or not path.is_file() or path.is_symlink():
            continue
        shown = found(path.read_bytes())
        if shown:
            places.append((path, shown))
    return places


def in_processes(processes: list[psutil.Process]) -> list[tuple[str, str]]:
    """Those of which the command line or the environment shows it."""
    places = []
    for process in processes:
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue
            if found(data):
                places.append((process.name(), name))
    return places


def in_database(url: str) -> list[str]:
    """The tables that show it."""
    places = []
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(False)) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT t::text FROM {table} t").fetchall()  # type: ignore[arg-type]
            places += [table for (row,) in rows if found(row)]
        activity = connection.execute("SELECT a::text FROM pg_stat_activity a").fetchall()
        places += ["pg_stat_activity" for (row,) in activity if found(row)]
    return places


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("backend", "given"),
    [
        ("inline", "variable"),
        pytest.param("tune", "variable", marks=pytest.mark.slow),
        pytest.param("tune", "file", marks=pytest.mark.slow),
    ],
)
def test_a_password_is_shown_nowhere(postgres: Any, hushed_url: str, tmp_path: Path, backend: str, given: str) -> None:
    """Through an outage and a crash: on no stream, in no file, no process of Ray and no row."""
    home, temporary, work = tmp_path / "home", tmp_path / "tmp", tmp_path / "work"
    for folder in (home, temporary, work):
        folder.mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    (work / "small.yaml").write_text(json.dumps(SMALL))
    options, variables, secret = ["run", "small.yaml", "--backend", backend], {}, None
    if given == "file":
        secret = tmp_path / "url"
        secret.write_text(hushed_url)
        options += ["--storage-file", str(secret)]
    else:
        variables["CLNP_SEARCH_STORAGE"] = hushed_url
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    before = set(Path("/tmp").glob("clnp-ray-*"))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *options],
        cwd=work,
        env={
            **os.environ,
            **variables,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("wb"),
    )
    family: list[psutil.Process] = []
    try:
        store = open_store(hushed_url, patience=60)

        def until(what: Callable[[], object]) -> None:
            end = time.monotonic() + 200
            while not what():
                assert process.poll() is None, (tmp_path / "stderr").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)

        until(lambda: any(job.epoch for job in store.jobs("small")))
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 5 or backend == "inline"
        postgres.stop()
        until(lambda: "cannot be used" in (tmp_path / "stderr").read_text())
        postgres.start()
        until(lambda: any(job.epoch for job in store.jobs("small")))
        # Ray's session is there as long as its driver is.
        sessions = [*set(Path("/tmp").glob("clnp-ray-*")) - before]
        mine = [folder for folder in sessions if f"-{process.pid}-" in folder.name]
        assert mine or backend == "inline"
        for folder in mine:
            assert in_files(folder, None) == []
        assert in_processes(family) == []
        assert in_database(hushed_url) == []
        (work / "broken").touch()
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(120) == 1
        store.close()
    finally:
        process.kill()
        for each in family:
            if each.is_running():
                each.send_signal(signal.SIGKILL)
    err = (tmp_path / "stderr").read_text()
    assert re.search(r"Traceback[\s\S]*ZeroDivisionError: an injected bug", err)
    assert "cannot be used" in err
    assert found(out) == []
    assert in_files(tmp_path, secret) == []
    assert in_database(hushed_url) == []
