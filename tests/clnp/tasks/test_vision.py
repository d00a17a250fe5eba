"""Reading the MNIST family: small files of its format, known by their own hashes, and the real ones where they are."""

import hashlib
import importlib
import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clnp.errors import DataUnavailable
from clnp.tasks import download, vision
from clnp.tasks.base import dataset_sha256, largest_value, read_samples

SPLITS = {"train": 12, "t10k": 5}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set of 12 and 5 images that passes for MNIST."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    known = {}
    generator = torch.Generator().manual_seed(0)
    for split, count in SPLITS.items():
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        for file, header, numbers in (
            (f"{split}-images-idx3-ubyte", (2051, count, 28, 28), images),
            (f"{split}-labels-idx1-ubyte", (2049, count), labels),
        ):
            data = struct.pack(f">{len(header)}i", *header) + numbers.numpy().tobytes()
            (raw / file).write_bytes(data)
            known[file] = hashlib.sha256(data).hexdigest()
    monkeypatch.setitem(vision.VISION, "mnist", vision.Images("MNIST", "MNIST", known))
    return tmp_path


def test_images_are_read_whole_and_flat(small: Path) -> None:
    for test, count in ((False, 12), (True, 5)):
        images, labels = vision.read_images("mnist", small, test=test)
        assert images.shape == (count, 784)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        raw = (small / "MNIST/raw" / f"{'t10k' if test else 'train'}-images-idx3-ubyte").read_bytes()
        assert images.numpy().tobytes() == raw[16:]


def test_images_are_those_that_torchvision_reads_and_torchvision_is_not_imported_for_them(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import takes longer than all that a worker does with a small task."""
    vision.load_torchvision()
    reader = importlib.import_module("torchvision.datasets.mnist")
    raw = small / "MNIST/raw"
    monkeypatch.setattr(vision, "load_torchvision", lambda: pytest.fail("torchvision was asked for"))
    for test, split in ((False, "train"), (True, "t10k")):
        images, labels = vision.read_images("mnist", small, test=test)
        assert torch.equal(images, reader.read_image_file(str(raw / f"{split}-images-idx3-ubyte")).flatten(1))
        assert torch.equal(labels, reader.read_label_file(str(raw / f"{split}-labels-idx1-ubyte")))


def test_one_read_serves_the_process(small: Path) -> None:
    first = read_samples("mnist", str(small), test=False)
    assert largest_value("mnist") == 255.0
    assert len(first.x) == 12
    assert read_samples("mnist", str(small), test=False) is first


def test_only_the_two_files_of_a_split_are_opened_for_it(small: Path) -> None:
    """Promise 5: the test split stays closed until the commit."""
    for file in (small / "MNIST/raw").glob("t10k*"):
        file.unlink()
    assert len(vision.read_images("mnist", small, test=False)[0]) == 12
    with pytest.raises(DataUnavailable):
        vision.read_images("mnist", small, test=True)


def test_a_changed_byte_is_refused_before_the_file_is_read(small: Path) -> None:
    """Promise 7: a data set is read only after its checksum matched."""
    file = small / "MNIST/raw/train-labels-idx1-ubyte"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataUnavailable, match=r"train-labels-idx1-ubyte is not the file of MNIST: its SHA-256 is"):
        vision.read_images("mnist", small, test=False)
    with pytest.raises(DataUnavailable, match="Remove it and get it again"):
        dataset_sha256("mnist", str(small))


def test_an_older_processed_folder_is_never_read(small: Path) -> None:
    """Promise 7: torchvision's own class would read these tensors, which no hash covers."""
    folder = small / "MNIST/processed"
    folder.mkdir()
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)), folder / file)
    assert len(vision.read_images("mnist", small, test=False)[0]) == 12


def test_missing_data_names_the_folder_and_a_command_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    with pytest.raises(DataUnavailable) as caught:
        read_samples("mnist", str(folder), test=False)
    message = str(caught.value)
    assert f"MNIST is not in {folder}/MNIST/raw: train-images-idx3-ubyte is missing" in message
    command = re.search(r"^  (python -c .*)$", message, re.MULTILINE)
    assert command is not None
    program, option, code = shlex.split(command[1])
    assert (program, option) == ("python", "-c")
    script = f"import clnp.tasks; clnp.tasks.download = lambda *given: print(*given)\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"mnist {folder}\n"


def test_download_uses_torchvision_and_checks_what_came(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download("mnist", str(small)) == small  # the files are there, so torchvision asks nobody
    (small / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"other")
    with pytest.raises(DataUnavailable, match="is not the file of MNIST"):
        download("mnist", str(small))

    def offline(self: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(vision.load_torchvision().datasets.MNIST, "download", offline)
    with pytest.raises(DataUnavailable, match=r"MNIST could not be put in .*: Error downloading train-images"):
        download("mnist", str(small / "elsewhere"))


def test_download_refuses_what_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(
        DataUnavailable, match=r"'digits' is not downloaded; .*: mnist, fashion-mnist, cifar-10, cifar-100"
    ):
        download("digits", str(tmp_path))


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLNP_DATA_DIR", str(tmp_path))
    assert vision.data_folder("given") == Path.cwd() / "given"
    assert vision.data_folder() == tmp_path
    monkeypatch.delenv("CLNP_DATA_DIR")
    assert vision.data_folder() == Path.home() / ".cache/clnp"


def test_torchvision_loads_beside_this_build_of_torch() -> None:
    assert vision.load_torchvision() is vision.load_torchvision()
    assert hasattr(vision.load_torchvision().datasets, "MNIST")


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_the_real_data_set(dataset: str, folder: str) -> None:
    where = os.environ.get("CLNP_DATA_DIR")
    if where is None or not (Path(where) / folder / "raw").is_dir():
        pytest.skip(f"the variable CLNP_DATA_DIR names no folder with {folder}/raw")
    images, labels = vision.read_images(dataset, vision.data_folder(), test=True)
    assert images.shape == (10_000, 784)
    assert labels.bincount().tolist() == (
        [1000] * 10 if dataset == "fashion-mnist" else [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
