"""The curve, its staircase, and the fast scan that finds it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp import thresholds as thresholds_module
from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.errors import NothingToCommit
from clnp.evaluation import Scorer, count_correct
from clnp.ownership import active, entries, reads, trainable
from clnp.scan import scan
from clnp.subnetwork import cut, subnetwork
from clnp.tasks.task import Split
from clnp.thresholds import Staircase, claims_at, curve, staircase, thresholds
from clnp.training import open_task


def by_definition(points):
    """For each number of right answers the largest θ that still reaches it."""
    steps = {}
    for correct in range(max(point.correct for point in points) + 1):
        reached = [point for point in points if point.correct >= correct]
        steps[reached[-1].theta] = reached[-1]
    return tuple(point for point in points if point.theta in steps)


def samples(count, source, *, classes=3, whole_numbers=False, inputs=5):
    if whole_numbers:
        x = torch.randint(-2, 3, (count, inputs), generator=source).float()
    else:
        x = torch.randn(count, inputs, generator=source)
    return Split(x, torch.randint(classes, (count,), generator=source))


@st.composite
def states(draw, make_network):
    """An open task of any sequence, its activities and a validation split."""
    whole = draw(st.booleans())
    classes = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10**6))
    network = make_network(
        draw(st.lists(st.integers(4, 12), min_size=1, max_size=4)),
        head=draw(st.sampled_from(["single", "multi"])),
        committed=draw(st.integers(0, 2)),
        seed=seed,
        classes=classes,
        bias=draw(st.booleans()),
        share=0.2,
        whole_numbers=whole,
        silent=draw(st.sampled_from([0.0, 0.3])),
    )
    source = torch.Generator().manual_seed(seed)
    train, validation = (
        samples(draw(st.integers(1, 60)), source, classes=classes, whole_numbers=whole) for _ in range(2)
    )
    return network, mean_activity(network, train.x), validation


@settings(max_examples=60)
@given(data=st.data())
def test_the_staircase_is_the_one_of_the_whole_curve(make_network, data):
    """Promise 2: every step was scored canonically, and none is missing: random networks, so an accuracy that goes up
    and down with θ; whole numbers, so ties everywhere; silent units; old units; one to four hidden layers."""
    network, activity, split = data.draw(states(make_network))
    points = curve(network, activity, split)
    assert staircase(network, activity, split) == Staircase(points[0].correct, by_definition(points))


@settings(max_examples=25)
@given(data=st.data(), whole=st.booleans(), silent=st.sampled_from([0.0, 0.3]), count=st.integers(1, 40))
def test_the_staircase_of_every_kind_is_the_one_of_the_whole_curve(networks, data, whole, silent, count):
    """Promise 2 for convolutions, BatchNorms, pools and residual networks; with tasks that claimed nothing in a group,
    full groups and groups of one unit."""
    network, x = data.draw(networks(count=2 * count, whole_numbers=whole, silent=silent))
    x = x.round() if whole else x
    split = Split(x[:count], torch.randint(3, (count,), generator=torch.Generator().manual_seed(count)))
    activity = mean_activity(network, x[count:])
    points = curve(network, activity, split)
    assert staircase(network, activity, split) == Staircase(points[0].correct, by_definition(points))


@settings(max_examples=12)
@given(data=st.data())
def test_points_of_every_kind_say_what_a_commit_at_their_threshold_does(networks, data):
    network, x = data.draw(networks(count=30))
    split = Split(x, torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(0)))
    activity = mean_activity(network, x)
    for point in staircase(network, activity, split).points:
        after = network.copy()
        commit(after, claims_at(network, activity, point.theta))
        task = network.task
        assert point.claimed == tuple(int((after.owner(group) == task).sum()) for group in network.groups)
        free = sum(
            int(trainable(after)[f"{h.name}.weight"].expand(after.weights(h).weight.shape).sum())
            for h in after.layers[:-1]
        )
        assert point.free_weights == free
        assert point.correct == count_correct(subnetwork(after, task), split)


@settings(max_examples=40)
@given(data=st.data(), tolerance=st.sampled_from([1e-4, 1e-3, 1e-1]))
def test_the_scan_bounds_every_threshold(make_network, data, tolerance):
    network, activity, split = data.draw(states(make_network))
    bounds = scan(network, activity, thresholds(network, activity), split, tolerance=tolerance)
    for point, (low, high) in zip(curve(network, activity, split), bounds, strict=True):
        assert low <= point.correct <= high


def quiet_twins(make_network, seed):
    """Two quiet units alike, with large opposite weights into the head, that go at two neighbouring thresholds: what
    stays of the update that takes the first out and the one that takes the second out is their rounding."""
    network = make_network((30,), head="multi", inputs=4, seed=seed)
    values = entries(network)
    values["0.weight"][:2] = 0.01 * values["0.weight"][0]
    values["0.bias"][:2] = 0.01
    values["2.weight"][:, 0] *= 10 ** (5 + seed % 5)
    values["2.weight"][:, 1] = -values["2.weight"][:, 0]
    source = torch.Generator().manual_seed(seed)
    activity = mean_activity(network, samples(300, source, inputs=4).x)
    activity["0"][1] += 1e-9
    return network, activity, samples(200, source, inputs=4)


def frozen_twins(make_network, seed):
    """Two old units alike, with large opposite weights into the new head: they cancel at every threshold."""
    network = make_network((30,), head="multi", inputs=4, seed=seed)
    values = entries(network)
    values["0.weight"][1], values["0.bias"][1] = values["0.weight"][0], values["0.bias"][0]
    commit(network, {"0": torch.arange(30) < 2})
    network.place_head(1)
    source = torch.Generator().manual_seed(seed)
    head = entries(network)["2.weight"]
    head.copy_(torch.randn(head.shape, generator=source))
    head[:, 0] *= 10 ** (4 + seed % 3)
    head[:, 1] = -head[:, 0]
    activity = mean_activity(network, samples(300, source, inputs=4).x)
    return network, activity, samples(200, source, inputs=4)


def let_loose(make_network, seed):
    """A unit that keeps a far larger one silent goes, then the large one: in between, the logits are large."""
    network = make_network((12, 12), head="multi", inputs=4, seed=seed)
    values = entries(network)
    values["0.weight"][0], values["0.bias"][0] = 0.0, 1.0
    values["2.weight"][0], values["2.bias"][0] = 0.0, 10 ** (6 + seed % 3)
    values["2.weight"][0, 0] = -2 * values["2.bias"][0]
    source = torch.Generator().manual_seed(seed)
    activity = mean_activity(network, samples(300, source, inputs=4).x)
    activity["0"][0], activity["2"][0] = 1e-9, 2e-9
    return network, activity, samples(200, source, inputs=4)


@pytest.mark.parametrize("state", [quiet_twins, frozen_twins, let_loose])
@pytest.mark.parametrize("seed", range(15))
def test_the_bounds_hold_where_large_numbers_cancel(make_network, state, seed):
    """Promise 2: rounding goes with the numbers that cancelled, not with the small logits that are left of them."""
    network, activity, split = state(make_network, seed)
    points = curve(network, activity, split)
    bounds = scan(network, activity, thresholds(network, activity), split, tolerance=1e-5)
    assert all(low <= point.correct <= high for point, (low, high) in zip(points, bounds, strict=True))
    assert staircase(network, activity, split) == Staircase(points[0].correct, by_definition(points))


@pytest.fixture(scope="module")
def learnt(make_network):
    """A network that has learnt something: most of its thresholds cost it little, the last ones everything."""
    source = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=source)
    y = torch.randint(5, (600,), generator=source)
    split = Split(centres[y] + 0.7 * torch.randn(600, 8, generator=source), y)
    network = make_network((40, 40), inputs=8, classes=5, head="multi")
    layers = [network.weights(layer) for layer in network.layers]
    parameters = [p.requires_grad_() for linear in layers for p in linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        h = split.x
        for linear in layers[:-1]:
            h = torch.relu(linear(h))
        torch.nn.functional.cross_entropy(layers[-1](h), split.y).backward()
        optimizer.step()
    network.requires_grad_(False)
    return network, mean_activity(network, split.x), split


def test_few_thresholds_are_scored(learnt, monkeypatch):
    """The point of the scan: only what may be a step is scored canonically."""
    network, activity, split = learnt
    scored = []
    count = Scorer.count_correct
    monkeypatch.setattr(Scorer, "count_correct", lambda *given: scored.append(1) or count(*given))
    steps = staircase(network, activity, split)
    points = curve(network, activity, split)
    assert steps.points == by_definition(points)
    assert len(scored) <= len(steps.points) + 2 < len(points)
    rises = [later.correct > earlier.correct for earlier, later in itertools.pairwise(points)]
    assert any(rises), "the accuracy should not be monotone in θ, else this shows little"


def test_bounds_that_do_not_hold_are_found_out(learnt, monkeypatch):
    """A scan that is wrong by more than its tolerance is done again, in the end by brute force."""
    network, activity, split = learnt
    asked = []

    def wrong(network, activity, thetas, split, *, tolerance):
        asked.append(tolerance)
        return [(0, 0)] * len(thetas)

    expected = staircase(network, activity, split)
    monkeypatch.setattr(thresholds_module, "scan", wrong)
    assert staircase(network, activity, split) == expected
    assert asked == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


def test_no_sample_has_no_staircase(learnt):
    network, activity, split = learnt
    with pytest.raises(ValueError, match="at least one sample"):
        staircase(network, activity, Split(split.x[:0], split.y[:0]))


def test_an_evaluator_that_contradicts_itself(learnt, monkeypatch):
    network, activity, split = learnt
    monkeypatch.setattr(Scorer, "count_correct", lambda *_: len(split) + 1)
    with pytest.raises(RuntimeError, match="more right answers than there are samples"):
        staircase(network, activity, split)


def test_logits_that_are_not_finite_are_not_trusted(make_network):
    """An overflow only on the validation split: the scan knows nothing of those samples, the evaluator decides."""
    network = make_network((6, 5), seed=2)
    split = samples(20, torch.Generator().manual_seed(0))
    activity = mean_activity(network, split.x)
    split.x[3] = 3e38
    points = curve(network, activity, split)
    bounds = scan(network, activity, thresholds(network, activity), split, tolerance=1e-5)
    assert all(low <= point.correct <= high for point, (low, high) in zip(points, bounds, strict=True))
    assert staircase(network, activity, split) == Staircase(points[0].correct, by_definition(points))


@settings(max_examples=40)
@given(data=st.data())
def test_points_say_what_a_commit_at_their_threshold_does(make_network, data):
    network, activity, split = data.draw(states(make_network))
    for point in staircase(network, activity, split).points:
        claims = claims_at(network, activity, point.theta)
        after = network.copy()
        owned = [int(active(network, layer).sum()) for layer in network.groups]
        commit(after, claims)
        now = [int(active(after, group).sum()) for group in after.groups]
        assert point.claimed == tuple(b - a for a, b in zip(owned, now, strict=True))
        free = sum(int(trainable(after)[f"{h.name}.weight"].sum()) * h.inputs for h in after.layers[:-1])
        assert point.free_weights == free
        assert point.correct == count_correct(cut(network, network.task, claims), split)
        assert all(bool(reads(after, layer, network.task).any()) for layer in after.layers)


def test_claims_are_strictly_above_and_free(make_network):
    network = make_network((6,), committed=1, share=0.34)
    layer = network.last
    old = active(network, layer)
    assert int(old.sum()) == 2
    activity = {layer.name: torch.arange(6, dtype=torch.float64)}
    assert claims_at(network, activity, 3.0)[layer.name].tolist() == [i > 3 and not old[i] for i in range(6)]
    assert torch.equal(claims_at(network, activity, None)[layer.name], ~old)
    assert torch.equal(claims_at(network, activity, 0.0)[layer.name], ~old & (torch.arange(6) > 0))


def hand(network, *means):
    return {layer.name: torch.tensor(m, dtype=torch.float64) for layer, m in zip(network.groups, means, strict=True)}


@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_thresholds_of_a_first_task(make_network, head):
    """θ beyond every activity of a layer is never offered: the smallest of the layers' largest is out already."""
    network = make_network((4, 4), head=head)
    activity = hand(network, [0.0, 0.5, 0.5, 2.0], [0.25, 0.0, 1.0, 0.5])
    assert thresholds(network, activity) == [None, 0.0, 0.25, 0.5]


def test_the_thresholds_of_a_second_task(make_network):
    """Old units keep a layer alive, but a shared output layer needs a new one."""
    multi, single = (make_network((4, 4), head=head, committed=1) for head in ("multi", "single"))
    means = [0.0, 0.5, 0.75, 2.0], [0.25, 0.0, 1.0, 0.5]
    for network, bound in ((multi, math.inf), (single, None)):
        free = [~active(network, layer) for layer in network.groups]
        values = {m for mask, mean in zip(free, means, strict=True) for m, f in zip(mean, mask, strict=True) if f}
        if bound is None:
            bound = max(m for m, f in zip(means[1], free[1], strict=True) if f)
        expected = [None, *sorted(v for v in values | {0.0} if v < bound)]
        assert thresholds(network, hand(network, *means)) == expected
    top = thresholds(multi, hand(multi, *means))[-1]
    assert not any(bool(claim.any()) for claim in claims_at(multi, hand(multi, *means), top).values())


def test_a_task_that_claims_nothing_new(make_network):
    """Multi-head: with every unit owned, what is left to learn is the head (Sec. 2.1)."""
    network = make_network((3, 3), head="multi", committed=1, share=1.0)
    split = samples(30, torch.Generator().manual_seed(0))
    activity = mean_activity(network, split.x)
    assert thresholds(network, activity) == [None, 0.0]
    found = staircase(network, activity, split)
    assert [(point.theta, point.claimed, point.free_weights) for point in found.points] == [(0.0, (0, 0), 0)]
    assert found.points[0].correct == found.unpruned


def test_one_full_layer(make_network):
    network = make_network((3, 8), head="single", committed=1, share=0.5)
    network.owner(network.groups[0]).fill_(0)
    split = samples(30, torch.Generator().manual_seed(0))
    activity = mean_activity(network, split.x)
    points = curve(network, activity, split)
    assert all(point.claimed[0] == 0 and point.claimed[1] > 0 for point in points)
    assert staircase(network, activity, split).points == by_definition(points)


def test_a_full_last_layer_under_a_shared_output(make_network):
    network = make_network((8, 3), head="single", committed=1, share=0.5)
    network.owner(network.last).fill_(0)
    with pytest.raises(NothingToCommit, match="no free unit left in 2: all 3 are owned") as refusal:
        thresholds(network, mean_activity(network, torch.randn(5, 5)))
    with pytest.raises(NothingToCommit) as same:
        open_task(network, seed=0)
    assert str(same.value) == str(refusal.value)


def test_a_layer_that_has_fallen_silent(make_network):
    """Collapsed: pruning the silent units would leave nothing, so there is nothing to offer but the whole."""
    network = make_network((6, 5))
    network.weights(network.layers[-2]).bias.fill_(-1e4)
    split = samples(30, torch.Generator().manual_seed(0))
    activity = mean_activity(network, split.x)
    assert thresholds(network, activity) == [None]
    assert [point.claimed for point in staircase(network, activity, split).points] == [(6, 5)]


def test_units_silent_in_training_alone(make_network):
    """θ = 0 is not the same as keeping everything: a unit can be silent in training and speak in validation."""
    network = make_network((1, 2), inputs=1, classes=2, head="multi")
    first, last, output = (network.weights(layer) for layer in network.layers)
    first.weight.fill_(1.0)
    first.bias.fill_(0.0)
    last.weight.copy_(torch.tensor([[1.0], [1.0]]))
    last.bias.copy_(torch.tensor([0.0, -5.0]))  # The second unit wakes above 5.
    output.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 100.0]]))
    output.bias.fill_(0.0)
    activity = mean_activity(network, torch.tensor([[1.0], [2.0]]))
    split = Split(torch.tensor([[1.0], [10.0]]), torch.tensor([0, 1]))
    assert [(p.theta, p.correct) for p in curve(network, activity, split)] == [(None, 2), (0.0, 1)]
    found = staircase(network, activity, split)
    assert found.unpruned == 2
    assert [(p.theta, p.correct) for p in found.points] == [(None, 2), (0.0, 1)]


def test_no_more_than_what_is_silent_goes_at_zero(learnt):
    network, activity, _ = learnt
    at_zero = claims_at(network, activity, 0.0)
    for layer in network.groups:
        assert torch.equal(at_zero[layer.name], activity[layer.name] > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_same_path_on_a_gpu(make_network, head):
    network = make_network((60, 50), head=head, committed=1).to("cuda")
    split = samples(300, torch.Generator().manual_seed(0))
    activity = mean_activity(network, split.x)
    points = curve(network, activity, split)
    assert staircase(network, activity, split) == Staircase(points[0].correct, by_definition(points))
