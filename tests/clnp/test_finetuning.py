"""Fine-tuning: what is left of a winner trained again, the better kept, round by round (Sec. 2.2, 3.2)."""

import pytest
import torch
from torch import nn

from clnp import finetuning
from clnp.activity import by_layer, mean_activity
from clnp.errors import Diverged
from clnp.evaluation import count_correct
from clnp.finetuning import fine_tune
from clnp.forgetting import needed
from clnp.narrowing import narrow
from clnp.network import FREE, Network
from clnp.ownership import active, entries, with_free
from clnp.subnetwork import cut
from clnp.tasks.task import Split
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train

SETTINGS = Settings(epochs=3, batch_size=16)
MEMBER = Member((1e-4, 1e-4, 1e-4), 0.01)


def split(count, seed):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    y = torch.randint(3, (count,), generator=draw)
    return Split(centres[y] + 0.9 * torch.randn(count, 6, generator=draw), y)


TRAINING, VALIDATION = split(96, 1), split(90, 2)


class Winner:
    """A task that was trained, and the point that a margin of 8 points prunes it at."""

    def __init__(self, head="single"):
        module = nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 3))
        opened = open_task(Network(module, head=head), seed=0)
        settings = Settings(epochs=12, batch_size=16)
        (trained,) = train(opened, TRAINING, VALIDATION, [Member((3e-3,) * 3, 0.01)], settings, seed=0)
        self.network = with_free(opened, trained.free)
        self.activity = mean_activity(self.network, TRAINING.x)
        found = staircase(self.network, self.activity, VALIDATION)
        self.needed = needed(found.unpruned, len(VALIDATION), 8)
        self.point = next(point for point in reversed(found.points) if point.correct >= self.needed)
        self.claims = claims_at(self.network, self.activity, self.point.theta)

    def tune(self, member=MEMBER, settings=SETTINGS, **given):
        given = {"seed": 0, "needed": self.needed, "theta": self.point.theta, **given}
        return fine_tune(self.network, self.claims, TRAINING, VALIDATION, member, settings, **given)


@pytest.fixture(scope="module")
def winner():
    return Winner()


def score(network, claims):
    return count_correct(cut(network, network.task, claims), VALIDATION)


def counts(network, claims):
    return tuple(int(claims[group.name].sum()) for group in network.groups)


@pytest.mark.parametrize("head", ["single", "multi"])
def test_one_round(head):
    """Promise 2: what is recorded is what was pruned at the rule's point, and what the canonical evaluator says of the
    better of before and after."""
    winner = Winner(head)
    before = {name: value.clone() for name, value in winner.network.state_dict().items()}
    found = winner.tune()
    (one,) = found.rounds
    assert (one.theta, one.claimed, one.pruned) == (winner.point.theta, winner.point.claimed, winner.point.correct)
    assert one.tuned is not None
    assert one.tuned > one.pruned, "nothing was won back: the test shows nothing"
    assert score(found.network, found.claims) == one.tuned
    assert counts(found.network, found.claims) == one.claimed
    assert all(torch.equal(value, before[name]) for name, value in winner.network.state_dict().items())


def test_what_does_not_win_is_not_kept(winner):
    """Ties too: the network is the one before, to the bit."""
    worse = winner.tune(Member((5.0,) * 3, 0.05))
    assert worse.rounds[0].tuned is not None
    assert worse.rounds[0].tuned < worse.rounds[0].pruned
    tie = winner.tune(Member((0.0,) * 3, 1e-6))
    assert tie.rounds[0].tuned == tie.rounds[0].pruned
    for found in (worse, tie):
        values = entries(found.network)
        assert all(torch.equal(value, values[name]) for name, value in entries(winner.network).items())


def test_a_round_that_diverges_keeps_what_was_before(winner):
    found = winner.tune(Member((1e-4,) * 3, 1e30))
    assert found.rounds[0].tuned is None
    assert score(found.network, found.claims) == winner.point.correct


def test_beyond_float32_on_a_training_sample_has_diverged(winner, monkeypatch):
    """As a trial would have: its next activity could not be measured."""

    def infinite(*_):
        raise Diverged("unit 0")

    monkeypatch.setattr(finetuning, "mean_activity", infinite)
    (one,) = winner.tune(rounds=3).rounds
    assert one.tuned is None, "and nothing more is pruned by what cannot be measured"


def test_rounds_prune_more_and_more_and_never_below_the_line(winner):
    """The iterated form: the cut line stays, the units go."""
    found = winner.tune(rounds=5)
    assert len(found.rounds) > 1
    for before, now in zip(found.rounds, found.rounds[1:], strict=False):
        assert sum(now.claimed) < sum(before.claimed)
        assert all(left <= was for was, left in zip(before.claimed, now.claimed, strict=True))
        assert now.pruned >= winner.needed
        assert now.theta is not None
    last = found.rounds[-1]
    kept = last.pruned if last.tuned is None else max(last.pruned, last.tuned)
    assert score(found.network, found.claims) == kept >= winner.needed
    assert counts(found.network, found.claims) == last.claimed


def test_a_round_prunes_at_the_largest_threshold_by_what_is_left(winner):
    """Round 2 by hand: the activity of what round 1 kept, measured again, and its own staircase."""
    first, second = winner.tune(rounds=1), winner.tune(rounds=2)
    assert second.rounds[0] == first.rounds[0]
    left = narrow(first.network, first.claims)
    activity = mean_activity(left, TRAINING.x)
    points = staircase(left, activity, VALIDATION).points
    point = next(point for point in reversed(points) if point.correct >= winner.needed)
    assert (point.theta, point.claimed, point.correct) == (
        second.rounds[1].theta,
        second.rounds[1].claimed,
        second.rounds[1].pruned,
    )
    # A line that is met exactly is met.
    exact = winner.tune(rounds=2, needed=points[-1].correct).rounds[1]
    assert (exact.theta, exact.pruned) == (points[-1].theta, points[-1].correct)
    scaled = winner.tune(rounds=2, order=by_layer)
    values = by_layer(left, activity)
    points = staircase(left, values, VALIDATION).points
    assert scaled.rounds[1].theta == next(one.theta for one in reversed(points) if one.correct >= winner.needed)


def test_it_ends_before_a_round_that_would_prune_nothing(winner):
    """A line that every unit is needed for; and one that nothing that is left reaches."""
    for line in (len(VALIDATION), len(VALIDATION) + 1):
        assert len(winner.tune(rounds=9, needed=line).rounds) == 1


def test_the_same_seed_gives_the_same_bits_and_every_round_another_order(winner):
    """Promise 3."""
    one, two = winner.tune(rounds=3), winner.tune(rounds=3)
    assert one.rounds == two.rounds
    values = entries(two.network)
    assert all(torch.equal(value, values[name]) for name, value in entries(one.network).items())
    other = winner.tune(seed=1)
    first = winner.tune()
    assert any(not torch.equal(v, entries(other.network)[name]) for name, v in entries(first.network).items())
    left = narrow(winner.network, winner.claims)
    stages = []
    for stage in (0, 1, 2):
        (found,) = train(left, TRAINING, VALIDATION, [MEMBER], SETTINGS, seed=0, stage=stage)
        stages.append(found.free["0.weight"])
    (plain,) = train(left, TRAINING, VALIDATION, [MEMBER], SETTINGS, seed=0)
    assert torch.equal(stages[0], plain.free["0.weight"])
    assert not torch.equal(stages[0], stages[1])
    assert not torch.equal(stages[1], stages[2])


def test_every_round_has_a_stage_of_its_own(winner, monkeypatch):
    """Promise 3: its order of samples and its dropout noise depend on the round alone."""
    stages = []

    def spy(*arguments, stage, **named):
        stages.append(stage)
        return train(*arguments, stage=stage, **named)

    monkeypatch.setattr(finetuning, "train", spy)
    assert len(winner.tune(rounds=3).rounds) == 3
    assert stages == [1, 2, 3]


def test_only_what_is_left_is_trained(winner):
    """Sec. 2.2: "only updating the weights which survive"; what was pruned neither moves nor is read."""
    found = winner.tune()
    before, after = entries(winner.network), entries(found.network)
    for layer in winner.network.layers[:-1]:
        gone = ~winner.claims[layer.group]
        name = f"{layer.name}.weight"
        assert torch.equal(before[name][gone], after[name][gone])
        assert not torch.equal(before[name], after[name])
        if layer.source is not None:
            columns = ~winner.claims[layer.source]
            assert torch.equal(before[name][:, columns], after[name][:, columns])
    spoilt = winner.network.copy()
    for layer in spoilt.layers[:-1]:
        spoilt.weights(layer).weight[~winner.claims[layer.group]] = torch.nan
        spoilt.weights(layer).bias[~winner.claims[layer.group]] = torch.nan
    again = fine_tune(
        spoilt, winner.claims, TRAINING, VALIDATION, MEMBER, SETTINGS, seed=0, needed=0, theta=winner.point.theta
    )
    assert again.rounds == found.rounds


def test_every_epoch_is_told(winner):
    told = []
    found = winner.tune(rounds=2, on_epoch=lambda *what: told.append(what))
    assert [what[:2] for what in told] == [(number, epoch) for number in (1, 2) for epoch in (1, 2, 3)]
    assert told[2][2] == found.rounds[0].tuned


def test_a_task_that_claims_nothing_trains_its_head_again():
    """Multi-head: it lives on old units alone."""
    winner = Winner("multi")
    network = winner.network.copy()
    for group in network.groups:
        network.owner(group)[:] = 0
    network.committed += 1
    network.place_head(1)
    opened = open_task(network, seed=0)
    nothing = {group.name: torch.zeros(group.units, dtype=torch.bool) for group in network.groups}
    found = fine_tune(opened, nothing, TRAINING, VALIDATION, MEMBER, SETTINGS, seed=0, needed=0, rounds=3)
    assert len(found.rounds) == 1
    assert found.rounds[0].claimed == (0, 0)
    assert found.rounds[0].tuned is not None
    assert found.rounds[0].tuned > found.rounds[0].pruned
    assert bool((network.owner(network.last) != FREE).all())
    assert not bool((~active(found.network, network.last)).any())


def test_no_round_is_refused(winner):
    """Promise 8."""
    with pytest.raises(ValueError, match="rounds is 0; it must be at least 1"):
        winner.tune(rounds=0)
