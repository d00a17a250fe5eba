"""The fast scan against the canonical evaluator, for every kind of network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import scan as scan_module
from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.models import mlp
from clnp.network import Network
from clnp.scan import scan
from clnp.tasks.task import Split
from clnp.thresholds import curve, thresholds

KINDS = ("dense", "flattened", "averaged", "after", "before", "flat", "torchvision")


def labelled(x, seed=0):
    return Split(x, torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(seed)))


def inside(network, activity, split, tolerance):
    thetas = thresholds(network, activity)
    bounds = scan(network, activity, thetas, split, tolerance=tolerance)
    points = curve(network, activity, split)
    assert [point.theta for point in points] == thetas
    assert bounds[0] == (0, len(split)), "every unit kept is always scored"
    for point, (low, high) in zip(points, bounds, strict=True):
        assert 0 <= low <= point.correct <= high <= len(split)
    return bounds


@settings(max_examples=40)
@given(
    data=st.data(),
    tolerance=st.sampled_from([1e-5, 1e-4, 1e-1]),
    silent=st.sampled_from([0.0, 0.3]),
    strides=st.sampled_from([(128, 16), (5, 2), (3,), (4, 2, 1)]),
)
def test_the_bounds_hold_every_canonical_count(networks, data, tolerance, silent, strides):
    """Promise 2: what is skipped for its bounds is never scored."""
    network, x = data.draw(networks(count=30, silent=silent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "_STRIDES", strides)
        inside(network, mean_activity(network, x[15:]), labelled(x[:15]), tolerance)


@pytest.mark.parametrize("strides", [(128, 16), (4, 1)], ids=["singly", "in stretches"])
def test_a_tie_within_rounding_may_go_either_way(monkeypatch, strides):
    """Two classes say the same of every sample, summed in another order: what the evaluator's rounding makes of them,
    that of a scan cannot tell."""
    monkeypatch.setattr(scan_module, "_STRIDES", strides)
    network = Network(mlp(4, [60], 3))
    hidden, output = (network.weights(layer).weight for layer in network.layers)
    hidden.copy_(torch.rand(4) + 0.1)  # every unit is the same
    output[0] = torch.randn(60)
    output[1] = output[0][torch.randperm(60)]
    output[2] = output[0] - 10
    x = torch.rand(50, 4)
    split = Split(x, torch.randint(2, (50,)))
    assert inside(network, {"hidden1": torch.ones(60, dtype=torch.float64)}, split, 1e-5) == [(0, 50)] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_bounds_are_worth_something(make_any, kind, head):
    """In float64 with a fine tolerance they are the counts themselves: the scan computes what the evaluator does."""
    network, shape = make_any(kind, 3, head=head, committed=1, dtype=torch.float64)
    x = torch.randn(40, *shape, dtype=torch.float64)
    bounds = inside(network, mean_activity(network, x), labelled(x), 1e-11)
    assert all(low == high for low, high in bounds[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["single", "multi"])
def test_pieces_and_stretches_do_not_matter(make_any, monkeypatch, kind, head):
    network, shape = make_any(kind, 5, head=head, committed=1, dtype=torch.float64)
    x = torch.randn(23, *shape, dtype=torch.float64)
    activity, split = mean_activity(network, x), labelled(x)
    thetas = thresholds(network, activity)
    whole = scan(network, activity, thetas, split, tolerance=1e-11)
    monkeypatch.setattr(scan_module, "_PIECE_BYTES", {"dense": 4 * 700, "conv": 4 * 700})
    for strides in ((1000,), (3, 1), (4, 3, 2)):
        monkeypatch.setattr(scan_module, "_STRIDES", strides)
        assert scan(network, activity, thetas, split, tolerance=1e-11) == whole


def test_most_samples_are_decided_for_many_thresholds_at_once(monkeypatch):
    """What the scan saves: few samples go from threshold to threshold."""
    source = torch.Generator().manual_seed(0)
    network = Network(mlp(8, [60, 60], 3))
    for value in network.parameters():
        value.copy_(torch.randn(value.shape, generator=source))
    for layer in network.layers[:-1]:  # Most units are quiet, as L1 makes them.
        network.weights(layer).weight[10:] *= 1e-3
        network.weights(layer).bias[10:] *= 1e-3
    x = torch.randn(400, 8, generator=source)
    singly = []
    count = scan_module._Search._count

    def followed(self, samples, stretch):
        singly.append(len(samples.y) * len(stretch))
        count(self, samples, stretch)

    monkeypatch.setattr(scan_module._Search, "_count", followed)
    bounds = inside(network, mean_activity(network, x), labelled(x), 1e-5)
    assert sum(singly) < 0.3 * len(x) * len(bounds)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 2, 2)])
def test_samples_of_any_shape_may_be_flattened(shape):
    network = Network(mlp(shape, [6, 5], 3))
    for value in network.parameters():
        value.copy_(torch.randn(value.shape))
    x = torch.randn(20, *shape)
    inside(network, mean_activity(network, x), labelled(x), 1e-4)


def test_a_channel_of_a_flattened_map_goes_with_all_its_columns():
    """Facts: test with a non-square map."""
    network = Network(nn.Sequential(nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 12, 3)))
    for value in network.parameters():
        value.copy_(torch.randn(value.shape))
    x = torch.randn(60, 1, 5, 4)
    bounds = inside(network, mean_activity(network, x), labelled(x), 1e-5)
    assert len(bounds) > 4


def test_the_network_and_its_samples_stay_as_they_were(make_any):
    network, shape = make_any("torchvision", 2, committed=1)
    x = torch.randn(12, *shape)
    activity, kept = mean_activity(network, x), x.clone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scan(network, activity, thresholds(network, activity), labelled(x), tolerance=1e-4)
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_full_network_has_one_point_and_its_bounds(make_any):
    network, shape = make_any("torchvision", 2, head="multi", committed=1, share=1.0)
    x = torch.randn(12, *shape)
    activity = mean_activity(network, x)
    assert thresholds(network, activity) == [None, 0.0]
    inside(network, activity, labelled(x), 1e-4)
    commit(network, {group.name: torch.zeros(group.units, dtype=torch.bool) for group in network.groups})
