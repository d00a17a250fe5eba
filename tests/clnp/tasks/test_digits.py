"""The digits are the known ones, in the order they ship in."""

import pytest
from sklearn.datasets import load_digits

from clnp.errors import DataUnavailable
from clnp.tasks import digits


def test_all_samples_come_with_their_labels() -> None:
    images, labels = digits.read_digits()
    assert images.shape == (1797, 64)
    assert int(images.max()) == 16
    assert labels[:10].tolist() == list(range(10))


def test_the_samples_are_those_that_scikit_learn_gives() -> None:
    pixels, classes = load_digits(return_X_y=True)
    images, labels = digits.read_digits()
    assert (images.numpy() == pixels).all()
    assert (labels.numpy() == classes).all()


def test_no_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(DataUnavailable, match="scikit-learn is not there; install the version"):
        digits.read_digits()


def test_other_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 7: a data set is read only after its checksum matched."""
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(DataUnavailable, match=r"have SHA-256 87ff0c9e.*, not 0{64}; install the version"):
        digits.read_digits()
