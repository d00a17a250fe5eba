"""The artifact store: whole files under their SHA-256, or none."""

import hashlib
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore

from search.artifacts import Artifacts
from search.errors import BadInput, Damage, Unavailable
from search.names import artifact_file


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(str(tmp_path / "artifacts"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.binary(max_size=2000))
def test_gives_back_what_was_put(artifacts: Artifacts, data: bytes) -> None:
    sha256 = artifacts.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert artifacts.get(sha256) == data
    assert artifacts.size(sha256) == len(data)
    assert sha256 in artifacts.list()


def test_putting_again_writes_nothing(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    path = Path(artifacts.location, artifact_file(sha256))
    os.utime(path, (1, 1))
    assert artifacts.put(b"tensors") == sha256
    assert path.stat().st_mtime == 1
    assert artifacts.list() == (sha256,)


@pytest.mark.parametrize("damage", [b"", b"tensorS", b"tensors and more"])
def test_damage_is_seen_on_every_load_and_mended_by_the_next_put(artifacts: Artifacts, damage: bytes) -> None:
    """Exit 3 names the file, both hashes and what can be recovered."""
    sha256 = artifacts.put(b"tensors")
    path = Path(artifacts.location, artifact_file(sha256))
    path.write_bytes(damage)
    with pytest.raises(Damage) as caught:
        artifacts.get(sha256)
    for word in (str(path), sha256, hashlib.sha256(damage).hexdigest(), "Put back a copy", "verify", "--name NEW"):
        assert word in str(caught.value)
    with pytest.raises(Damage, match=r"Put back a copy .* All but the last line is whole$"):
        artifacts.get(sha256, recovery="All but the last line is whole")
    assert artifacts.put(b"tensors") == sha256
    assert artifacts.get(sha256) == b"tensors"


def test_a_missing_file_is_damage(artifacts: Artifacts) -> None:
    with pytest.raises(Damage, match=rf"{'0' * 64}\.safetensors is missing.*Put back a copy"):
        artifacts.get("0" * 64)
    with pytest.raises(Damage, match="is missing"):
        artifacts.size("0" * 64)


def test_removing_twice_is_no_error(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    assert artifacts.remove(sha256)
    assert not artifacts.remove(sha256)
    assert artifacts.list() == ()


def test_a_writer_killed_half_way_leaves_nothing_that_counts(
    artifacts: Artifacts, child: Callable[..., subprocess.Popen[str]]
) -> None:
    """A file is there whole or not at all."""
    script = """
import os, signal, sys
from search.artifacts import Artifacts
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Artifacts(sys.argv[1]).put(b"tensors")
"""
    assert child(script, artifacts.location).wait(60) == -signal.SIGKILL
    assert len(os.listdir(artifacts.location)) == 1
    assert artifacts.list() == ()
    assert artifacts.sweep() == 1
    assert os.listdir(artifacts.location) == []
    assert artifacts.get(artifacts.put(b"tensors")) == b"tensors"


def test_writes_are_synced_before_they_are_seen(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("rename"), rename(old, new))[1])
    artifacts.put(b"tensors")
    assert steps == ["sync", "rename", "sync"]


def test_is_an_optuna_artifact_store(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    with FileSystemArtifactStore(artifacts.location).open_reader(artifact_file(sha256)) as file:
        assert file.read() == b"tensors"


def test_foreign_files_are_left_alone(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    foreign = [Path(artifacts.location, name) for name in ("notes.txt", f"{sha256}.safetensors.bak", ".tmp")]
    for path in foreign:
        path.write_text("mine")
    assert artifacts.list() == (sha256,)
    assert artifacts.sweep() == 0
    assert artifacts.discard() == 1
    assert all(path.exists() for path in foreign)


def test_an_emptied_folder_goes(artifacts: Artifacts) -> None:
    artifacts.put(b"tensors")
    assert artifacts.discard() == 1
    assert not Path(artifacts.location).exists()
    assert artifacts.discard() == 0


@pytest.mark.parametrize("location", ["s3://bucket/folder", "gs://bucket", "file:///tmp/x"])
def test_refuses_a_url(location: str) -> None:
    with pytest.raises(BadInput, match="only folders are supported"):
        Artifacts(location)


def test_refuses_what_cannot_be_a_folder(tmp_path: Path, as_nobody: Callable[[], None]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="this is a file"):
        Artifacts(str(tmp_path / "file"))
    (tmp_path / "closed").mkdir(mode=0o555)
    closed = Artifacts(str(tmp_path / "closed" / "folder"))
    as_nobody()
    with pytest.raises(BadInput, match=r"cannot be written in .*Permission denied"):
        closed.prepare()
    with pytest.raises(Unavailable, match="cannot be written: Permission denied"):
        closed.put(b"tensors")


def test_a_folder_that_is_closed_later_can_be_mended(artifacts: Artifacts, as_nobody: Callable[[], None]) -> None:
    """An error of the file system names the file, and never comes as a bare OSError."""
    sha256 = artifacts.put(b"tensors")
    folder = Path(artifacts.location)
    half = folder / f".{sha256}.safetensors.{'0' * 32}.tmp"
    half.touch()
    folder.chmod(0o555)
    as_nobody()
    for step in (lambda: artifacts.remove(sha256), artifacts.discard):
        with pytest.raises(Unavailable, match=rf"{sha256}\.safetensors cannot be removed: Permission denied; mend it"):
            step()
    with pytest.raises(Unavailable, match=r"\.tmp cannot be removed: Permission denied; .*the same command continues"):
        artifacts.sweep()
    os.seteuid(os.getuid())
    folder.chmod(0)
    as_nobody()
    for look in (artifacts.list, artifacts.sweep, lambda: artifacts.get(sha256), lambda: artifacts.size(sha256)):
        with pytest.raises(Unavailable, match="cannot be read: Permission denied; mend it, the same command continues"):
            look()
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    assert artifacts.get(sha256) == b"tensors"
    assert artifacts.discard() == 1


def test_workers_get_it_pickled(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    assert pickle.loads(pickle.dumps(artifacts)).get(sha256) == b"tensors"  # noqa: S301


def test_looking_makes_no_folder(artifacts: Artifacts) -> None:
    assert artifacts.list() == ()
    assert artifacts.sweep() == 0
    assert not Path(artifacts.location).exists()
