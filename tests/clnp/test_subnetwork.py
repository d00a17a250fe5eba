"""The narrow network holds what the task reads, and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.evaluation import logits
from clnp.ownership import reads, trainable
from clnp.subnetwork import cut, subnetwork


def by_masks(network, x, task, claims=None):
    """The task's logits at full width, each unit it does not read set to zero by hand (Fig. 2)."""
    h = x.double()
    for layer in network.hidden:
        linear = network.linear(layer)
        bias = 0 if linear.bias is None else linear.bias.double()
        h = torch.where(reads(network, layer, task, claims), torch.relu(h @ linear.weight.double().T + bias), 0.0)
    head = network.linear(network.output, task)
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
    first, last = (int(reads(network, layer, 1).sum()) for layer in network.hidden)
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
        linear = network.linear(layer)
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
    claims = {layer.name: torch.zeros(layer.units, dtype=torch.bool) for layer in network.hidden}
    with pytest.raises(ValueError, match="no unit of 0"):
        cut(network, 0, claims)
