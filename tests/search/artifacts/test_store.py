"""The artifact store, a folder or a bucket: whole files under their SHA-256, or none."""

import hashlib
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore

from search.artifacts import Artifacts, join, parent
from search.artifacts.locations import split
from search.errors import BadInput, Damage, Unavailable
from search.names import artifact_file


@pytest.fixture
def folder(tmp_path: Path) -> Artifacts:
    return Artifacts(str(tmp_path / "artifacts"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(st.binary(max_size=2000))
def test_gives_back_what_was_put(artifacts: Artifacts, data: bytes) -> None:
    sha256 = artifacts.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert artifacts.get(sha256) == data
    assert artifacts.size(sha256) == len(data)
    assert artifacts.entries()[sha256].size == len(data)
    assert sha256 in artifacts.list()


def test_putting_again_writes_nothing(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = artifacts.put(b"tensors")
    monkeypatch.delattr(type(artifacts.vault), "write")
    assert artifacts.put(b"tensors") == sha256
    assert artifacts.list() == (sha256,)


@pytest.mark.parametrize("damage", [b"", b"tensorS", b"tensors and more"])
def test_damage_is_seen_on_every_load_and_mended_by_the_next_put(artifacts: Artifacts, damage: bytes) -> None:
    """Exit 3 names the file, both hashes and what can be recovered."""
    sha256 = artifacts.put(b"tensors")
    name = artifact_file(sha256)
    artifacts.vault.write(name, damage)
    with pytest.raises(Damage) as caught:
        artifacts.get(sha256)
    found = hashlib.sha256(damage).hexdigest()
    for word in (f"{artifacts.location}/{name}", sha256, found, "Put back a copy", "verify", "--name NEW"):
        assert word in str(caught.value)
    with pytest.raises(Damage, match=r"Put back a copy .* All but the last line is whole$"):
        artifacts.get(sha256, recovery="All but the last line is whole")
    assert artifacts.put(b"tensors") == sha256
    assert artifacts.get(sha256) == b"tensors"


def test_a_missing_file_is_damage(artifacts: Artifacts) -> None:
    with pytest.raises(Damage, match=rf"{artifacts.location}/{'0' * 64}\.safetensors is missing.*Put back a copy"):
        artifacts.get("0" * 64)
    with pytest.raises(Damage, match="is missing"):
        artifacts.size("0" * 64)


def test_removing_twice_is_no_error(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    assert artifacts.remove(sha256)
    assert not artifacts.remove(sha256)
    assert artifacts.list() == ()


def test_a_writer_killed_half_way_leaves_nothing_that_counts(
    folder: Artifacts, child: Callable[..., subprocess.Popen[str]]
) -> None:
    """A file is there whole or not at all."""
    script = """
import os, signal, sys
from search.artifacts import Artifacts
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Artifacts(sys.argv[1]).put(b"tensors")
"""
    assert child(script, folder.location).wait(60) == -signal.SIGKILL
    assert len(os.listdir(folder.location)) == 1
    assert folder.list() == ()
    assert [entry.size for entry in folder.half_written().values()] == [len(b"tensors")]
    assert folder.sweep() == 1
    assert os.listdir(folder.location) == []
    assert folder.get(folder.put(b"tensors")) == b"tensors"


def test_an_upload_that_is_killed_half_way_leaves_nothing(s3: str, child: Callable[..., subprocess.Popen[str]]) -> None:
    """An object is one request: there whole or not at all."""
    script = """
import io, os, signal, sys
from search.artifacts import Artifacts
from botocore.httpsession import URLLib3Session
from urllib3.connection import HTTPConnection

send = HTTPConnection.send
def half(self, data):
    whole = data.read() if hasattr(data, "read") else data
    if len(whole) > 10**5:
        send(self, bytes(whole)[:50000])
        os.kill(os.getpid(), signal.SIGKILL)
    return send(self, whole)
HTTPConnection.send = half
Artifacts(sys.argv[1]).put(bytes(200000))
"""
    assert child(script, s3).wait(60) == -signal.SIGKILL
    artifacts = Artifacts(s3)
    assert artifacts.vault.entries() == {}
    assert not artifacts.exists()
    assert artifacts.size(artifacts.put(bytes(200000))) == 200000


def test_writes_are_synced_before_they_are_seen(folder: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("rename"), rename(old, new))[1])
    folder.put(b"tensors")
    assert steps == ["sync", "rename", "sync"]


def test_optunas_own_artifact_stores_read_the_same(artifacts: Artifacts) -> None:
    name = artifact_file(artifacts.put(b"tensors"))
    if artifacts.location.startswith("s3://"):
        bucket, prefix = split(artifacts.location)
        store: Any = Boto3ArtifactStore(bucket)
        name = prefix + name
    else:
        store = FileSystemArtifactStore(artifacts.location)
    with store.open_reader(name) as file:
        assert file.read() == b"tensors"


def test_foreign_files_are_left_alone(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    foreign = {"notes.txt", f"{sha256}.safetensors.bak", ".tmp"}
    for name in foreign:
        artifacts.vault.write(name, b"mine")
    assert artifacts.list() == (sha256,)
    assert artifacts.sweep() == 0
    assert artifacts.discard() == 1
    assert artifacts.vault.entries().keys() == foreign
    assert artifacts.exists()


def test_an_emptied_place_goes(artifacts: Artifacts) -> None:
    assert not artifacts.exists()
    artifacts.put(b"tensors")
    assert artifacts.exists()
    assert artifacts.discard() == 1
    assert not artifacts.exists()
    assert artifacts.discard() == 0


def test_one_place_in_another(artifacts: Artifacts) -> None:
    """What lies in a place of its own is neither listed with the outer ones nor removed with them."""
    sha256 = artifacts.put(b"outer")
    inner = Artifacts(join("", artifacts.location, "run-1"))
    inner.put(b"inner")
    assert parent(inner.location) == artifacts.location
    assert artifacts.list() == (sha256,)
    assert artifacts.vault.places() == ("run-1",)
    assert artifacts.discard() == 1
    assert len(inner.list()) == 1


def test_more_objects_than_a_page_holds(s3: str) -> None:
    artifacts = Artifacts(s3)
    for index in range(12):
        artifacts.put(bytes([index]))
    client = artifacts.vault._reachable()  # type: ignore[attr-defined]
    with client as s3_client:
        s3_client.meta.events.register("provide-client-params.s3.ListObjectsV2", _small_pages)
        try:
            assert len(artifacts.list()) == 12
        finally:
            s3_client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", _small_pages)


def _small_pages(params: dict[str, Any], **_: object) -> dict[str, Any]:
    return {**params, "MaxKeys": 5}


def test_workers_get_it_pickled(artifacts: Artifacts) -> None:
    sha256 = artifacts.put(b"tensors")
    assert pickle.loads(pickle.dumps(artifacts)).get(sha256) == b"tensors"  # noqa: S301
    assert b"s3cret" not in pickle.dumps(artifacts)


def test_preparing_leaves_nothing_but_the_place(artifacts: Artifacts) -> None:
    artifacts.prepare()
    assert artifacts.vault.entries() == {}


def test_looking_makes_nothing(artifacts: Artifacts) -> None:
    assert artifacts.list() == ()
    assert artifacts.sweep() == 0
    assert not artifacts.exists()


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


def test_a_folder_that_is_closed_later_can_be_mended(folder: Artifacts, as_nobody: Callable[[], None]) -> None:
    """An error of the file system names the file, and never comes as a bare OSError."""
    sha256 = folder.put(b"tensors")
    path = Path(folder.location)
    half = path / f".{sha256}.safetensors.{'0' * 32}.tmp"
    half.touch()
    path.chmod(0o555)
    as_nobody()
    for step in (lambda: folder.remove(sha256), folder.discard):
        with pytest.raises(Unavailable, match=rf"{sha256}\.safetensors cannot be removed: Permission denied; mend it"):
            step()
    with pytest.raises(Unavailable, match=r"\.tmp cannot be removed: Permission denied; .*the same command continues"):
        folder.sweep()
    os.seteuid(os.getuid())
    path.chmod(0)
    as_nobody()
    for look in (folder.list, folder.sweep, lambda: folder.get(sha256), lambda: folder.size(sha256)):
        with pytest.raises(Unavailable, match="cannot be read: Permission denied; mend it, the same command continues"):
            look()
    os.seteuid(os.getuid())
    path.chmod(0o755)
    assert folder.get(sha256) == b"tensors"
    assert folder.discard() == 1
