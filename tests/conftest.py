"""What holds for every test, and small data sets in the formats of the real ones."""

import hashlib
import os
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Test processes share the cores: one thread each, before torch asks for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # not at the top: tests of what imports no torch are quicker without it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch sees none")


def _images(dataset: str, test: bool, labels: Sequence[int], size: int) -> "NDArray[np.uint8]":
    """Bytes ``[n, size]``, the same at every call: noise over an image of each class, so that a network can learn."""
    import numpy as np

    noise = hashlib.shake_128(f"{dataset} {test}".encode()).digest(len(labels) * size)
    classes = [hashlib.shake_128(f"{dataset} class {label}".encode()).digest(size) for label in labels]
    return (np.frombuffer(b"".join(classes), np.uint8) ^ np.frombuffer(noise, np.uint8) // 4).reshape(-1, size)


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10 and CIFAR-100 in torchvision's format, a few images of every class.

    Its loaders, which run as they are, are told the MD5 of these files.
    """
    import numpy as np

    from clnp.tasks import sizes
    from clnp.tasks.vision import load_torchvision

    datasets = load_torchvision().datasets
    for dataset, loader, key, train, test in (
        ("cifar-10", datasets.CIFAR10, "labels", 10, 3),
        ("cifar-100", datasets.CIFAR100, "fine_labels", 5, 2),
    ):
        classes = len(sizes.class_counts(dataset, test=False))
        monkeypatch.setitem(sizes._COUNTS, dataset, ((train,) * classes, (test,) * classes))
        folder = tmp_path / loader.base_folder
        folder.mkdir()

        def write(file: str, content: object, folder: Path = folder) -> str:
            data = pickle.dumps(content, protocol=2)
            (folder / file).write_bytes(data)
            return hashlib.md5(data).hexdigest()

        for attribute, held_out, count in (("train_list", False, train), ("test_list", True, test)):
            files = [file for file, _ in getattr(loader, attribute)]
            every = [place % classes for place in range(count * classes)]
            parts = np.array_split(_images(dataset, held_out, every, 3072), len(files))
            labels = np.array_split(every, len(files))
            written = [
                [file, write(file, {"data": part, key: part_labels.tolist()})]
                for file, part, part_labels in zip(files, parts, labels, strict=True)
            ]
            monkeypatch.setattr(loader, attribute, written)
        meta = loader.meta
        names = {meta["key"]: [f"class {label}" for label in range(classes)]}
        monkeypatch.setattr(loader, "meta", {**meta, "md5": write(meta["filename"], names)})
    return tmp_path


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with MNIST and Fashion-MNIST in their format, 40 and 20 images each, 4 and 2 of every class."""
    from clnp.tasks import sizes, vision

    for dataset, known in list(vision.VISION.items()):
        raw = tmp_path / known.folder / "raw"
        raw.mkdir(parents=True)
        sha256 = {}
        for test, count, prefix in ((False, 40, "train"), (True, 20, "t10k")):
            every = [place % 10 for place in range(count)]
            images = struct.pack(">4i", 2051, count, 28, 28) + _images(dataset, test, every, 784).tobytes()
            labels = struct.pack(">2i", 2049, count) + bytes(every)
            for file, data in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
                (raw / file).write_bytes(data)
                sha256[file] = hashlib.sha256(data).hexdigest()
        monkeypatch.setitem(vision.VISION, dataset, vision.Images(known.name, known.folder, sha256))
        monkeypatch.setitem(sizes._COUNTS, dataset, ((4,) * 10, (2,) * 10))
    return tmp_path
