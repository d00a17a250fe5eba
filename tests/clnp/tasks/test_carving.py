"""The validation split is carved the same way for every kind of task."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clnp.seeding import generator
from clnp.tasks.carving import carve, held_out


@given(samples=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**20))
def test_every_sample_is_in_one_of_the_two_splits(samples: int, share: float, seed: int) -> None:
    if not 0 < round(share * samples) < samples:
        with pytest.raises(ValueError, match=f"some of the {samples} samples in both"):
            held_out(share, samples)
        return
    held = held_out(share, samples)
    train, validation = carve(samples, held, torch.Generator().manual_seed(seed))
    assert len(validation) == held == round(share * samples)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(samples))
    for places in (train, validation):
        assert places.dtype == torch.int64
        assert torch.equal(places, places.sort().values)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, float("nan"), 0.01])
def test_the_message_says_whose_samples(share: float) -> None:
    with pytest.raises(ValueError, match=f"validation is {share}; .* of the 20 samples of task 3 in both splits"):
        held_out(share, 20, " of task 3")


@pytest.mark.parametrize(("most", "held"), [(None, 3), (8, 3), (20, 5), (100, 5)])
def test_at_most_so_many_are_used_and_the_same_validation_samples_come_first(most, held):
    train, validation = carve(20, held, generator(0, "validation"), most=most)
    everything, first = carve(20, held, generator(0, "validation"))
    assert torch.equal(validation, first)
    assert len(train) + len(validation) == min(20, most or 20)
    assert set(train.tolist()) <= set(everything.tolist())
    assert not set(train.tolist()) & set(validation.tolist())
