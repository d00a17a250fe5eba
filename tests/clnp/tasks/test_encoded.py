"""Bytes that are decoded when they are read: the same floats, bit for bit, whichever of them and wherever."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clnp.tasks import Encoded, Split, Transform, permuted, split, views
from clnp.tasks.encoded import decoded, some


@given(data=st.data(), seed=st.integers(0, 2**20), permuted=st.booleans(), inverted=st.booleans())
def test_some_samples_decoded_are_some_of_the_decoded_samples(
    data: st.DataObject, seed: int, permuted: bool, inverted: bool
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    count, scale = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([16.0, 255.0, 0.3]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    source = torch.Generator().manual_seed(seed)
    features = math.prod(shape)
    transform = Transform(torch.randperm(features, generator=source) if permuted else None, scale, shape, inverted)
    raw = torch.randint(0, 256, (count, features), dtype=torch.uint8, generator=source)
    expected, found = transform(raw).to(dtype), transform.encode(raw).to("cpu", dtype)
    assert (len(found), found.shape, 4 * found.nbytes) == (count, expected.shape, 4 * count * features)
    places = torch.tensor(data.draw(st.lists(st.integers(0, count - 1))), dtype=torch.int64)
    for index in (places, slice(*sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))))):
        for value in (decoded(some(found, index)), decoded(found[index]), found.decode()[index]):
            assert value.dtype == dtype
            assert torch.equal(value, expected[index])
            assert torch.equal(value, some(expected, index))


def test_floats_are_memory_of_their_own() -> None:
    samples = Transform(None, 255.0, (2, 3)).encode(torch.arange(12, dtype=torch.uint8).reshape(2, 6))
    split = Split(samples, torch.tensor([0, 1]))
    before = samples.bytes.clone()
    split.x.zero_()
    assert torch.equal(samples.bytes, before)
    assert split.x.any()


@pytest.mark.parametrize("places", [torch.tensor([5, 0, 5]), slice(1, 4)])
def test_some_samples_keep_their_layout(places: torch.Tensor | slice) -> None:
    """In another one a convolution sums in another order."""
    for x in (torch.randn(6, 3, 5, 4), torch.randn(6, 3, 5, 4).to(memory_format=torch.channels_last)):
        assert some(x, places).stride() == x[places].stride()  # type: ignore[union-attr]
        assert torch.equal(decoded(some(x, places)), x[places])


def test_what_is_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"samples are torch\.float32; bytes are torch\.uint8"):
        Transform(None, 1.0, (2,)).encode(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"scale is torch\.float32 \[1\]; give one torch\.float32, \[\]"):
        Encoded(torch.zeros(3, 2, dtype=torch.uint8), torch.ones(1))
    with pytest.raises(ValueError, match=r"raw samples are \[3, 2\]; give \[n, 4\]"):
        Transform(None, 1.0, (4,)).encode(torch.zeros(3, 2, dtype=torch.uint8))


def test_tasks_of_built_in_data_hold_bytes(small_mnist: Path) -> None:
    """In all their splits: so a worker holds a quarter of the floats."""
    for made in (
        permuted("digits", count=2, seed=0, validation=0.1),
        split("digits", classes=2, count=2, seed=0, validation=0.1),
        views(count=6, seed=0, validation=0.1, samples=30, data_dir=str(small_mnist)),
    ):
        for index in range(made.count):
            task = made.task(index)
            for part in (task.train, task.validation, task.open_test()):
                assert isinstance(part.samples, Encoded)
                assert part.samples.nbytes == len(part) * math.prod(made.shape)
                assert part.x.shape == (len(part), *made.shape)
