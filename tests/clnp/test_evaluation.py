"""The canonical evaluator, and the full width it is compared with."""

import math

import pytest
import torch
from torch import nn

from clnp import evaluation
from clnp.commit import commit
from clnp.evaluation import count_correct, full_width_agrees, full_width_difference, full_width_logits, logits
from clnp.ownership import trainable
from clnp.subnetwork import subnetwork
from clnp.tasks.task import Split


@pytest.mark.parametrize("samples", [1, 500, 1203])
def test_logits_in_order_and_whole(samples):
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(samples, 5)
    found = logits(module, x)
    assert not found.requires_grad
    torch.testing.assert_close(found, module(x).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found, logits(module, x))


def test_the_module_is_evaluated_and_left_in_its_mode():
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.9)).train()
    x = torch.randn(6, 5)
    assert torch.equal(logits(module, x), module[0](x).detach())
    assert module.training
    assert module[1].training


def test_right_answers_and_ties():
    module = nn.Linear(2, 3, bias=False)
    module.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # The first two classes are equal on the first two samples, all three on the last: the first of them is the answer.
    assert count_correct(module, Split(x, torch.tensor([0, 1, 2, 0]))) == 3


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("seed", range(5))
def test_full_width_and_sub_network_agree(make_network, draw, head, seed):
    """Promise 1: also when the free units answer with a million."""
    network = make_network((9, 8), head=head, committed=3, seed=seed, share=0.2)
    x = torch.randn(700, 5)
    assert all(full_width_agrees(network, x, task) for task in range(3))
    masks = trainable(network)
    for layer in network.layers:
        network.linear(layer).weight.masked_fill_(masks[f"{layer.name}.weight"], 1e6)
        network.linear(layer).bias.masked_fill_(masks[f"{layer.name}.bias"], 1e6)
    for task in range(3):
        assert full_width_agrees(network, x, task)
        narrow, wide = logits(subnetwork(network, task), x), full_width_logits(network, x, task)
        assert torch.equal(narrow.argmax(1), wide.argmax(1))


def test_a_single_connection_shows(make_network):
    network = make_network(committed=1)
    x = torch.randn(50, 5)
    layer = network.last
    row = int((network.owner(layer) == 0).nonzero()[0])
    column = int((network.owner(network.hidden[0]) == -1).nonzero()[0])
    network.linear(network.hidden[0]).bias[column] = 10.0
    network.linear(layer).bias[row] = 10.0
    network.linear(layer).weight[row, column] = 0.01
    assert not full_width_agrees(network, x, 0)


def test_numbers_that_are_not_finite_do_not_agree(make_network):
    network = make_network(committed=1)
    network.linear(network.output).bias[0] = float("nan")
    assert not full_width_agrees(network, torch.randn(5, 5), 0)


def test_the_mask_selects(make_network):
    """Promise 1: whatever a unit outside the mask answers stays outside, where 0 · inf would be NaN."""
    network = make_network(committed=1)
    free = int((network.owner(network.last) == -1).nonzero()[0])
    network.linear(network.last).bias[free] = math.inf
    assert full_width_agrees(network, torch.randn(50, 5), 0)


def test_an_overflow_is_told_from_a_missing_cut(make_network):
    """Both disagree; only a missing cut by a finite difference."""
    network = make_network(committed=1)
    x = torch.randn(50, 5)
    assert 0 <= full_width_difference(network, x, 0) <= 1e-5
    first, last = (network.linear(layer) for layer in network.hidden)
    column = int((network.owner(network.hidden[0]) == -1).nonzero()[0])
    row = int((network.owner(network.last) == 0).nonzero()[0])
    uncut, overflowing = network.copy(), network
    first.bias[column] = math.inf
    assert not last.weight[row, column]
    assert not math.isfinite(full_width_difference(overflowing, x, 0))
    assert not full_width_agrees(overflowing, x, 0)
    uncut.linear(network.hidden[0]).bias[column] = uncut.linear(network.last).bias[row] = 10.0
    uncut.linear(network.last).weight[row, column] = 1.0
    assert 1e-5 < full_width_difference(uncut, x, 0) < math.inf
    assert not full_width_agrees(uncut, x, 0)


def test_narrow_logits_that_are_known_are_not_computed_again(make_network, monkeypatch):
    network = make_network(committed=2)
    x = torch.randn(50, 5)
    narrow = logits(subnetwork(network, 1), x)
    expected = full_width_difference(network, x, 1)
    monkeypatch.setattr(evaluation, "logits", lambda *_: pytest.fail("computed again"))
    assert full_width_difference(network, x, 1, narrow=narrow) == expected
    assert full_width_agrees(network, x, 1, narrow=narrow)
    assert not full_width_agrees(network, x, 1, narrow=narrow + 1)


def test_without_the_mask_of_a_single_head_it_shows(make_network, claim_some, monkeypatch):
    """Promise 1: remove the mask, and later units reach an old task's answer."""
    network = make_network((9, 8), committed=1)
    commit(network, claim_some(network, torch.Generator().manual_seed(0), 0.3))
    x = torch.randn(50, 5)
    assert full_width_agrees(network, x, 0)
    monkeypatch.setattr(evaluation, "masked", lambda *_: False)
    assert not full_width_agrees(network, x, 0)


@pytest.mark.parametrize("function", [full_width_logits, full_width_agrees])
@pytest.mark.parametrize("task", [-1, 1])
def test_a_task_that_is_not_committed(make_network, function, task):
    with pytest.raises(IndexError, match="not committed"):
        function(make_network(committed=1), torch.randn(3, 5), task)


@pytest.mark.gpu
def test_samples_follow_the_module_to_its_device(make_network):
    network = make_network(committed=2).to("cuda")
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    module = subnetwork(network, 1)
    assert count_correct(module, Split(x, y)) == count_correct(module, Split(x.cuda(), y.cuda()))
    assert full_width_agrees(network, x, 1)
