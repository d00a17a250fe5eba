"""Promise 1 with one safeguard removed at a time, on convolutions with BatchNorm: the check must go red.

A check that stays green whatever is broken proves nothing. Where two safeguards guard the same entries, both are
removed, and the test shows that either alone still holds.
"""

import pytest
import torch
from torch import nn

from clnp import commit as commit_module
from clnp import evaluation, graph, ownership, parts, reading, stack, subnetwork, training
from clnp.commit import fingerprint
from clnp.evaluation import full_width_agrees, logits
from clnp.network import Network
from clnp.stack import Stack

FORGOTTEN = {"fingerprint", "logits"}
NETWORKS = ("conv + norm", "conv head", "flat head", "residual")
HEADS = ("single", "multi")


@pytest.fixture
def sequence(course, claim):
    """Two tasks in a row, and which checks went red."""

    def red(kind="conv + norm", head="single", optimizer="adam", tasks=2, **choices):
        made = course(kind, head, optimizer, tasks=tasks, **choices)
        for _ in range(tasks):
            made.learn(claim.share)
        return made.red

    return red


@pytest.fixture
def thaw(monkeypatch):
    """Let what the open task may change hold more: every entry whose name ``also`` accepts."""
    proper = ownership.trainable

    def patch(also, *modules):
        def trainable(network):
            masks = proper(network)
            return {name: torch.ones_like(mask) if also(network, name) else mask for name, mask in masks.items()}

        for module in modules:
            monkeypatch.setattr(module, "trainable", trainable)

    return patch


STORED = (ownership, parts)
"""Without training, whose open_task would draw the old entries anew: what members train and what is taken from them."""


def of_convolutions(kind):
    return lambda network, name: name in {f"{la.name}.{kind}" for la in network.layers[:-1] if la.kind == "conv"}


def of_norms(*kinds):
    return lambda network, name: name in {f"{norm.name}.{kind}" for norm in network.norms for kind in kinds}


def of_the_head(network, name):
    return name == f"{network.output.name}.weight"


def everything(network, name):
    return True


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("head", HEADS)
def test_with_every_safeguard_nothing_is_red(sequence, kind, head):
    """Promise 1: what every test below would show is not there."""
    assert sequence(kind, head) == set()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "entry",
    [of_convolutions("weight"), of_convolutions("bias"), of_norms("weight", "bias")],
    ids=["weights", "biases", "scale and shift"],
)
def test_without_freezing_it_shows(thaw, sequence, entry, head):
    """Promise 1: weights and biases of active channels, and their BatchNorm's scale and shift, never move."""
    thaw(everything, parts)
    thaw(entry, ownership)
    assert sequence(head=head) >= FORGOTTEN


@pytest.mark.parametrize("head", HEADS)
def test_without_freezing_the_statistics_it_shows(thaw, sequence, head):
    """Promise 1: the running statistics of active channels never move, although no gradient moves them."""
    thaw(everything, parts)
    thaw(of_norms("running_mean", "running_var"), ownership)
    assert sequence(head=head) >= FORGOTTEN


@pytest.mark.parametrize("head", HEADS)
def test_what_is_frozen_is_kept_twice(thaw, sequence, head):
    """Promise 1: were everything trained, what is free alone would be taken from it."""
    thaw(everything, parts)
    assert sequence(head=head) == set()
    thaw(everything, ownership)
    assert sequence(head=head) >= FORGOTTEN


def test_drawing_old_channels_anew_shows(thaw, sequence):
    """Promise 1: a free channel's BatchNorm begins anew with each task, an active one's does not."""
    thaw(of_norms(*ownership.NORM_ENTRIES), ownership, training)
    assert sequence() >= FORGOTTEN


@pytest.mark.parametrize("kind", ["conv + norm", "conv head", "flat head", "residual"])
def test_training_the_old_part_of_a_shared_head_shows(thaw, sequence, kind):
    """Promise 1: what earlier tasks read of a shared head is theirs."""
    thaw(of_the_head, *STORED)
    assert sequence(kind) == FORGOTTEN


@pytest.mark.parametrize("kind", NETWORKS)
def test_l1_on_an_old_head_shows(monkeypatch, sequence, kind):
    """Promise 1: old heads have left the optimizer."""
    proper = training._optimizer

    def with_old_heads(network, made, members, settings):
        optimizer = proper(network, made, members, settings)
        step = optimizer.step

        def all_heads(gradients):
            step(gradients)
            for task in range(network.task):
                weight = network.weights(network.output, task).weight
                weight.sub_(members[0].learning_rate * members[0].alpha[-1] * weight.sign())

        optimizer.step = all_heads
        return optimizer

    monkeypatch.setattr(training, "_optimizer", with_old_heads)
    assert sequence(kind, "multi") == FORGOTTEN


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_head_shared_by_mistake_shows(monkeypatch, sequence, kind):
    """Promise 1: each task of a multi-head network has a head of its own."""
    proper = Network.place_head

    def place_head(self, task):
        proper(self, 0)
        self.heads[str(task)] = self.heads["0"]

    monkeypatch.setattr(Network, "place_head", place_head)
    assert sequence(kind, "multi") >= FORGOTTEN


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_without_severing_only_the_full_width_sees_it(monkeypatch, sequence, kind, head):
    """Promise 1: no unit that is free or comes later reaches an old one: convolutions, flattened maps, residuals."""
    monkeypatch.setattr(commit_module, "sever", lambda *_: None)
    assert sequence(kind, head) == {"full width"}


def last_feature(layer, units):
    """The features of a flattened map as if a unit's lay one map apart: the wrong way round."""
    return units.repeat(layer.positions)


@pytest.mark.parametrize(
    ("kind", "head"), [("conv + norm", "single"), ("conv + norm", "multi"), ("flat head", "multi")]
)
def test_cutting_the_wrong_columns_of_a_flattened_map_shows(monkeypatch, sequence, kind, head):
    """Promise 1: channel c of a map of H × W has the columns c·H·W to (c+1)·H·W − 1 of what reads it flattened."""
    proper, columns = commit_module.sever, graph.Layer.columns

    def sever(*arguments):
        graph.Layer.columns = last_feature
        try:
            proper(*arguments)
        finally:
            graph.Layer.columns = columns

    monkeypatch.setattr(commit_module, "sever", sever)
    assert sequence(kind, head) == {"full width"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["conv + norm", "flat head", "residual"])
def test_reading_the_wrong_columns_of_a_flattened_map_shows(monkeypatch, sequence, kind, head):
    """Promise 1: the same mistake everywhere, the sub-network too, is still seen: by the full width."""
    monkeypatch.setattr(graph.Layer, "columns", last_feature)
    assert "full width" in sequence(kind, head)


@pytest.mark.parametrize("head", HEADS)
def test_silencing_a_pruned_channel_by_what_it_reads_shows(monkeypatch, sequence, head):
    """Promise 1: behind a BatchNorm a channel without input still emits relu(shift − scale · mean / σ)."""

    def sever(network, claims):
        for layer in network.layers[:-1]:
            pruned = ~ownership.active(network, layer.group)
            network.weights(layer).weight[pruned] = 0.0

    monkeypatch.setattr(commit_module, "sever", sever)
    assert sequence(head=head) == {"full width"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_the_mask_of_a_shared_head_it_shows(monkeypatch, sequence, kind):
    """Promise 1: later units do not answer for an old task, through convolution, flattened map or residual."""
    monkeypatch.setattr(evaluation, "masked", lambda *_: False)
    assert sequence(kind) == {"full width"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_without_the_mask_of_a_shared_head_shows(thaw, course, claim, kind):
    """Promise 2: what is trained is what is scored: a task reads its own units of the last group alone, in training
    too. No old task would notice."""
    made = course(kind, "single", tasks=3)
    made.learn(claim.share)
    opened, x = made.opened(), torch.randn(20, *made.data()[1].x.shape[1:])
    proper = logits(subnetwork.cut(opened, 1), x)
    torch.testing.assert_close(Stack(opened, 1).forward(x)[0], proper)
    thaw(of_the_head, parts)
    assert (Stack(opened, 1).forward(x)[0] - proper).abs().max() > 0.01
    for _ in range(2):
        made.learn(claim.share)
    assert made.red == set()


def test_masking_in_the_stream_of_a_residual_network_shows(monkeypatch, sequence):
    """Promise 1: a shared head's mask is at its input; what else reads the stream reads old units too."""
    proper = ownership.reads

    def reads(network, layer, task, claims=None):
        output = layer.source == network.last.name
        return proper(network, network.output if output else layer, task, claims)

    monkeypatch.setattr(subnetwork, "reads", reads)
    assert "full width" in sequence("residual")


@pytest.mark.parametrize("head", HEADS)
def test_an_owner_for_each_term_of_a_sum_shows(monkeypatch, sequence, head):
    """Promise 1: the channels that an addition ties have one owner; with one each, a sub-network adds what does not
    belong together."""
    proper = reading._Reader._add

    def untied(self, where, node):
        tied = dict(self._tied)
        place = proper(self, where, node)
        self._tied.update(tied)
        return place

    monkeypatch.setattr(reading._Reader, "_add", untied)
    if head == "multi":
        assert "full width" in sequence("residual", head)
    else:
        # The head masks the first term's units alone: there are not even as many of the second.
        with pytest.raises(RuntimeError, match="size of tensor"):
            sequence("residual", head)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_cut_that_comes_open_is_in_the_fingerprint(monkeypatch, course, claim, kind, head):
    """Promise 1: the severed entries are hashed. Over what a sub-network holds alone, the fingerprint sees nothing."""
    made = course(kind, head, tasks=3)
    for _ in range(2):
        made.learn(claim.share)
    network, layer = made.network, made.network.layers[1]
    row = int((network.owner(layer.group) == 0).nonzero()[0])
    later = layer.columns(network.owner(layer.source) != 0).nonzero().flatten()
    network.weights(layer).weight[row, later] = 0.5
    made.check()
    assert {what for _, task, what in made.changes if task == 0} == {"fingerprint", "full width"}
    feed = commit_module._feed
    monkeypatch.setattr(commit_module, "_feed", lambda digest, *p: p[0] == "severed" or feed(digest, *p))
    open_cut = fingerprint(network, 0)
    network.weights(layer).weight[row, later] = 0.0
    assert fingerprint(network, 0) == open_cut


@pytest.mark.parametrize("kind", ["conv + norm", "conv head", "flat head"])
def test_a_free_unit_behind_the_mask_reaches_no_old_task(monkeypatch, course, claim, kind):
    """Promise 1: a free unit of the last group that is NaN does not reach the shared head of an old task."""
    made = course(kind, "single", tasks=3)
    made.learn(claim.share)
    network, x = made.network, made.data(0)[1].x
    layer = next(layer for layer in network.layers if layer.group == network.last.name)
    network.weights(layer).weight[~ownership.active(network, network.last)] = torch.nan
    assert full_width_agrees(network, x, 0)
    monkeypatch.setattr(evaluation, "masked", lambda *_: False)
    assert not full_width_agrees(network, x, 0)


@pytest.mark.parametrize("kind", ["conv + norm", "residual"])
def test_training_old_channels_on_batch_statistics_shows(monkeypatch, course, claim, kind):
    """Promise 2: old channels are the same features in training as in evaluation. On batch statistics nothing old
    would be forgotten, and the new task would train on features that it is not evaluated on."""
    made = course(kind, "multi", tasks=2)
    full = lambda network, *_: {g.name: network.owner(g) < 0 for g in network.groups}  # noqa: E731
    made.learn(full)
    opened, x = made.opened(), 2.0 + 3.0 * made.data(1)[0].x

    def differ():
        made = Stack(opened, 2)
        with torch.no_grad():
            return float((made.forward(x, torch.Generator()) - made.forward(x)).abs().max())

    assert differ() == 0.0
    proper, forward, training = stack.norm, Stack.forward, [True]

    def watched(self, x, noise=None):
        training[0] = noise is not None
        return forward(self, x, noise)

    def norm(layer, x, kept, **_):
        throwaway = {name: value.clone() for name, value in kept.items()}
        return proper(layer, x, throwaway, training=training[0] and x.numel() > layer.units)

    monkeypatch.setattr(Stack, "forward", watched)
    monkeypatch.setattr(stack, "norm", norm)
    assert differ() > 0.1
    training[0] = True
    made.learn(full)
    assert made.red == set()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("head", HEADS)
def test_owners_travel_with_the_state_and_the_device(course, claim, kind, head):
    """Promise 1: owners, statistics and heads are in ``state_dict`` and follow ``.to()``."""
    made = course(kind, head, tasks=3)
    for _ in range(2):
        made.learn(claim.share)
    fresh = made.blank()
    for task in range(3):
        fresh.place_head(task)
    made.network.place_head(2)
    fresh.load_state_dict(made.network.state_dict())
    made.network = fresh
    made.check()
    assert made.red == set()
    moved = fresh.copy().to("meta")
    assert {value.device.type for value in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert all(moved.owner(group).device.type == "meta" for group in moved.groups)


def test_without_buffers_the_state_lacks_the_owners(monkeypatch, course, claim):
    """Promise 1: owners that are plain attributes are left behind, and the check sees it."""
    monkeypatch.setattr(
        Network,
        "register_buffer",
        lambda self, name, value: (
            setattr(self, name, value) if "owner" in name else nn.Module.register_buffer(self, name, value)
        ),
    )
    monkeypatch.setattr(Network, "get_buffer", lambda self, name: getattr(self, name))
    made = course("conv + norm", "multi", tasks=2)
    made.learn(claim.share)
    fresh = made.blank()
    fresh.place_head(0)
    fresh.load_state_dict(made.network.state_dict())
    made.network = fresh
    with pytest.raises(ValueError, match="would read no unit"):
        made.check()
