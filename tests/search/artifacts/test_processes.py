"""Runs as a person starts them, whose tensors lie in a bucket."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import cli
from search.artifacts import Artifacts
from search.audit import verify
from search.store import open_store

ROOT = Path(__file__).parents[3]

SMALL = """
name: small
tasks: {count: 2}
model: {hidden: [40, 30]}
grid: {alpha: [0.0001, 0.001], learning_rate: [0.005, 0.01]}
training: {epochs: 3}
rule: {margin: 20}
worker: {gpu: 0, cells: 1}
workers: 2
"""


class Child:
    """A command in a process of its own; its lines as they come."""

    def __init__(self, folder: Path, *words: str) -> None:
        home = folder / "home"
        home.mkdir(exist_ok=True)
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        (folder / "small.yaml").write_text(SMALL)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def told(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]

    def until(self, *words: str, seconds: float = 240.0) -> None:
        end = time.monotonic() + seconds
        while not self.told(*words):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < end, self.lines
            time.sleep(0.02)

    def end(self, seconds: float = 240.0) -> tuple[int, str]:
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code, output


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def begin(*words: str) -> Child:
        children.append(Child(tmp_path, *words))
        return children[-1]

    yield begin
    for child in children:
        # It ends its Ray, which would outlive it if it were killed.
        child.process.terminate()
        try:
            child.process.wait(20)
        finally:
            child.process.kill()
            child.process.wait()


def test_a_signal_ends_a_driver_that_waits(s3: str, gate: Any, start: Callable[..., Child], tmp_path: Path) -> None:
    """Within 5 seconds; what was not uploaded is trained again, and nobody is to blame."""
    child = start("run", "small.yaml", "--artifacts", s3, "--backend", "inline")
    child.until("task opened")
    gate.close_door((503, "SlowDown"))
    child.until("worker waits")
    began = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    code, _ = child.end()
    assert code == 143, child.lines
    assert time.monotonic() - began < 5
    assert child.told("interrupted; continue with: clnp-search resume small --backend inline")
    with open_store(f"sqlite:///{tmp_path / 'clnp-search.db'}", create=False) as store:
        assert store.history("small").losses == []
        assert store.jobs("small") == []


def finish(child: Child, tmp_path: Path, s3: str) -> None:
    code, output = child.end()
    assert code == 0, child.lines
    assert "small" in output
    with open_store(f"sqlite:///{tmp_path / 'clnp-search.db'}", create=False) as store:
        assert store.history("small").losses == []
        row = store.run("small")
        assert row is not None
        assert row.artifacts.startswith(s3)
        assert len(Artifacts(row.artifacts).list()) == 4
        assert verify(store, "small")["sound"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_of_ray_wait_and_say_so_once(s3: str, gate: Any, start: Callable[..., Child], tmp_path: Path) -> None:
    """Two workers wait for the same: one line. No job is lost."""
    child = start("run", "small.yaml", "--artifacts", s3)
    child.until("task opened")
    gate.close_door((503, "SlowDown"))
    child.until("worker waits")
    time.sleep(5)
    gate.open_door()
    finish(child, tmp_path, s3)
    assert len(child.told("worker waits")) == 1, child.lines


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["inline", "tune"])
def test_a_server_that_stands_still_for_a_while(
    s3: str, start: Callable[..., Child], tmp_path: Path, backend: str, s3_server: "subprocess.Popen[bytes]"
) -> None:
    """It takes connections and answers nothing: each request is given up after 20 s and made again."""
    child = start("run", "small.yaml", "--artifacts", s3, "--backend", backend)
    child.until("cell finished")
    s3_server.send_signal(signal.SIGSTOP)
    try:
        child.until("worker waits")
        time.sleep(5)
    finally:
        s3_server.send_signal(signal.SIGCONT)
    finish(child, tmp_path, s3)
    assert len(child.told("worker waits", "does not answer in 20 s")) == 1, child.lines


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("s3://key:s3cret@bucket/x", "credentials do not belong into a location"),
        ("s3://other/x", "artifacts cannot be written in s3://other/x: there is no bucket 'other'; make it, or check"),
        (
            "gs://bucket/x",
            "artifacts at 'gs://bucket/x': only folders and s3:// are supported; give a folder, or s3://",
        ),
    ],
)
def test_bad_places_are_refused_in_a_line(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, line: str
) -> None:
    """Promise 8: exit code 2, nothing is there afterwards, and no secret is shown."""
    (tmp_path / "small.yaml").write_text(SMALL)
    words = ["run", str(tmp_path / "small.yaml"), "--backend", "inline", "--storage", f"sqlite:///{tmp_path / 'x.db'}"]
    assert cli.main([*words, "--artifacts", place]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert line in said.err
    assert len(said.err.splitlines()) == 1
    assert "s3cret" not in said.err
    assert not (tmp_path / "x.db").exists()


def test_a_bucket_may_be_named_by_what_is_recorded(s3: str, tmp_path: Path, capsys: Any) -> None:
    """status shows where a run's tensors are, and needs neither boto3 nor the server for it."""
    storage = f"sqlite:///{tmp_path / 'x.db'}"
    with open_store(storage, s3) as store:
        store.take("run", experiment_json={"name": "run"}, data="d" * 64, versions={}).release("ended")
    script = f"""
import json, sys
sys.modules["boto3"] = None
from search.store import open_store
print(json.dumps(open_store({storage!r}, create=False).run("run").artifacts))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout).startswith(f"{s3}/run-")
