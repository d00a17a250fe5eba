"""Jobs on a real head with a real job server, from their submission to their end."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import yaml
from sqlalchemy import make_url

from search.cli import main
from search.errors import BadInput, Held, Unavailable
from search.jobs.client import Client
from search.jobs.commands import connect, list_jobs, logs, stop, submit, wait
from search.jobs.submission import Package
from search.store import open_store

ROOT = Path(__file__).parents[3]

SECRET = "hunter2-in-a-url"

STORAGE = "CLNP_SEARCH_STORAGE"


@dataclass(frozen=True)
class Cluster:
    """A head with its job server; its files lie in ``folder``."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    address: str

    def start_node(self, *options: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return _ray(self.folder, ["--address", self.address, *options], environment)

    def end(self) -> None:
        _end(self.process)


def _ray(folder: Path, options: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-gpus=0"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000", *options]
    with (folder / "ray.txt").open("ab") as out:
        return subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=out, stderr=out)


def _end(process: subprocess.Popen[bytes]) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a head: with a `clnp-search` on the path, and a home folder that keeps Ray from asking the cloud who it is."""
    home, programs = folder / "home", folder / "bin"
    home.mkdir(exist_ok=True)
    programs.mkdir(exist_ok=True)
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    program = programs / "clnp-search"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m search "$@"\n')
    program.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_AUTH_MODE": "disabled",
        **more,
    }


@contextlib.contextmanager
def running(*, cpus: int = 1, **more: str) -> Iterator[Cluster]:
    """A cluster of one machine."""
    folder = Path(tempfile.mkdtemp(prefix="cj-", dir="/tmp"))  # Ray's sockets must have short names
    port, dashboard, agent, client = ports(4)
    options = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--ray-client-server-port={client}", "--include-dashboard=true", "--node-ip-address=127.0.0.1"]
    options += [f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}"]
    process = _ray(folder, options, environment(folder, **more))
    cluster = Cluster(f"http://127.0.0.1:{dashboard}", folder, process, f"127.0.0.1:{port}")
    try:
        _await_head(cluster)
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


def _await_head(cluster: Cluster) -> None:
    end = time.monotonic() + 240
    while True:
        try:
            connect(cluster.url)
        except Unavailable:
            assert cluster.process.poll() is None, (cluster.folder / "ray.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        except BadInput:
            return  # it asks for a token, so it is there
        else:
            return


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running() as found:
        yield found


def until(what: Callable[[], Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


SLOW_TO_END = """
import signal, sys, time
def end(*_):
    time.sleep(4)
    print("interrupted; continue with: …", file=sys.stderr)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("working")
while True:
    time.sleep(0.1)
"""


def script(text: str) -> str:
    return f"exec {shlex.join([sys.executable, '-c', text])}"


def test_a_job_s_life(cluster: Cluster, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Submitted, listed, refused while it runs, and stopped as gently as a driver needs.

    In the driver's place a program that needs 4 s to end: Ray's own grace is 3.
    """
    client = connect(cluster.url)
    package = Package("small", script(SLOW_TO_END), {}, "clnp-search submit small.yaml")
    report, begin = submit(client, package)
    assert (report["status"], report["continues"], begin) == ("running", False, 0)
    assert client.get_job_info("small").submission_id == "small"
    with pytest.raises(Held, match="run small is driven by its job"):
        submit(client, package)
    until(lambda: "working" in client.get_job_logs("small"), 20)
    assert [job["status"] for job in list_jobs(client)["jobs"]] == ["running"]
    ended = stop(client, "small")
    assert (ended["status"], ended["exit_code"]) == ("stopped", 143)
    assert ended["outcome"] == "its jobs are given back and its lease is released"
    # The real command line now; the head finds that it was told of no database.
    assert main(["submit", str(file), "--name", "other", "--address", cluster.url, "--follow"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("run other failed: no database: this is a Ray job")
    lines = said.err.splitlines()
    assert lines[0] == "run other is submitted; Ctrl-C leaves it running"
    assert [line for line in lines[1:] if not line.startswith("clnp-search: no database")] == []
    told: list[str] = []
    logs(client, "other", told.append, on=False)
    assert "".join(told).splitlines() == lines[1:]
    jobs = list_jobs(client)["jobs"]
    assert [(job["run"], job["status"], job["exit_code"]) for job in jobs] == [
        ("small", "stopped", 143),
        ("other", "failed", 2),
    ]
    info = client.get_job_info("other")
    assert set(info.runtime_env) == {"env_vars", "working_dir"}
    assert info.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "30"}


@pytest.mark.slow
def test_a_name_can_be_given_again_and_again(cluster: Cluster) -> None:
    """Ray takes the next job of a name for the dead one if it comes too soon."""
    client = connect(cluster.url)
    package = Package("again", script("print('here')"), {}, "")
    for count in range(8):
        _, begin = submit(client, package)
        told: list[str] = []
        report = wait(client, "again", begin, told.append)
        assert (report["status"], "".join(told)) == ("finished", "here\n"), count


@pytest.mark.slow
def test_what_ray_writes_after_a_job_s_record_was_deleted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted at once, as `submit` does not: the name can be given again all the same."""
    client = connect(cluster.url)
    package = Package("left", script("print('here')"), {}, "")
    submit(client, package)
    wait(client, "left", 0, None)
    client.delete_job("left")
    time.sleep(6)
    assert [job["run"] for job in list_jobs(client)["jobs"]].count("left") == 0
    _, begin = submit(client, package)
    assert wait(client, "left", begin, None)["status"] == "finished"


@pytest.mark.slow
def test_of_several_who_submit_at_once_one_succeeds(cluster: Cluster) -> None:
    client = connect(cluster.url)
    package = Package("race", script("import time; time.sleep(5)"), {}, "")
    ended: list[object] = []

    def attempt() -> None:
        try:
            ended.append(submit(Client(cluster.url), package)[0]["status"])
        except Held:
            ended.append(Held)

    for _ in range(2):
        ended.clear()
        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, ended)) == sorted(map(str, ["running", Held, Held, Held]))
        assert wait(client, "race", 0, None)["status"] == "finished"


def records(url: str, name: str) -> Any:
    """All records of a run but for when they came about."""
    with open_store(url, create=False) as store:
        history = store.history(name)
        assert store.jobs(name) == []
        assert store.holder(name) is None
        cells = {
            (place, index): replace(record, started=0.0, ended=0.0)
            for place, found in history.cells.items()
            for index, record in found.items()
        }
        commits = {place: replace(record, started=0.0, ended=0.0) for place, record in history.commits.items()}
        return history.openings, cells, commits


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_records(
    cluster: Cluster, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 3, by way of the job server: submitted, stopped while it trains, submitted again; beside a quiet one."""
    sets = ["--set", "training.epochs=60", "worker.cells=1", "--address", cluster.url]
    urls = {name: f"sqlite:///{tmp_path / name}.db" for name in ("quiet", "stopped")}
    submitting = ["submit", str(file), "--storage", urls["stopped"], *sets]
    assert main(submitting) == 0
    assert capsys.readouterr().out.startswith("run small is submitted as a job")

    def trained() -> bool:
        if not (tmp_path / "stopped.db").exists():
            return False
        with open_store(urls["stopped"], create=True) as store:
            return len(store.history("small").cells.get((0, 0), {})) == 1 and any(
                job.epoch for job in store.jobs("small")
            )

    until(trained)
    assert main(submitting) == 4
    assert "run small is driven by its job" in capsys.readouterr().err
    assert main(["stop", "small", "--address", cluster.url]) == 0
    said = capsys.readouterr().out
    assert "its jobs are given back and its lease is released; continue with: clnp-search submit" in said
    with open_store(urls["stopped"], create=False) as store:
        assert store.jobs("small") == []
        assert store.holder("small") is None
        assert [attempt.outcome for attempt in store.attempts("small")] == ["interrupted"]
    continuing = shlex.split(said[said.index("clnp-search submit") :])[1:]
    assert main([*continuing, "--follow"]) == 0
    followed = capsys.readouterr()
    assert followed.out.splitlines()[0].startswith("run small is finished")
    lines = followed.err.splitlines()[1:]
    events = [line for line in lines if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert lines[: len(events)] == events  # then the table: no line of Ray's anywhere
    assert any("task committed" in event for event in events)
    assert lines[len(events)].startswith("small, replica 1 of 1")
    assert main(["submit", str(file), "--name", "quiet", "--storage", urls["quiet"], *sets, "--wait"]) == 0
    assert records(urls["stopped"], "small") == records(urls["quiet"], "quiet")


def text_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                yield path, path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a file", "the environment"])
def test_no_password_is_anywhere(how: str, postgres: Any, postgres_url: str, tmp_path: Path, file: Path) -> None:
    """Promise 6: not in what Ray knows of the job, nor in any file of Ray's and Tune's, nor in any command line."""
    # One of its own: other tests on this machine may give theirs to processes.
    role, password = f"role_{os.urandom(4).hex()}", f"p@ss/{os.urandom(8).hex()}"
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{password}'")
    postgres_url = make_url(postgres_url).set(username=role, password=password).render_as_string(False)
    forms = [form.encode() for form in (password, quote(password, safe=""))]
    secret = tmp_path / "secret" / "storage"
    secret.parent.mkdir()
    secret.write_text(postgres_url)
    given, variables = (["--storage-file", str(secret)], {}) if how == "a file" else ([], {STORAGE: postgres_url})
    sets = ["--set", "training.epochs=60", "worker.cells=1"]
    options = ["--artifacts", str(tmp_path / "tensors"), *given, *sets]
    with running(**variables) as cluster:
        assert main(["submit", str(file), "--address", cluster.url, *options]) == 0
        client = connect(cluster.url)
        until(lambda: "cell finished" in client.get_job_logs("small"))
        folders = [cluster.folder, *Path(tempfile.gettempdir()).glob("clnp-ray-*"), *Path("/tmp").glob("clnp-ray-*")]
        seen = [(path, content) for folder in folders for path, content in text_of(folder)]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                seen.append((Path(str(process.pid)), " ".join(process.cmdline()).encode()))
                if how == "a file" and cluster.folder.name in process.environ().get("PATH", ""):
                    seen.append((Path(str(process.pid), "environ"), repr(process.environ()).encode()))
        assert wait(client, "small", 0, None)["status"] == "finished"
        for path in ("/api/jobs/", "/api/jobs/small", "/api/jobs/small/logs", "/logical/actors", "/api/cluster_status"):
            seen.append((Path(path), client._do_request("GET", path).content))
        seen += text_of(cluster.folder)
        assert len([path for path, _ in seen if "session_" in str(path)]) > 50
        assert any("clnp-ray-" in str(path) for path, _ in seen)
        assert [path for path, content in seen if any(form in content for form in forms)] == []
    finished = records(postgres_url, "small")
    assert len(finished[2]) == 2


OWN = """
import math, os
from torch import nn
from wide import WIDTH

def net(shape, classes, mark):
    with open(mark, "a") as file:
        print(os.getcwd(), __file__, file=file)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
"""


@pytest.mark.slow
def test_own_code_reaches_workers_on_other_machines(tmp_path: Path, plain: dict[str, Any]) -> None:
    """The head has no core for workers: they run on a second node, which keeps its files elsewhere.

    In one folder the end of one node's worker would remove what the other's driver runs in.
    """
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN)
    (folder / "wide.py").write_text("WIDTH = 30")
    mark = tmp_path / "mark"
    changed = {"name": "own", "model": {"kind": "mine:net", "options": {"mark": str(mark)}}}
    (folder / "own.yaml").write_text(yaml.safe_dump({**plain, **changed}))
    with running(cpus=0) as cluster:
        node = cluster.start_node(
            "--num-cpus=1", f"--temp-dir={cluster.folder / 'other'}", environment=environment(cluster.folder)
        )
        try:
            url = f"sqlite:///{tmp_path / 'own.db'}"
            submitting = ["submit", str(folder / "own.yaml"), "--address", cluster.url, "--storage", url]
            assert main([*submitting, "--follow"]) == 0
        finally:
            _end(node)
    assert len(records(url, "own")[2]) == 2
    places = mark.read_text().splitlines()
    assert all("working_dir_files" in place for line in places for place in line.split())
    assert str(folder) not in mark.read_text()


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token(file: Path, tmp_path: Path) -> None:
    """Ray reads its variables once a process, so each command is one."""

    def command(*arguments: str, **token: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "search", *arguments, "--address", cluster.url],
            env=environment(tmp_path, **token),
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert token.get("RAY_AUTH_TOKEN", SECRET) not in done.stdout + done.stderr
        return done.returncode, done.stderr

    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    with running(**right) as cluster:
        code, said = command("list")
        assert code == 2
        assert "asks for a token and was given none; set RAY_AUTH_MODE=token" in said
        assert said.count("\n") == 1
        code, said = command("list", **{**right, "RAY_AUTH_TOKEN": "cd" * 32})
        assert code == 2
        assert "refuses this token" in said
        assert said.count("\n") == 1
        storage = f"sqlite:///{tmp_path / 'store.db'}"
        code, said = command("submit", str(file), "--storage", storage, "--follow", **right)
        assert code == 0, said
        for path, content in text_of(cluster.folder / "ray"):
            assert right["RAY_AUTH_TOKEN"].encode() not in content, path
    assert len(records(storage, "small")[2]) == 2
