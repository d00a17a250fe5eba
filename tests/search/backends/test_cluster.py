"""Working on a Ray cluster of several nodes: a real one, on this machine, and drivers that are processes beside it."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.artifacts import Artifacts
from search.driver import run_experiment
from search.experiment import Experiment
from search.store import Store, open_store
from search.view import open_view

SECRET = "hunter2-in-a-url"
TOKEN = "0123456789abcdef0123456789abcdef"

SMALL: dict[str, Any] = {
    "name": "far",
    "tasks": {"count": 2},
    "model": {"hidden": [100, 30]},  # at a width of 100 the size of a stack changes bits
    "replicas": 2,
    "grid": {"alpha": [1e-3, 2e-3, 3e-3], "learning_rate": [0.005]},
    "training": {"epochs": 2},
    "rule": {"margin": 3},
    "worker": {"cells": 2, "gpu": 0},
    "keep": "all",
}

SERVER = """
import json, sys
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

cluster, nodes = Cluster(), {}


def head(cpus):
    cluster.add_node(num_cpus=cpus, include_dashboard=False)
    return cluster.address


def add(cpus, gpus, environment):
    node = cluster.add_node(num_cpus=cpus, num_gpus=gpus, env_vars=environment)
    nodes[node.node_id] = node
    return node.node_id


def remove(node, graceful):
    cluster.remove_node(nodes.pop(node), allow_graceful=graceful)


def advertise(changed):
    client, key, space = GcsClient(address=cluster.address), b"CLUSTER_METADATA", b"cluster"
    found = json.loads(client.internal_kv_get(key, space))
    client.internal_kv_put(key, json.dumps({**found, **changed}).encode(), True, space)
    return found


def alive():
    return len(cluster.global_state._live_node_ids())


def jobs():
    return str(GcsClient(address=cluster.address).get_all_job_info())


for line in sys.stdin:
    options = json.loads(line)
    print("=", json.dumps(globals()[options.pop("what")](**options)), flush=True)
"""


class Hosted:
    """A cluster, from its head to :meth:`close`.

    Attributes:
        address: The head's ``host:port``.
        folder: Where Ray keeps its files.
        environment: For a driver beside it.
    """

    def __init__(self, home: Path, *, cpus: int = 0, token: str | None = None) -> None:
        # It keeps Ray from asking the cloud's metadata address who it is.
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TUNE_"))}
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]))
        self.environment = {**kept, "HOME": str(home), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        self.folder = Path(tempfile.mkdtemp(prefix="clnp-test-", dir="/tmp"))  # its sockets' names must be short
        self._said = home / "cluster.log"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                env={**self.environment, **given, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self.folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        try:
            self.address = str(self._ask("head", cpus=cpus))
        except RuntimeError:
            self.close()
            raise

    def add(self, *, cpus: int = 1, gpus: int = 0, **environment: str) -> str:
        """Add a node and return its id."""
        return str(self._ask("add", cpus=cpus, gpus=gpus, environment=environment))

    def remove(self, node: str, *, graceful: bool = False) -> None:
        """End all processes of a node: with SIGKILL, or in good order."""
        self._ask("remove", node=node, graceful=graceful)

    def advertise(self, **changed: str) -> dict[str, str]:
        """Have the head say other versions; what it said before."""
        found: dict[str, str] = self._ask("advertise", changed=changed)
        return found

    def behead(self) -> None:
        """End the head's server with SIGKILL."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            if "gcs_server" in process.name():
                process.kill()

    def alive(self) -> int:
        """How many nodes there are."""
        return int(self._ask("alive"))

    def jobs(self) -> str:
        """What the cluster keeps of its jobs."""
        return str(self._ask("jobs"))

    def close(self) -> None:
        ours = psutil.Process(self._process.pid)
        processes = [ours, *ours.children(recursive=True)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(10)
        psutil.wait_procs(processes, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, what: str, **options: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **options}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("= "):
                return json.loads(line[2:])
        raise RuntimeError(f"the cluster's process ended: {self._said.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """A cluster on which nothing runs: a head without cores, and a node with pretended GPUs."""
    hosted = Hosted(tmp_path_factory.mktemp("quiet"))
    hosted.add(cpus=4, gpus=2)
    yield hosted
    hosted.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Hosted]]:
    hosts: list[Hosted] = []

    def make(**options: Any) -> Hosted:
        (tmp_path / "home").mkdir()
        hosts.append(Hosted(tmp_path / "home", **options))
        return hosts[-1]

    yield make
    for hosted in hosts:
        hosted.close()


def command(hosted: Hosted, folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "search", *words],
        env={**hosted.environment, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def start(hosted: Hosted, folder: Path, experiment: dict[str, Any], *words: str) -> "subprocess.Popen[str]":
    """``run`` on the cluster, as a process; what it says goes into a file."""
    (folder / "far.yaml").write_text(json.dumps(experiment))
    with open(folder / "said", "w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "search", "run", "far.yaml", "--address", hosted.address, *words],
            env=hosted.environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
        )


def refused(ended: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line that a refused command says; nothing else is printed."""
    assert (ended.returncode, ended.stdout) == (code, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("clnp-search: ")
    return line


def open_folder(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'clnp-search.db'}", None)


def records(folder: Path) -> Any:
    """All that a run leaves, but for when and where it came about."""
    with open_folder(folder) as store:
        row = store.run("far")
        assert row is not None
        assert row.state == "finished", row.reason
        assert store.jobs("far") == []
        history = store.history("far")
        cells = {
            (place, index): replace(record, started=0.0, ended=0.0)
            for place, found in history.cells.items()
            for index, record in found.items()
        }
        commits = {place: replace(record, started=0.0, ended=0.0) for place, record in history.commits.items()}
        return history.openings, cells, commits, Artifacts(row.artifacts).list()


def undisturbed(folder: Path, experiment: dict[str, Any]) -> Any:
    """The records of the same run in this process: its stacks are those that ``worker.cells`` forms."""
    folder.mkdir()
    with open_folder(folder) as store, open(os.devnull, "w") as nowhere, open_view(nowhere) as view:
        chosen = Experiment.model_validate(experiment)
        run_experiment(store, chosen, name="far", backend="inline", view=view)
    return records(folder)


def ended_jobs(folder: Path) -> list[tuple[str, str, str]]:
    """(state, note, worker) of every job so far."""
    import sqlite3

    with sqlite3.connect(folder / "clnp-search.db") as connection:
        return connection.execute("select state, note, worker from clnp_jobs order by id").fetchall()


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]", within: float = 400) -> None:
    end = time.monotonic() + within
    while not what():
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < end, "not within its time"
        time.sleep(0.1)


# Joining


CHECKS = """
import json, sys
from search.backends.cluster import look
from search.errors import SearchError

for line in sys.stdin:
    try:
        found = [[node.cpus, node.gpus] for node in look(line.strip())]
    except SearchError as error:
        found = [error.exit_code, str(error)]
    print(json.dumps(found), flush=True)
"""


def test_versions_are_compared_and_nodes_listed(quiet: Hosted) -> None:
    """Promise 8. What the head says of itself is changed: a second Ray need not be installed."""
    checks = subprocess.Popen(
        [sys.executable, "-c", CHECKS],
        env=quiet.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def look() -> Any:
        assert checks.stdin is not None
        assert checks.stdout is not None
        checks.stdin.write(f"{quiet.address}\n")
        checks.stdin.flush()
        return json.loads(checks.stdout.readline())

    assert sorted(look()) == [[0, 0], [4, 2]]
    ours: dict[str, str] = quiet.advertise()
    for changed in ({"ray_version": "2.59.1"}, {"python_version": "3.9.18"}):
        quiet.advertise(**changed)
        code, line = look()
        quiet.advertise(**{key: ours[key] for key in changed})
        assert code == 2
        assert "\n" not in line
        for versions in ({**ours, **changed}, ours):
            assert f"Ray {versions['ray_version']} and Python {versions['python_version']}" in line
    assert checks.communicate(timeout=60) == ("", "")


@pytest.mark.slow
def test_a_run_is_refused_before_anything_is_written(quiet: Hosted, tmp_path: Path) -> None:
    """Promise 8, from the command line."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        ended = command(quiet, tmp_path, "run", "quickstart", "--address", address)
    assert f"no Ray cluster answers at {address}: connection refused" in refused(ended, 1)
    found = quiet.advertise(ray_version="2.59.1")
    ended = command(quiet, tmp_path, "run", "quickstart", "--address", quiet.address)
    quiet.advertise(ray_version=found["ray_version"])
    assert "Ray 2.59.1" in refused(ended, 2)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_plan_says_what_a_cluster_offers(quiet: Hosted, tmp_path: Path) -> None:
    """Nodes with pretended GPUs; the plan is no driver of the cluster, and leaves nothing."""
    jobs = quiet.jobs()
    words = ("plan", "quickstart", "--address", quiet.address, "--format", "json", "--set", "worker.gpu=0.4")
    ended = command(quiet, tmp_path, *words)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    workers = {"count": 4, "device": "cuda", "threads": 1, "gpu": 0.4, "cells": None}
    assert report["workers"] == {**workers, "measures": True, "pace": None}
    nodes = sorted(report["offer"]["nodes"], key=lambda node: node["cores"])
    found = [[node[key] for key in ("cores", "gpus", "slots", "idle_cores", "idle_gpus")] for node in nodes]
    assert found == [[0, 0, 0, 0, 0], [4, 2, 4, 0, 0.4]]
    assert any("worker.gpu is 0.4" in warning for warning in report["warnings"])
    assert os.listdir(tmp_path) == []
    assert quiet.jobs() == jobs


@pytest.mark.slow
def test_a_token_is_asked_for(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """One line each: none was given, none though one was announced, a wrong one."""
    hosted = host(token=TOKEN, cpus=1)
    words = ("plan", "quickstart", "--address", hosted.address)
    assert "asks for a token, and none was given" in refused(command(hosted, tmp_path, *words), 2)
    announced = command(hosted, tmp_path, *words, RAY_AUTH_MODE="token")
    assert "RAY_AUTH_MODE is token, and no token was given" in refused(announced, 2)
    wrong = command(hosted, tmp_path, *words, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN[::-1])
    line = refused(wrong, 2)
    assert "refuses the token that was given" in line
    assert TOKEN[::-1] not in line
    given = command(hosted, tmp_path, *words, RAY_AUTH_TOKEN=TOKEN)
    assert (given.returncode, given.stderr) == (0, "")


@pytest.mark.slow
def test_what_answers_may_be_no_ray(quiet: Hosted, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "no Ray cluster, or one that does not work" in refused(
            command(quiet, tmp_path, "plan", "quickstart", "--address", address), 1
        )


# Runs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_goes_and_one_comes(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """Promise 3: two replicas; a node is removed in the middle of its job, another is added and used.

    Promise 6: the database's URL, here with a secret in its path, is in nothing that the cluster keeps.
    """
    experiment = {**SMALL, "tasks": {"count": 3}, "model": {"hidden": [100, 100]}, "training": {"epochs": 20}}
    expected = undisturbed(tmp_path / "inline", experiment)
    hosted = host()
    first, _ = hosted.add(), hosted.add()
    folder, secret = tmp_path / "run", tmp_path / SECRET
    folder.mkdir()
    secret.mkdir()
    words = ("--storage", f"sqlite:///{secret}/clnp-search.db", "--artifacts", str(tmp_path / "tensors"))
    run = start(hosted, folder, experiment, *words)
    said = folder / "said"
    try:
        wait_for(lambda: "cell finished" in said.read_text(), run)
        hosted.remove(first)
        hosted.add()
        wait_for(lambda: "joined" in said.read_text(), run)
        assert run.wait(400) == 0, said.read_text()
    finally:
        run.kill()
    assert SECRET not in hosted.jobs()
    assert "clnp-search" in hosted.jobs()
    kept = [path for path in hosted.folder.rglob("*") if path.is_file()]
    assert len(kept) > 20
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
    folder = secret
    assert records(folder) == expected
    jobs = ended_jobs(folder)
    states = Counter(state for state, _, _ in jobs)
    assert set(states) == {"done", "given back"}  # no cell is blamed
    assert all("node went" in note or "a node went" in note for state, note, _ in jobs if state == "given back")
    assert len({worker for _, _, worker in jobs if worker}) >= 3  # one of them on the node that came
    assert len(re.findall(r"^.*is gone: 1 worker left$", said.read_text(), re.M)) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_late_node_that_lacks_something_is_left_alone(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """It has another clnp-search: bits may depend on it. Said once; the run goes on without it."""
    other = copied(tmp_path / "other")
    (other / "clnp" / "more.py").write_text("# a line more\n")
    experiment = {**SMALL, "training": {"epochs": 20}}
    expected = undisturbed(tmp_path / "inline", experiment)
    hosted = host()
    hosted.add()
    folder = tmp_path / "run"
    folder.mkdir()
    run = start(hosted, folder, experiment)
    said = folder / "said"
    try:
        wait_for(lambda: "cell finished" in said.read_text(), run)
        hosted.add(PYTHONPATH=str(other))
        wait_for(lambda: "the run goes on without it" in said.read_text(), run)
        assert run.wait(400) == 0, said.read_text()
    finally:
        run.kill()
    assert records(folder) == expected
    (line,) = [line for line in said.read_text().splitlines() if "without it" in line]
    assert "clnp-search's code" in line
    assert len({worker for _, _, worker in ended_jobs(folder) if worker}) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_head_that_goes_ends_the_run_in_good_order(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """Ray would end the process without a word a minute later. Nothing is left running, and the lease is released."""
    hosted = host(cpus=1)
    experiment = {**SMALL, "training": {"epochs": 2000}}
    run = start(hosted, tmp_path, experiment)
    said = tmp_path / "said"
    try:
        wait_for(lambda: "task opened" in said.read_text(), run)
        hosted.behead()
        assert run.wait(120) == 1
    finally:
        run.kill()
    assert f"no Ray cluster answers at {hosted.address}: connection refused" in said.read_text().splitlines()[-1]
    assert {state for state, _, _ in ended_jobs(tmp_path)} == {"given back"}
    with open_folder(tmp_path) as store:
        assert store.holder("far") is None


def copied(folder: Path) -> Path:
    """The packages, with something of them changed."""
    for package in ("clnp", "search"):
        shutil.copytree(Path(__file__).parents[3] / package, folder / package)
    return folder


def small_fashion(packages: Path, data: Path) -> None:
    """Fashion-MNIST with 40 and 20 images, known to copied packages."""
    raw = data / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    sha256 = {}
    for count, prefix in ((40, "train"), (20, "t10k")):
        classes = [place % 10 for place in range(count)]
        images = b"".join(bytes(255 * (pixel // 79 == one) for pixel in range(784)) for one in classes)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 2051, count, 28, 28) + images,
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 2049, count) + bytes(classes),
        }
        for file, content in files.items():
            (raw / file).write_bytes(content)
            sha256[file] = hashlib.sha256(content).hexdigest()
    with open(packages / "clnp" / "tasks" / "vision.py", "a") as module:
        module.write(f'VISION["fashion-mnist"] = Images("Fashion-MNIST", "FashionMNIST", {sha256!r})\n')
    with open(packages / "clnp" / "tasks" / "sizes.py", "a") as module:
        module.write('_COUNTS["fashion-mnist"] = ((4,) * 10, (2,) * 10)\n')


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_data_reach_each_node_once(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """Two nodes with two workers each, and no data: each is given them once, and has them for the next run."""
    packages, data = copied(tmp_path / "packages"), tmp_path / "data"
    small_fashion(packages, data)
    experiment = {
        **SMALL,
        "tasks": {"kind": "permuted", "dataset": "fashion-mnist", "count": 1},
        "grid": {"alpha": [1e-4, 2e-4], "learning_rate": [0.005]},
        "training": {"epochs": 40},
        "worker": {"cells": 1, "gpu": 0},
    }
    hosted = host()
    hosted.environment |= {"PYTHONPATH": str(packages), "CLNP_DATA_DIR": str(data)}
    temporary = [tmp_path / name for name in ("one", "two")]
    for folder in temporary:
        folder.mkdir()
        given = {"PYTHONPATH": str(packages), "CLNP_DATA_DIR": str(tmp_path / "none"), "TMPDIR": str(folder)}
        hosted.add(cpus=2, **given)
    for name, brought in (("first", 2), ("second", 0)):
        folder = tmp_path / name
        folder.mkdir()
        run = start(hosted, folder, experiment)
        assert run.wait(400) == 0, (folder / "said").read_text()
        assert len(re.findall("was given the data", (folder / "said").read_text())) == brought
        assert len({worker for _, _, worker in ended_jobs(folder) if worker}) > 2
    found = [list(folder.glob("clnp-data-*/*/FashionMNIST/raw/*-ubyte")) for folder in temporary]
    assert [len(files) for files in found] == [4, 4]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_folder_that_is_not_shared_is_refused(host: Callable[..., Hosted], tmp_path: Path) -> None:
    """Promise 8: the node that sees another folder there is named, and how to mend it. Nothing is begun."""
    hosted, artifacts, other = host(), tmp_path / "artifacts", tmp_path / "other"
    artifacts.mkdir()
    other.mkdir()
    hosted.add()
    mount = f"mount --bind {other} {artifacts}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("this account may not mount")
    ray = f"{Path(sys.executable).parent / 'ray'} start --address={hosted.address} --num-cpus=1 --block"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mount} && exec {ray}"],
        env={**hosted.environment, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while hosted.alive() < 3:
            time.sleep(0.2)
        words = ("run", "quickstart", "--address", hosted.address, "--artifacts", str(artifacts))
        line = refused(command(hosted, tmp_path, *words), 2)
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait(10)
    assert re.search(r"node \S+ \(\S+\) \w{8}: .*is not there; give --artifacts a folder that all nodes share", line)
    assert not (tmp_path / "clnp-search.db").exists()
    assert list(artifacts.iterdir()) == []
