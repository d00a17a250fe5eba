"""What is left of a pruned task as a network of its own: the same answers to the bit, and nothing old moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.activity import mean_activity
from clnp.commit import commit, fingerprint
from clnp.evaluation import full_width_agrees, logits
from clnp.growth import grow
from clnp.narrowing import narrow, put_back, within
from clnp.network import FREE
from clnp.ownership import active, entries, take_free, trainable, with_free
from clnp.subnetwork import cut, subnetwork


def pruned(data, networks, claim_some, **given):
    """A network of any kind and state, claims of its open task, and samples."""
    network, x = data.draw(networks(**given))
    seed = data.draw(st.integers(0, 99), label="claims")
    return network, claim_some(network, torch.Generator().manual_seed(seed), 0.4, nothing=0.3), x


@settings(max_examples=20)
@given(data=st.data())
def test_the_narrow_network_has_the_same_sub_network(networks, claim_some, data):
    """Promise 2: the same tensors in the same order, so the same canonical logits bit for bit."""
    network, claims, x = pruned(data, networks, claim_some)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    left = narrow(network, claims)
    assert (left.task, left.head, left.dtype) == (network.task, network.head, network.dtype)
    wide, here = cut(network, network.task, claims), cut(left, left.task)
    assert str(wide) == str(here)
    for ours, theirs in zip(wide.state_dict().items(), here.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        # The features that a layer selects of those that are there are the same too.
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(logits(wide, x), logits(here, x))
    left.check_shape(x.shape[1:])
    for group in network.groups:
        kept = active(network, group) | claims[group.name]
        assert torch.equal(left.owner(group), network.owner(group)[kept])
        assert torch.equal(left.owner(group) == FREE, claims[group.name][kept])
    if network.head == "multi":
        assert list(left.heads) == [str(network.task)]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@settings(max_examples=20)
@given(data=st.data())
def test_what_is_put_back_is_what_was_trained(networks, draw, claim_some, data):
    """Promises 1 and 2: with other entries in the narrow network the wide one has its sub-network, committed too, and
    every entry of an earlier task keeps its bits."""
    network, claims, x = pruned(data, networks, claim_some)
    task, tasks = network.task, range(network.task)
    prints = [fingerprint(network, each) for each in tasks]
    answers = [logits(subnetwork(network, each), x) for each in tasks]
    left = narrow(network, claims)
    draw(left, torch.Generator().manual_seed(1))
    assert left.head == "multi" or not torch.equal(
        left.weights(left.output).weight, narrow(network, claims).weights(left.output).weight
    )
    back = put_back(network, left, claims)
    expected = logits(cut(left, task), x)
    assert torch.equal(logits(cut(back, task, claims), x), expected)
    masks = trainable(network)
    for name, value in entries(back).items():
        assert torch.equal(value[~masks[name].expand_as(value)], entries(network)[name][~masks[name].expand_as(value)])
    commit(back, claims)
    assert torch.equal(logits(subnetwork(back, task), x), expected)
    assert full_width_agrees(back, x, task)
    for each in tasks:
        assert fingerprint(back, each) == prints[each]
        assert torch.equal(logits(subnetwork(back, each), x), answers[each])
        assert full_width_agrees(back, x, each)


@settings(max_examples=20)
@given(data=st.data())
def test_nothing_of_an_earlier_task_is_put_back(networks, claim_some, data):
    """Promise 1: whatever the narrow network holds for units of earlier tasks and for units that were pruned."""
    network, claims, _ = pruned(data, networks, claim_some)
    left = narrow(network, claims)
    for value in entries(left).values():
        value.fill_(torch.nan)
    back = entries(put_back(network, left, claims))
    for name, mask in trainable(network).items():
        fixed = ~mask.expand_as(back[name])
        assert torch.equal(back[name][fixed], entries(network)[name][fixed])
    for layer in network.layers[:-1]:
        others = ~claims[layer.group]
        assert torch.equal(back[f"{layer.name}.weight"][others], entries(network)[f"{layer.name}.weight"][others])
        assert back[f"{layer.name}.weight"][claims[layer.group]].isnan().any() or not claims[layer.group].any()


@settings(max_examples=20)
@given(data=st.data())
def test_narrowing_twice_is_narrowing_once(networks, claim_some, data):
    """Claims among what is left are claims of the wide network, and lead to the same network."""
    network, claims, x = pruned(data, networks, claim_some)
    left = narrow(network, claims)
    inner = claim_some(left, torch.Generator().manual_seed(3), 0.2)
    outer = within(network, claims, inner)
    assert all(bool((units <= claims[name]).all()) for name, units in outer.items())
    once, twice = narrow(network, outer), narrow(left, inner)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])
    assert torch.equal(logits(cut(once, once.task), x), logits(cut(twice, once.task), x))


@settings(max_examples=10)
@given(data=st.data())
def test_what_is_left_is_as_active_alone(networks, claim_some, data):
    """Units of earlier tasks read nothing of what was pruned, so their activity stays; claimed ones lose it."""
    network, claims, x = pruned(data, networks, claim_some, dtype=torch.float64)
    left = narrow(network, claims)
    wide, here = mean_activity(network, x), mean_activity(left, x)
    for group in network.groups:
        old = active(network, group)
        torch.testing.assert_close(wide[group.name][old], here[group.name][active(left, group)])


@pytest.mark.parametrize("head", ["single", "multi"])
def test_after_growth(make_any, claim_some, draw, head):
    """Sec. 4: units that were added between two tasks are claimed, trained and put back like any other."""
    network, shape = make_any("after", 5, head=head, committed=2)
    grown = grow(network, {group.name: 2 for group in network.groups})
    source = torch.Generator().manual_seed(0)
    draw(grown, source)
    claims = claim_some(grown, source, 0.2)
    for units in claims.values():
        units[-1] = True
    left = narrow(grown, claims)
    draw(left, source)
    back = put_back(grown, left, claims)
    x = torch.randn(8, *shape)
    assert torch.equal(logits(cut(back, back.task, claims), x), logits(cut(left, left.task), x))
    prints = [fingerprint(network, task) for task in range(2)]
    commit(back, claims)
    assert [fingerprint(back, task) for task in range(2)] == prints
    assert all(full_width_agrees(back, x, task) for task in range(3))


def test_what_training_returns_fits_the_narrow_network(make_network, claim_some):
    """``take_free`` and ``with_free`` work on it as on any other."""
    network = make_network((7, 6), committed=1)
    left = narrow(network, claim_some(network, torch.Generator().manual_seed(0), 0.3))
    free = take_free(left, entries(left))
    assert free["0.weight"].shape[0] == int((left.owner("0") == FREE).sum())
    again = with_free(left, {name: value + 1 for name, value in free.items()})
    assert torch.equal(again.weights(again.layers[0]).weight[left.owner("0") == FREE], free["0.weight"] + 1)


def test_nothing_left_of_a_group_is_refused(make_network):
    """Promise 8."""
    network = make_network((7, 6))
    claims = {group.name: torch.zeros(group.units, dtype=torch.bool) for group in network.groups}
    claims["2"][0] = True
    with pytest.raises(ValueError, match="nothing is left of 0; claim at least one of its 7 units"):
        narrow(network, claims)
