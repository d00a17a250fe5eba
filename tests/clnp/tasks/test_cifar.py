"""Reading CIFAR: small files of its format through torchvision's own loaders, none of them unpickled unchecked."""

import hashlib
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from clnp.errors import DataUnavailable
from clnp.tasks import cifar, dataset_sizes, download
from clnp.tasks.base import dataset_sha256, largest_value, read_samples
from clnp.tasks.vision import load_torchvision

FILES = {
    "cifar-10": (
        "cifar-10-batches-py",
        [*(f"data_batch_{place}" for place in range(1, 6)), "test_batch", "batches.meta"],
    ),
    "cifar-100": ("cifar-100-python", ["train", "test", "meta"]),
}
EVERY_FILE = [(dataset, file) for dataset, (_, files) in FILES.items() for file in files]


def written(folder: Path, dataset: str, *, test: bool) -> tuple[list[bytes], list[int]]:
    """The images and labels that the files hold, by no loader."""
    where, files = FILES[dataset]
    chosen = files[-2:-1] if test else files[:-2]
    entries = [pickle.loads((folder / where / file).read_bytes()) for file in chosen]  # noqa: S301
    key = "labels" if dataset == "cifar-10" else "fine_labels"
    images = [bytes(image) for entry in entries for image in entry["data"]]
    return images, [label for entry in entries for label in entry[key]]


@pytest.mark.parametrize("dataset", FILES)
@pytest.mark.parametrize("test", [False, True])
def test_images_are_read_whole_in_the_order_channels_height_width(small_cifar: Path, dataset: str, test: bool) -> None:
    expected, classes = written(small_cifar, dataset, test=test)
    images, labels = cifar.read_images(dataset, small_cifar, test=test)
    sizes = dataset_sizes(dataset)
    assert images.shape == (sizes.test if test else sizes.train, sizes.inputs)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert images.is_contiguous()
    assert [bytes(image) for image in images.numpy()] == expected  # a file holds all red, all green, all blue pixels
    assert labels.tolist() == classes
    # torchvision's own view of the same image: height, width, channels.
    seen = getattr(load_torchvision().datasets, cifar.CIFAR[dataset])(str(small_cifar), train=not test).data[3]
    assert torch.equal(images[3].reshape(3, 32, 32).permute(1, 2, 0), torch.from_numpy(seen))


def test_one_read_serves_the_process(small_cifar: Path) -> None:
    first = read_samples("cifar-10", str(small_cifar), test=False)
    assert largest_value("cifar-10") == largest_value("cifar-100") == 255.0
    assert read_samples("cifar-10", str(small_cifar), test=False) is first


def test_the_known_files_are_those_of_torchvision() -> None:
    for dataset, (where, files) in FILES.items():
        known = dict(cifar._files(cifar._loader(dataset)))
        assert list(known) == [f"{where}/{file}" for file in files]
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in known.values())


class Writes:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("dataset", "file"), EVERY_FILE)
def test_a_file_that_is_another_is_never_unpickled(small_cifar: Path, tmp_path: Path, dataset: str, file: str) -> None:
    """Promise 7: nothing that we restore runs code; a data set is read only after its checksum matched."""
    witness = tmp_path / "unpickled"
    path = small_cifar / FILES[dataset][0] / file
    known = hashlib.md5(path.read_bytes()).hexdigest()
    path.write_bytes(pickle.dumps(Writes(witness)))
    found = hashlib.md5(path.read_bytes()).hexdigest()
    message = (
        f"{path} is not the file of {dataset.upper()}: its MD5 is {found}, not {known}. Remove it and get it again"
    )
    for test in (False, True):
        with pytest.raises(DataUnavailable, match=re.escape(message)):
            read_samples(dataset, str(small_cifar), test=test)
    with pytest.raises(DataUnavailable, match=re.escape(message)):
        dataset_sha256(dataset, str(small_cifar))
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # noqa: S301
    assert witness.exists()  # it would have


@pytest.mark.parametrize("dataset", FILES)
def test_a_flipped_bit_is_refused(small_cifar: Path, dataset: str) -> None:
    path = small_cifar / FILES[dataset][0] / FILES[dataset][1][0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataUnavailable, match=f"{path.name} is not the file of {dataset.upper()}: its MD5 is"):
        cifar.read_images(dataset, small_cifar, test=True)  # which the file is no part of


@pytest.mark.parametrize(("dataset", "file"), EVERY_FILE)
def test_a_missing_file_is_named_with_a_command_that_runs(small_cifar: Path, dataset: str, file: str) -> None:
    (small_cifar / FILES[dataset][0] / file).unlink()
    with pytest.raises(DataUnavailable) as caught:
        read_samples(dataset, str(small_cifar), test=False)
    message = str(caught.value)
    where = FILES[dataset][0]
    assert message.startswith(f"{dataset.upper()} is not in {small_cifar / where}: {file} is missing. Get it with")
    assert f"or name the folder that holds {where}: data_dir, --data-dir or the variable CLNP_DATA_DIR" in message
    command = re.search(r"^  (python -c .*)$", message, re.MULTILINE)
    assert command is not None
    assert shlex.split(command[1])[2].endswith(f"download('{dataset}', '{small_cifar}')")


def test_the_command_runs(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        cifar.check("cifar-100", tmp_path)
    command = re.search(r"^  (python -c .*)$", str(caught.value), re.MULTILINE)
    assert command is not None
    script = f"import clnp.tasks; clnp.tasks.download = lambda *given: print(*given)\n{shlex.split(command[1])[2]}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"cifar-100 {tmp_path}\n"


def test_a_file_that_cannot_be_read_is_refused(small_cifar: Path) -> None:
    path = small_cifar / "cifar-100-python" / "meta"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataUnavailable, match=r"meta cannot be read: Is a directory; give this account access"):
        cifar.check("cifar-100", small_cifar)


def test_the_hash_is_that_of_the_content_wherever_it_lies(small_cifar: Path, tmp_path: Path) -> None:
    """Runs are continued by it."""
    hashes = [dataset_sha256(dataset, str(small_cifar)) for dataset in FILES]
    assert len({*hashes}) == 2
    other = tmp_path / "elsewhere"
    other.mkdir()
    for where, _ in FILES.values():
        (small_cifar / where).rename(other / where)
    assert [dataset_sha256(dataset, str(other)) for dataset in FILES] == hashes


def test_the_hashes_of_the_real_data_are_those_of_every_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are over the names and checksums of the files: known without these."""
    monkeypatch.setattr(cifar, "check_file", lambda *_: None)
    assert [dataset_sha256(dataset, str(tmp_path)) for dataset in FILES] == [
        "ca622e62015c47eb1fa9ce7f3c3572781e373b91f47e0fa068daf5b35f66d978",
        "cbe6c53999d87253833154f98e43e2169418bae50e8cb33d6f1306da1066e33d",
    ]


def test_download_uses_torchvision_and_unpickles_nothing(
    small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    utils = load_torchvision().datasets.utils

    def unpacked(url: str, root: str, *, filename: str, md5: str) -> None:
        asked.append((url, root, filename, md5))

    monkeypatch.setattr(utils, "download_and_extract_archive", unpacked)
    assert download("cifar-100", str(small_cifar)) == small_cifar
    assert asked == []  # the files are there
    path = small_cifar / "cifar-100-python" / "train"
    path.write_bytes(pickle.dumps(Writes(tmp_path / "unpickled")))
    with pytest.raises(DataUnavailable, match="train is not the file of CIFAR-100"):
        download("cifar-100", str(small_cifar))  # what came is no better
    assert asked == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            str(small_cifar),
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        )
    ]
    assert not (tmp_path / "unpickled").exists()

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(utils, "download_and_extract_archive", offline)
    with pytest.raises(DataUnavailable, match=r"CIFAR-10 could not be put in .*: .*no route"):
        download("cifar-10", str(tmp_path / "empty"))
