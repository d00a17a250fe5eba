"""Data sets brought to a node: whole, once, and found by its workers."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search import delivered
from search.delivered import Parcel, find, holds, pack, pieces, unpack
from search.errors import BadInput


@pytest.fixture
def parcel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parcel:
    """Three files of several pieces each, one of them empty; the node's temporary folder is of its own."""
    monkeypatch.setattr(delivered, "_PIECE", 1000)
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(node))
    folder = tmp_path / "data"
    (folder / "A" / "raw").mkdir(parents=True)
    files = []
    for name, size in (("A/raw/one", 2500), ("A/raw/none", 0), ("two", 1000)):
        content = os.urandom(size)
        (folder / name).write_bytes(content)
        files.append((name, size, hashlib.sha256(content).hexdigest()))
    return Parcel(str(folder), tuple(files))


def test_what_is_unpacked_is_what_was_packed(parcel: Parcel, tmp_path: Path) -> None:
    assert not holds(parcel, str(tmp_path / "elsewhere"))
    assert find(parcel.name, "given") == "given"
    assert unpack(parcel, pieces(parcel))
    place = find(parcel.name, "given")
    assert place is not None
    assert place.startswith(str(tmp_path / "node"))
    for path, _, sha256 in parcel.files:
        assert hashlib.sha256((Path(place) / path).read_bytes()).hexdigest() == sha256
    assert holds(parcel, str(tmp_path / "elsewhere"))
    assert find(None, "given") == "given"


def test_a_node_that_has_the_files_is_given_none(parcel: Parcel, tmp_path: Path) -> None:
    assert holds(parcel, str(tmp_path / "data"))
    (tmp_path / "data" / "two").write_bytes(b"other")
    assert not holds(parcel, str(tmp_path / "data"))


def test_nothing_is_fetched_twice(parcel: Parcel) -> None:
    """Whoever comes second waits, and asks for no piece."""
    begun, asked, done = threading.Event(), list[int](), list[bool]()

    def slowly() -> Iterator[bytes]:
        asked.append(1)
        begun.set()
        for piece in pieces(parcel):
            threading.Event().wait(0.02)
            yield piece

    threads = [threading.Thread(target=lambda: done.append(unpack(parcel, slowly()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, False, True]
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["gone", "cut", "flipped"])
def test_what_is_not_whole_any_more_is_brought_again(parcel: Parcel, tmp_path: Path, kind: str) -> None:
    """A run lasts for weeks, and systems clean their temporary folder after days: else no continuation could work."""
    assert unpack(parcel, pieces(parcel))
    place = find(parcel.name, None)
    assert place is not None
    one, content = Path(place) / "A/raw/one", (tmp_path / "data/A/raw/one").read_bytes()
    if kind == "gone":
        one.unlink()
    else:
        one.write_bytes(content[:-1] if kind == "cut" else bytes([content[0] ^ 1]) + content[1:])
    delivered._hashed.clear()  # another process, another day
    assert not holds(parcel, str(tmp_path / "data")), "a worker reads what was brought, not the node's own"
    assert unpack(parcel, pieces(parcel))
    assert find(parcel.name, None) == place
    assert one.read_bytes() == content
    assert holds(parcel, str(tmp_path / "elsewhere"))
    assert not unpack(parcel, iter(()))


@pytest.mark.parametrize("kind", ["cut", "flipped"])
def test_what_comes_otherwise_is_not_kept(parcel: Parcel, kind: str) -> None:
    sent = list(pieces(parcel))
    spoilt = sent[:2] if kind == "cut" else [sent[0], bytes([sent[1][0] ^ 1]) + sent[1][1:], *sent[2:]]
    with pytest.raises(BadInput, match="one did not come as it was sent: its SHA-256 is"):
        unpack(parcel, spoilt)
    assert find(parcel.name, None) is None
    assert unpack(parcel, sent)  # what was left of the first try is no hindrance


def test_a_folder_of_others_is_refused(parcel: Parcel, tmp_path: Path) -> None:
    """Whoever can write there could change a data set between its check and its reading."""
    (tmp_path / "node" / f"clnp-data-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / "node" / f"clnp-data-{os.getuid()}").chmod(0o777)
    with pytest.raises(BadInput, match="others may write there; remove it, or set TMPDIR"):
        unpack(parcel, pieces(parcel))


def test_every_raw_file_is_packed(small_mnist: Path) -> None:
    from clnp.tasks import vision

    found: Any = pack(["mnist", "fashion-mnist"], str(small_mnist))
    assert {path for path, _, _ in found.files} == {
        f"{vision.VISION[name].folder}/raw/{file}" for name in vision.VISION for file in vision.VISION[name].sha256
    }
    assert {sha256 for _, _, sha256 in found.files} == {
        sha256 for name in vision.VISION for sha256 in vision.VISION[name].sha256.values()
    }
    assert found.size == sum((small_mnist / path).stat().st_size for path, _, _ in found.files)
    assert pack(["digits"], None) is None
    assert pack([], None) is None
