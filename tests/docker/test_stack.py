"""The compose file's own commands, started as processes of this machine: the whole stack, a run submitted to it as
docker/README.md says, and a worker scaled away in the middle.

What is read from the files: every command, environment, health check, order and period of grace. What differs: each
service has its ports and the loopback address of this machine, and volumes are folders.
"""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "docker" / "README.md").read_text()
PROGRAMS = Path(sys.executable).parent

CELLS = 6
"""Of the quickstart's grid."""

pytestmark = pytest.mark.slow


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def image_environment() -> dict[str, str]:
    """ENV of the image."""
    stage = (ROOT / "docker" / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    (block,) = re.findall(r"(?ms)^ENV (.*?[^\\])$", stage)
    return dict(re.findall(r"(\w+)=(\S+)", block))


def server_programs() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folder = next((each for each in folders if (each / "pg_ctl").exists() and (each / "initdb").exists()), None)
    if folder is None:
        pytest.skip("no PostgreSQL server program on the path or in /usr/lib/postgresql/*/bin")
    return folder


class Stack:
    """The services of compose.yaml as processes.

    Args:
        file: compose.yaml with its variables filled in.
        folder: For everything that is written; its path is short, as Ray's sockets need it.
    """

    def __init__(self, file: dict[str, Any], folder: Path) -> None:
        self.services: dict[str, dict[str, Any]] = file["services"]
        self.folder = folder
        self.programs = server_programs()
        self.ports = {port: free_port() for port in ("5432", "6379", "8265", "8080")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: list[str] = []
        self._again: dict[str, float] = {}
        """What ended while something was waited for, and was started again, as Docker does it."""
        self._agents: dict[str, str] = {}
        for name in ("home", "artifacts", "data", "work", "tmp"):
            (folder / name).mkdir()
        # Or Ray asks a cloud's metadata address who it is.
        (folder / "home" / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")

    def here(self, text: str, process: str) -> str:
        """A text of the file as it is on this machine."""
        for port, own in {**self.ports, "52365": self._agents.setdefault(process, free_port())}.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", own, text)
        text = re.sub(rf"(?<![\w.])({'|'.join(self.services)})(?=:\d)", "127.0.0.1", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"(?<![\w.])/(artifacts|data)(?![\w.])", rf"{self.folder}/\1", text)

    def environment(self, service: str, process: str) -> dict[str, str]:
        found = {
            **image_environment(),
            **{name: self.here(str(each), process) for name, each in self.services[service]["environment"].items()},
        }
        return found | {
            "PATH": f"{PROGRAMS}:{self.programs}:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "RAY_TMPDIR": str(self.folder),
            "CLNP_DATA_DIR": str(self.folder / "data"),
            "OMP_NUM_THREADS": "1",
        }

    def execute(self, service: str, words: Sequence[str], process: str = "", timeout: float = 120) -> Any:
        """What ``docker compose exec`` does."""
        process = process or service
        return subprocess.run(
            [self.here(word, process) for word in words],
            env=self.environment(service, process),
            cwd=self.folder / "work",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, service: str, process: str = "") -> None:
        process = process or service
        wanted = self.services[service]
        if service == "postgres":
            return self._start_postgres()
        entrypoint = wanted.get("entrypoint", ["clnp-search"])
        with (self.folder / f"{process}.log").open("ab") as log:
            self.processes[process] = subprocess.Popen(
                [self.here(word, process) for word in [*entrypoint, *wanted["command"]]],
                env=self.environment(service, process),
                cwd=self.folder / "work",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return None

    def _start_postgres(self) -> None:
        """As the entry point of the image of that name does it with these variables."""
        wanted = self.services["postgres"]["environment"]
        data, password = self.folder / "records", self.folder / "password"
        password.write_text(wanted["POSTGRES_PASSWORD"])
        options = [f"--username={wanted['POSTGRES_USER']}", f"--pwfile={password}", "--auth-local=trust", "--no-sync"]
        user: dict[str, Any] = {}
        data.mkdir()
        if os.geteuid() == 0:
            user = {"user": "postgres"}
            for path in (data, password):
                shutil.chown(path, "postgres")
        subprocess.run(
            [self.programs / "initdb", *options, *wanted["POSTGRES_INITDB_ARGS"].split(), data],
            check=True, capture_output=True, cwd="/", timeout=60, **user,
        )  # fmt: skip
        password.unlink()
        with (self.folder / "postgres.log").open("wb") as log:
            self.processes["postgres"] = subprocess.Popen(
                [self.programs / "postgres", "-D", data, "-p", self.ports["5432"], "-k", data, "-h", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, **user,
            )  # fmt: skip
        self.until(lambda: self.healthy("postgres"), 30, "the server does not start")
        name = wanted["POSTGRES_DB"]
        subprocess.run(
            [self.programs / "createdb", "-h", data, "-p", self.ports["5432"], "-U", wanted["POSTGRES_USER"], name],
            check=True, capture_output=True, cwd="/", timeout=60,
        )  # fmt: skip

    def healthy(self, service: str, process: str = "") -> bool:
        """Whether the health check says so."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return bool(self.execute(service, words, process).returncode == 0)

    def until(self, there: Callable[[], bool], seconds: float, otherwise: str) -> float:
        began = time.monotonic()
        while not there():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            for name in dead:
                if time.monotonic() < self._again.get(name, 0.0):
                    continue
                assert self.services[name.partition("-")[0]]["restart"] == "unless-stopped"
                self.start(name.partition("-")[0], name)
                self.restarts.append(name)
                # As Docker: each pause twice as long. Here a head finds the old one's nodes, for the minute they last.
                self._again[name] = time.monotonic() + min(60.0, 0.1 * 2 ** self.restarts.count(name))
            if len(self.restarts) > 30 or time.monotonic() - began > seconds:
                logs = [f"{name}:\n{(self.folder / f'{name}.log').read_text()[-3000:]}" for name in self.processes]
                job = self.execute("head", command_of_readme("logs")[:3]).stdout if "head" in self.processes else ""
                raise AssertionError("\n".join([f"{otherwise}; started again: {self.restarts}", *logs, job]))
            time.sleep(0.3)
        return time.monotonic() - began

    def up(self, **scale: int) -> dict[str, float]:
        """Everything in its order, each when what it depends on is healthy; seconds until each was."""
        took: dict[str, float] = {}
        left = dict(self.services)
        while left:
            ready = [name for name, each in left.items() if not left.keys() & each.get("depends_on", {}).keys()]
            for service in ready:
                names = [f"{service}-{place}" for place in range(scale[service])] if service in scale else [service]
                check = left.pop(service)["healthcheck"]
                allowed = sum(map(_seconds, (check["start_period"], *[check["interval"]] * check["retries"])))
                # One after the other: nodes that start at the same time on one machine get into each other's way.
                for process in names:
                    self.start(service, process)
                    healthy = functools.partial(self.healthy, service, process)
                    took[process] = self.until(healthy, allowed, f"{process} is not healthy")
        return took

    def stop(self, process: str) -> float:
        """As ``docker stop``: SIGTERM, and an end within the period of grace; seconds that it took."""
        running = self.processes.pop(process)
        service = process.partition("-")[0]
        began = time.monotonic()
        # PostgreSQL's image says which signal it wants: SIGINT, the fast shutdown.
        running.send_signal(signal.SIGINT if service == "postgres" else signal.SIGTERM)
        running.wait(_seconds(self.services[service].get("stop_grace_period", "10s")))
        return time.monotonic() - began

    def status(self) -> dict[str, Any]:
        """Of the quickstart; nothing while the driver has not made the tables."""
        found = self.execute("head", ["clnp-search", "status", "quickstart", "--format", "json"])
        return dict(json.loads(found.stdout)["runs"][0]) if found.returncode == 0 else {"replicas": [], "state": "none"}

    def begun(self) -> bool:
        return any(each["committed"] for each in self.status()["replicas"])

    def finished(self) -> bool:
        return bool(self.status()["state"] == "finished")

    def listens(self, port: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.ports[port]))) == 0

    def trials(self, secrets: Mapping[str, str]) -> list[tuple[str, int]]:
        """Of every study: the state of its trials and how many there are."""
        wanted = self.services["postgres"]["environment"]
        where = {"host": "127.0.0.1", "port": self.ports["5432"], "dbname": wanted["POSTGRES_DB"]}
        with psycopg.connect(
            user=wanted["POSTGRES_USER"], password=secrets["POSTGRES_PASSWORD"], **where
        ) as connection:
            return connection.execute("SELECT state, count(*) FROM trials GROUP BY study_id, state").fetchall()

    def kill(self) -> None:
        """Whatever is left of the stack: processes that were given its folder."""
        for each in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

    def left(self) -> list[psutil.Process]:
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if each.environ().get("RAY_TMPDIR") == str(self.folder) or str(self.folder) in " ".join(each.cmdline()):
                    found.append(each)
        return [each for each in found if each.pid != os.getpid()]

    def family(self, process: str) -> list[psutil.Process]:
        first = psutil.Process(self.processes[process].pid)
        return [first, *first.children(recursive=True)]


def _seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


@pytest.fixture
def stack(read_compose: Callable[..., dict[str, Any]], secrets: dict[str, str]) -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
    folder.chmod(0o755)
    made = Stack(read_compose("compose.yaml", {**secrets, "WORKER_CPUS": "1"}), folder)
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder, ignore_errors=True)


def command_of_readme(start: str) -> list[str]:
    """The words after the service's name in the README's first ``docker compose … exec head …`` of this beginning."""
    line, *_ = re.findall(rf"(?m)^docker compose .*exec head (clnp-search {start}.*)$", README)
    return shlex.split(line, comments=True)


@pytest.mark.timeout(1500)
def test_a_submitted_run_outlives_a_worker_that_is_scaled_away(stack: Stack, secrets: dict[str, str]) -> None:
    """Promises 3 and 6."""
    took = stack.up(worker=2)
    submit = [*command_of_readme("submit"), "--set", "replicas=2", "tasks.count=3", "training.epochs=15"]
    done = stack.execute("head", submit, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    print({name: round(seconds, 1) for name, seconds in took.items()}, done.stdout, sep="\n")

    began = time.monotonic()
    stack.until(stack.begun, 300, "nothing was committed")
    workers = [each for name in ("worker-0", "worker-1") for each in stack.family(name)]
    assert any("ray::" in " ".join(each.cmdline()) for each in workers), "jobs run on workers"
    for each in workers:
        held = each.environ()
        assert not {"PGPASSWORD", "CLNP_SEARCH_STORAGE"} & held.keys(), each
        assert secrets["POSTGRES_PASSWORD"] not in json.dumps([held, each.cmdline()])
    print("worker gone after", round(stack.stop("worker-1"), 1), "s")
    stack.until(stack.finished, 600, "the run does not end")
    print("run took", round(time.monotonic() - began, 1), "s")
    verified = stack.execute("head", ["clnp-search", "verify", "quickstart"], timeout=300)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    print(verified.stdout)
    ended = stack.execute("head", command_of_readme("logs"))
    assert "0 of 6 old fingerprints changed" in ended.stdout, ended.stdout + ended.stderr
    assert set(stack.trials(secrets)) == {("COMPLETE", CELLS)}, "every cell of every task has one trial"
    stack.until(lambda: stack.listens("8080"), 60, "the dashboard waits on")
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.ports['8080']}/api/studies", timeout=60) as answer:
        assert answer.read().decode().count("quickstart/replica-") >= 6

    print("down:", {name: round(stack.stop(name), 1) for name in reversed(list(stack.processes))})
    time.sleep(1)
    assert stack.left() == []


@pytest.mark.timeout(600)
def test_the_cluster_answers_to_its_token_alone(stack: Stack) -> None:
    stack.start("postgres")
    stack.start("head")
    stack.until(lambda: stack.healthy("head"), 120, "the head is not healthy")
    variables = stack.services["head"]["environment"]
    variables["RAY_AUTH_TOKEN"] = "f" * 64
    other = stack.execute("head", ["clnp-search", "list"])
    assert (other.returncode, "refuses this token" in other.stderr) == (2, True), other.stderr
    del variables["RAY_AUTH_MODE"], variables["RAY_AUTH_TOKEN"]
    none = stack.execute("head", ["clnp-search", "list"])
    assert (none.returncode, "asks for a token" in none.stderr) == (2, True), none.stderr


@pytest.mark.timeout(1500)
def test_the_same_command_continues_after_the_head_was_killed(stack: Stack, secrets: dict[str, str]) -> None:
    """Promise 3. Head and worker are started again as the file says; the run is submitted again."""
    del stack.services["dashboard"]
    stack.up(worker=1)
    submit = [*command_of_readme("submit"), "--set", "replicas=1", "tasks.count=3", "training.epochs=15"]
    assert stack.execute("head", submit, timeout=300).returncode == 0
    stack.until(stack.begun, 300, "nothing was committed")
    for each in stack.family("head"):
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with one that was killed before it
            each.kill()
    print("head again after", stack.until(lambda: stack.healthy("head"), 300, "the head does not come back"), "s")
    again = stack.execute("head", submit, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    print(
        "run ended after", stack.until(stack.finished, 600, "the run does not end"), "s; started again", stack.restarts
    )
    assert set(stack.trials(secrets)) == {("COMPLETE", CELLS)}, "every cell of every task has one trial"
