"""The rule against tables made by hand and against its definition."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Choice, Pick, Point, Sparsity, Trial, choose, needed

MARGINS = st.one_of(
    st.integers(0, 100).map(Fraction), st.integers(0, 10_000).map(lambda n: Fraction(n, 100)), st.fractions(0, 100)
)


def point(theta: float | None, correct: int, *claimed: int, free_weights: int = 0) -> Point:
    return Point(theta, correct, claimed, free_weights)


@pytest.mark.parametrize(
    ("best", "total", "margin", "line"),
    [
        (98, 100, "0", 98),
        (98, 100, "1", 97),
        (98, 100, "0.5", 98),  # 97.5 samples: 97 are not enough
        (5900, 6000, "0.05", 5897),  # exactly 3 samples
        (5900, 6000, "0.04", 5898),  # 2.4 samples
        (29, 1000, "2.9", 0),  # exactly 29; as floats 1000 * 2.9 / 100 falls short of it
        (290, 1000, "2.9", 261),
        (57, 100, "57", 0),
        (3, 100, "50", 0),
        (100, 100, "100", 0),
        (0, 0, "1", 0),
    ],
)
def test_needed_on_exact_boundaries(best: int, total: int, margin: str, line: int) -> None:
    assert needed(best, total, Fraction(margin)) == line


@given(st.data(), st.integers(1, 10_000), MARGINS)
def test_needed_is_the_least_count_within_the_margin(data: st.DataObject, total: int, margin: Fraction) -> None:
    best = data.draw(st.integers(0, total))
    line = needed(best, total, margin)

    def within(correct: int) -> bool:
        return Fraction(correct, total) * 100 >= Fraction(best, total) * 100 - margin

    assert within(line)
    assert line == 0 or not within(line - 1)


@pytest.mark.parametrize("margin", ["-0.1", "100.5"])
def test_needed_refuses_a_margin_that_is_none(margin: str) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        needed(5, 10, Fraction(margin))


def test_needed_refuses_more_answers_than_samples() -> None:
    with pytest.raises(ValueError, match="11 right answers out of 10"):
        needed(11, 10, Fraction(1))


# Out of 100: trial 1 is the best, 0 and 2 are within two points of it, 3 is not, whatever its curve does later.
TABLE = (
    Trial(0, 94, (point(None, 95, 30, 30), point(0.0, 94, 20, 20), point(0.5, 93, 9, 9), point(0.9, 10, 1, 1))),
    Trial(1, 95, (point(0.1, 95, 25, 25), point(0.3, 94, 22, 2), point(0.4, 93, 12, 6), point(0.6, 92, 3, 3))),
    Trial(2, 93, (point(0.0, 94, 40, 40), point(0.2, 93, 8, 10))),
    Trial(3, 92, (point(0.0, 99, 1, 1),)),
)


def test_a_table_by_hand() -> None:
    choice = choose(TABLE, total=100, majority=10, margin=Fraction(2))
    assert (choice.best, choice.needed, choice.candidates) == (95, 93, (0, 1, 2))
    assert choice.picks == (
        Pick(0, TABLE[0].staircase[2]),
        Pick(1, TABLE[1].staircase[2]),
        Pick(2, TABLE[2].staircase[1]),
    )
    # 18 new units each: all have 93 right, so the earliest wins.
    assert choice.winner == choice.picks[0]


def test_candidates_are_judged_unpruned() -> None:
    """Trial 3 has 99 right once pruned, but 92 unpruned: Sec. 2.2 picks the models first and prunes them then."""
    assert 3 not in choose(TABLE, total=100, majority=10, margin=Fraction(2)).candidates


def test_without_a_margin_only_the_best_stay() -> None:
    choice = choose(TABLE, total=100, majority=10, margin=Fraction(0))
    assert choice.candidates == (1,)
    assert choice.winner.point.theta == 0.1


def test_a_margin_of_100_takes_every_trial_at_its_last_step() -> None:
    choice = choose(TABLE, total=100, majority=10, margin=Fraction(100))
    assert choice.needed == 0
    assert [pick.point for pick in choice.picks] == [trial.staircase[-1] for trial in TABLE]


def test_the_order_of_the_trials_does_not_matter() -> None:
    forwards = choose(TABLE, total=100, majority=10, margin=Fraction(2))
    assert choose(TABLE[::-1], total=100, majority=10, margin=Fraction(2)) == forwards


def test_sparsity_in_weights() -> None:
    trials = (
        Trial(0, 90, (point(0.1, 90, 1, 5, free_weights=100),)),
        Trial(1, 90, (point(0.1, 90, 5, 3, free_weights=400),)),
    )
    assert choose(trials, total=100, majority=10, margin=Fraction(0)).winner.index == 0
    assert choose(trials, total=100, majority=10, margin=Fraction(0), sparsity="weights").winner.index == 1


@pytest.mark.parametrize("sparsity", ["units", "weights"])
def test_ties_go_to_the_higher_accuracy_and_then_to_the_earlier_cell(sparsity: Sparsity) -> None:
    trials = tuple(Trial(i, 90, (point(0.1, correct, 4, 4),)) for i, correct in enumerate((89, 90, 90)))
    assert choose(trials, total=100, majority=10, margin=Fraction(1), sparsity=sparsity).winner.index == 1


def test_a_sparsity_that_is_none() -> None:
    with pytest.raises(ValueError, match="'layers'"):
        choose(TABLE, total=100, majority=10, margin=Fraction(1), sparsity="layers")  # type: ignore[arg-type]


def test_every_trial_diverged() -> None:
    with pytest.raises(NothingToCommit, match="every trial of the task diverged"):
        choose((), total=100, majority=10, margin=Fraction(1))


@pytest.mark.parametrize("unpruned", [9, 10])
def test_a_collapsed_task_is_not_committed(unpruned: int) -> None:
    with pytest.raises(NothingToCommit, match=rf"{unpruned} of 100 .* \(10\); lower α"):
        choose((Trial(0, unpruned, (point(None, 10, 5),)),), total=100, majority=10, margin=Fraction(1))


def test_one_answer_above_the_majority_is_enough() -> None:
    trial = Trial(0, 11, (point(None, 11, 5),))
    assert choose((trial,), total=100, majority=10, margin=Fraction(1)).winner.point == trial.staircase[0]


def test_a_staircase_of_another_trial_is_found_out() -> None:
    with pytest.raises(Damaged, match="trial 4 has 90"):
        choose((Trial(4, 90, (point(None, 80, 5),)),), total=100, majority=10, margin=Fraction(1))


TOTAL = 40


@st.composite
def curves(draw: st.DrawFn) -> list[Point]:
    """A trial's whole curve, as accuracies go: up and down. Units go as θ rises, with them right answers or not."""
    count = draw(st.integers(1, 8))
    thetas = [None, *sorted(draw(st.lists(st.floats(0, 9), min_size=count, max_size=count, unique=True)))][:count]
    correct = draw(st.lists(st.integers(0, TOTAL), min_size=count, max_size=count))
    units = sorted(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), reverse=True)
    return [point(t, c, u, 3, free_weights=100 - 7 * u) for t, c, u in zip(thetas, correct, units, strict=True)]


def staircase_of(curve: list[Point]) -> tuple[Point, ...]:
    return tuple(p for i, p in enumerate(curve) if all(p.correct > later.correct for later in curve[i + 1 :]))


def by_definition(grid: list[list[Point]], margin: Fraction, sparsity: Sparsity) -> tuple[int, Point]:
    """Sec. 2.2 over all (trial, threshold) pairs, in accuracies."""
    best = max(Fraction(curve[0].correct, TOTAL) for curve in grid)

    def within(p: Point) -> bool:
        return Fraction(p.correct, TOTAL) >= best - margin / 100

    pairs = []
    for index, curve in enumerate(grid):
        if within(curve[0]):
            pairs.append((index, [p for p in curve if within(p)][-1]))
    size = {"units": lambda p: sum(p.claimed), "weights": lambda p: -p.free_weights}[sparsity]
    return min(pairs, key=lambda pair: (size(pair[1]), -pair[1].correct, pair[0]))


def choice_of(grid: list[list[Point]], margin: Fraction, sparsity: Sparsity = "units") -> Choice:
    trials = [Trial(index, curve[0].correct, staircase_of(curve)) for index, curve in enumerate(grid)]
    return choose(trials, total=TOTAL, majority=-1, margin=margin, sparsity=sparsity)


@given(st.lists(curves(), min_size=1, max_size=5), MARGINS, st.sampled_from(["units", "weights"]))
def test_the_rule_is_its_definition_over_every_trial_and_threshold(
    grid: list[list[Point]], margin: Fraction, sparsity: Sparsity
) -> None:
    """Promise 4: selection is a pure function of records, and staircases are records enough for any margin."""
    winner = choice_of(grid, margin, sparsity).winner
    assert (winner.index, winner.point) == by_definition(grid, margin, sparsity)


@given(st.lists(curves(), min_size=1, max_size=5), MARGINS, MARGINS)
def test_a_wider_margin_never_claims_more(grid: list[list[Point]], one: Fraction, other: Fraction) -> None:
    narrow, wide = choice_of(grid, min(one, other)), choice_of(grid, max(one, other))
    assert wide.needed <= narrow.needed
    assert set(narrow.candidates) <= set(wide.candidates)
    assert sum(wide.winner.point.claimed) <= sum(narrow.winner.point.claimed)


def test_the_rule_imports_no_torch() -> None:
    """Promise 4: a replay needs records alone."""
    code = "import sys, clnp.forgetting; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
