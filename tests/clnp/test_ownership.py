from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp.errors import Damaged
from clnp.network import FREE, Network
from clnp.ownership import active, entries, lives, masked, reads, take_free, trainable, weight_classes, with_free


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(
    head="single", owners=((0, 0, 1, FREE, FREE), (FREE, 0, 1, FREE)), committed=2, *, bias=True, inputs=6, classes=3
):
    """A network with random weights, whose units have the given owners and whose next task's head is placed."""
    widths = [inputs, *map(len, owners)]
    modules = []
    for before, width in pairwise(widths):
        modules += [nn.Linear(before, width, bias=bias), nn.ReLU()]
    network = Network(nn.Sequential(*modules, nn.Linear(widths[-1], classes, bias=bias)), head=head)
    for task in range(committed + 1):
        network.place_head(task)
    for layer, owner in zip(network.groups, owners, strict=True):
        network.owner(layer).copy_(torch.tensor(owner))
    network.committed += committed
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return network


@st.composite
def networks(draw):
    committed = draw(st.integers(0, 2))
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    units = st.integers(FREE, committed - 1)
    owners = [draw(st.lists(units, min_size=width, max_size=width)) for width in widths]
    head = draw(st.sampled_from(["single", "multi"]))
    sizes = {"inputs": draw(st.integers(1, 3)), "classes": draw(st.integers(1, 3))}
    return make(head, owners, committed, bias=draw(st.booleans()), **sizes)


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@given(networks())
def test_the_weight_classes_partition_a_layer(network):
    """Sec. 2.1, Fig. 1: every weight is active, free or interference, and the first layer has none of the last."""
    for layer in network.layers[:-1]:
        classes = weight_classes(network, layer)
        assert classes.active.shape == (layer.units, layer.inputs)
        counted = classes.active.int() + classes.free.int() + classes.interference.int()
        assert bool((counted == 1).all())
        assert torch.equal(classes.free, trainable(network)[f"{layer.name}.weight"].expand_as(classes.free))
    assert not bool(weight_classes(network, network.layers[0]).interference.any())


def test_the_weight_classes_of_a_hand_made_layer():
    network = make(owners=((0, FREE), (FREE, 0)), committed=1)
    classes = weight_classes(network, network.layers[-2])
    assert classes.active.tolist() == [[False, False], [True, False]]
    assert classes.free.tolist() == [[True, True], [False, False]]
    assert classes.interference.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("head", ["single", "multi"])
def test_what_each_task_reads(head):
    network = make(head)
    first, last, output = network.layers
    assert masked(network, last.group) == (head == "single")
    assert not masked(network, first.group)
    assert reads(network, first, 0).tolist() == [True] * 6
    assert reads(network, last, 0).tolist() == [True, True, False, False, False]
    assert reads(network, last, 1).tolist() == [True, True, True, False, False]
    assert reads(network, last, 2).tolist() == [True] * 5
    if head == "single":
        assert reads(network, output, 1).tolist() == [False, False, True, False]
        assert reads(network, output, 2).tolist() == [True, False, False, True]
    else:
        assert reads(network, output, 1).tolist() == [False, True, True, False]
        assert reads(network, output, 2).tolist() == [True] * 4
    for task in range(3):
        assert torch.equal(lives(network, first.group, task), reads(network, last, task))
        assert torch.equal(lives(network, last.group, task), reads(network, output, task))


def test_the_layers_of_a_network_are_those_of_its_copy():
    network = make("single")
    assert masked(network.copy(), network.last)


@pytest.mark.parametrize("head", ["single", "multi"])
def test_what_the_open_task_would_read_with_claims(head):
    network = make(head)
    first, last, output = network.layers
    claims = {first.name: torch.arange(5) == 4, last.name: torch.arange(4) == 0}
    assert reads(network, last, 2, claims).tolist() == [True, True, True, False, True]
    expected = [True, False, False, False] if head == "single" else [True, True, True, False]
    assert reads(network, output, 2, claims).tolist() == expected


def test_active_units_up_to_a_task():
    network = make()
    assert active(network, network.last).tolist() == [False, True, True, False]
    assert active(network, network.last, 0).tolist() == [False, True, False, False]


def test_what_the_open_task_may_change():
    """Facts: a shared bias is trained in the first task; a head of one's own is trained whole."""
    masks = trainable(make("single"))
    assert masks["0.weight"].tolist() == [[False], [False], [False], [True], [True]]
    assert masks["2.bias"].tolist() == [True, False, False, True]
    assert masks["4.weight"].tolist() == [[True, False, False, True]]
    assert masks["4.bias"].tolist() == [False]
    assert trainable(make("single", committed=0, owners=((FREE,), (FREE,))))["4.bias"].tolist() == [True]
    masks = trainable(make("multi"))
    assert masks["4.weight"].tolist() == [[True] * 4]
    assert masks["4.bias"].tolist() == [True]


def test_entries_are_the_open_tasks_in_the_networks_memory():
    network = make("multi")
    found = entries(network)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert found["4.weight"].data_ptr() == network.heads["2"].weight.data_ptr()
    network.committed += 1
    with pytest.raises(KeyError):
        entries(network)


@settings(deadline=None)
@given(networks())
def test_taking_and_putting_back_moves_free_entries_and_no_bit_of_others(network):
    """Promise 1: what a trial stores cannot hold an entry of an earlier task, and putting it back touches none."""
    # A -0 among the old entries would be lost by adding +0 to it.
    for value in entries(network).values():
        value[torch.rand(value.shape) < 0.3] = -0.0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    values = {name: torch.randn(value.shape) for name, value in entries(network).items()}
    result = with_free(network, take_free(network, values))
    old = entries(network)
    for name, value in entries(result).items():
        mask = trainable(network)[name]
        assert same_bits(value, torch.where(mask, values[name], old[name]))
    for name, value in result.heads.state_dict().items():
        if not name.startswith(f"{network.task}."):
            assert same_bits(value, before[f"heads.{name}"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_free_entries_are_compact_and_own_their_memory():
    network = make()
    free = take_free(network, entries(network))
    assert {name: tuple(value.shape) for name, value in free.items()} == {
        "0.weight": (2, 6),
        "0.bias": (2,),
        "2.weight": (2, 5),
        "2.bias": (2,),
        "4.weight": (3, 2),
    }
    free["0.weight"].fill_(9.0)
    assert not bool((entries(network)["0.weight"] == 9.0).any())


def test_a_full_network_leaves_its_new_head_alone():
    network = make("multi", owners=((0, 0), (1, 0)))
    assert list(take_free(network, entries(network))) == ["4.weight", "4.bias"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda free: free.pop("2.bias"), "2.bias is missing; found 0.bias, 0.weight, 2.weight, 4.weight"),
        (lambda free: free.clear(), "0.weight is missing; found nothing"),
        (
            lambda free: free.update({"4.bias": torch.zeros(3)}),
            "4.bias is not among the entries that task 3 may change: 0.weight, 0.bias, 2.weight, 2.bias, 4.weight",
        ),
        (
            lambda free: free.update({"2.weight": torch.zeros(3, 5)}),
            "2.weight is torch.float32 of shape (3, 5), where the units that are free in this network need "
            "torch.float32 of shape (2, 5)",
        ),
        (lambda free: free.update({"2.bias": torch.zeros(2, 1)}), "2.bias is torch.float32 of shape (2, 1)"),
        (lambda free: free.update({"0.bias": free["0.bias"].double()}), "0.bias is torch.float64 of shape (2,)"),
    ],
)
def test_entries_that_do_not_fit_are_damage(spoil, message):
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    free = take_free(network, entries(network))
    spoil(free)
    with pytest.raises(Damaged) as refusal:
        with_free(network, free)
    assert message in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
