"""The narrow network holds what the task reads, and nothing else."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.evaluation import logits
from clnp.graph import Norm
from clnp.ownership import lives, reads, trainable
from clnp.subnetwork import Narrow, Select, cut, subnetwork


def by_masks(network, x, task, claims=None):
    """The task's logits at full width, each unit it does not read set to zero by hand (Fig. 2)."""
    h = x.double()
    for layer, reader in pairwise(network.layers):
        linear = network.weights(layer)
        bias = 0 if linear.bias is None else linear.bias.double()
        h = torch.where(reads(network, reader, task, claims), torch.relu(h @ linear.weight.double().T + bias), 0.0)
    head = network.weights(network.output, task)
    return h @ head.weight.double().T + (0 if head.bias is None else head.bias.double())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    hidden=st.lists(st.integers(4, 9), min_size=1, max_size=3),
    head=st.sampled_from(["single", "multi"]),
    committed=st.integers(0, 3),
    bias=st.booleans(),
)
def test_it_answers_as_the_masked_wide_network(make_network, claim_some, seed, hidden, head, committed, bias):
    network = make_network(hidden, head=head, committed=committed, seed=seed, bias=bias, share=0.2)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 5, generator=source)
    for task in range(committed):
        torch.testing.assert_close(
            logits(subnetwork(network, task), x).double(), by_masks(network, x, task), rtol=1e-4, atol=1e-4
        )
    claims = claim_some(network, source)
    for chosen in (None, claims):
        found = logits(cut(network, committed, chosen), x).double()
        torch.testing.assert_close(found, by_masks(network, x, committed, chosen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["single", "multi"])
def test_it_is_a_plain_narrow_sequential_with_memory_of_its_own(make_network, head):
    network = make_network((7, 6), head=head, committed=2)
    narrow = subnetwork(network, 1)
    assert type(narrow) is nn.Sequential
    assert [type(module) for module in narrow] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    first, last = (int(reads(network, layer, 1).sum()) for layer in network.layers[1:])
    assert [(m.in_features, m.out_features) for m in narrow if isinstance(m, nn.Linear)] == [
        (5, first),
        (first, last),
        (last, 3),
    ]
    assert not narrow.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for parameter in narrow.parameters():
        assert not parameter.requires_grad
        assert parameter.is_contiguous()
        parameter.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_free_or_later_cannot_reach_an_answer(make_network, head, poison):
    """Promise 1: the canonical evaluator does not even read what other tasks may change."""
    network = make_network((9, 8), head=head, committed=2, share=0.2)
    x = torch.randn(40, 5)
    before = [logits(subnetwork(network, task), x) for task in range(2)]
    masks = trainable(network)
    for layer in network.layers:
        linear = network.weights(layer)
        linear.weight.masked_fill_(masks[f"{layer.name}.weight"], poison)
        linear.bias.masked_fill_(masks[f"{layer.name}.bias"], poison)
    assert all(torch.equal(logits(subnetwork(network, task), x), before[task]) for task in range(2))


def test_cutting_draws_nothing(make_network):
    network = make_network(committed=1)
    state = torch.random.get_rng_state()
    cut(network, 1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("task", [-1, 1, 2])
def test_a_task_that_is_not_committed_has_none(make_network, task):
    with pytest.raises(IndexError, match=f"task {task} is not committed; the network has 1"):
        subnetwork(make_network(committed=1), task)


def test_a_task_that_is_not_open_cannot_be_cut(make_network):
    with pytest.raises(IndexError, match="task 2 is neither committed nor open"):
        cut(make_network(committed=1), 2)


def test_an_empty_layer_is_refused(make_network):
    network = make_network()
    claims = {layer.name: torch.zeros(layer.units, dtype=torch.bool) for layer in network.groups}
    with pytest.raises(ValueError, match="no unit of 0"):
        cut(network, 0, claims)


MODULES = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.MaxPool2d)
MODULES += (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Flatten, Select)


@settings(max_examples=20)
@given(data=st.data())
def test_every_kind_is_cut_into_plain_modules_of_the_width_that_lives(networks, data):
    """What an export may meet: a Sequential of a chain, else a Narrow, of these modules alone; in evaluation mode,
    with memory of its own and no gradient."""
    network, x = data.draw(networks(committed=st.integers(1, 3)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for task in range(network.task):
        narrow = subnetwork(network, task)
        assert isinstance(narrow, nn.Sequential if network.graph.chain else Narrow)
        assert not any(module.training for module in narrow.modules())
        leaves = [module for module in narrow.modules() if not list(module.children()) and module is not narrow]
        assert {type(module) for module in leaves} <= set(MODULES)
        if network.graph.chain:
            assert not any(isinstance(module, Select) for module in leaves)
        made = [module for module in leaves if isinstance(module, nn.Linear | nn.Conv2d)]
        nodes = [node.op for node in network.graph.nodes if node.op in network.layers]
        for module, layer in zip(made, nodes, strict=True):
            units = 3 if layer == network.output else int(lives(network, layer.group, task).sum())
            assert module.weight.shape[0] == units
            assert module.weight.shape[1] == int(layer.columns(reads(network, layer, task)).sum())
            assert (module.bias is None) == (not layer.bias)
        made = [module for module in leaves if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        norms = [node.op for node in network.graph.nodes if isinstance(node.op, Norm)]
        for module, norm in zip(made, norms, strict=True):
            assert module.num_features == int(lives(network, norm.group, task).sum())
            assert (module.eps, module.momentum, module.affine) == (norm.eps, norm.momentum, norm.affine)
        answers = logits(narrow, x)
        for value in narrow.parameters():
            assert not value.requires_grad
            value.fill_(7.0)
        assert answers.shape == (len(x), 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_shared_head_of_a_stream_selects_the_tasks_own_units(make_any):
    """Facts: single-head masking happens at the head's input, not in the stream, where old units go on living."""
    network, _ = make_any("before", 1, committed=2, share=0.3)
    narrow = subnetwork(network, 1)
    selects = [module for module in narrow.modules() if isinstance(module, Select)]
    assert len(selects) == 1
    owner = network.owner(network.last)
    lives_in = (owner == 0) | (owner == 1)
    assert selects[0].index.tolist() == (owner == 1)[lives_in].nonzero().flatten().tolist()
    x = torch.randn(2, 5)
    assert torch.equal(Select(torch.tensor([3, 1]))(x), x[:, [3, 1]])
    multi, _ = make_any("before", 1, head="multi", committed=2, share=0.3)
    assert not [module for module in subnetwork(multi, 1).modules() if isinstance(module, Select)]


@pytest.mark.parametrize("kind", ["flattened", "averaged", "torchvision", "before"])
def test_cutting_any_kind_draws_nothing(make_any, kind):
    network, _ = make_any(kind, 2, committed=1)
    state = torch.random.get_rng_state()
    cut(network, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
