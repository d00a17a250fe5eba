"""Promise 1: whatever stands in entries that no committed task may read, and whatever a diverging member does."""

import copy
from functools import cache
from itertools import product

import pytest
import torch

from clnp.evaluation import full_width_logits, logits
from clnp.network import FREE
from clnp.ownership import entries, trainable
from clnp.stack import Stack
from clnp.subnetwork import subnetwork
from clnp.training import Member, Settings, train

HEADS = ("single", "multi")
KINDS = ("mlp", "table 2", "table 3", "resnet", "conv + norm", "conv head", "flat head", "residual", "dense residual")
POISONS = (torch.nan, torch.inf, -torch.inf)


def unread(network):
    """The entries that no committed task may read, from the owners alone (Sec. 2.1): tensor and mask.

    A task reads its own units and those of the tasks before it; a shared head reads its own alone. What lies between
    two owned units is in some sub-network, if only as a 0; all else may hold anything.
    """
    found = []
    heads = range(network.task) if network.head == "multi" else [None]
    for layer in network.layers:
        # The last group of a chain has no other reader than the shared head, so a task reads its own units' rows alone.
        alone = network.head == "single" and network.graph.readers(layer.group) == (network.output,)
        for task in heads if layer == network.output else [None]:
            weights = network.weights(layer, task)
            if layer == network.output:
                rows = torch.full((layer.units,), network.task if task is None else task)
            else:
                rows = network.owner(layer.group)
            if layer.source is None:
                columns = torch.zeros(layer.inputs, dtype=torch.int64)
            else:
                columns = network.owner(layer.source).repeat_interleave(layer.positions)
            read = (rows != FREE).unsqueeze(1) & (columns != FREE)
            if alone or layer == network.output:
                read &= columns <= rows.unsqueeze(1)
            found.append((weights.weight, ~read.view(*read.shape, *[1] * len(layer.kernel)).expand(layer.shape)))
            if layer != network.output and weights.bias is not None:
                found.append((weights.bias, rows == FREE))
    for norm in network.norms:
        module, free = network.norm(norm), network.owner(norm.group) == FREE
        found += [(value, free) for value in (module.weight, module.bias, module.running_mean, module.running_var)]
    return found


def into_free_units(network):
    """Of these, what a free unit itself is computed with: the full width computes it and must not pass it on."""
    hidden = {id(network.weights(layer).weight): layer for layer in network.layers[:-1]}
    for value, mask in unread(network):
        if id(value) in hidden:
            free = network.owner(hidden[id(value)].group) == FREE
            yield value, free.view(-1, *[1] * (value.dim() - 1)).expand_as(value)
        elif value.dim() == 1:
            yield value, mask


@pytest.fixture(scope="module")
def learnt(course, claim):
    """A network after some tasks, trained once; every test gets a copy."""

    @cache
    def trained(kind, head, tasks):
        made = course(kind, head, epochs=1, tasks=tasks + 1, members=1)
        for _ in range(tasks):
            made.learn(claim.share)
        assert made.red == set()
        return made

    return lambda kind, head, tasks=3: copy.deepcopy(trained(kind, head, tasks))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_poison_does_not_reach_a_committed_task(learnt, kind, head):
    """Promise 1: NaN and infinity wherever no committed task may read leave every canonical logit, bit for bit."""
    made = learnt(kind, head)
    for poison in POISONS:
        poisoned = 0
        for value, mask in unread(made.network):
            value[mask] = poison
            poisoned += int(mask.sum())
        assert poisoned > 0
        for task, record in enumerate(made.done):
            assert torch.equal(logits(subnetwork(made.network, task), made.data(task)[1].x), record.logits)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        *product(("mlp", "table 2", "table 3", "conv + norm", "conv head", "flat head"), HEADS),
        # A shared head drops what the last addition of a residual network gives to old units.
        ("residual", "multi"),
        ("dense residual", "multi"),
    ],
)
def test_what_is_not_poisoned_is_read(learnt, kind, head):
    """That the test before this one poisons all that it can: one NaN more, and some task's logits are NaN."""
    made = learnt(kind, head)
    source = torch.Generator().manual_seed(0)
    for value, mask in unread(made.network):
        places = (~mask).nonzero()
        # Of a kernel its middle: over a map of one pixel its edge reads padding alone.
        places = places[(places[:, 2:] == torch.tensor([size // 2 for size in value.shape[2:]])).all(1)]
        if not len(places):
            continue
        place = tuple(places[int(torch.randint(len(places), (), generator=source))])
        kept = value[place].clone()
        value[place] = torch.nan
        answers = [logits(subnetwork(made.network, task), made.data(task)[1].x) for task in range(3)]
        assert any(answer.isnan().any() for answer in answers)
        value[place] = kept
    made.check()
    assert made.red == set()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_finite_poison_does_not_move_the_full_width(learnt, kind, head):
    """Promise 1: a million in all that a free unit is computed with, an entry at a time, moves no full-width logit by a
    bit: what is severed is exactly 0. (0 · NaN is NaN there, so the poison is finite.)"""
    made = learnt(kind, head)
    x = [made.data(task)[1].x[:20] for task in range(made.network.task)]
    before = [full_width_logits(made.network, x[task], task) for task in range(made.network.task)]
    for value, mask in into_free_units(made.network):
        kept = value.clone()
        value[mask] = 1e6
        for task, record in enumerate(before):
            assert torch.equal(full_width_logits(made.network, x[task], task), record)
        value.copy_(kept)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adamw"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mlp", "table 2", "conv + norm", "conv head", "flat head", "residual"])
def test_a_diverging_member_touches_nobody(learnt, kind, head, optimizer):
    """Promise 1, and of a stack: a member at lr 1e30 is a result with its reason; old tasks, the network it was trained
    on and the members beside it keep every bit."""
    made = learnt(kind, head)
    opened = made.opened()
    before = copy.deepcopy(opened.state_dict())
    choices = {"momentum": {"optimizer": "sgd", "momentum": 0.9}, "adamw": {"optimizer": "adamw", "weight_decay": 0.1}}
    settings = Settings(epochs=2, batch_size=32, **choices.get(optimizer, {}))

    def results(rate):
        alpha = (1e-3,) * len(opened.layers)
        members = [Member(alpha, each) for each in (0.01, rate, 0.02)]
        return train(opened, *made.data(), members, settings, seed=0)

    wild, calm = results(1e30), results(0.01)
    assert wild[1].diverged is not None
    assert wild[1].free == {}
    for place in (0, 2):
        assert wild[place].diverged is None
        assert wild[place].epochs == calm[place].epochs
        assert all(torch.equal(value, calm[place].free[name]) for name, value in wild[place].free.items())
    assert all(torch.equal(value, before[name]) for name, value in opened.state_dict().items())
    made.network = opened
    made.check()
    assert made.red == set()


@pytest.mark.parametrize("kind", ["conv + norm", "conv head", "residual"])
@pytest.mark.parametrize("head", HEADS)
def test_what_is_frozen_in_a_diverged_member_is_what_it_was(monkeypatch, learnt, kind, head):
    """Promise 1: not even in the member itself does a NaN reach what is frozen, statistics included."""
    made = learnt(kind, head)
    opened, stacks = made.opened(), []

    def kept(*arguments):
        stacks.append(Stack(*arguments))
        return stacks[-1]

    monkeypatch.setattr("clnp.training.Stack", kept)
    (result,) = train(
        opened, *made.data(), [Member((1e-3,) * len(opened.layers), 1e30)], Settings(epochs=2, batch_size=32), seed=0
    )
    assert result.diverged is not None
    member, masks = stacks[0].member(0), trainable(opened)
    assert not all(value.isfinite().all() for value in member.values())
    for name, value in entries(opened).items():
        frozen = ~masks[name].expand_as(value)
        assert torch.equal(member[name][frozen], value[frozen]), name
