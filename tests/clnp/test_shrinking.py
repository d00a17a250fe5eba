"""The network as it shrinks, against the one that is cut out at each threshold."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.activity import mean_activity
from clnp.models import mlp
from clnp.network import Network
from clnp.shrinking import Shrinking, _slopes
from clnp.subnetwork import cut
from clnp.thresholds import claims_at, thresholds


def logits(plan, values):
    return values[len(plan.nodes) - 1]


@settings(max_examples=40)
@given(data=st.data(), silent=st.sampled_from([0.0, 0.3]))
def test_a_threshold_is_reached_from_any_other_before_it(networks, data, silent):
    """However many units go at once, what is left computes what the network cut out there does."""
    network, x = data.draw(networks(count=12, silent=silent, dtype=torch.float64))
    activity = mean_activity(network, x)
    thetas = thresholds(network, activity)
    plan = Shrinking.of(network, activity, thetas, x[:1])
    places = sorted(data.draw(st.sets(st.integers(0, len(thetas) - 1), min_size=1)))
    values = plan.start(x, plan.live[places[0]])
    rows = torch.tensor([3, 0, 7])
    for before, place in itertools.pairwise([places[0], *places]):
        plan.shrink(values, plan.live[before], plan.live[place])
        expected = cut(network, network.task, claims_at(network, activity, thetas[place]))(x)
        torch.testing.assert_close(logits(plan, values), expected, rtol=1e-9, atol=1e-9)
        some = plan.select(values, rows, plan.live[place])
        assert torch.equal(logits(plan, some), logits(plan, values)[rows])
        last = len(plan.live) - 1
        plan.shrink(some, plan.live[place], plan.live[last])
        expected = cut(network, network.task, claims_at(network, activity, thetas[last]))(x[rows])
        torch.testing.assert_close(logits(plan, some), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(data=st.data(), scale=st.sampled_from([1.0, 30.0]))
def test_no_logit_drifts_further_than_was_said(networks, data, scale):
    """Promise 2 rests on it: a stretch is decided at once only because nothing moves further on the way."""
    network, x = data.draw(networks(count=25, dtype=torch.float64))
    activity = mean_activity(network, x[:15])
    thetas = thresholds(network, activity)
    plan = Shrinking.of(network, activity, thetas, x[:1])
    first = data.draw(st.integers(0, len(thetas) - 1))
    earlier = data.draw(st.integers(0, first))
    stop = data.draw(st.integers(first, len(thetas) - 1))
    values = plan.start(scale * x, plan.live[first])
    begin = logits(plan, values).clone()
    # Influences of an earlier threshold hold, too: there were more units.
    rise, fall = plan.drift(values, plan.influences(plan.live[earlier]), plan.live[first], plan.live[stop])
    for place in range(first + 1, stop + 1):
        plan.shrink(values, plan.live[place - 1], plan.live[place])
        moved = logits(plan, values) - begin
        slack = 1e-9 * (1 + begin.abs().amax())
        assert (moved <= rise.T + slack).all()
        assert (moved >= -fall.T - slack).all()


def test_the_drift_of_what_the_output_reads_is_what_goes():
    """Of one layer's units nothing is overestimated but by the order in which they go."""
    network = Network(mlp(3, [4], 2))
    for value in network.parameters():
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.rand(5, 3)
    activity = {group.name: torch.tensor([4.0, 3.0, 2.0, 1.0]).double() for group in network.groups}
    plan = Shrinking.of(network, activity, thresholds(network, activity), x[:1])
    start, end = plan.live[0], plan.live[-1]
    rise, fall = plan.drift(plan.start(x, start), plan.influences(start), start, end)
    hidden, output = (network.weights(layer) for layer in network.layers)
    gone = torch.relu(hidden(x))[:, 1:].unsqueeze(1) * output.weight[:, 1:]
    torch.testing.assert_close(fall.T, gone.clamp_min(0).sum(2))
    torch.testing.assert_close(rise.T, -gone.clamp_max(0).sum(2))


def test_a_steep_activation_carries_a_drift_further():
    """Below 0 throughout, where the slope is 3, so that nothing cancels and the bound is met exactly."""
    steep = nn.LeakyReLU(3.0)
    network = Network(nn.Sequential(nn.Linear(3, 4), steep, nn.Linear(4, 4, bias=False), steep, nn.Linear(4, 2)))
    for value in network.parameters():
        value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(2)))
    first = network.weights(network.layers[0])
    first.weight.neg_()
    first.bias.neg_()
    x = torch.rand(5, 3)
    # Only the first layer's units go.
    means = {network.groups[0].name: [4.0, 3.0, 2.0, 1.0], network.groups[1].name: [9.0] * 4}
    activity = {name: torch.tensor(found).double() for name, found in means.items()}
    plan = Shrinking.of(network, activity, thresholds(network, activity), x[:1])
    start, end = plan.live[0], plan.live[-1]
    values = plan.start(x, start)
    begin = logits(plan, values).clone()
    rise, fall = plan.drift(values, plan.influences(start), start, end)
    plan.shrink(values, start, end)
    torch.testing.assert_close(rise.T, logits(plan, values) - begin)
    assert not fall.any()


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(3.0),
        nn.LeakyReLU(-0.5),
        nn.AvgPool2d(1, divisor_override=3),
        nn.AvgPool2d((1, 1), divisor_override=-2),
    ],
)
def test_no_activation_is_steeper_than_was_said(module):
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    y = module(x.view(1, 1, -1)).flatten()
    slopes = y.diff() / x.diff()
    rise, fall = _slopes(module)
    assert slopes.max() <= rise + 1e-6
    assert slopes.min() >= -fall - 1e-6
