"""Sizes are known without loading anything."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.errors import DataUnavailable
from clnp.tasks import DATASETS, class_counts, dataset_sizes, split_sizes, validation_count
from clnp.tasks.base import read_samples


def test_the_sizes_of_every_data_set_unpack() -> None:
    for dataset in DATASETS:
        sizes = dataset_sizes(dataset)
        shape, classes, train, test = sizes
        assert min(*shape, classes, train, test) > 0
        assert sizes.inputs == math.prod(shape)


def test_the_sizes_are_those_that_papers_give() -> None:
    assert dataset_sizes("digits") == ((1, 8, 8), 10, 1500, 297)
    assert dataset_sizes("mnist") == dataset_sizes("fashion-mnist") == ((1, 28, 28), 10, 60_000, 10_000)


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(("dataset", "folder"), [("digits", ""), ("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_the_sizes_are_those_of_the_data(dataset: str, folder: str, test: bool) -> None:
    where = os.environ.get("CLNP_DATA_DIR", "")
    if folder and not (where and (Path(where) / folder / "raw").is_dir()):
        pytest.skip(f"the variable CLNP_DATA_DIR names no folder with {folder}/raw")
    samples = read_samples(dataset, test=test)
    assert tuple(samples.y.bincount().tolist()) == class_counts(dataset, test=test)
    assert samples.x.shape == (sum(class_counts(dataset, test=test)), dataset_sizes(dataset).inputs)


@given(dataset=st.sampled_from(DATASETS), classes=st.integers(2, 10), count=st.integers(1, 6))
def test_split_tasks_share_out_the_classes(dataset: str, classes: int, count: int) -> None:
    if count * classes > 10:
        with pytest.raises(ValueError, match=f"{count} tasks of {classes} classes need {count * classes}, but"):
            split_sizes(dataset, classes=classes, count=count)
        return
    sizes = split_sizes(dataset, classes=classes, count=count)
    assert [(each.shape, each.classes) for each in sizes] == [(dataset_sizes(dataset).shape, classes)] * count
    assert sum(each.train for each in sizes) == sum(class_counts(dataset, test=False)[: count * classes])
    assert sum(each.test for each in sizes) == sum(class_counts(dataset, test=True)[: count * classes])


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataUnavailable, match=r"'mnits'; did you mean 'mnist'"):
        dataset_sizes("mnits")
    with pytest.raises(DataUnavailable, match="there are digits, mnist, fashion-mnist"):
        dataset_sizes("imagenet-21k")
    with pytest.raises(DataUnavailable, match="did you mean 'digits'"):
        split_sizes("digit", classes=2, count=2)


def test_validation_count_is_the_share_rounded() -> None:
    assert validation_count(0.1, 1500) == 150
    assert validation_count(0.1, 60_000) == 6000


def test_sizes_need_no_torch_and_no_data_package() -> None:
    code = (
        "import sys; from clnp.tasks import dataset_sizes, split_sizes; dataset_sizes('mnist');"
        "split_sizes('mnist', classes=2, count=5); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "sklearn", "numpy"} & set(done.stdout.split())
