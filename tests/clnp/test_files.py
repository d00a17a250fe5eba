"""A file is there whole or not at all, whoever writes it."""

import os

import pytest

from clnp.files import write_whole


def test_it_takes_the_place_of_an_old_one(tmp_path):
    path = tmp_path / "file"
    for data in (b"old and longer", b"new"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_it_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    steps = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *given, step=step, real=real: (steps.append(step), real(*given)))
    write_whole(tmp_path / "file", b"data")
    assert steps == ["fsync", "replace"]
