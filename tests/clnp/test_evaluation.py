"""The canonical evaluator, and the full width it is compared with."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import evaluation
from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.evaluation import Scorer, count_correct, full_width_agrees, full_width_difference, full_width_logits, logits
from clnp.network import FREE
from clnp.ownership import trainable
from clnp.subnetwork import cut, subnetwork
from clnp.tasks.task import Split
from clnp.thresholds import claims_at, thresholds


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


@settings(max_examples=40)
@given(data=st.data(), room=st.sampled_from([0, 2000, 2**28]))
def test_networks_scored_one_after_another_get_the_canonical_answers(networks, data, room):
    """Promise 2: what is taken over from the network before is what would be computed, bit for bit."""
    network, x = data.draw(networks(count=23))
    split = Split(x, torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(0)))
    activity = mean_activity(network, x)
    thetas = thresholds(network, activity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_KEPT_BYTES", room)
        patch.setattr(evaluation, "_BATCH", 10)
        scorer = Scorer(split)
        for theta in data.draw(st.lists(st.sampled_from(thetas), min_size=1, max_size=6)):
            narrow = cut(network, network.task, claims_at(network, activity, theta))
            assert torch.equal(scorer.logits(narrow), logits(narrow, x))
            assert scorer.count_correct(narrow) == count_correct(narrow, split)


def computed(scorer, modules):
    """Which of a Sequential's modules a scorer runs."""
    ran = []
    hooks = [
        step.register_forward_hook(lambda *_, place=place: ran.append(place)) for place, step in enumerate(modules)
    ]
    scorer.logits(modules)
    for hook in hooks:
        hook.remove()
    return ran


def test_what_two_networks_begin_with_is_computed_once(monkeypatch):
    def network(last):
        torch.manual_seed(0)
        begin = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU()]
        return nn.Sequential(*begin, nn.Linear(6, last)).eval()

    scorer = Scorer(Split(torch.randn(9, 1, 4, 4), torch.zeros(9, dtype=torch.int64)))
    assert computed(scorer, network(3)) == [0, 1, 2, 3, 4, 5]
    assert computed(scorer, network(2)) == [5]
    other = network(2)
    with torch.no_grad():
        other[3].bias[0] += 1
    assert computed(scorer, other) == [3, 4, 5]
    steeper = nn.Sequential(*other)
    steeper[1] = nn.LeakyReLU(0.5)
    assert computed(scorer, steeper) == [0, 1, 2, 3, 4, 5], "modules without entries count as well"
    monkeypatch.setattr(evaluation, "_KEPT_BYTES", 9 * 6 * 4)
    assert computed(scorer, network(3)) == [0, 1, 2, 3, 4, 5]
    assert computed(scorer, network(2)) == [5], "the deepest values are those that are kept"
    assert computed(scorer, other) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("seed", range(5))
def test_full_width_and_sub_network_agree(make_network, draw, head, seed):
    """Promise 1: also when the free units answer with a million."""
    network = make_network((9, 8), head=head, committed=3, seed=seed, share=0.2)
    x = torch.randn(700, 5)
    assert all(full_width_agrees(network, x, task) for task in range(3))
    masks = trainable(network)
    for layer in network.layers:
        network.weights(layer).weight.masked_fill_(masks[f"{layer.name}.weight"], 1e6)
        network.weights(layer).bias.masked_fill_(masks[f"{layer.name}.bias"], 1e6)
    for task in range(3):
        assert full_width_agrees(network, x, task)
        narrow, wide = logits(subnetwork(network, task), x), full_width_logits(network, x, task)
        assert torch.equal(narrow.argmax(1), wide.argmax(1))


def test_a_single_connection_shows(make_network):
    network = make_network(committed=1)
    x = torch.randn(50, 5)
    layer = network.layers[-2]
    row = int((network.owner(layer.group) == 0).nonzero()[0])
    column = int((network.owner(network.groups[0]) == -1).nonzero()[0])
    network.weights(network.layers[0]).bias[column] = 10.0
    network.weights(layer).bias[row] = 10.0
    network.weights(layer).weight[row, column] = 0.01
    assert not full_width_agrees(network, x, 0)


def test_numbers_that_are_not_finite_do_not_agree(make_network):
    network = make_network(committed=1)
    network.weights(network.output).bias[0] = float("nan")
    assert not full_width_agrees(network, torch.randn(5, 5), 0)


def test_the_mask_selects(make_network):
    """Promise 1: whatever a unit outside the mask answers stays outside, where 0 · inf would be NaN."""
    network = make_network(committed=1)
    free = int((network.owner(network.last) == -1).nonzero()[0])
    network.weights(network.layers[-2]).bias[free] = math.inf
    assert full_width_agrees(network, torch.randn(50, 5), 0)


def test_an_overflow_is_told_from_a_missing_cut(make_network):
    """Both disagree; only a missing cut by a finite difference."""
    network = make_network(committed=1)
    x = torch.randn(50, 5)
    assert 0 <= full_width_difference(network, x, 0) <= 1e-5
    first, last = (network.weights(layer) for layer in network.layers[:-1])
    column = int((network.owner(network.groups[0]) == -1).nonzero()[0])
    row = int((network.owner(network.last) == 0).nonzero()[0])
    uncut, overflowing = network.copy(), network
    first.bias[column] = math.inf
    assert not last.weight[row, column]
    assert not math.isfinite(full_width_difference(overflowing, x, 0))
    assert not full_width_agrees(overflowing, x, 0)
    uncut.weights(network.layers[0]).bias[column] = uncut.weights(network.layers[-2]).bias[row] = 10.0
    uncut.weights(network.layers[-2]).weight[row, column] = 1.0
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


def test_narrow_logits_that_are_given_are_what_is_compared(make_network):
    network = make_network(committed=2)
    x = torch.randn(50, 5)
    narrow = logits(subnetwork(network, 1), x)
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


# Every kind of network

KINDS = ("dense", "flattened", "averaged", "after", "before", "flat", "torchvision")


@settings(max_examples=25)
@given(data=st.data(), exact=st.booleans())
def test_every_kind_answers_at_full_width_as_its_sub_network(networks, data, exact):
    """Promise 1, with tasks that claim nothing in some group, groups of one unit and full ones."""
    network, x = data.draw(networks(dtype=torch.float64 if exact else torch.float32, committed=st.integers(1, 3)))
    for task in range(network.task):
        narrow, wide = logits(subnetwork(network, task), x), full_width_logits(network, x, task)
        assert wide.shape == (len(x), 3)
        assert full_width_difference(network, x, task) <= (1e-12 if exact else 1e-5)
        assert full_width_agrees(network, x, task)
        assert float((wide - narrow).abs().max()) <= (1e-12 if exact else 1e-5) * max(1.0, float(narrow.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_full_width_is_the_module_that_was_given(make_any, make_module, kind, seed):
    """With a head a task nothing is masked: torch's own module, loaded with the network's numbers, gives the logits."""
    network, shape = make_any(kind, seed, head="multi", committed=2, dtype=torch.float64)
    module = make_module(kind, seed)[0].double().eval()
    x = torch.randn(7, *shape, dtype=torch.float64)
    for task in range(2):
        for layer in network.layers:
            module.get_submodule(layer.name).load_state_dict(network.weights(layer, task).state_dict())
        for norm in network.norms:
            module.get_submodule(norm.name).load_state_dict(network.norm(norm).state_dict())
        with torch.no_grad():
            expected = module(x)
        torch.testing.assert_close(full_width_logits(network, x, task), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logits(subnetwork(network, task), x), expected, rtol=1e-10, atol=1e-10)


def poison(network, task, value, *, columns):
    """Spoil what the task must not read: the entries of units that are free or came later, other tasks' heads and, with
    ``columns``, the severed weights from such units."""

    def foreign(group):
        owner = network.owner(group)
        alone = network.head == "single" and network.last.name == group and network.graph.chain
        return owner != task if alone else (owner == FREE) | (owner > task)

    for layer in network.layers[:-1]:
        weights = network.weights(layer)
        weights.weight[foreign(layer.group)] = value
        if weights.bias is not None:
            weights.bias[foreign(layer.group)] = value
        if columns and layer.source is not None:
            weights.weight[:, layer.columns(foreign(layer.source))] = value
    for norm in network.norms:
        module = network.norm(norm)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, kind) is not None:
                getattr(module, kind)[foreign(norm.group)] = value
    output = network.output
    if network.head == "single":
        network.weights(output).weight[:, output.columns(network.owner(network.last) != task)] = value
        return
    for other in network.heads:
        if int(other) != task:
            for parameter in network.heads[other].parameters():
                parameter.fill_(value)
    if columns:
        network.weights(output, task).weight[:, output.columns(foreign(network.last.name))] = value


@settings(max_examples=20)
@given(data=st.data())
def test_poison_in_all_that_a_task_must_not_read(networks, data):
    """Facts: NaN and inf for the canonical evaluator; for the full width 1e6, where the severed weights hold it off."""
    network, x = data.draw(networks(dtype=torch.float64, committed=st.integers(1, 3)))
    for task in range(network.task):
        before = logits(subnetwork(network, task), x)
        for value in (math.nan, math.inf, -math.inf):
            spoilt = network.copy()
            poison(spoilt, task, value, columns=True)
            assert torch.equal(logits(subnetwork(spoilt, task), x), before)
        spoilt = network.copy()
        poison(spoilt, task, 1e6, columns=False)
        assert torch.equal(logits(subnetwork(spoilt, task), x), before)
        assert full_width_difference(spoilt, x, task, narrow=before) <= 1e-10


@pytest.mark.parametrize("kind", ["flattened", "averaged", "before", "torchvision"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_one_severed_weight_of_any_kind_shows_at_full_width(make_any, kind, head):
    """A missing cut: the sub-network cannot see it."""
    found = 0
    for seed in range(8):
        network, shape = make_any(kind, seed, head=head, committed=1, dtype=torch.float64, share=0.3)
        x = torch.randn(9, *shape, dtype=torch.float64)
        before = logits(subnetwork(network, 0), x)
        for layer in network.layers:
            if layer.source is None or (layer == network.output and head == "single"):
                continue
            free = layer.columns(network.owner(layer.source) == FREE).nonzero()
            rows = torch.arange(3) if layer == network.output else (network.owner(layer.group) == 0).nonzero()
            if len(free):
                uncut = network.copy()
                uncut.weights(layer, 0).weight[int(rows[0]), int(free[0])] = 100.0
                assert torch.equal(logits(subnetwork(uncut, 0), x), before)
                found += full_width_difference(uncut, x, 0) > 1e-5
    assert found > 3, "too few cuts that show: a unit before or behind them may be silent, but not nearly all"


@pytest.mark.parametrize("head", ["single", "multi"])
def test_rounding_is_told_from_a_missing_cut_in_float64(make_network, monkeypatch, head):
    """Promise 1: what float32 alone cannot tell apart is answered again, and severed weights still show."""
    network = make_network((40, 30), head=head, committed=2)
    x = torch.randn(20, 5)
    assert 0 < full_width_difference(network, x, 0) < 1e-5, "rounding is what is looked at"
    monkeypatch.setattr(evaluation, "_TOLERANCE", 1e-12)
    assert full_width_agrees(network, x, 0)
    layer = network.layers[1]
    old, later = network.owner(layer.group) == 0, network.owner(layer.source) == 1
    network.weights(layer).weight.masked_fill_(old.unsqueeze(1) & later, 1e-7)
    assert not full_width_agrees(network, x, 0)


def test_what_does_not_fit_is_never_held(monkeypatch):
    """A wide convolution's values of a whole split are gigabytes."""
    living, most = weakref.WeakSet(), []

    class Watched(nn.Linear):
        def forward(self, x):
            living.add(x)
            most.append(len(living))
            return super().forward(x)

    monkeypatch.setattr(evaluation, "_KEPT_BYTES", 0)
    monkeypatch.setattr(evaluation, "_BATCH", 2)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Watched(4, 2)).eval()
    split = Split(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64))
    Scorer(split).logits(network)
    assert len(most) == 10
    assert max(most) <= 2, "the first piece, by which the room is reckoned, and the one being computed"
