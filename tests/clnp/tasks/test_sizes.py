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
from clnp.tasks import (
    DATASETS,
    class_counts,
    class_order,
    dataset_sizes,
    split_cifar_sizes,
    split_sizes,
    validation_count,
    views_sizes,
)
from clnp.tasks.base import read_samples
from clnp.tasks.sizes import at_most


def test_the_sizes_of_every_data_set_unpack() -> None:
    for dataset in DATASETS:
        sizes = dataset_sizes(dataset)
        shape, classes, train, test = sizes
        assert min(*shape, classes, train, test) > 0
        assert sizes.inputs == math.prod(shape)


def test_the_sizes_are_those_that_papers_give() -> None:
    assert dataset_sizes("digits") == ((1, 8, 8), 10, 1500, 297)
    assert dataset_sizes("mnist") == dataset_sizes("fashion-mnist") == ((1, 28, 28), 10, 60_000, 10_000)
    assert dataset_sizes("cifar-10") == ((3, 32, 32), 10, 50_000, 10_000)
    assert dataset_sizes("cifar-100") == ((3, 32, 32), 100, 50_000, 10_000)


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
    if count * classes > dataset_sizes(dataset).classes:
        with pytest.raises(ValueError, match=f"{count} tasks of {classes} classes need {count * classes}, but"):
            split_sizes(dataset, classes=classes, count=count)
        return
    sizes = split_sizes(dataset, classes=classes, count=count)
    assert [(each.shape, each.classes) for each in sizes] == [(dataset_sizes(dataset).shape, classes)] * count
    assert sum(each.train for each in sizes) == sum(class_counts(dataset, test=False)[: count * classes])
    assert sum(each.test for each in sizes) == sum(class_counts(dataset, test=True)[: count * classes])


@given(classes=st.integers(1, 100), seed=st.integers(0, 2**63))
def test_a_shuffled_order_holds_every_class_once_and_hangs_on_the_seed(classes: int, seed: int) -> None:
    shuffled = class_order(classes, "shuffled", seed)
    assert sorted(shuffled) == list(range(classes)) == list(class_order(classes, "label", seed))
    assert shuffled == class_order(classes, "shuffled", seed)
    if classes >= 20:
        assert shuffled != class_order(classes, "shuffled", seed + 1)


def test_a_shuffled_order_is_that_of_every_process_and_version() -> None:
    """Runs are continued by it: a change here gives their later tasks other classes."""
    assert class_order(10, "shuffled", 0) == (3, 1, 4, 6, 5, 8, 2, 0, 7, 9)
    with pytest.raises(ValueError, match="order is 'random'; give 'label' or 'shuffled'"):
        class_order(10, "random", 0)  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**20), classes=st.integers(2, 5))
def test_the_sizes_of_shuffled_tasks_are_those_of_their_classes(seed: int, classes: int) -> None:
    labels = class_order(10, "shuffled", seed)
    sizes = split_sizes("mnist", classes=classes, count=2, order="shuffled", seed=seed)
    for task, size in enumerate(sizes):
        own = labels[task * classes : (task + 1) * classes]
        assert size.train == sum(class_counts("mnist", test=False)[label] for label in own)
        assert size.test == sum(class_counts("mnist", test=True)[label] for label in own)


def test_split_cifar_has_eleven_tasks_of_ten_classes() -> None:
    """Sec. 3.2: CIFAR-10, then CIFAR-100 in ten."""
    shape = (3, 32, 32)
    assert split_cifar_sizes(11) == ((shape, 10, 50_000, 10_000), *[(shape, 10, 5_000, 1_000)] * 10)
    assert split_cifar_sizes(1) == split_cifar_sizes(11)[:1]
    with pytest.raises(
        ValueError, match=r"12 tasks are cifar-10 and 11 splits .* need 110, but cifar-100 has 100; .* 11"
    ):
        split_cifar_sizes(12)
    for sizes in (split_cifar_sizes, views_sizes):
        with pytest.raises(ValueError, match="count is 0; a sequence has at least one task"):
            sizes(0)


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
        "split_sizes('mnist', classes=2, count=5, order='shuffled', seed=3); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "sklearn", "numpy"} & set(done.stdout.split())


def test_at_most_so_many_samples_are_used() -> None:
    whole = dataset_sizes("digits")
    assert at_most(whole, None) == whole == at_most(whole, 1500)
    assert at_most(whole, 200) == whole._replace(train=200)
    with pytest.raises(ValueError, match="samples is 0; a task uses at least one"):
        at_most(whole, 0)
