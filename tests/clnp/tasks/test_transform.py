"""What a raw sample goes through, bit for bit what the splits hold."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.tasks import Transform


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    count=st.integers(0, 4),
    scale=st.sampled_from([1.0, 16.0, 255.0, 0.3]),
    seed=st.integers(0, 2**20),
    permuted=st.booleans(),
    inverted=st.booleans(),
    flat=st.booleans(),
)
def test_a_sample_is_permuted_inverted_divided_and_shaped(
    shape: tuple[int, ...], count: int, scale: float, seed: int, permuted: bool, inverted: bool, flat: bool
) -> None:
    source = torch.Generator().manual_seed(seed)
    features = math.prod(shape)
    order = torch.randperm(features, generator=source) if permuted else None
    raw = torch.randint(0, 256, (count, features), dtype=torch.uint8, generator=source)
    x = Transform(order, scale, shape, inverted)(raw if flat else raw.reshape(count, *shape))
    assert (x.dtype, x.shape) == (torch.float32, (count, *shape))
    places = range(features) if order is None else order.tolist()
    divisor = torch.tensor(scale)
    for sample, given_sample in zip(x, raw, strict=True):
        values = [divisor - given_sample[i].float() if inverted else given_sample[i].float() for i in places]
        assert torch.equal(sample.flatten(), torch.stack(values) / divisor)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_every_dtype_gives_the_same_bits(dtype: torch.dtype) -> None:
    raw = torch.arange(256).reshape(4, 64)
    expected = raw.numpy().astype("float32") / 255
    assert Transform(None, 255.0, (1, 8, 8))(raw.to(dtype)).flatten(1).numpy().tobytes() == expected.tobytes()
    # Inverted twice is as it was: 255 - v is exact, and the same grey as another raw value's.
    inverted = Transform(None, 255.0, (1, 8, 8), inverted=True)
    assert inverted((255 - raw).to(dtype)).flatten(1).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("inverted", [False, True])
def test_the_raw_samples_stay_as_they_are_under_every_default(inverted: bool) -> None:
    """x is memory of its own, and its bits hang on no setting of the process."""
    raw = torch.rand(2, 6)
    before, transform = raw.clone(), Transform(None, 0.3, (6,), inverted)
    first = transform(raw)
    torch.set_default_dtype(torch.float64)
    try:
        second = transform(raw)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, second)
    assert second.dtype == torch.float32
    first.zero_()
    assert torch.equal(raw, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ()}, r"shape is \(\); a sample has at least one size"),
        ({"shape": (2, 0)}, r"shape is \(2, 0\); a sample has at least one size, each at least 1"),
        ({"scale": 0.0}, "scale is 0.0; give the largest raw value, a finite number above 0"),
        ({"scale": math.inf}, "scale is inf; give"),
        ({"scale": math.nan}, "scale is nan; give"),
        ({"permutation": torch.arange(3)}, r"permutation is torch.int64 \[3\]; .* \(2, 2\) needs torch.int64 \[4\]"),
        ({"permutation": torch.arange(4.0)}, r"permutation is torch.float32 \[4\]; "),
        ({"permutation": torch.tensor([0, 1, 1, 3])}, "does not hold each number from 0 to 3 once"),
    ],
)
def test_what_is_no_transform_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transform(**{"permutation": None, "scale": 1.0, "shape": (2, 2), **changes})


@pytest.mark.parametrize("raw", [torch.zeros(4), torch.zeros(3, 5), torch.zeros(2, 2, 2, 2)])
def test_samples_of_another_size_are_refused(raw: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"raw samples are \[.*\]; give \[n, 4\] or \[n, 2, 2\]"):
        Transform(None, 1.0, (2, 2))(raw)
