"""Mean activity against a plain float64 computation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clnp.activity import by_layer, mean_activity
from clnp.errors import Diverged
from clnp.network import FREE, Network
from clnp.tasks import Split
from clnp.thresholds import claims_at, curve, staircase


@pytest.mark.parametrize("samples", [1, 999, 1000, 2345])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_mean_over_every_sample(make_network, head, samples):
    network = make_network(head=head, committed=1)
    x = torch.randn(samples, 5)
    activity = mean_activity(network, x)
    h = x.double()
    for layer in network.layers[:-1]:
        linear = network.weights(layer)
        h = torch.relu(h @ linear.weight.double().T + linear.bias.double())
        assert activity[layer.name].dtype == torch.float64
        assert activity[layer.name].device.type == "cpu"
        torch.testing.assert_close(activity[layer.name], h.mean(0), rtol=1e-5, atol=1e-6)


def test_sums_are_taken_in_float64(make_network):
    """One large sample among many small ones: a float32 sum would lose all of them."""
    network = make_network((1,), inputs=1)
    network.weights(network.layers[-2]).weight.fill_(1.0)
    network.weights(network.layers[-2]).bias.fill_(0.0)
    x = torch.full((900, 1), 0.01)
    x[0] = 1e6
    expected = x.double().mean().item()
    assert mean_activity(network, x)[network.last.name].item() == pytest.approx(expected, rel=1e-12)


def test_a_silent_unit_is_exactly_zero_and_the_same_samples_give_the_same_bits(make_network):
    network = make_network(silent=0.5, seed=1)
    x = torch.rand(1500, 5)
    one, other = mean_activity(network, x), mean_activity(network.copy(), x.clone())
    assert any(bool((mean == 0).any()) for mean in one.values())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_network_stays_as_it_was(make_network):
    network = make_network(committed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mean_activity(network, torch.randn(10, 5))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_no_sample_has_no_mean(make_network):
    """Not called diverged: that would blame the network."""
    with pytest.raises(ValueError, match="at least one") as refusal:
        mean_activity(make_network(), torch.empty(0, 5))
    assert not isinstance(refusal.value, Diverged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_is_named(make_network, value):
    network = make_network()
    network.weights(network.layers[0]).bias[2] = value
    with pytest.raises(Diverged, match=r"unit 2 of 0 .* diverged"):
        mean_activity(network, torch.randn(4, 5))


CHAINS = ("dense", "flattened", "averaged")


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("seed", range(6))
def test_a_chain_by_its_own_modules(make_any, make_module, kind, seed):
    """Facts: mean of the absolute output after the activation and before pooling, over positions too, dropout off."""
    network, shape = make_any(kind, seed, committed=1)
    module = make_module(kind, seed)[0].eval()
    for layer in network.layers:
        module.get_submodule(layer.name).load_state_dict(network.weights(layer).state_dict())
    for norm in network.norms:
        module.get_submodule(norm.name).load_state_dict(network.norm(norm).state_dict())
    x, activity = torch.randn(40, *shape), None
    activity, value, group = mean_activity(network, x), x, None
    expected = {}
    with torch.no_grad():
        for child in module.double():
            value = child(value.double())
            if isinstance(child, nn.Linear | nn.Conv2d):
                group = next(layer.group for layer in network.layers if module.get_submodule(layer.name) is child)
            moved = isinstance(child, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten | nn.Dropout)
            if group is not None and not moved:
                each = value.abs() if value.dim() == 4 else value.abs().reshape(40, -1, 1, 1)
                units = {g.name: g.units for g in network.groups}.get(group)
                if units is not None:
                    expected[group] = each.reshape(40, units, -1).mean((0, 2))
    assert activity.keys() == expected.keys()
    for name, mean in activity.items():
        torch.testing.assert_close(mean, expected[name], rtol=1e-5, atol=1e-6)


def test_units_that_an_addition_ties_have_the_largest_of_their_means(make_any, make_module):
    """Facts: a tied group's activity is the largest over its taps, each where a layer reads it."""
    network, shape = make_any("after", 4, committed=1)
    module = make_module("after", 4)[0].eval()
    for entry in (*network.layers, *network.norms):
        own = network.weights(entry) if entry in network.layers else network.norm(entry)
        module.get_submodule(entry.name).load_state_dict(own.state_dict())
    x, seen = torch.randn(30, *shape), {}
    with torch.no_grad():
        first = torch.relu(module.norm(module.stem(x)))
        second = torch.relu(module.norm2(module.conv2(torch.relu(module.norm1(module.conv1(first))))) + first)
        third = nn.functional.silu(module.conv3(second))
        last = torch.relu(module.conv4(third) + module.down(second))
    seen["stem"] = torch.maximum(first.abs().mean((0, 2, 3)), second.abs().mean((0, 2, 3)))
    seen["conv3"] = third.abs().mean((0, 2, 3))
    seen["conv4"] = last.abs().mean((0, 2, 3))
    activity = mean_activity(network, x)
    assert set(activity) == {"stem", "conv1", "conv3", "conv4"}
    for name, mean in seen.items():
        torch.testing.assert_close(activity[name], mean.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["flattened", "averaged", "before", "torchvision"])
def test_activity_never_touches_statistics(make_any, kind):
    """Dropout off, and no BatchNorm moves, whatever mode the network was put in."""
    network, shape = make_any(kind, 1, committed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(10, *shape)
    first = mean_activity(network, x)
    again = mean_activity(network, x)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.gpu
def test_the_same_on_a_gpu(make_network):
    network = make_network(committed=1)
    x = torch.randn(300, 5)
    there = mean_activity(network.copy().to("cuda"), x)
    for name, mean in mean_activity(network, x).items():
        torch.testing.assert_close(there[name], mean, rtol=1e-5, atol=1e-6)


# The order by layer


def test_the_scale_is_the_mean_of_the_free_units_that_are_not_silent(make_network):
    network = make_network((4, 3))
    first, second = network.groups
    network.owner(first)[0] = 0
    activity = {first.name: torch.tensor([100.0, 1.0, 0.0, 3.0]), second.name: torch.zeros(3)}
    activity = {name: means.double() for name, means in activity.items()}
    found = by_layer(network, activity)
    assert found[first.name].tolist() == [50.0, 0.5, 0.0, 1.5], "neither old nor silent units count"
    assert found[second.name].tolist() == [0.0, 0.0, 0.0], "nothing lives: nothing to divide by"
    assert activity[first.name].tolist() == [100.0, 1.0, 0.0, 3.0]


@given(means=st.lists(st.floats(0, 1e6), min_size=3, max_size=40), order=st.randoms())
def test_the_scale_does_not_depend_on_the_order_of_a_sum(means, order):
    """θ is one unit's number to the bit, measured by one worker and compared by another (Promise 2)."""
    network = Network(nn.Sequential(nn.Linear(2, len(means)), nn.ReLU(), nn.Linear(len(means), 2)))
    name = network.groups[0].name
    shuffled = order.sample(means, len(means))
    one, other = (
        by_layer(network, {name: torch.tensor(each, dtype=torch.float64)})[name] for each in (means, shuffled)
    )
    assert sorted(one.tolist()) == sorted(other.tolist())
    rising = [value for _, value in sorted(zip(means, one.tolist(), strict=True))]
    assert rising == sorted(rising), "no unit goes before a less active one of its layer"
    assert all(math.isfinite(value) for value in rising)


def test_a_layer_of_small_activities_is_not_cut_first(make_network):
    """One raw θ takes every unit of the first layer before any of the second; by layer both lose their weakest."""
    network = make_network((4, 4), head="multi")
    network.place_head(0)
    first, second = network.groups
    activity = {
        first.name: torch.tensor([0.01, 0.02, 0.03, 0.06], dtype=torch.float64),
        second.name: torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64),
    }
    shared = claims_at(network, activity, 0.05)
    assert [int(shared[group.name].sum()) for group in network.groups] == [1, 4]
    layers = claims_at(network, by_layer(network, activity), 0.7)
    assert [int(layers[group.name].sum()) for group in network.groups] == [2, 2]


@pytest.mark.parametrize("committed", [0, 1])
def test_the_staircase_of_the_order_by_layer_is_that_of_its_curve(make_network, committed):
    """One nested chain, so the fast scan holds for it as for the shared θ."""
    network = make_network((12, 9), head="single", committed=committed, seed=3)
    x = torch.randn(200, 5)
    split = Split(x, torch.randint(0, network.output.units, (200,)))
    order = by_layer(network, mean_activity(network, x))
    found, points = staircase(network, order, split), curve(network, order, split)
    steps, best = [], -1
    for point in reversed(points):
        if point.correct > best:
            steps.append(point)
            best = point.correct
    assert found.points == tuple(reversed(steps))
    claimed = [sum(point.claimed) for point in points]
    assert claimed == sorted(claimed, reverse=True)
    assert all((network.owner(group) == FREE).any() for group in network.groups)
