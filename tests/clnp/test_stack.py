from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import stack as stack_module
from clnp.evaluation import logits
from clnp.graph import Norm
from clnp.layers import adaptive_average, dropout, noise_mask, norm
from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.ownership import active, entries, take_free, trainable, weight_classes, with_free
from clnp.parts import Parts
from clnp.stack import Stack
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
    for item in network.layers[:-1]:  # As commits sever it.
        network.weights(item).weight[weight_classes(network, item).interference] = 0.0
    return network


def scatter(stack):
    """Give every member weights of its own where the task may change them."""
    for value in stack.parameters.values():
        value.detach().copy_(torch.randn_like(value))


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
    found = torch.autograd.grad(
        (stack.forward(x) * weight).sum(), list(stack.parameters.values()), materialize_grads=True
    )
    for index in range(2):
        values = {name: value.clone().requires_grad_() for name, value in stack.member(index).items()}
        loss = (alone(network, values, x) * weight[index]).sum()
        expected = dict(zip(values, torch.autograd.grad(loss, values.values(), materialize_grads=True), strict=True))
        for piece, gradient in zip(stack.pieces.values(), found, strict=True):
            torch.testing.assert_close(gradient[index], piece.of(expected[piece.entry]), rtol=1e-12, atol=1e-12)


def shapes(stack):
    return {name: tuple(value.shape) for name, value in stack.parameters.items()}


def test_only_what_the_task_may_change_is_stacked():
    """Promise 1: what is frozen is no parameter, so nothing that acts on parameters can reach it."""
    network = make("multi", ((0,) * 5, (0, FREE, 0, 0)))
    stack = Stack(network, 3)
    assert shapes(stack) == {
        "2.weight": (3, 1, 5),
        "2.bias": (3, 1),
        "4.weight:old": (3, 3, 3),
        "4.weight:free": (3, 3, 1),
        "4.bias": (3, 3),
    }
    assert torch.equal(stack.parameters["4.weight:free"][2], network.heads["1"].weight[:, 1:2])
    addresses = {value.data_ptr() for value in network.parameters()}
    assert addresses.isdisjoint(value.data_ptr() for value in stack.parameters.values())


def test_a_shared_head_trains_the_columns_of_free_units_and_keeps_its_bias():
    stack = Stack(make("single"), 2)
    assert shapes(stack) == {
        "0.weight": (2, 3, 6),
        "0.bias": (2, 3),
        "2.weight:old": (2, 3, 2),
        "2.weight:free": (2, 3, 3),
        "2.bias": (2, 3),
        "4.weight": (2, 3, 3),
    }


@settings(max_examples=30)
@given(data=st.data())
def test_pieces_are_all_that_the_task_may_change_once_each(networks, data):
    """Promise 1: :func:`clnp.ownership.trainable` says what; no piece reaches anything else, or a thing twice."""
    network, _ = data.draw(networks())
    parts, found = Parts(network), entries(network)
    reached = {name: torch.zeros_like(value) for name, value in found.items()}
    for piece in (*parts.pieces.values(), *parts.statistics.values()):
        whole = torch.zeros_like(found[piece.entry])
        piece.into(whole, torch.ones_like(piece.of(found[piece.entry])))
        reached[piece.entry] += whole
    for name, mask in trainable(network).items():
        assert torch.equal(reached[name], mask.expand_as(found[name]).to(found[name])), name


def test_a_full_network_costs_its_head_alone():
    """Old features are computed once, and a step neither reads the samples nor computes a hidden unit."""
    network = make("multi", ((0,) * 5, (0,) * 4))
    stack = Stack(network, 3)
    assert list(stack.parameters) == ["4.weight", "4.bias"]
    x = torch.randn(7, 6, dtype=torch.float64)
    (hidden,) = stack.prefix(x)
    assert hidden.shape == (7, 4)
    expected = hidden @ network.heads["1"].weight.t() + network.heads["1"].bias
    torch.testing.assert_close(stack.rest([hidden])[1], expected)


@settings(max_examples=30)
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_kept_prefix_is_the_prefix(networks, data, seed):
    """Of every kind of network, in training mode too: a Dropout's mask is drawn anew over what is kept."""
    network, x = data.draw(networks(dtype=torch.float64))
    stacks = [Stack(network, 2) for _ in range(2)]
    kept = stacks[0].whole_prefix(x, 2**30)
    index = torch.randperm(len(x))[: max(2, len(x) - 1)]
    found = stacks[0].rest([value[index] for value in kept], torch.Generator().manual_seed(seed))
    expected = stacks[1].forward(x[index], torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_prefix_larger_than_the_limit_is_not_kept():
    network, x = make("multi"), torch.randn(9, 6, dtype=torch.float64)
    stack = Stack(network, 2)
    # Of 9 samples: the old units, 2 of the first layer and 1 of the second, of 8 bytes each.
    assert stack.whole_prefix(x, 9 * 3 * 8 - 1) is None
    kept = stack.whole_prefix(x, 9 * 3 * 8)
    assert [tuple(value.shape) for value in kept] == [(9, 6), (9, 2), (9, 1)]
    assert kept[0].data_ptr() == x.data_ptr(), "the samples are not copied"


def test_free_units_that_only_old_ones_read_have_no_gradient():
    """They are no part of any answer, and stay the open task's to claim or to prune."""
    network = make("multi", ((0, FREE, 0), (0, 0, 0), (0, FREE)))
    stack = Stack(network, 2)
    logits = stack.forward(torch.randn(7, 6, dtype=torch.float64))
    weight = stack.parameters["0.weight"]
    assert weight.shape == (2, 1, 6)
    (gradient,) = torch.autograd.grad(logits.sum(), [weight], materialize_grads=True)
    assert not gradient.any()


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


def spread(stack):
    """Give every member entries of its own where the task may change them, near those that are there."""
    for value in (*stack.parameters.values(), *stack._statistics.values()):
        value.detach().mul_(0.8 + 0.4 * torch.rand_like(value)).add_(0.05 * torch.rand_like(value))


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
    spread(stack)
    found = stack.forward(x)
    assert found.shape == (members, len(x), 3)
    for index in range(members):
        alone = with_free(network, take_free(network, stack.member(index)))
        torch.testing.assert_close(found[index].detach(), logits(cut(alone, network.task), x), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["single", "multi"])
def test_members_that_stay_are_what_they_were(make_any, kind, head):
    """Every entry bit for bit, and so their answers, gradients and statistics, in the order that was named."""
    network, shape = make_any(kind, 1, head=head, committed=2, dtype=torch.float64)
    stack, x = Stack(network, 4), torch.randn(6, *shape, dtype=torch.float64)
    spread(stack)
    before, weight = [stack.member(index) for index in range(4)], torch.randn(4, 6, 3, dtype=torch.float64)
    stack.keep([3, 1])
    assert stack.members == 2
    assert all(torch.equal(stack.member(0)[name], value) for name, value in before[3].items())
    assert all(torch.equal(stack.member(1)[name], value) for name, value in before[1].items())
    assert all(value.is_leaf and value.requires_grad for value in stack.parameters.values())
    assert stack.finite().tolist() == [True, True]
    whole = Stack(network, 4)
    for pieces, values in ((whole.pieces, whole.parameters), (whole._parts.statistics, whole._statistics)):
        for name, piece in pieces.items():
            values[name].detach().copy_(torch.stack([piece.of(member[piece.entry]) for member in before]))
    answers = []
    for one, places in ((whole, [0, 1, 2, 3]), (stack, [3, 1])):
        found = one.forward(x, torch.Generator().manual_seed(0))
        parameters = list(one.parameters.values())
        gradients = torch.autograd.grad((found * weight[places]).sum(), parameters, materialize_grads=True)
        at = [places.index(3), places.index(1)]
        statistics = one._statistics.values()
        answers.append([value.detach()[at] for value in (found, *gradients, *statistics)])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_in_training_mode_members_are_what_torch_computes(make_any, make_module, monkeypatch, kind, seed):
    """Before any commit: outputs, gradients, and the statistics that every BatchNorm goes on with."""
    network, shape = make_any(kind, seed, head="multi", dtype=torch.float64)
    stack = Stack(network, 2)
    spread(stack)
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
        for piece, gradient in zip(stack.pieces.values(), gradients, strict=True):
            torch.testing.assert_close(gradient[index], piece.of(module.get_parameter(piece.entry).grad), **CLOSE)
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
    spread(stack)
    weight = torch.randn(2, len(x), 3, dtype=torch.float64)
    parameters = list(stack.parameters.values())
    gradients = torch.autograd.grad((stack.forward(x) * weight).sum(), parameters, materialize_grads=True)
    for index in range(2):
        values = {name: value.detach().clone() for name, value in stack.member(index).items()}
        names = {piece.entry for piece in stack.pieces.values()}
        for name in names:
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
        whole = torch.autograd.grad((answers * weight[index]).sum(), [values[name] for name in names])
        expected = dict(zip(names, whole, strict=True))
        for piece, gradient in zip(stack.pieces.values(), gradients, strict=True):
            torch.testing.assert_close(gradient[index], piece.of(expected[piece.entry]), **CLOSE)


def swap(module, kind, value):
    """Put a tensor that autograd follows where a parameter or buffer was."""
    module._parameters.pop(kind, None)
    module._buffers.pop(kind, None)
    setattr(module, kind, value)


@settings(max_examples=40)
@given(
    maps=st.booleans(),
    affine=st.booleans(),
    training=st.booleans(),
    units=st.integers(1, 4),
    members=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_a_norm_of_members_is_torchs_of_each(maps, affine, training, units, members, seed):
    """Facts: in training with the batch's statistics, which move the stored ones; else with these."""
    torch.manual_seed(seed)
    layer = Norm("n", "g", units, 2 if maps else 1, 1e-3, 0.2, affine)
    kept = {kind: 0.5 + torch.rand(members, units, dtype=torch.float64) for kind in ("running_mean", "running_var")}
    if affine:
        kept |= {kind: torch.randn(members, units, dtype=torch.float64) for kind in ("weight", "bias")}
    before = {kind: value.clone() for kind, value in kept.items()}
    samples = torch.randn(5, members, units, *((3, 2) if maps else ()), dtype=torch.float64)
    found = norm(layer, samples if maps else samples.permute(1, 2, 0), kept, training=training)
    found = found if maps else found.permute(2, 0, 1)
    for member in range(members):
        module = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(units, 1e-3, 0.2, affine).double().train(training)
        for kind, value in before.items():
            getattr(module, kind).data.copy_(value[member])
        torch.testing.assert_close(found[:, member], module(samples[:, member]).detach(), **CLOSE)
        for kind in before:
            torch.testing.assert_close(kept[kind][member], getattr(module, kind).data, **CLOSE)


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


def test_dropout_scales_what_it_keeps_as_torch_does():
    """Facts: seeded, and as torch scales it."""
    x = torch.rand(7, 9) + 1
    kept = noise_mask((7, 9), 0.4, torch.Generator().manual_seed(1))
    assert torch.equal(kept, noise_mask((7, 9), 0.4, torch.Generator().manual_seed(1)))
    assert not torch.equal(kept, noise_mask((7, 9), 0.4, torch.Generator().manual_seed(2)))
    found = dropout(x, kept, 0.4)
    torch.testing.assert_close(found[kept], x[kept] / 0.6)
    assert not found[~kept].any()
    assert 0.3 < float(kept.float().mean()) < 0.9


def maps():
    """A network that drops numbers of maps, among them those that a layer reads unpooled."""
    modules = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Dropout(0.4)
    network = Network(nn.Sequential(*modules, nn.Flatten(), nn.Linear(10, 3)).double(), head="multi")
    network.place_head(0)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return network, (2, 5, 4)


@pytest.mark.parametrize("kind", ["after", "flat", "averaged", "maps"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_dropout_mask_does_not_depend_on_who_owns_a_unit(make_any, monkeypatch, kind, share):
    """One mask over all the units of a node, old and free: the same entries give the same logits in training."""
    free, shape = maps() if kind == "maps" else make_any(kind, 1, head="multi", dtype=torch.float64)
    owned = free.copy()
    owned.place_head(1)
    owned.heads["1"].weight.copy_(free.heads["0"].weight)
    if owned.output.bias:
        owned.heads["1"].bias.copy_(free.heads["0"].bias)
    owned.committed += 1
    for group in owned.groups:
        owned.owner(group)[: max(1, round(share * group.units))] = 0
    for network, layer in product((free, owned), owned.layers[:-1]):
        network.weights(layer).weight[weight_classes(owned, layer).interference] = 0.0
    monkeypatch.setattr(stack_module, "norm", lambda *given, **_: norm(*given, training=False))
    x = torch.randn(9, *shape, dtype=torch.float64)
    masked = [Stack(network, 1).forward(x, torch.Generator().manual_seed(3)) for network in (free, owned)]
    torch.testing.assert_close(*masked, **CLOSE)


def test_dropout_of_everything():
    x = torch.randn(4, 5)
    assert not dropout(x, noise_mask((4, 5), 1.0, torch.Generator()), 1.0).any()


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
