"""The digits are the known ones, in the order they ship in."""

import pytest

from clnp.errors import DataUnavailable
from clnp.tasks import digits


def test_all_samples_come_with_their_labels() -> None:
    images, labels = digits.read_digits()
    assert images.shape == (1797, 64)
    assert int(images.max()) == 16
    assert labels[:10].tolist() == list(range(10))


def test_other_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 7: a data set is read only after its checksum matched."""
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(DataUnavailable, match=r"have SHA-256 87ff0c9e.*, not 0{64}; install the version"):
        digits.read_digits()
