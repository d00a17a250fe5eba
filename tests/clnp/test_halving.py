from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clnp import training
from clnp.halving import Dropped, Halving, halve
from clnp.models import mlp
from clnp.network import Network
from clnp.stack import Stack
from clnp.tasks.task import Split
from clnp.training import Member, Settings, open_task, train

TOTAL = 40

COUNTS = st.lists(st.integers(0, TOTAL), max_size=9)
MARGINS = st.fractions(0, 100, max_denominator=7)


# The choice


@given(training=COUNTS, ended=COUNTS, margin=MARGINS)
def test_who_goes_is_in_the_worse_half_and_outside_the_margin(training, ended, margin):
    """And nobody else stays: of any two of which one is dropped, that one has fewer right, or as many and is later."""
    found = halve(training, ended, epoch=3, total=TOTAL, margin=margin)
    assert 2 * len(found) <= len(training), "at least half of them stay"
    best = max([*training, *ended], default=0)
    hopeless = [place for place, right in enumerate(training) if Fraction(right - best, TOTAL) < -margin / 100]
    assert found.keys() <= set(hopeless)
    assert len(found) == min(len(hopeless), len(training) // 2)
    kept = [(-right, place) for place, right in enumerate(training) if place not in found]
    gone = [(-training[place], place) for place in found]
    assert not kept or not gone or max(kept) < min(gone)
    assert list(found) == sorted(found)


@given(training=COUNTS, ended=COUNTS, margins=st.tuples(MARGINS, MARGINS))
def test_a_larger_margin_drops_nobody_else(training, ended, margins):
    small, large = sorted(margins)
    wide, narrow = (halve(training, ended, epoch=1, total=TOTAL, margin=margin) for margin in (large, small))
    assert wide.keys() <= narrow.keys()


@given(training=COUNTS, ended=COUNTS)
def test_what_is_said_of_a_dropped_member_is_what_it_went_by(training, ended):
    for place, why in halve(training, ended, epoch=7, total=TOTAL, margin=Fraction(5)).items():
        best = max([*training, *ended])
        assert why == Dropped(7, training[place], best, max(0, best - 2), TOTAL), "5 % of 40 are 2 samples"


@pytest.mark.parametrize(
    ("training", "ended", "dropped"),
    [
        ([], [], set()),
        ([], [40], set()),
        ([1], [40], set()),
        ([1, 40], [], {0}),
        ([1, 1, 40], [], {1}),
        ([38, 1, 40, 39], [], {1}),
        ([38, 38, 40, 40], [], set()),
        ([37, 37, 40, 40], [], {0, 1}),
        ([20, 21, 22, 23], [40], {0, 1}),
        ([40, 1], [1, 1, 1], {1}),
    ],
)
def test_examples(training, ended, dropped):
    """At a margin of 5 %, 2 samples of 40."""
    assert halve(training, ended, epoch=1, total=TOTAL, margin=Fraction(5)).keys() == dropped


def test_a_margin_is_exact():
    """0.07 % of 10,000 is 7 samples, and just above 7 in binary."""
    exact = halve([93, 100], [], epoch=1, total=10_000, margin=Fraction("0.07"))
    assert not exact
    assert halve([92, 100], [], epoch=1, total=10_000, margin=Fraction("0.07")).keys() == {0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halving((), Fraction(1)), r"the epochs of halving are \[\]; give at least one, rising, from 1"),
        (lambda: Halving((0, 3), Fraction(1)), r"are \[0, 3\]; give at least one, rising, from 1"),
        (lambda: Halving((3, 3), Fraction(1)), r"are \[3, 3\]; give at least one, rising"),
        (
            lambda: Halving((3,), Fraction(101)),
            "the margin of halving is 101 percentage points; give one from 0 to 100",
        ),
        (lambda: Settings(5, 16, halving=Halving((2, 5), Fraction(1))), "halving is after epoch 5 of 5; whom it drops"),
        (lambda: halve([41, 3], [], epoch=1, total=40, margin=Fraction(1)), "41 right answers out of 40"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_why_a_member_was_dropped_reads_as_a_line():
    assert str(Dropped(5, 1091, 1140, 1138, 1500)) == (
        "after epoch 5: 1,091 of 1,500 right, 1,138 needed (the best of its stack: 1,140)"
    )


# In training


def splits(dtype=torch.float32):
    """A noisy task whose classes a small network can only partly tell apart."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 6, generator=random, dtype=dtype)
    y = torch.randint(3, (70 + TOTAL,), generator=random)
    x = centres[y] + torch.randn(70 + TOTAL, 6, generator=random, dtype=dtype)
    return Split(x[:70], y[:70]), Split(x[70:], y[70:])


def run(members, told=None, *, dtype=torch.float32, seed=0, **given):
    opened = open_task(Network(mlp(6, [5, 4], 3).to(dtype)), seed=seed)
    return train(opened, *splits(dtype), members, Settings(batch_size=16, **given), seed=seed, on_epoch=told)


def member(alpha=0.0, rate=0.01):
    return Member((alpha,) * 3, rate)


# Fast and slow, far too strong an α, rates that never get anywhere.
MEMBERS = [member(0.0, 0.02), member(0.5), member(0.0, 1e-5), member(0.0, 0.05), member(0.01), member(0.0, 3e-5)]
HALVING = Halving((2, 5), Fraction(5))


def bits(result):
    return {name: value.contiguous().view(torch.int32).tolist() for name, value in result.free.items()}


def test_until_the_first_halving_nothing_differs_and_then_the_hopeless_go():
    """What goes is what the rule says of the counts of the same training without halving."""
    told = []
    whole = run(MEMBERS, epochs=8)
    found = run(MEMBERS, lambda *each: told.append(each), epochs=8, halving=Halving((2,), Fraction(5)))
    expected = halve([each.epochs[1] for each in whole], [], epoch=2, total=TOTAL, margin=Fraction(5))
    assert 0 < len(expected) < len(MEMBERS) / 2 + 1, "this shows nothing"
    assert {place: each.dropped for place, each in enumerate(found) if each.dropped} == expected
    for before, after in zip(whole, found, strict=True):
        assert after.epochs[:2] == before.epochs[:2]
        assert (len(after.epochs), after.epoch) == ((2, 0) if after.dropped else (8, 8))
        assert bool(after.free) != bool(after.dropped)
        assert after.diverged is None
    assert [epoch for epoch, _ in told] == list(range(1, 9))
    for epoch, right in told:
        gone = [place in expected and epoch >= 2 for place in range(len(MEMBERS))]
        assert right == tuple(0 if g else each.epochs[epoch - 1] for g, each in zip(gone, found, strict=True))


def test_who_stays_trains_as_if_nobody_had_gone():
    """In float64, for a few steps: but for the rounding of a narrower stack."""
    whole = run(MEMBERS, epochs=3, dtype=torch.float64)
    found = run(MEMBERS, epochs=3, dtype=torch.float64, halving=Halving((1, 2), Fraction(0)))
    stay = [place for place, each in enumerate(found) if not each.dropped]
    assert {each.dropped.epoch for each in found if each.dropped} == {1, 2}
    for place in stay:
        assert found[place].epochs == whole[place].epochs
        for name, value in whole[place].free.items():
            torch.testing.assert_close(found[place].free[name], value, rtol=1e-6, atol=1e-8)


def test_the_same_settings_give_the_same_bits():
    """Promise 3."""
    first, second = (run(MEMBERS, epochs=8, halving=HALVING) for _ in range(2))
    assert [(each.dropped, each.epochs, bits(each)) for each in first] == [
        (each.dropped, each.epochs, bits(each)) for each in second
    ]


def test_a_halving_that_drops_nobody_changes_no_bit():
    with_it = run(MEMBERS, epochs=4, halving=Halving((1, 2, 3), Fraction(100)))
    without = run(MEMBERS, epochs=4)
    assert not any(each.dropped for each in with_it)
    assert list(map(bits, with_it)) == list(map(bits, without))


def test_who_has_gone_costs_nothing(monkeypatch):
    """Dropped, diverged or out of patience: after a halving the stack is without them."""
    widths, rest = [], Stack.rest
    monkeypatch.setattr(Stack, "rest", lambda self, *given: widths.append(self.members) or rest(self, *given))
    found = run([*MEMBERS, member(0.0, 1e30)], epochs=8, early_stopping=True, patience=3, halving=HALVING)
    steps = len(widths) // max(len(each.epochs) for each in found)
    for epoch in range(1, len(widths) // steps + 1):
        past = max((at for at in HALVING.epochs if at < epoch), default=0)
        left = sum(len(each.epochs) > past for each in found) if past else len(found)
        assert widths[(epoch - 1) * steps : epoch * steps] == [left] * steps


def consistent(found, epochs, halving, early_stopping):
    """Whether every drop follows from the results, and every result from the drops."""

    def standing(each, epoch):
        return max(each.epochs[:epoch]) if early_stopping else each.epochs[epoch - 1]

    for epoch in halving.epochs:

        def out_of_patience(each, epoch=epoch):
            return not (each.diverged or each.dropped) and len(each.epochs) <= epoch and len(each.epochs) < epochs

        here = [each for each in found if len(each.epochs) >= epoch and not out_of_patience(each)]
        gone = [each for each in found if out_of_patience(each)]
        ended = [standing(each, len(each.epochs)) for each in gone]
        line = halve([standing(each, epoch) for each in here], ended, epoch=epoch, total=TOTAL, margin=halving.margin)
        at = {place: each.dropped for place, each in enumerate(here) if each.dropped and each.dropped.epoch == epoch}
        assert at == line
    for each in found:
        assert not (each.dropped and each.diverged)
        assert (each.dropped is None) or (len(each.epochs) == each.dropped.epoch in halving.epochs)
        assert bool(each.free) == (each.dropped is None and each.diverged is None)


STOPPING = st.sampled_from(
    [{}, {"early_stopping": True}, {"early_stopping": True, "patience": 1}, {"early_stopping": True, "patience": 3}]
)


@settings(max_examples=15)
@example([0.05, 3e-5, 0.02, 1e30], {"early_stopping": True, "patience": 1}, {2, 4}, Fraction(0), 0)
@given(
    rates=st.lists(st.sampled_from([3e-5, 1e-3, 0.02, 0.05, 1.0, 1e30]), min_size=1, max_size=6),
    stopping=STOPPING,
    at=st.sets(st.integers(1, 6), min_size=1, max_size=3),
    margin=st.sampled_from([Fraction(0), Fraction("2.5"), Fraction(20)]),
    seed=st.integers(0, 3),
)
def test_whatever_else_ends_members_a_drop_follows_from_the_counts(rates, stopping, at, margin, seed):
    """Promise 4: who has diverged is not counted, who ended by patience is never dropped and may be the best."""
    halving = Halving(tuple(sorted(at)), margin)
    found = run([member(0.0, rate) for rate in rates], epochs=7, halving=halving, seed=seed, **stopping)
    consistent(found, 7, halving, "early_stopping" in stopping)


def test_with_early_stopping_a_member_stands_by_the_epoch_that_it_would_keep():
    """A member that was good once keeps that epoch: an epoch that went wrong after it makes nobody hopeless."""
    rates = [0.3, 0.1, 0.05]
    whole = run([member(0.0, rate) for rate in rates], epochs=7)
    for epoch in range(2, 7):
        best = [max(each.epochs[:epoch]) for each in whole]
        now = [each.epochs[epoch - 1] for each in whole]
        kept, last = (halve(by, [], epoch=epoch, total=TOTAL, margin=Fraction(0)) for by in (best, now))
        if kept.keys() != last.keys():
            break
    else:
        pytest.fail("what it would keep and what it has now never differ: this shows nothing")
    halving = Halving((epoch,), Fraction(0))
    early = run([member(0.0, rate) for rate in rates], epochs=7, early_stopping=True, halving=halving)
    assert {place: each.dropped for place, each in enumerate(early) if each.dropped} == kept
    late = run([member(0.0, rate) for rate in rates], epochs=7, halving=halving)
    assert {place: each.dropped for place, each in enumerate(late) if each.dropped} == last


def scripted(monkeypatch, rows):
    """Training in which member m has ``rows[m][epoch - 1]`` right; None: it is not finite then."""
    inside, epoch, keep = list(range(len(rows))), [0], Stack.keep

    def kept(self, places):
        inside[:] = [inside[place] for place in places]
        keep(self, places)

    def score(stack, split):
        epoch[0] += 1
        found = [rows[place][epoch[0] - 1] for place in inside]
        return torch.tensor([right or 0 for right in found]), torch.tensor([right is not None for right in found])

    monkeypatch.setattr(Stack, "keep", kept)
    monkeypatch.setattr(training, "_score", score)
    return [member()] * len(rows)


# 12.5 % of 40: 5 samples.
MARGIN = Fraction("12.5")


def test_the_best_is_one_that_may_still_win(monkeypatch):
    """Neither one that was dropped, when the others fall behind what it had then, nor one that has diverged since."""
    rows = [(30, 14, 14), (20, 0, 0), (40, 16, 16), (5, 0, 0), (39, None, None)]
    found = run(scripted(monkeypatch, rows), epochs=3, halving=Halving((1, 2), MARGIN))
    assert [each.dropped for each in found] == [None, Dropped(1, 20, 40, 35, 40), None, Dropped(1, 5, 40, 35, 40), None]
    assert [bool(each.diverged) for each in found] == [False, False, False, False, True]
    assert [each.epochs for each in found] == [(30, 14, 14), (20,), (40, 16, 16), (5,), (39,)]


def test_who_ended_by_patience_is_finished(monkeypatch):
    """It is never dropped, however bad it is, does not count as half of those that train, and may be the best."""
    rows = [(40, 39, 0, 0), (1, 1, 0, 0), (20, 21, 22, 23), (10, 11, 12, 13), (34, 35, 36, 37)]
    halving = Halving((2, 3), MARGIN)
    found = run(scripted(monkeypatch, rows), epochs=4, early_stopping=True, patience=1, halving=halving)
    assert [each.dropped for each in found] == [
        None,
        None,
        Dropped(3, 22, 40, 35, 40),
        Dropped(2, 11, 40, 35, 40),
        None,
    ]
    assert [each.epochs for each in found] == [(40, 39), (1, 1), (20, 21, 22), (10, 11), (34, 35, 36, 37)]
    assert [each.epoch for each in found] == [1, 1, 0, 0, 4]
