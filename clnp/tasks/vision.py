"""MNIST and Fashion-MNIST: fetched by torchvision, found, checked by hash, read whole. CIFAR has its own module."""

import hashlib
import importlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clnp.errors import DataUnavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["VISION", "Images", "check", "check_file", "data_folder", "fetch", "load_torchvision", "read_images"]

_DEFAULT_FOLDER = Path("~/.cache/clnp")


@dataclass(frozen=True, slots=True)
class Images:
    """A data set of the MNIST family.

    Attributes:
        name: What people call it; ``folder`` is its folder and its class in ``torchvision.datasets``.
        sha256: Of the raw idx files.
    """

    name: str
    folder: str
    sha256: dict[str, str]


_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_IMAGES_HEADER, _LABELS_HEADER = 16, 8
"""Bytes of an idx file before its numbers: what they are, and how many along each dimension."""

# torchvision gives the MD5 of the packed files (MNIST.resources, FashionMNIST.resources). These are the SHA-256 of what
# they unpack to, whose MD5 are 6bbc9ace, a25bea73, 2646ac64, 27ae3e4e (MNIST) and f4a8712d, 9018921c, 8181f547,
# 15d48437 (Fashion-MNIST), in the order below.
VISION = {
    "mnist": Images(
        "MNIST",
        "MNIST",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": Images(
        "Fashion-MNIST",
        "FashionMNIST",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}

_declared: "list[torch.library.Library]" = []


@cache
def load_torchvision() -> Any:
    """The package torchvision, beside a CPU build of torch too.

    torchvision's wheel links CUDA. Beside a torch without it the compiled operators do not load, and its import fails
    because it describes two of them to torch. Declaring these lets its data sets be used; the operators stay absent.

    Raises:
        RuntimeError: torchvision cannot be imported for another reason, a version that does not fit torch for one.
    """
    import torch

    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _declared.append(library)  # the declarations end with the object
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return importlib.import_module("torchvision")


def data_folder(data_dir: str | None = None) -> Path:
    """Where data sets are looked for: ``data_dir``, else the variable ``CLNP_DATA_DIR``, else ``~/.cache/clnp``."""
    return Path(data_dir or os.environ.get("CLNP_DATA_DIR") or _DEFAULT_FOLDER).expanduser().absolute()


def check(dataset: str, folder: Path, files: Sequence[str] | None = None) -> None:
    """Check that the raw files of a data set are the known ones.

    Args:
        dataset: ``"mnist"`` or ``"fashion-mnist"``.
        folder: The folder that holds ``MNIST/raw`` or ``FashionMNIST/raw``, torchvision's ``root``.
        files: The files to look at; all four by default.

    Raises:
        DataUnavailable: A file is absent, cannot be read, or has another SHA-256.
    """
    known = VISION[dataset]
    raw = f"{known.folder}/raw"
    for file in known.sha256 if files is None else files:
        check_file(dataset, known.name, folder, f"{raw}/{file}", "sha256", known.sha256[file])


def check_file(dataset: str, name: str, folder: Path, file: str, algorithm: str, known: str) -> None:
    """Check that a file of a data set is the known one.

    Args:
        name: What people call the data set.
        folder: The folder of the data sets.
        file: The file's path in it.
        algorithm: ``"sha256"`` or ``"md5"``; ``known`` is what it gives for the known file.

    Raises:
        DataUnavailable: The file is absent, cannot be read, or is another one.
    """
    path, word = folder / file, {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        raise DataUnavailable(
            f"{name} is not in {path.parent}: {path.name} is missing. Get it with\n  {_command(dataset, folder)}\n"
            f"or name the folder that holds {Path(file).parent}: data_dir, --data-dir or the variable CLNP_DATA_DIR"
        ) from None
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror}; give this account access to it") from error
    if found != known:
        raise DataUnavailable(
            f"{path} is not the file of {name}: its {word} is {found}, not {known}. "
            f"Remove it and get it again with\n  {_command(dataset, folder)}"
        )


def _command(dataset: str, folder: Path) -> str:
    code = f"from clnp.tasks import download; download({dataset!r}, {str(folder)!r})"
    plain = not set('"$`\\!') & set(code)
    return f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"


def read_images(dataset: str, folder: Path, *, test: bool) -> "tuple[Tensor, Tensor]":
    """The images uint8 ``[n, 784]`` and labels int64 ``[n]`` of one split, its two files checked first.

    Without torchvision, whose import takes 1.5 s in every worker: of an idx file whose hash is known its numbers follow
    a header of known length.

    Raises:
        DataUnavailable: See :func:`check`.
    """
    import numpy as np
    import torch

    files = _TEST if test else _TRAIN
    check(dataset, folder, files)
    raw = folder / VISION[dataset].folder / "raw"
    images = torch.from_numpy(np.fromfile(raw / files[0], np.uint8, offset=_IMAGES_HEADER))
    labels = torch.from_numpy(np.fromfile(raw / files[1], np.uint8, offset=_LABELS_HEADER))
    return images.view(len(labels), -1), labels.long()


def fetch(dataset: str, folder: Path) -> None:
    """Have torchvision download a data set into ``folder``, where its files are not there; :func:`check` it then."""
    getattr(load_torchvision().datasets, VISION[dataset].folder)(str(folder), download=True)
