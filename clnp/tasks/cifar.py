"""CIFAR-10 and CIFAR-100 through torchvision's own loaders. These unpickle: every file is checked before."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clnp.tasks.vision import check_file, load_torchvision

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CIFAR", "check", "fetch", "read_images"]

CIFAR = {"cifar-10": "CIFAR10", "cifar-100": "CIFAR100"}
"""The data sets and their classes in ``torchvision.datasets``, which know names and MD5 of all files."""


def check(dataset: str, folder: Path) -> dict[str, str]:
    """Check that all files of a data set are the known ones; their paths in ``folder`` → MD5.

    Those of both splits, and the names of the classes: torchvision's loader asks for all of them. It knows their MD5
    alone; no way is known to make a file that has the MD5 of a given one.

    Args:
        dataset: ``"cifar-10"`` or ``"cifar-100"``.
        folder: The folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``, torchvision's ``root``.

    Raises:
        DataUnavailable: A file is absent, cannot be read, or has another MD5.
    """
    known = dict(_files(_loader(dataset)))
    for file, md5 in known.items():
        check_file(dataset, dataset.upper(), folder, file, "md5", md5)
    return known


def _loader(dataset: str) -> Any:
    return getattr(load_torchvision().datasets, CIFAR[dataset])


def _files(loader: Any) -> Iterator[tuple[str, str]]:
    for file, md5 in (*loader.train_list, *loader.test_list, (loader.meta["filename"], loader.meta["md5"])):
        yield f"{loader.base_folder}/{file}", md5


def read_images(dataset: str, folder: Path, *, test: bool) -> "tuple[Tensor, Tensor]":
    """The images uint8 ``[n, 3072]``, in the order channels, height, width, and labels int64 ``[n]`` of one split.

    The labels of CIFAR-100 are its 100 fine ones.

    Raises:
        DataUnavailable: See :func:`check`, which comes first.
    """
    import torch

    check(dataset, folder)
    loaded = _loader(dataset)(str(folder), train=not test)
    images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2)  # torchvision has turned them to height, width, channels
    return images.reshape(len(images), -1).contiguous(), torch.tensor(loaded.targets, dtype=torch.int64, device="cpu")


def fetch(dataset: str, folder: Path) -> None:
    """Have torchvision download a data set into ``folder`` and unpack it; :func:`check` it then.

    By its downloader and not by its class, which would read the files at once.
    """
    loader, utils = _loader(dataset), load_torchvision().datasets.utils
    if not all(utils.check_integrity(str(folder / file), md5) for file, md5 in _files(loader)):
        utils.download_and_extract_archive(loader.url, str(folder), filename=loader.filename, md5=loader.tgz_md5)
