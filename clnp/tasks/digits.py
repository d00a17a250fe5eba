"""The handwritten digits that scikit-learn ships: 1,797 images of 8 × 8 pixels, no download."""

import hashlib

import torch
from torch import Tensor

from clnp.errors import DataUnavailable

__all__ = ["SHA256", "read_digits"]

# Of the pixels (one byte each, 0 to 16) followed by the labels (one byte each), from scikit-learn 1.9.1's load_digits.
# The file has not changed since the data set came to scikit-learn.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def read_digits() -> tuple[Tensor, Tensor]:
    """Pixels uint8 ``[1797, 64]``, from 0 to 16, and labels int64 ``[1797]``, in the order they ship in.

    Raises:
        DataUnavailable: The installed scikit-learn ships other samples.
    """
    from sklearn.datasets import load_digits  # a second to import, and not needed for any other data set

    pixels, labels = load_digits(return_X_y=True)
    images, classes = pixels.astype("uint8"), labels.astype("uint8")
    found = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
    if found != SHA256:
        raise DataUnavailable(
            f"the digits of the installed scikit-learn have SHA-256 {found}, not {SHA256}; "
            "install the version that constraints.txt names"
        )
    return torch.from_numpy(images), torch.from_numpy(classes).long()
