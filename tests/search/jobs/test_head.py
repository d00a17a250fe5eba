"""What a head may answer, and what is made of it: each is told by a small server in its place."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import search.jobs.client
import search.jobs.commands
import search.jobs.follow
from search.cli import main
from search.errors import BadInput, Held, Unavailable
from search.jobs.client import check_address
from search.jobs.commands import connect, list_jobs, stop, submit
from search.jobs.submission import Package

SECRET = "hunter2-in-a-url"


class Head(ThreadingHTTPServer):
    """Answers as it is told to, by method and path; 404 otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {"GET /api/version": (200, version("2.60.0"))}
        self.asked: list[str] = []
        self.silent = threading.Event()
        self.silent.set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Head

    def do_GET(self) -> None:
        self.server.silent.wait(20)
        asked = f"{self.command} {self.path}"
        self.server.asked.append(asked)
        status, text = self.server.answers.get(asked, (404, "404: Not Found"))
        self.send_response(status)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(text.encode())

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


def version(ray: str) -> str:
    return json.dumps({"version": "4", "ray_version": ray, "ray_commit": "", "session_name": ""})


def details(name: str, status: str = "RUNNING", **more: Any) -> dict[str, Any]:
    found = {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "exec clnp-search run"}
    metadata = {"clnp-search": "0.1.0", "command": f"clnp-search submit {name}.yaml"}
    return {**found, "metadata": metadata, "start_time": 1_700_000_000_000, **more}


@pytest.fixture
def head() -> Iterator[Head]:
    server = Head()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.silent.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("ray://head:10001", "Ray Client's.*http://HEAD:8265"),
        ("head:8265", "--address head:8265.*http://HEAD:8265"),
        ("auto", "--address auto.*http://HEAD:8265"),
        ("http://", "http://HEAD:8265"),
        (f"http://user:{SECRET}@head:8265", "not shown"),
    ],
)
def test_another_kind_of_address_is_refused(address: str, match: str) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        check_address(address)
    assert SECRET not in str(caught.value)


def test_an_address_is_needed(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"no --address, and no RAY_API_SERVER_ADDRESS; give .*http://HEAD:8265"):
        connect(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"{head.url}/")
    assert connect(None).address == head.url


def test_the_address_that_is_given_counts(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client would take the variables first."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    connect(head.url)
    assert head.asked == ["GET /api/version"]
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("answer", "code", "match"),
    [
        ((200, version("2.59.1")), 2, "runs Ray 2.59.1; .*at least 2.60 and less than 3.0"),
        ((200, version("3.0.0")), 2, "runs Ray 3.0.0"),
        ((200, "<html>"), 2, "no dashboard of Ray's"),
        ((200, "{}"), 2, "no dashboard of Ray's"),
        ((404, ""), 2, "no dashboard of Ray's"),
        ((401, "Unauthorized: Missing authentication token"), 2, "asks for a token.*RAY_AUTH_TOKEN"),
        ((403, "Forbidden"), 2, "refuses this token.*RAY_AUTH_TOKEN"),
        ((500, "Traceback\n  File\nOSError: disk full\n"), 1, r"refuses \(status 500\): OSError: disk full"),
    ],
)
def test_a_head_that_cannot_take_jobs(
    head: Head, answer: tuple[int, str], code: int, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 8: one line each."""
    head.answers["GET /api/version"] = answer
    assert main(["list", "--address", head.url]) == code
    said = capsys.readouterr().err
    assert re.search(match, said)
    assert said.count("\n") == 1


def test_a_head_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert main(["list", "--address", f"http://127.0.0.1:{closed.getsockname()[1]}"]) == 1
    said = capsys.readouterr().err
    assert "does not answer" in said
    assert "Connection refused" in said
    assert said.count("\n") == 1


def test_a_head_that_never_answers(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client would wait for ever."""
    monkeypatch.setattr(search.jobs.client, "_TIMES", (0.3, 0.3))
    head.silent.clear()
    with pytest.raises(Unavailable, match=r"does not answer \(nothing within 0 s\)"):
        connect(head.url)


def test_what_is_no_http_is_said_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection = server.accept()[0]
            connection.sendall(b"\x00\x00\x18\x04\x00\x01\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable, match="does not answer"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_job_of_that_name_that_is_not_ours(head: Head) -> None:
    head.answers["GET /api/jobs/small"] = (200, json.dumps(details("small", "SUCCEEDED", metadata={"by": "others"})))
    with pytest.raises(BadInput, match="did not submit; give the run another --name"):
        submit(connect(head.url), Package("small", "exec true", {}, ""))
    assert not any(asked.startswith(("POST", "DELETE")) for asked in head.asked)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_that_is_not_over_keeps_its_name(head: Head, status: str) -> None:
    head.answers["GET /api/jobs/small"] = (200, json.dumps(details("small", status)))
    with pytest.raises(Held, match="run small is driven by its job"):
        submit(connect(head.url), Package("small", "exec true", {}, ""))
    assert not any(asked.startswith(("POST", "DELETE")) for asked in head.asked)


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_a_run_that_has_no_job(head: Head, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "small", "--address", head.url]) == 2
    assert (
        f"has no job of run small; those that it has: clnp-search list --address {head.url}" in capsys.readouterr().err
    )


BEGIN = "2026-01-01 INFO job_manager.py:1 -- Runtime env is setting up.\nRunning entrypoint for job small: exec x\n"
"""What Ray writes before a job's own lines."""

FAILED = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"


@pytest.mark.parametrize(
    ("more", "code", "outcome"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, None),
        ({"status": "STOPPED"}, 143, None),
        ({"driver_exit_code": 2, "message": f"{FAILED}clnp-search: no such file\n  more\n"}, 2, "no such file"),
        ({"driver_exit_code": 1, "message": f"{FAILED}Traceback\nValueError: odd\n"}, 1, "ValueError: odd"),
        ({"driver_exit_code": 3, "message": FAILED}, 3, "exit code 3"),
        ({"driver_exit_code": 127, "message": f"{FAILED}sh: 1: exec: clnp-search: not found"}, 127, "install it there"),
        ({"driver_exit_code": -9, "message": FAILED}, 137, "killed by signal 9"),
        ({"message": "runtime_env setup failed: no space left\n  File"}, 1, "runtime_env setup failed: no space left"),
        ({"message": None}, 1, "no reason"),
    ],
)
def test_how_a_job_ended(head: Head, more: dict[str, Any], code: int, outcome: str | None) -> None:
    head.answers["GET /api/jobs/"] = (200, json.dumps([details("small", **{"status": "FAILED", **more})]))
    (job,) = list_jobs(connect(head.url))["jobs"]
    assert job["exit_code"] == code
    assert (outcome in job["outcome"]) if outcome else job["outcome"] is None


def test_the_list_shows_ours_and_counts_others(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        details("younger", start_time=1_700_000_900_000),
        details("older", "FAILED", driver_exit_code=5, message=f"{FAILED}clnp-search: nothing left", end_time=1),
        details("raysubmit_x", metadata=None),
        {"type": "DRIVER", "job_id": "01000000", "status": "RUNNING", "entrypoint": "python"},
    ]
    head.answers["GET /api/jobs/"] = (200, json.dumps(jobs))
    assert main(["list", "--address", head.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["older", "younger", "and"]
    assert "exit code 5: nothing left" in lines[1]
    assert lines[-1] == "and 2 jobs of others"
    head.answers["GET /api/jobs/"] = (200, "[]")
    assert main(["list", "--address", head.url]) == 0
    assert capsys.readouterr().out == f"no job of clnp-search on {head.url}\n"


@pytest.mark.parametrize(
    ("log", "outcome"),
    [
        ("interrupted; continue with: clnp-search resume small\n", "jobs are given back and its lease is released"),
        ("interrupted before anything was started; …\n", "nothing was started yet"),
        ("03:04:05  task opened\n", "without a word; a lease that it had ends within half a minute"),
    ],
)
def test_a_stop_says_how_it_ended(head: Head, log: str, outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    head.answers["GET /api/jobs/small"] = (200, json.dumps(details("small", "STOPPED")))
    head.answers["GET /api/jobs/small/logs"] = (
        200,
        json.dumps({"logs": f"Running entrypoint for job small: x\n{log}"}),
    )
    assert main(["stop", "small", "--address", head.url]) == 0
    said = capsys.readouterr().out
    assert outcome in said
    assert said.endswith(f"continue with: clnp-search submit small.yaml --address {head.url}\n")


def test_a_stop_that_is_not_heard(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.jobs.commands, "_STOPPING", 0.1)
    head.answers["GET /api/jobs/small"] = (200, json.dumps(details("small")))
    head.answers["POST /api/jobs/small/stop"] = (200, '{"stopped": true}')
    with pytest.raises(Unavailable, match="still runs after"):
        stop(connect(head.url), "small")


def test_the_shell_s_own_database_is_not_sent(
    head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", f"postgresql+psycopg://user:{SECRET}@host/database")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    head.answers["GET /api/jobs/quickstart"] = (200, json.dumps(details("quickstart")))
    assert main(["submit", "quickstart", "--address", head.url]) == 4
    said = capsys.readouterr().err
    assert SECRET not in said
    for name in ("CLNP_SEARCH_STORAGE", "PGPASSWORD"):
        assert f"{name} of this shell is not sent" in said


def test_a_token_that_is_promised_and_absent_is_a_line(tmp_path: Path) -> None:
    """Ray's client raises before it asks anybody."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "search", "list", "--address", "http://127.0.0.1:1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"clnp-search: RAY_AUTH_MODE is token, and no token was given; set .*\n", done.stderr)
