"""Promise 1 where a network or a task is at an edge: nothing claimed, nothing left, one unit, no bias, odd maps."""

import pytest
import torch

from clnp.errors import NothingToCommit
from clnp.network import FREE
from clnp.training import open_task

HEADS = ("single", "multi")


def owned(network, group):
    return (network.owner(group) != FREE).sum().item()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "kind",
    [
        "no bias",
        "no bias, no norm",
        "norm without affine",
        "leaky relu",
        "gelu",
        "silu",
        "kernels, strides, pools",
        "conv head",
        "flat head",
        "residual",
        "dense residual",
    ],
)
def test_every_layer_and_shape(course, claim, kind, head):
    """Promise 1 without biases, with every activation, on maps, kernels and strides that are not square."""
    made = course(kind, head, "adamw", epochs=2, tasks=4)
    for task in range(4):
        if task == 2:
            made.grow({made.network.groups[0].name: 2, made.network.last.name: 3})
            made.reload()
        made.learn(claim.share)
    made.reload()
    assert made.changes == []
    assert all(record.logits.isfinite().all() for record in made.done)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["one unit first", "one channel between"])
def test_a_layer_of_one_unit(course, claim, kind, head):
    """Promise 1: the first task takes the only unit, the others read it."""
    made = course(kind, head, tasks=4)
    for _ in range(4):
        made.learn(claim.share)
    made.reload()
    assert made.changes == []
    (small,) = (group for group in made.network.groups if group.units == 1)
    assert made.network.owner(small).tolist() == [0]


def test_one_unit_before_the_heads(course, claim):
    """Promise 1: heads of their own on one unit; a shared head stops, with the layer's name."""
    made = course("one unit last", "multi", tasks=4)
    for _ in range(4):
        made.learn(claim.share)
    assert made.changes == []
    alone = course("one unit last", "single", tasks=4)
    alone.learn(claim.share)
    with pytest.raises(NothingToCommit, match=f"no free unit left in {alone.network.last.name}"):
        alone.opened()
    alone.grow({alone.network.last.name: 1})
    alone.learn(claim.share)
    alone.reload()
    assert alone.changes == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["mlp", "conv + norm", "residual"])
def test_a_layer_that_is_full_from_the_start(course, claim, kind, place, head):
    """Promise 1: the first task takes the whole of a layer, and all others read it as it is."""
    made = course(kind, head, tasks=4)
    made.learn(claim.but(claim.share, **{f"_{place}": True}))
    group = made.network.groups[place]
    if group == made.network.last and head == "single":
        with pytest.raises(NothingToCommit, match="no free unit left"):
            made.opened()
        return
    for _ in range(3):
        made.learn(claim.share)
    made.reload()
    assert made.changes == []
    assert made.network.owner(group).tolist() == [0] * group.units


@pytest.mark.parametrize("kind", ["mlp", "conv + norm", "conv head", "flat head", "residual", "table 2"])
@pytest.mark.parametrize("place", [0, 1, "all"])
def test_a_task_that_claims_nothing(course, claim, kind, place):
    """Promise 1: a task with a head of its own may live on old units alone, in one group or in all."""
    made = course(kind, "multi", tasks=4)
    made.learn(claim.share)
    groups = made.network.groups
    places = range(len(groups)) if place == "all" else [place]
    made.learn(claim.but(claim.share, **{f"_{number}": False for number in places}))
    for number in places:
        assert 1 not in made.network.owner(groups[number])
    for _ in range(2):
        made.learn(claim.share)
    made.reload()
    assert made.changes == []


@pytest.mark.parametrize("kind", ["mlp", "conv + norm", "conv head", "flat head", "residual", "table 2"])
def test_a_full_network_goes_on_with_heads_alone(course, claim, kind):
    """Promise 1, and the paper's transfer learning of the last layer: nothing but the new head is trained."""
    made = course(kind, "multi", epochs=6, tasks=4)
    made.learn(claim.everything)
    weights = {name: value.clone() for name, value in made.network.parts.state_dict().items()}
    for _ in range(2):
        made.learn(claim.share)
    assert all(torch.equal(value, weights[name]) for name, value in made.network.parts.state_dict().items())
    if kind != "table 2":  # whose dropout takes longer
        assert max(record.correct for record in made.done[1:]) > 25, "a head alone has learnt nothing"
    # Growth gives it units again.
    made.grow({group.name: 2 for group in made.network.groups})
    made.learn(claim.everything)
    made.reload()
    assert made.changes == []
    assert all(3 in made.network.owner(group) for group in made.network.groups)


@pytest.mark.parametrize("kind", ["conv head", "flat head", "residual"])
def test_a_full_network_with_a_shared_head_stops(course, claim, kind):
    """Promise 8: with the layer and the remedy, and as it was."""
    made = course(kind, "single", tasks=4)
    made.learn(claim.everything)
    with pytest.raises(NothingToCommit, match=r"let the layer grow"):
        open_task(made.network, seed=0)
    made.check()
    assert made.changes == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mlp", "table 2", "table 3", "resnet", "residual"])
def test_growth_between_any_two_tasks(course, claim, kind, head):
    """Promise 1: growth of every group after each task, twice in a row, and what it adds is free."""
    made = course(kind, head, epochs=1, tasks=3, members=1)
    for _ in range(3):
        made.learn(claim.share)
        before = {group.name: (group.units, owned(made.network, group)) for group in made.network.groups}
        made.grow({group.name: 1 for group in made.network.groups})
        made.grow({made.network.groups[-1].name: 1})
        for group in made.network.groups:
            units, taken = before[group.name]
            assert group.units == units + 1 + (group == made.network.groups[-1])
            assert owned(made.network, group) == taken
    made.reload()
    assert made.changes == []
