"""Whether every node sees the same artifacts."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.artifacts import Artifacts
from search.artifacts.probe import answer, leave, settle
from search.errors import BadInput, Unavailable


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


@pytest.mark.parametrize("begin", [leave, lambda location: Artifacts(location).prepare()], ids=["leave", "prepare"])
def test_what_a_killed_probe_leaves_is_removed_by_who_comes_a_day_later(
    location: str, begin: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run which begins at this moment stays, and so does what is no probe's."""
    there = Artifacts(location).vault.entries
    answer(location, token := leave(location))
    Artifacts(location).vault.write("notes.txt", b"mine")
    assert Artifacts(location).list() == ()
    begin(location)
    assert len(there()) == (4 if begin is leave else 3)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100_000)
    begin(location)
    assert token not in there()
    assert set(there()) >= {"notes.txt"}


def test_what_passes_by_itself_is_tried_again_and_is_no_bad_input(
    s3: str, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = leave(s3)
    given = answer(s3, token)

    def each(call: Callable[..., object]) -> None:
        for step in (lambda: leave(s3), lambda: answer(s3, token), lambda: settle(s3, token, {"one": given})):
            gate.close_door((503, "SlowDown"))
            call(step)

    def refuse(step: Callable[[], object]) -> None:
        with pytest.raises(Unavailable, match=rf"in {s3}: the server answers .*; the same command continues"):
            step()

    monkeypatch.setattr("search.artifacts.probe._PATIENCE", 0.1)
    each(refuse)
    monkeypatch.setattr("search.artifacts.store._sleep", lambda _: (gate.open_door(), True)[1])
    each(lambda step: step())


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
