"""Views: each an exact rearrangement and inversion of the same real samples."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clnp.errors import DataUnavailable
from clnp.seeding import generator
from clnp.tasks import VIEWS, base, views, views_sizes
from clnp.tasks.base import read_samples


def sequence(folder: Path, **changes: Any) -> Any:
    return views(**{"count": 16, "seed": 0, "validation": 0.2, "data_dir": str(folder), **changes})


def test_the_views_are_all_there_are_and_begin_upright_turned_and_inverted() -> None:
    both = ("mnist", "fashion-mnist")
    assert [tuple(view) for view in VIEWS[:6]] == [
        (dataset, *look) for look in ((0, False), (1, False), (0, True)) for dataset in both
    ]
    every = {(dataset, turns, inverted) for dataset in both for turns in range(4) for inverted in (False, True)}
    assert len(VIEWS) == 16
    assert set(map(tuple, VIEWS)) == every


@pytest.mark.parametrize("index", range(16))
def test_a_view_shows_the_samples_turned_and_inverted(small_mnist: Path, index: int) -> None:
    view, task = VIEWS[index], sequence(small_mnist).task(index)
    held_out = torch.randperm(40, generator=generator(0, "validation", view.dataset))[:8].sort().values
    kept = torch.tensor(sorted({*range(40)} - {*held_out.tolist()}))
    for part, places, test in (
        (task.train, kept, False),
        (task.validation, held_out, False),
        (task.open_test(), torch.arange(20), True),
    ):
        raw = read_samples(view.dataset, str(small_mnist), test=test)
        images = raw.x[places].reshape(-1, 28, 28).numpy()
        shown = np.stack([np.rot90(image, view.turns) for image in images])
        shown = 255 - shown if view.inverted else shown
        assert part.x.shape == (len(places), 1, 28, 28)
        assert part.x.dtype == torch.float32
        assert np.array_equal(part.x.squeeze(1).numpy(), shown.astype("float32") / 255)
        assert torch.equal(part.y, raw.y[places])


def test_a_quarter_turn_is_counterclockwise(small_mnist: Path) -> None:
    made = sequence(small_mnist)
    corner = torch.zeros(1, 28, 28, dtype=torch.uint8)
    corner[0, 0, 27] = 255  # top right
    turned, inverted = made.transform(2)(corner), made.transform(4)(corner)
    assert turned[0, 0, 0, 0] == 1  # top left
    assert turned.sum() == 1
    assert inverted[0, 0, 0, 27] == 0
    assert inverted.sum() == 783


def test_raw_samples_become_x_through_the_transform(small_mnist: Path) -> None:
    made = sequence(small_mnist)
    for index, view in enumerate(VIEWS):
        images = read_samples(view.dataset, str(small_mnist), test=True).x
        for raw in (images, images.reshape(-1, 1, 28, 28), images.float()):
            assert torch.equal(made.transform(index)(raw), made.task(index).open_test().x)


def test_training_and_validation_never_touch_the_test_split(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 5: the test split stays closed until the commit."""
    opened = []

    def read(*where: Any, test: bool) -> base.Samples:
        opened.append(test)
        return base.read_samples(*where, test=test)

    monkeypatch.setattr("clnp.tasks.viewing.read_samples", read)
    task = sequence(small_mnist).task(5)
    assert (len(task.train), len(task.validation)) == (32, 8)
    assert opened == [False, False]
    assert len(task.open_test()) == 20
    assert opened == [False, False, True]


def test_the_hash_tells_views_and_splits_apart(small_mnist: Path) -> None:
    made = sequence(small_mnist)
    hashes = [made.sha256(index) for index in range(16)]
    hashes += [sequence(small_mnist, **changes).sha256(3) for changes in ({"seed": 1}, {"validation": 0.3})]
    assert len(set(hashes)) == 18
    assert sequence(small_mnist, count=4).sha256(3) == hashes[3]


def test_the_sequence_knows_its_sizes_and_its_end(small_mnist: Path) -> None:
    made = sequence(small_mnist, count=3)
    assert (made.count, made.shape, made.classes) == (3, (1, 28, 28), 10)
    assert [tuple(sizes) for sizes in views_sizes(3)] == [((1, 28, 28), 10, 40, 20)] * 3
    for ask in (made.task, made.sha256, made.transform):
        for index in (-1, 3):
            with pytest.raises(IndexError, match=f"there is no task {index}: the sequence has 3"):
                ask(index)


def test_both_data_sets_are_needed_however_few_tasks_there_are(small_mnist: Path) -> None:
    (small_mnist / "FashionMNIST/raw/train-images-idx3-ubyte").unlink()
    with pytest.raises(DataUnavailable, match="Fashion-MNIST is not in"):
        sequence(small_mnist, count=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 17}, "17 tasks need as many views, but of mnist and fashion-mnist there are 16: .* can be 16 tasks"),
        ({"count": 0}, "count is 0; a sequence has at least one task"),
        ({"validation": 0.001}, "it must leave some of the 40 samples of task 0 in both splits"),
    ],
)
def test_what_cannot_be_is_refused(small_mnist: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence(small_mnist, **changes)


def real() -> str:
    where = os.environ.get("CLNP_DATA_DIR", "")
    for folder in ("MNIST", "FashionMNIST"):
        if not (where and (Path(where) / folder / "raw").is_dir()):
            pytest.skip(f"the variable CLNP_DATA_DIR names no folder with {folder}/raw")
    return where


def test_the_real_views() -> None:
    made = sequence(Path(real()), validation=0.1, count=6)
    for index, size in ((0, views_sizes(6)[0]), (5, views_sizes(6)[5])):
        task = made.task(index)
        assert task.validation.x.shape == (6000, *size.shape)
        assert len(task.open_test()) == size.test == 10_000
    # Black backgrounds are white.
    assert float(made.task(0).validation.x.mean()) < 0.2
    assert float(made.task(4).validation.x.mean()) > 0.8


def test_the_hashes_are_those_of_every_process_and_version() -> None:
    """Runs are continued by them: a change here refuses every run that was begun before it."""
    made = sequence(Path(real()), validation=0.1)
    assert [made.sha256(index) for index in (0, 15)] == [
        "1f3b3afa972506d984cf7236d9e5122d2dc2d65feabc8439a924af74b7d624ec",
        "1519684f5f8d5e6ef1dbb59d800a763200d95b5d2bc24eab25db86880bae6675",
    ]
