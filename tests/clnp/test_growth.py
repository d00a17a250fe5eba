"""Layers that grow between tasks: nothing old moves by a bit, and what is new can be learnt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.commit import added, commit, fingerprint, restore
from clnp.evaluation import full_width_agrees, logits
from clnp.growth import grow, widths
from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.ownership import active, entries, take_free, trainable, with_free
from clnp.subnetwork import cut, subnetwork
from clnp.training import open_task


def record(network, x):
    tasks = range(network.task)
    return [fingerprint(network, task) for task in tasks], [logits(subnetwork(network, task), x) for task in tasks]


def unchanged(network, x, before):
    prints, answers = before
    for task, (print_, answer) in enumerate(zip(prints, answers, strict=True)):
        assert fingerprint(network, task) == print_
        assert torch.equal(logits(subnetwork(network, task), x), answer)
        assert full_width_agrees(network, x, task)


@settings(max_examples=15)
@given(data=st.data())
def test_growth_changes_nothing_old_and_the_next_task_has_the_new_units(networks, draw, claim_some, data):
    """Promise 1 and Sec. 4, for every kind of network, before and after another task."""
    network, x = data.draw(networks())
    before, state = record(network, x), {name: value.clone() for name, value in network.state_dict().items()}
    extra = {group.name: data.draw(st.integers(0, 3), label=group.name) for group in network.groups}
    extra = {name: units for name, units in extra.items() if units or data.draw(st.booleans())}
    grown = grow(network, extra)
    assert widths(grown) == tuple(group.units + extra.get(group.name, 0) for group in network.groups)
    assert (grown.task, grown.head, grown.dtype) == (network.task, network.head, network.dtype)
    grown.check_shape(x.shape[1:])
    unchanged(grown, x, before)
    for group in network.groups:
        assert torch.equal(grown.owner(group)[: group.units], network.owner(group))
        assert bool((grown.owner(group)[group.units :] == FREE).all())
    opened = open_task(grown, seed=0)
    masks = trainable(opened)
    for layer in opened.layers[:-1]:
        new = grown.group(layer.group).units - extra.get(layer.group, 0)
        assert bool(masks[f"{layer.name}.weight"][new:].all())
        rows = opened.weights(layer).weight[new:]
        assert not len(rows) or bool(rows.abs().sum() > 0)
    unchanged(opened, x, before)
    source = torch.Generator().manual_seed(0)
    draw(opened, source)
    claims = claim_some(opened, source, 0.3)
    for name, units in extra.items():
        if units:
            claims[name][-1] = True
    commit(opened, claims)
    unchanged(opened, x, before)
    unchanged(opened, x, record(opened, x))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("kind", ["dense", "flattened", "averaged", "before", "torchvision"])
def test_the_open_task_of_a_grown_network_answers_as_before_where_nothing_new_is_drawn(make_any, kind, head):
    """The columns of new units are zeros until they are drawn, so even an open task's answer stays."""
    network, shape = make_any(kind, 5, head=head, committed=1)
    x = torch.randn(6, *shape)
    grown = grow(network, {group.name: 2 for group in network.groups})
    wide = logits(cut(grown, 1), x)
    torch.testing.assert_close(wide, logits(cut(network, 1), x), rtol=1e-5, atol=1e-5)


def test_a_flattened_map_gets_the_columns_of_its_new_channels_at_the_end():
    """Facts: channel c of a map of H × W owns columns c·H·W … (c+1)·H·W − 1."""
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 6, 3)))
    for value in network.parameters():
        value.copy_(torch.randn(value.shape))
    grown = grow(network, {"0": 1})
    old, new = network.weights(network.output).weight, grown.weights(grown.output).weight
    assert new.shape == (3, 18)
    assert torch.equal(new[:, :12], old)
    assert not new[:, 12:].any()
    x = torch.randn(4, 1, 2, 3)
    torch.testing.assert_close(logits(cut(grown, 0), x), logits(cut(network, 0), x))


def test_new_channels_have_the_statistics_that_torch_begins_with():
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)))
    (norm,) = grow(network, {"0": 2}).norms
    module = grow(network, {"0": 2}).norm(norm)
    assert module.num_features == 4
    assert module.weight.tolist() == module.running_var.tolist() == [1.0] * 4
    assert module.bias.tolist() == module.running_mean.tolist() == [0.0] * 4


@settings(max_examples=10)
@given(data=st.data())
def test_commits_are_restored_as_wide_as_they_were(networks, draw, claim_some, data):
    """Promise 3: a sequence with growth in its middle, put together again from its commits and widths."""
    network, x = data.draw(networks(committed=st.integers(1, 2)))
    blank = erased(network)
    commits = [added(network, task) for task in range(network.task)]
    extra = {group.name: 1 + place % 2 for place, group in enumerate(network.groups)}
    grown = open_task(grow(network, extra), seed=1)
    source = torch.Generator().manual_seed(1)
    draw(grown, source)
    commit(grown, claim_some(grown, source, 0.4))
    again = blank.copy()
    for tensors in commits:
        restore(again, tensors)
    again = grow(again, extra)
    restore(again, added(grown, network.task))
    # Or all of them onto the wide network: what was added then has zeros for units that came later.
    wide = grow(blank, extra)
    for task in range(grown.task):
        restore(wide, added(grown, task))
    for found in (again, wide):
        unchanged(found, x, record(grown, x))
        for group in grown.groups:
            assert torch.equal(found.owner(group), grown.owner(group))


def erased(network):
    """A network of the same form with no commit."""
    blank = network.copy()
    blank.heads.clear()
    blank.committed.zero_()
    blank.widen(network.graph)
    return blank


def test_a_network_that_is_full_goes_on_after_growth(make_network):
    """Sec. 4: simply increasing the number of neurons when moving on to the next task."""
    full = make_network((4, 3), committed=1, share=1.0)
    opened = open_task(grow(full, {"0": 2, "2": 2}), seed=0)
    assert {name: tuple(value.shape) for name, value in take_free(opened, entries(opened)).items()} == {
        "0.weight": (2, 5),
        "0.bias": (2,),
        "2.weight": (2, 6),
        "2.bias": (2,),
        "4.weight": (3, 2),
    }
    grown = with_free(opened, take_free(opened, entries(opened)))
    commit(grown, {group.name: ~active(grown, group) for group in grown.groups})
    assert full_width_agrees(grown, torch.randn(9, 5), 1)


def test_growth_by_nothing_is_a_copy(make_any):
    network, _ = make_any("torchvision", 1, committed=2, head="multi")
    grown = grow(network, {})
    assert grown.state_dict().keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value)
        assert not value.numel() or grown.state_dict()[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"hidden9": 1}, "there is no hidden group 'hidden9' to grow; there are hidden1, hidden2"),
        ({"output": 1}, "there is no hidden group 'output' to grow"),
        ({"hidden1": -1}, "hidden1 would grow by -1 units; give a whole number, at least 0"),
    ],
)
def test_growth_that_cannot_be(extra, message):
    with pytest.raises(ValueError, match=message):
        grow(Network(mlp(6, [5, 4], 3)), extra)


def test_the_global_random_state_is_left_alone(make_any):
    network, _ = make_any("flattened", 1)
    state = torch.get_rng_state()
    grow(network, {network.last.name: 3})
    assert torch.equal(torch.get_rng_state(), state)
