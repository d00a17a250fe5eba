"""Mean activity against a plain float64 computation."""

import pytest
import torch

from clnp.activity import mean_activity
from clnp.errors import Diverged


@pytest.mark.parametrize("samples", [1, 999, 1000, 2345])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_mean_over_every_sample(make_network, head, samples):
    network = make_network(head=head, committed=1)
    x = torch.randn(samples, 5)
    activity = mean_activity(network, x)
    h = x.double()
    for layer in network.hidden:
        linear = network.linear(layer)
        h = torch.relu(h @ linear.weight.double().T + linear.bias.double())
        assert activity[layer.name].dtype == torch.float64
        assert activity[layer.name].device.type == "cpu"
        torch.testing.assert_close(activity[layer.name], h.mean(0), rtol=1e-5, atol=1e-6)


def test_sums_are_taken_in_float64(make_network):
    """One large sample among many small ones: a float32 sum would lose all of them."""
    network = make_network((1,), inputs=1)
    network.linear(network.last).weight.fill_(1.0)
    network.linear(network.last).bias.fill_(0.0)
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
    network.linear(network.hidden[0]).bias[2] = value
    with pytest.raises(Diverged, match=r"unit 2 of 0 .* diverged"):
        mean_activity(network, torch.randn(4, 5))


@pytest.mark.gpu
def test_the_same_on_a_gpu(make_network):
    network = make_network(committed=1)
    x = torch.randn(300, 5)
    there = mean_activity(network.copy().to("cuda"), x)
    for name, mean in mean_activity(network, x).items():
        torch.testing.assert_close(there[name], mean, rtol=1e-5, atol=1e-6)
