"""What a commit used, counted by hand and as a whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.diagnostics import diagnose
from clnp.network import Network
from clnp.ownership import reads
from clnp.thresholds import claims_at, thresholds
from clnp.usage import GroupUse, LayerUse, Usage


def made(head):
    """2-3-2-2 after two commits: unit 0 of each group is the first task's, unit 1 the second's."""
    network = Network(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)), head=head
    )
    for task in range(2):
        network.place_head(task)
        for value in [*network.parts.parameters(), *network.heads.parameters()]:
            value.fill_(1.0)
        if task:
            network.weights(network.layers[1]).weight[1] = torch.tensor([3.0, -1.0, 5.0])
            network.weights(network.output).weight[:, 0] = 2.0
            network.weights(network.output).weight[:, 1] = torch.tensor([-1.0, 1.0])
        commit(network, {"0": torch.arange(3) == task, "2": torch.arange(2) == task})
    return network


ACTIVITY = {"0": torch.tensor([0.5, 0.4, 0.3]).double(), "2": torch.tensor([0.1, 0.4]).double()}


def test_a_hand_made_network_with_a_head_a_task():
    assert diagnose(made("multi"), ACTIVITY) == Usage(
        (GroupUse("0", claimed=1, reused=1, free=1), GroupUse("2", claimed=1, reused=1, free=0)),
        (
            LayerUse("0", active=4, free=2, interference=0, old_share=None),
            # Both rows are active; of each three weights the one from the free unit is severed.
            LayerUse("2", active=4, free=0, interference=2, old_share=3 / 4),
            LayerUse("4", active=4, free=0, interference=0, old_share=4 / 6),
        ),
    )


def test_a_hand_made_network_with_a_shared_head():
    """The task reads its own unit of the last group alone, and none of an earlier task."""
    found = diagnose(made("single"), ACTIVITY)
    assert found.groups == (GroupUse("0", 1, 1, 1), GroupUse("2", 1, 0, 0))
    assert found.layers[2] == LayerUse("4", active=2, free=0, interference=0, old_share=0.0)
    assert found.layers[:2] == diagnose(made("multi"), ACTIVITY).layers[:2]


def test_an_old_unit_that_is_silent_on_the_task_is_not_reused():
    silent = {**ACTIVITY, "0": torch.tensor([0.0, 0.4, 0.3]).double()}
    assert [group.reused for group in diagnose(made("multi"), ACTIVITY).groups] == [1, 1]
    assert [group.reused for group in diagnose(made("multi"), silent).groups] == [0, 1]


@settings(max_examples=25)
@given(data=st.data())
def test_of_every_kind_all_weights_are_counted_once(networks, data):
    """Sec. 2.1: the three classes are all there is; and units are claimed, somebody's or free."""
    network, x = data.draw(networks(count=12))
    activity = mean_activity(network, x)
    theta = data.draw(st.sampled_from(thresholds(network, activity)))
    task, claims = network.task, claims_at(network, activity, theta)
    free = {group.name: int((network.owner(group) < 0).sum()) for group in network.groups}
    commit(network, claims)
    usage = diagnose(network, activity)
    assert [group.name for group in usage.groups] == [group.name for group in network.groups]
    for group in usage.groups:
        assert group.claimed == int(claims[group.name].sum())
        assert group.free == free[group.name] - group.claimed
        units = network.group(group.name).units
        assert 0 <= group.reused <= units - group.claimed - group.free
    assert [layer.name for layer in usage.layers] == [layer.name for layer in network.layers]
    for use, layer in zip(usage.layers, network.layers, strict=True):
        total = math.prod(layer.shape)
        if layer == network.output and network.head == "single":
            own = int(layer.columns(reads(network, layer, task)).sum())
            assert (use.active, use.free, use.interference) == (total // layer.inputs * own, 0, 0)
        else:
            assert use.active + use.free + use.interference == total
        if layer.source is None:
            assert (use.interference, use.old_share) == (0, None)
        if use.interference:
            assert layer.source is not None
        if use.old_share is not None:
            assert -1e-12 <= use.old_share <= 1 + 1e-12
        if task == 0 and layer.source is not None:
            assert use.old_share in (None, 0.0)


@settings(max_examples=20)
@given(data=st.data())
def test_the_share_of_old_features_is_that_of_the_sub_network(networks, data):
    """The L1 norm of what the new units read, by who owns it, from the weights themselves."""
    network, x = data.draw(networks(count=6, committed=st.integers(1, 3)))
    activity = mean_activity(network, x)
    commit(network, claims_at(network, activity, None))
    task, usage = network.task - 1, diagnose(network, activity)
    for use, layer in zip(usage.layers, network.layers, strict=True):
        if layer.source is None:
            continue
        rows = range(layer.units) if layer == network.output else (network.owner(layer.group) == task).nonzero()
        weight, old, new = network.weights(layer, task).weight.double(), 0.0, 0.0
        for column, owner in enumerate(network.owner(layer.source).repeat_interleave(layer.positions).tolist()):
            if owner < 0 or (layer == network.output and network.head == "single" and owner != task):
                continue
            share = sum(float(weight[int(row), column].abs().sum()) for row in rows)
            old, new = (old, new + share) if owner == task else (old + share, new)
        if old + new == 0:
            assert use.old_share is None
        else:
            assert use.old_share == pytest.approx(old / (old + new))


def test_a_task_that_claimed_nothing_builds_on_nothing_new(make_network):
    network = make_network((4, 3), head="multi", committed=1)
    activity = mean_activity(network, torch.randn(9, 5))
    commit(network, {group.name: torch.zeros(group.units, dtype=torch.bool) for group in network.groups})
    usage = diagnose(network, activity)
    assert [group.claimed for group in usage.groups] == [0, 0]
    assert [layer.old_share for layer in usage.layers] == [None, None, 1.0]


def test_before_any_commit_there_is_nothing_to_count(make_network):
    network = make_network()
    with pytest.raises(IndexError, match="not committed"):
        diagnose(network, mean_activity(network, torch.randn(3, 5)))
