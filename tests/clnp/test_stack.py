from itertools import pairwise

import pytest
import torch
from torch import nn

from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.ownership import entries, trainable
from clnp.stack import Stack, dense


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(head="single", owners=((0, 0, FREE, FREE, FREE), (FREE, 0, FREE, FREE)), committed=1, *, bias=True):
    """A float64 network with random weights, whose units have the given owners and whose next task's head is placed."""
    widths = [6, *map(len, owners)]
    modules = []
    for before, width in pairwise(widths):
        modules += [nn.Linear(before, width, bias=bias), nn.ReLU()]
    network = Network(nn.Sequential(*modules, nn.Linear(widths[-1], 3, bias=bias)).double(), head=head)
    for task in range(committed + 1):
        network.place_head(task)
    for layer, owner in zip(network.hidden, owners, strict=True):
        network.owner(layer).copy_(torch.tensor(owner))
    network.committed += committed
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return network


def scatter(stack):
    """Give every member weights of its own where the task may change them."""
    for name, value in stack.parameters.items():
        mask = stack.trainable[name]
        drawn = torch.randn_like(value)
        value.detach().copy_(drawn if mask is None else torch.where(mask, drawn, value.detach()))


def alone(network, values, x):
    """One member's logits from plain linear layers, the last hidden layer masked as Sec. 2.1 says."""
    for layer in network.layers:
        if network.head == "single" and layer == network.output:
            x = x * (network.owner(network.last) == FREE)
        x = nn.functional.linear(x, values[f"{layer.name}.weight"], values.get(f"{layer.name}.bias"))
        x = x if layer == network.output else x.relu()
    return x


def one_by_one(network, stack, x):
    return torch.stack([alone(network, stack.member(index), x) for index in range(stack.members)])


NETWORKS = {
    "single": lambda: make("single"),
    "multi": lambda: make("multi"),
    "first task": lambda: make("single", ((FREE,) * 5, (FREE,) * 4), 0),
    "first layer full": lambda: make("single", ((0,) * 5, (0, FREE, FREE, 0))),
    "second layer full": lambda: make("multi", ((0, FREE, 0), (0, 0, 0), (0, FREE))),
    "all full": lambda: make("multi", ((0,) * 5, (0,) * 4)),
    "no bias": lambda: make("single", bias=False),
    "one hidden layer": lambda: make("single", ((0, FREE, FREE),)),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("members", [1, 3])
def test_members_compute_what_they_compute_alone(kind, members):
    network = NETWORKS[kind]()
    stack = Stack(network, members)
    scatter(stack)
    x = torch.randn(7, 6, dtype=torch.float64)
    logits = stack.forward(x)
    assert logits.shape == (members, 7, 3)
    torch.testing.assert_close(logits, one_by_one(network, stack, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_are_those_of_the_members_alone(kind):
    network = NETWORKS[kind]()
    stack = Stack(network, 2)
    scatter(stack)
    x = torch.randn(7, 6, dtype=torch.float64)
    weight = torch.randn(2, 7, 3, dtype=torch.float64)
    found = torch.autograd.grad((stack.forward(x) * weight).sum(), list(stack.parameters.values()))
    for index in range(2):
        values = {name: value.clone().requires_grad_() for name, value in stack.member(index).items()}
        loss = (alone(network, values, x) * weight[index]).sum()
        expected = torch.autograd.grad(loss, [values[name] for name in stack.parameters])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[index], b, rtol=1e-12, atol=1e-12)


def test_only_what_the_task_may_change_is_stacked():
    """Design: old heads and full layers are no parameters, so nothing that acts on parameters can reach them."""
    network = make("multi", ((0,) * 5, (0, FREE, 0, 0)))
    stack = Stack(network, 3)
    assert {name: tuple(value.shape) for name, value in stack.parameters.items()} == {
        "2.weight": (3, 4, 5),
        "2.bias": (3, 4),
        "4.weight": (3, 3, 4),
        "4.bias": (3, 3),
    }
    assert torch.equal(stack.parameters["4.weight"][2], network.heads["1"].weight)
    assert stack.trainable["4.weight"] is None
    assert torch.equal(stack.trainable["2.weight"], trainable(network)["2.weight"])
    addresses = {value.data_ptr() for value in network.parameters()}
    assert addresses.isdisjoint(value.data_ptr() for value in stack.parameters.values())


def test_features_of_full_layers_are_computed_once_for_all_members():
    stack = Stack(make("multi", ((0,) * 5, (0,) * 4)), 3)
    assert list(stack.parameters) == ["4.weight", "4.bias"]
    weights = stack.member(0)
    hidden = dense(torch.randn(6, 7, dtype=torch.float64), weights["0.weight"], weights["0.bias"])
    assert hidden.shape == (5, 7)


def test_a_member_has_every_entry_of_the_network():
    network = make("single")
    stack = Stack(network, 2)
    for name, value in entries(network).items():
        assert torch.equal(stack.member(1)[name], value)


def test_old_units_of_the_last_hidden_layer_reach_a_shared_output_in_no_way():
    """Facts: selected, not multiplied, since 0 · inf is NaN."""
    network = make("single")
    x = torch.randn(7, 6, dtype=torch.float64)
    before = Stack(network, 2).forward(x)
    network.linear(network.last).bias[1] = torch.inf
    assert torch.equal(Stack(network, 2).forward(x), before)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_member_changes_no_bit_of_another(poison):
    network = make("single")
    stack = Stack(network, 3)
    scatter(stack)
    x = torch.randn(7, 6, dtype=torch.float64)
    parameters = list(stack.parameters.values())
    before = stack.forward(x)
    gradients = torch.autograd.grad(before.square().sum(), parameters)
    for value in parameters:
        value.detach()[1] = poison
    assert stack.finite().tolist() == [True, False, True]
    after = stack.forward(x)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    for a, b in zip(torch.autograd.grad(after.square().sum(), parameters), gradients, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


def test_float32_goes_through_the_same_path():
    network = Network(mlp(6, [5, 4], 3))
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    stack = Stack(network, 2)
    x = torch.randn(7, 6)
    assert stack.forward(x).dtype == torch.float32
    torch.testing.assert_close(stack.forward(x), one_by_one(network, stack, x))
