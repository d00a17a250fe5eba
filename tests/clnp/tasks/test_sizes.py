"""Sizes are known without loading anything."""

import subprocess
import sys

import pytest

from clnp.errors import DataUnavailable
from clnp.tasks import DATASETS, dataset_sizes, validation_count


def test_the_sizes_of_every_data_set_unpack() -> None:
    for dataset in DATASETS:
        inputs, classes, train, test = dataset_sizes(dataset)
        assert min(inputs, classes, train, test) > 0


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataUnavailable, match=r"'mnits'; did you mean 'mnist'"):
        dataset_sizes("mnits")
    with pytest.raises(DataUnavailable, match="there are digits, mnist, fashion-mnist"):
        dataset_sizes("imagenet-21k")


def test_validation_count_is_the_share_rounded() -> None:
    assert validation_count(0.1, 1500) == 150
    assert validation_count(0.1, 60_000) == 6000


def test_sizes_need_no_torch_and_no_data_package() -> None:
    code = "import sys; from clnp.tasks import dataset_sizes; dataset_sizes('mnist'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "sklearn", "numpy"} & set(done.stdout.split())
