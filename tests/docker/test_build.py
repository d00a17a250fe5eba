"""The image, built for real without a daemon and run as anybody on a root that cannot be written.

Wants buildah, root's rights and a base: the variable ``CLNP_TEST_BASE`` names an image that buildah finds, or a tar
file of a Debian's root with python3, python3-venv and ca-certificates, as debootstrap makes one. What else a build
needs on a machine, such as a mirror of packages, is in ``CLNP_TEST_BUILD``: ``--secret id=pip,src=FILE --volume …``.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# As Docker's --read-only --tmpfs: only what is meant to be written can be.
READ_ONLY = r"""
set -eu
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
for folder in /tmp /home/clnp /work /artifacts; do mount -t tmpfs -o mode=1777 none "$1$folder"; done
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
root=$1 user=$2
shift 2
exec chroot --userspec="$user" "$root" "$@"
"""


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._words = ["buildah", "--root", f"{folder}/store", "--runroot", f"{folder}/run"]

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._words, *words], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()


class Image:
    """A built image: what buildah says of it, and its root where it can be run."""

    def __init__(self, builder: Builder, seconds: float) -> None:
        self.seconds = seconds
        self.about: dict[str, Any] = json.loads(builder("inspect", "--type", "image", "clnp-search"))
        self.root = Path(builder("mount", builder("from", "--name", "look", "clnp-search")))

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.about["OCIv1"]["config"])

    def run(self, *words: str, user: str = "") -> "subprocess.CompletedProcess[str]":
        """As ``docker run --read-only`` would, with the image's environment and nothing of this machine's."""
        command = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", READ_ONLY, "sh", str(self.root)]
        inside = ["env", "--chdir", self.config["WorkingDir"], "--ignore-environment", *self.config["Env"], *words]
        return subprocess.run(
            [*command, user or self.config["User"], *inside], capture_output=True, text=True, timeout=600, check=False
        )


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    base = os.environ.get("CLNP_TEST_BASE")
    if shutil.which("buildah") is None or os.geteuid() != 0 or not base:
        pytest.skip("wants buildah, root's rights and CLNP_TEST_BASE, a base image: see the file's head")
    folder = Path(tempfile.mkdtemp(prefix="clnp-build-"))
    builder = Builder(folder)
    try:
        if Path(base).is_file():
            builder("from", "--name", "base", "scratch")
            builder("add", "base", str(Path(base).resolve()), "/")
            builder("commit", "--rm", "base", "localhost/base")
            base = "localhost/base"
        options = shlex.split(os.environ.get("CLNP_TEST_BUILD", ""))
        began = time.monotonic()
        builder(
            "build", "--isolation", "chroot", "--layers", "--build-arg", f"BASE={base}", *options,
            "--file", "docker/Dockerfile", "--tag", "clnp-search", ".",
        )  # fmt: skip
        yield Image(builder, time.monotonic() - began)
    finally:
        builder("umount", "--all")
        builder("rm", "--all")
        shutil.rmtree(folder, ignore_errors=True)


def test_image_says_what_it_is(image: Image) -> None:
    config = image.config
    assert (config["User"], config["Entrypoint"], config["WorkingDir"]) == ("10001:10001", ["clnp-search"], "/work")
    assert config["Labels"]["org.opencontainers.image.title"] == "clnp-search"
    assert not (image.root / "etc/pip.conf").exists() or not (image.root / "etc/pip.conf").read_text(), "a build secret"
    assert not list(image.root.glob("build")), "what it was built with stays in the stages before"
    sizes = [sum(map(_size, folder.rglob("*"))) for folder in (image.root / "opt/clnp-search", image.root)]
    print(f"built in {image.seconds:.0f} s; packages {sizes[0] / 1e6:.0f} MB of {sizes[1] / 1e6:.0f} MB")


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() or path.is_symlink() else 0


def test_image_holds_the_pinned_versions_and_no_cuda(image: Image) -> None:
    done = image.run("pip", "list", "--format", "json")
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(done.stdout)}
    lines = (ROOT / "constraints.txt").read_text() + (ROOT / "docker" / "build-constraints.txt").read_text()
    pins = dict(line.split("==") for line in lines.splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    free = {name for name in found if name not in pins} - {"pip", "clnp-search"}
    assert not free, "not pinned"
    assert {name: version.partition("+")[0] for name, version in found.items() if name in pins} == {
        name: pins[name] for name in found if name in pins
    }
    assert found["torch"].endswith("+cpu")
    assert not [name for name in found if name.startswith(("nvidia", "cuda", "triton"))]
    assert {"psycopg", "boto3", "optuna-dashboard"} <= found.keys()


@pytest.mark.parametrize("user", ["", "54321:54321"], ids=["its own user", "a user without a name"])
@pytest.mark.parametrize("backend", ["inline", "tune"])
def test_a_run_on_a_root_that_cannot_be_written(image: Image, user: str, backend: str) -> None:
    """Promise 1, in a container."""
    assert image.run("touch", "/opt/clnp-search/x", user="0:0").returncode == 1, "the root is read-only, for root too"
    words = ["run", "quickstart", "--backend", backend, "--set", "replicas=1", "tasks.count=2", "training.epochs=8"]
    command = shlex.join([*image.config["Entrypoint"], *words])
    # Exit code 1: the same command continues. Ray gives a node 30 s to start, which a busy machine may not have.
    again = f"for _ in 1 2 3; do code=0; {command} || code=$?; [ $code = 1 ] || exit $code; done; exit 1"
    done = image.run("sh", "-c", again, user=user)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 1 old fingerprints changed" in done.stdout


def test_ray_and_version_answer(image: Image) -> None:
    assert image.run("clnp-search", "--version").stdout.startswith("clnp-search ")
    assert "ray, version" in image.run("ray", "--version").stdout
    assert image.run("id", "-u").stdout.strip() == "10001"
