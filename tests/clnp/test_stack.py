from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import stack as stack_module
from clnp.evaluation import logits
from clnp.graph import Norm
from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.ownership import active, entries, take_free, trainable, with_free
from clnp.stack import Stack, adaptive_average, dense, dropout, norm
from clnp.subnetwork import cut


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
    for layer, owner in zip(network.groups, owners, strict=True):
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
    network.weights(network.layers[-2]).bias[1] = torch.inf
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


# Every kind of network

KINDS = ("dense", "flattened", "averaged", "after", "before", "flat", "torchvision")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def spread(stack, network):
    """Give every member entries of its own where the task may change them, near those that are there."""
    masks = trainable(network)
    for name, value in {**stack.parameters, **stack._statistics}.items():
        drawn = value.detach() * (0.8 + 0.4 * torch.rand_like(value)) + 0.05 * torch.rand_like(value)
        value.detach().copy_(torch.where(masks[name], drawn, value.detach()))


def put(module, network, values):
    """The torch module with a member's entries."""
    for holder in (*network.layers, *network.norms):
        found = module.get_submodule(holder.name)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if (value := values.get(f"{holder.name}.{kind}")) is not None:
                getattr(found, kind).data.copy_(value.detach())
    return module


@settings(max_examples=25)
@given(data=st.data(), members=st.integers(1, 3))
def test_members_of_every_kind_answer_as_they_do_alone(networks, data, members):
    """In evaluation mode: each is the network with its entries put in place, cut out for the open task."""
    network, x = data.draw(networks(dtype=torch.float64))
    stack = Stack(network, members)
    spread(stack, network)
    found = stack.forward(x)
    assert found.shape == (members, len(x), 3)
    for index in range(members):
        alone = with_free(network, take_free(network, stack.member(index)))
        torch.testing.assert_close(found[index].detach(), logits(cut(alone, network.task), x), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_in_training_mode_members_are_what_torch_computes(make_any, make_module, monkeypatch, kind, seed):
    """Before any commit: outputs, gradients, and the statistics that every BatchNorm goes on with."""
    network, shape = make_any(kind, seed, head="multi", dtype=torch.float64)
    stack = Stack(network, 2)
    spread(stack, network)
    x, weight = torch.randn(6, *shape, dtype=torch.float64), torch.randn(2, 6, 3, dtype=torch.float64)
    modules = [put(make_module(kind, seed)[0].double(), network, stack.member(index)) for index in range(2)]
    monkeypatch.setattr(stack_module, "dropout", lambda x, *_: x)
    found = stack.forward(x, torch.Generator())
    gradients = torch.autograd.grad((found * weight).sum(), list(stack.parameters.values()))
    for index, module in enumerate(modules):
        module.train()
        module.training = False  # Of what it drops itself.
        for child in module.modules():
            child.training &= not isinstance(child, nn.Dropout)
        expected = module(x)
        torch.testing.assert_close(found[index], expected, **CLOSE)
        (expected * weight[index]).sum().backward()
        for name, gradient in zip(stack.parameters, gradients, strict=True):
            torch.testing.assert_close(gradient[index], module.get_parameter(name).grad, **CLOSE)
        for item in network.norms:
            for moved in ("running_mean", "running_var"):
                name = f"{item.name}.{moved}"
                torch.testing.assert_close(stack.member(index)[name], module.get_buffer(name), **CLOSE)


@settings(max_examples=20)
@given(data=st.data())
def test_gradients_of_an_open_task_are_those_of_torch(networks, data):
    """After some commits, in evaluation mode: of all that the task may change."""
    network, x = data.draw(networks(dtype=torch.float64, heads=["multi"]))
    stack = Stack(network, 2)
    spread(stack, network)
    weight = torch.randn(2, len(x), 3, dtype=torch.float64)
    gradients = torch.autograd.grad((stack.forward(x) * weight).sum(), list(stack.parameters.values()))
    for index in range(2):
        values = {name: value.detach().clone() for name, value in stack.member(index).items()}
        for name in stack.parameters:
            values[name].requires_grad_()
        wide = network.copy()
        for layer in network.layers:
            for kind in ("weight", "bias"):
                if f"{layer.name}.{kind}" in values:
                    swap(wide.weights(layer), kind, values[f"{layer.name}.{kind}"])
        for item in network.norms:
            for kind in ("weight", "bias", "running_mean", "running_var"):
                if f"{item.name}.{kind}" in values:
                    swap(wide.norm(item), kind, values[f"{item.name}.{kind}"])
        *_, (_, _, answers) = wide.values(x, network.task)
        names = list(stack.parameters)
        expected = torch.autograd.grad((answers * weight[index]).sum(), [values[name] for name in names])
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[index], other, **CLOSE)


def swap(module, kind, value):
    """Put a tensor that autograd follows where a parameter or buffer was."""
    module._parameters.pop(kind, None)
    module._buffers.pop(kind, None)
    setattr(module, kind, value)


@settings(max_examples=40)
@given(
    data=st.data(),
    maps=st.booleans(),
    affine=st.booleans(),
    members=st.integers(1, 3),
    stacked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_an_active_channel_keeps_its_statistics_and_a_free_one_moves_on(data, maps, affine, members, stacked, seed):
    """Facts: a free channel is torch's BatchNorm in training mode; an active one is it in evaluation mode, keeps every
    bit, and is so normalised with the features that it is evaluated on."""
    torch.manual_seed(seed)
    units = data.draw(st.integers(1, 4))
    free = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units, max_size=units)))
    layer = Norm("n", "g", units, 2 if maps else 1, 1e-3, 0.2, affine)
    kept = {kind: 0.5 + torch.rand(members, units, dtype=torch.float64) for kind in ("running_mean", "running_var")}
    kept |= {kind: torch.randn(members, units, dtype=torch.float64) if affine else None for kind in ("weight", "bias")}
    before = {kind: None if value is None else value.clone() for kind, value in kept.items()}
    samples = torch.randn(5, members, units, *((3, 2) if maps else ()), dtype=torch.float64)
    if not stacked:
        samples = samples[:, :1].expand_as(samples)
    given = samples if maps else samples.permute(1, 2, 0)
    if not stacked:
        given = given[:, 0] if maps else given[0]
    found = norm(layer, given, kept, free)
    found = found if maps else found.permute(2, 0, 1)
    for member in range(members):
        expected = {}
        for training in (True, False):
            module = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(units, 1e-3, 0.2, affine).double().train(training)
            for kind, value in before.items():
                if value is not None:
                    getattr(module, kind).data.copy_(value[member])
            expected[training] = (module(samples[:, member]).detach(), module)
        for training, where in ((True, free), (False, ~free)):
            answer, module = expected[training]
            torch.testing.assert_close(found[:, member][:, where], answer[:, where], **CLOSE)
            for kind in ("running_mean", "running_var"):
                torch.testing.assert_close(kept[kind][member, where], getattr(module, kind)[where], **CLOSE)
    for kind in ("running_mean", "running_var"):
        assert torch.equal(kept[kind][:, ~free], before[kind][:, ~free])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_moves_no_statistics_of_an_active_channel(make_any, poison):
    """Promise 1: a product with a mask would let NaN through."""
    network, shape = make_any("torchvision", 3, committed=2)
    stack = Stack(network, 2)
    stack.forward(torch.full((4, *shape), poison), torch.Generator())
    assert not stack.finite().any()
    for index in range(2):
        values = stack.member(index)
        for item in network.norms:
            owned = active(network, item.group)
            for kind in ("running_mean", "running_var"):
                old = getattr(network.norm(item), kind)[owned].view(torch.int32)
                assert torch.equal(values[f"{item.name}.{kind}"][owned].view(torch.int32), old)


def test_the_network_is_never_written(make_any):
    network, shape = make_any("after", 2, committed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stack = Stack(network, 2)
    stack.forward(torch.randn(4, *shape), torch.Generator())
    for value in stack.parameters.values():
        value.detach().fill_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("shape", [(7, 9), (2, 7, 9), (9, 2, 7, 4, 4), (3, 9, 2, 7, 4, 4)[1:], (9, 7, 4, 4)])
def test_one_dropout_mask_for_all_members(shape):
    """Facts: one mask a layer and step, seeded, shared by all members; and as torch scales it."""
    x = torch.rand(shape) + 1
    found = dropout(x, 0.4, torch.Generator().manual_seed(1))
    assert torch.equal(found, dropout(x, 0.4, torch.Generator().manual_seed(1)))
    assert not torch.equal(found, dropout(x, 0.4, torch.Generator().manual_seed(2)))
    kept = found != 0
    torch.testing.assert_close(found[kept], x[kept] / 0.6)
    assert 0.3 < float(kept.float().mean()) < 0.9
    if x.dim() in (3, 5):
        member = 0 if x.dim() == 3 else 1
        assert bool((kept == kept.select(member, 0).unsqueeze(member)).all())


def test_a_dropout_mask_does_not_depend_on_the_number_of_members(make_any):
    network, shape = make_any("after", 1)
    x = torch.randn(9, *shape)
    answers = [Stack(network, count).forward(x, torch.Generator().manual_seed(3)) for count in (1, 3)]
    for answer in answers[1]:
        torch.testing.assert_close(answer, answers[0][0])
    assert not torch.allclose(answers[0], Stack(network, 1).forward(x, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    x = torch.randn(3, 4, 5)
    assert torch.equal(dropout(x, p, torch.Generator()), x * (1 - p))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 5, 4), (2, 3, 2, 2)])
def test_samples_of_any_shape_may_be_flattened(shape):
    """An experiment's mlp begins with a Flatten."""
    network = Network(mlp(shape, [6], 3).double())
    network.check_shape(shape)
    for value in network.parameters():
        value.copy_(torch.randn(value.shape))
    stack, x = Stack(network, 2), torch.randn(7, *shape, dtype=torch.float64)
    torch.testing.assert_close(stack.forward(x)[1].detach(), logits(cut(network, 0), x), **CLOSE)


def test_a_full_group_of_convolutions_is_computed_once(make_any):
    """Design: what no member can change is not stacked."""
    network, shape = make_any("torchvision", 4, head="multi", committed=1, share=1.0)
    stack = Stack(network, 3)
    assert list(stack.parameters) == [f"{network.output.name}.weight", f"{network.output.name}.bias"]
    before = {name: value.clone() for name, value in entries(network).items()}
    stack.forward(torch.randn(4, *shape), torch.Generator())
    for name in before.keys() - stack.parameters.keys():
        assert torch.equal(stack.member(1)[name], before[name])


@pytest.mark.parametrize("size", [1, 7, (2, 3), (None, 4), (5, 1)])
def test_the_adaptive_average_is_torchs(size):
    x = torch.randn(3, 2, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adaptive_average(x, size), nn.AdaptiveAvgPool2d(size)(x))
