"""The versions of an attempt, and what changed since the last one."""

import platform
import subprocess
import sys

import torch

from search.versions import begun_threads, changes, describe, package_version


def test_versions_name_what_bits_depend_on() -> None:
    found = describe("ray")
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found.keys() == {"clnp-search", "numerics", "python", "torch", "ray"}


def test_a_missing_package_is_said_to_be_missing() -> None:
    assert package_version("no-such-package-anywhere") == "not installed"


def test_changes_are_phrases() -> None:
    before, now = {"torch": "1", "python": "3", "old": "x"}, {"torch": "2", "python": "3", "threads": "1"}
    assert changes(before, now) == [
        "old was x, is not recorded",
        "threads was not recorded, is 1",
        "torch was 1, is 2",
    ]
    assert changes(now, now) == []


def test_threads_are_known_of_an_attempt_on_a_cpu() -> None:
    assert begun_threads({"device": "cpu", "threads": "2"}) == 2
    assert begun_threads({"device": "cuda", "threads": "2"}) is None
    assert begun_threads({"device": "cpu"}) is None
    assert begun_threads(None) is None


def test_nothing_is_imported_for_them() -> None:
    script = "import sys; from search.versions import describe; describe('ray'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
