"""The handwritten digits that scikit-learn ships: 1,797 images of 8 × 8 pixels, no download."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clnp.errors import DataUnavailable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHA256", "check_digits", "read_digits"]

# Of the pixels (one byte each, 0 to 16) followed by the labels (one byte each), as load_digits of scikit-learn 1.9.1
# gives them. The file has not changed since the data set came to scikit-learn.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def read_digits() -> tuple["Tensor", "Tensor"]:
    """Pixels uint8 ``[1797, 64]``, from 0 to 16, and labels int64 ``[1797]``, in the order they ship in.

    Raises:
        DataUnavailable: See :func:`check_digits`.
    """
    import torch

    images, classes = _read()
    return torch.from_numpy(images), torch.from_numpy(classes).long()


def check_digits() -> None:
    """Check that the installed samples are the known ones.

    Raises:
        DataUnavailable: There is no scikit-learn, or the installed one ships other samples.
    """
    _read()


def _read() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    # Its file is read without it: to import scikit-learn takes two seconds in every process.
    package = find_spec("sklearn")
    file = package and package.origin and Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if not file or not file.is_file():
        raise DataUnavailable(f"{file or 'scikit-learn'} is not there; install the version that constraints.txt names")
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images, classes = np.ascontiguousarray(table[:, :-1]), np.ascontiguousarray(table[:, -1])
    found = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
    if found != SHA256:
        raise DataUnavailable(
            f"the digits of the installed scikit-learn have SHA-256 {found}, not {SHA256}; "
            "install the version that constraints.txt names"
        )
    return images, classes
