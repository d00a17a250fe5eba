"""The samples that sequences are made from: whole data sets as bytes, checked and read once a process.

Their hashes are had without torch, so that a run's data are known before anything is started.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clnp.tasks import cifar, digits, vision
from clnp.tasks.sizes import dataset_sizes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Samples", "dataset_sha256", "largest_value", "read_samples"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Bytes uint8 ``[n, inputs]`` from 0 to the :func:`largest_value`, and classes int64 ``[n]``."""

    x: "Tensor"
    y: "Tensor"


def read_samples(dataset: str, data_dir: str | None = None, *, test: bool) -> Samples:
    """The training or the test split of a data set, shared by all that ask in this process: change nothing in it.

    Raises:
        DataUnavailable: The data set is unknown, absent, or not the known one.
    """
    return _samples(dataset, _folder(dataset, data_dir), test)


def largest_value(dataset: str) -> float:
    """The largest value that a pixel can have: 255, or 16 for the digits."""
    return 16.0 if dataset == "digits" else 255.0


def dataset_sha256(dataset: str, data_dir: str | None = None) -> str:
    """One hash over both splits of a data set, its files checked first: the same wherever they lie.

    Raises:
        DataUnavailable: As :func:`read_samples`.
    """
    return _sha256(dataset, _folder(dataset, data_dir))


def _folder(dataset: str, data_dir: str | None) -> Path | None:
    dataset_sizes(dataset)  # refuses an unknown name
    return None if dataset == "digits" else vision.data_folder(data_dir)


@cache
def _samples(dataset: str, folder: Path | None, test: bool) -> Samples:
    if folder is not None:
        module = cifar if dataset in cifar.CIFAR else vision
        return Samples(*module.read_images(dataset, folder, test=test))
    images, labels = digits.read_digits()
    train = dataset_sizes(dataset).train  # the samples after these, the last 297, are the test split
    part = slice(train, None) if test else slice(train)
    return Samples(images[part], labels[part])


@cache
def _sha256(dataset: str, folder: Path | None) -> str:
    if dataset in cifar.CIFAR and folder is not None:
        parts = [f"{file} {md5}" for file, md5 in cifar.check(dataset, folder).items()]
    elif folder is not None:
        vision.check(dataset, folder)
        parts = [f"{file} {sha256}" for file, sha256 in vision.VISION[dataset].sha256.items()]
    else:
        digits.check_digits()
        parts = [f"digits {digits.SHA256}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
