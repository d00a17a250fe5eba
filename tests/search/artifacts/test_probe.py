"""Whether every node sees the same artifacts."""

import shutil
from pathlib import Path

import pytest

from search.artifacts import Artifacts
from search.artifacts.probe import answer, leave, settle
from search.errors import BadInput


def test_nodes_that_share_a_place(location: str) -> None:
    token = leave(location)
    answers = {node: answer(location, token) for node in ("one", "two")}
    assert settle(location, token, answers) == []
    assert Artifacts(location).vault.entries() == {}


def test_a_node_with_another_folder_at_the_same_path(tmp_path: Path) -> None:
    """It reads nothing of the driver's, and nothing is left or made there."""
    shared = tmp_path / "artifacts"
    token = leave(str(shared))
    aside = shared.rename(tmp_path / "aside")
    with pytest.raises(BadInput, match=r"what the driver wrote in .*artifacts is not there; give --artifacts a folder"):
        answer(str(shared), token)
    assert not shared.exists()
    aside.rename(shared)
    assert settle(str(shared), token, {}) == []


def test_a_node_whose_writes_do_not_come_back(tmp_path: Path) -> None:
    """As on a snapshot of the folder, or a file system on top of it."""
    shared = tmp_path / "artifacts"
    token = leave(str(shared))
    shutil.copytree(shared, tmp_path / "copy")
    good, bad = answer(str(shared), token), answer(str(tmp_path / "copy"), token)
    (problem,) = settle(str(shared), token, {"node-1": good, "node-2": bad})
    assert problem.startswith(f"what node-2 wrote in {shared} does not come to the driver; give --artifacts")
    assert Artifacts(str(shared)).vault.entries() == {}


def test_what_comes_back_otherwise(location: str) -> None:
    token = leave(location)
    Artifacts(location).vault.write(token, b"other")
    with pytest.raises(BadInput, match="comes back otherwise"):
        answer(location, token)
    given = leave(location)
    Artifacts(location).vault.write(given, b"")
    assert len(settle(location, token, {"one": given})) == 1


def test_what_a_killed_probe_leaves_is_swept(location: str) -> None:
    answer(location, leave(location))
    assert Artifacts(location).list() == ()
    assert Artifacts(location).sweep() == 2


def test_a_place_that_cannot_be_written(tmp_path: Path, as_nobody) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "closed").mkdir(mode=0o755)
    token = leave(str(tmp_path / "closed"))
    (tmp_path / "closed").chmod(0o555)
    as_nobody()
    for step in (lambda: leave(str(tmp_path / "closed")), lambda: answer(str(tmp_path / "closed"), token)):
        with pytest.raises(BadInput, match=r"cannot be written in .*closed: Permission denied"):
            step()


def test_only_tokens_are_looked_for(location: str) -> None:
    for token in ("", "../x", "a" * 64 + ".safetensors"):
        with pytest.raises(ValueError, match="no token of a probe"):
            answer(location, token)
