"""The budget rule against its definition, at boundaries by hand, and over the tasks of a run."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clnp.budget import budget, choose_within, expected_claim
from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Choice, Pick, Point, Sparsity, Trial, choose, needed

HUGE = (10**9, 10**9)


def point(theta: float | None, correct: int, *claimed: int, free_weights: int = 0) -> Point:
    return Point(theta, correct, claimed, free_weights)


# ── What a task may claim ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("free", "tasks", "earlier", "most"),
    [
        # The first task: half of a layer, an equal share of the last one.
        ((100, 100), 10, [], (50, 10)),
        ((101, 99), 10, [], (50, 9)),
        ((7, 10), 11, [], (3, 0)),
        ((100, 100), 1, [], (100, 100)),
        # The second one: claimed + 8 · claimed ≤ 54 gives no more than an equal share.
        ((54, 90), 10, [(46, 10)], (6, 10)),
        # The third one: (100 - 7 · 1 / 2) / (1 + 7 / 2) is 21.4, an equal share of the first layer 12.
        ((100, 90), 10, [(46, 10), (1, 99)], (21, 11)),
        ((9, 90), 10, [(46, 10), (20, 99)], (1, 11)),
        # The last one, and one beyond: all that is left.
        ((9, 5), 3, [(46, 10), (20, 99)], (9, 5)),
        ((9, 5), 2, [(46, 10), (20, 99)], (9, 5)),
        ((0, 0), 10, [(46, 10), (20, 99)], (0, 0)),
    ],
)
def test_a_budget_by_hand(
    free: tuple[int, ...], tasks: int, earlier: list[tuple[int, ...]], most: tuple[int, ...]
) -> None:
    assert budget(free, last=1, tasks=tasks, earlier=earlier) == most


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=12),
)
def test_a_budget_is_the_largest_whole_number_that_the_rule_allows(
    free: int, last: int, tasks: int, earlier: list[tuple[int, int]]
) -> None:
    """By its definition in exact fractions; the numbers are beyond what floating point tells apart."""
    left = max(1, tasks - len(earlier))

    def fits(claimed: int) -> bool:
        if claimed > free:
            return False
        if not earlier:
            return 2 * claimed <= free or left == 1
        mean = expected_claim([*(first for first, _ in earlier), claimed])
        return claimed * left <= free or claimed + (left - 1) * mean <= free

    most, most_last = budget((free, last), last=1, tasks=tasks, earlier=earlier)
    assert fits(most)
    assert not fits(most + 1)
    assert most_last * left <= last < (most_last + 1) * left


def test_the_place_of_the_last_group_is_where_it_is_said_to_be() -> None:
    assert budget((60, 60, 60), last=0, tasks=6, earlier=[]) == (10, 30, 30)


def test_what_is_expected_leaves_the_first_task_out_once_there_is_another() -> None:
    """Sec. 3.1: the first task learns the features that later ones use again."""
    assert expected_claim([40]) == 40
    assert expected_claim([40, 1, 2]) == Fraction(3, 2)
    with pytest.raises(ValueError, match="no task has claimed anything yet"):
        expected_claim([])


def test_a_budget_for_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match="to last for 0 tasks; give 1 or more"):
        budget((1,), last=0, tasks=0, earlier=[])


# ── Which trial wins ──────────────────────────────────────────────────────────────────────────────────────────────────

# Out of 100: trial 1 is the best, 0 and 2 are within two points of it, 3 is not, whatever its curve does later.
TABLE = (
    Trial(0, 94, (point(None, 95, 30, 30), point(0.0, 94, 20, 20), point(0.5, 93, 9, 9), point(0.9, 10, 1, 1))),
    Trial(1, 95, (point(0.1, 95, 25, 25), point(0.3, 94, 22, 2), point(0.4, 93, 12, 6), point(0.6, 92, 3, 3))),
    Trial(2, 93, (point(0.0, 94, 40, 40), point(0.2, 93, 8, 10))),
    Trial(3, 92, (point(0.0, 99, 1, 1),)),
)


def chosen(trials: tuple[Trial, ...], most: tuple[int, ...], floor: str = "2", sparsity: Sparsity = "units") -> Choice:
    return choose_within(trials, budget=most, total=100, majority=10, floor=Fraction(floor), sparsity=sparsity)


@pytest.mark.parametrize(
    ("most", "cell", "theta", "exceeds"),
    [
        ((40, 40), 1, 0.1, ()),  # 95 right as trial 0 has, with 50 new units instead of 60
        ((22, 20), 1, 0.3, ()),  # 94 right as trial 0 has, with 24 instead of 40
        ((21, 20), 0, 0.0, ()),  # 94 right, the others that fit have 93
        ((12, 6), 1, 0.4, ()),
        ((9, 9), 0, 0.5, ()),
        ((8, 10), 2, 0.2, ()),
        ((8, 9), 0, 0.5, (0,)),  # none fits; each has 18 new units at its sparsest, and the earliest wins
        ((8, 5), 0, 0.5, (0, 1)),
    ],
)
def test_a_table_by_hand(most: tuple[int, int], cell: int, theta: float, exceeds: tuple[int, ...]) -> None:
    choice = chosen(TABLE, most)
    assert (choice.best, choice.needed, choice.candidates) == (95, 93, (0, 1, 2))
    assert (choice.winner.index, choice.winner.point.theta, choice.exceeds) == (cell, theta, exceeds)


def test_each_pick_says_whether_it_fits() -> None:
    assert chosen(TABLE, (12, 6)).picks == (
        Pick(0, TABLE[0].staircase[2], (1,)),
        Pick(1, TABLE[1].staircase[2]),
        Pick(2, TABLE[2].staircase[1], (1,)),
    )
    assert [pick.fits for pick in chosen(TABLE, (12, 6)).picks] == [False, True, False]


def test_of_equal_points_the_larger_threshold_is_picked() -> None:
    same = Trial(0, 95, (point(0.1, 95, 4, 4), point(0.2, 95, 3, 3), point(0.3, 94, 1, 1)))
    assert chosen((same,), (4, 4)).winner.point.theta == 0.2


def test_equal_winners_are_told_apart_by_what_sparsity_means_then_by_their_place() -> None:
    many = Trial(0, 95, (point(0.1, 95, 4, 4, free_weights=50),))
    few = Trial(1, 95, (point(0.1, 95, 3, 3, free_weights=40),))
    assert chosen((many, few), (9, 9)).winner.index == 1
    assert chosen((many, few), (9, 9), sparsity="weights").winner.index == 0
    assert chosen((Trial(2, 95, many.staircase), many), (9, 9)).winner.index == 0
    assert chosen((many, few), (1, 1)).winner.index == 1
    assert chosen((many, few), (1, 1), sparsity="weights").winner.index == 0


@st.composite
def staircases(draw: st.DrawFn, total: int = 60, units: int = 12) -> tuple[Point, ...]:
    """Ascending in θ, falling in right answers and in units."""
    rights = sorted(draw(st.sets(st.integers(40, total), min_size=1, max_size=6)), reverse=True)
    claims = [sorted(draw(st.lists(st.integers(0, units), min_size=len(rights), max_size=len(rights)))) for _ in "ab"]
    return tuple(
        point(place / 10, right, claims[0][-1 - place], claims[1][-1 - place], free_weights=draw(st.integers(0, 9)))
        for place, right in enumerate(rights)
    )


@st.composite
def grids(draw: st.DrawFn) -> tuple[Trial, ...]:
    found = draw(st.lists(staircases(), min_size=1, max_size=5))
    return tuple(Trial(index, points[0].correct, points) for index, points in enumerate(found))


BUDGETS = st.tuples(st.integers(0, 12), st.integers(0, 12))
FLOORS = st.one_of(st.just(Fraction(0)), st.fractions(0, 40))
SPARSITIES = st.sampled_from(("units", "weights"))


@given(grids(), BUDGETS, FLOORS, SPARSITIES)
def test_the_winner_is_the_best_of_all_points_that_fit(
    trials: tuple[Trial, ...], most: tuple[int, int], floor: Fraction, sparsity: Sparsity
) -> None:
    """Every point of every candidate tried one by one."""
    choice = choose_within(trials, budget=most, total=60, majority=5, floor=floor, sparsity=sparsity)
    line = needed(max(trial.unpruned for trial in trials), 60, floor)
    fitting = [
        (point.correct, -(sum(point.claimed) if sparsity == "units" else -point.free_weights), -trial.index, point)
        for trial in trials
        if trial.unpruned >= line
        for point in trial.staircase
        if point.correct >= line and point.claimed[0] <= most[0] and point.claimed[1] <= most[1]
    ]
    if fitting:
        *_, index, best = max(fitting, key=lambda found: found[:3])
        assert (choice.winner.index, choice.winner.point) == (-index, best)
        assert choice.winner.fits
    else:
        margin = choose(trials, total=60, majority=5, margin=floor, sparsity=sparsity)
        assert (choice.winner.index, choice.winner.point) == (margin.winner.index, margin.winner.point)
        assert choice.exceeds == tuple(k for k in (0, 1) if margin.winner.point.claimed[k] > most[k]) != ()


@given(grids(), BUDGETS, FLOORS)
def test_no_pick_is_below_the_floor_and_all_that_fit_do(
    trials: tuple[Trial, ...], most: tuple[int, int], floor: Fraction
) -> None:
    choice = choose_within(trials, budget=most, total=60, majority=5, floor=floor)
    margin = choose(trials, total=60, majority=5, margin=floor)
    assert (choice.best, choice.needed, choice.candidates) == (margin.best, margin.needed, margin.candidates)
    for pick in choice.picks:
        assert Fraction(choice.best - pick.point.correct, 60) * 100 <= floor
        assert pick.fits == all(claimed <= limit for claimed, limit in zip(pick.point.claimed, most, strict=True))


@given(grids(), FLOORS)
def test_a_huge_budget_takes_the_most_accurate(trials: tuple[Trial, ...], floor: Fraction) -> None:
    choice = choose_within(trials, budget=HUGE, total=60, majority=5, floor=floor)
    assert choice.winner.point.correct == max(point.correct for trial in trials for point in trial.staircase)


def test_one_unit_decides_at_the_boundary() -> None:
    exact = 10**18
    trials = (Trial(0, 95, (point(0.0, 95, exact), point(0.1, 94, 1))),)
    for limit, theta in ((exact, 0.0), (exact - 1, 0.1)):
        assert chosen(trials, (limit,)).winner.point.theta == theta


def test_what_the_margin_rule_refuses_is_refused_in_its_words() -> None:
    for trials, majority in (((), 10), (TABLE, 95)):
        with pytest.raises(NothingToCommit) as margin:
            choose(trials, total=100, majority=majority, margin=Fraction(2))
        with pytest.raises(NothingToCommit) as within:
            choose_within(trials, budget=HUGE, total=100, majority=majority, floor=Fraction(2))
        assert str(within.value) == str(margin.value)
    with pytest.raises(Damaged, match="trial 0 has 95 right answers unpruned, but no point"):
        chosen((Trial(0, 95, (point(0.0, 50, 1, 1),)),), HUGE)
    with pytest.raises(ValueError, match="sparsity is 'neurons'"):
        chosen(TABLE, HUGE, sparsity="neurons")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the margin is 101 percentage points"):
        chosen(TABLE, HUGE, floor="101")


# ── Over the tasks of a run ───────────────────────────────────────────────────────────────────────────────────────────


@given(st.data(), st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_the_last_group_lasts_for_all_tasks_where_each_has_a_point_that_fits(
    data: st.DataObject, tasks: int, above: int, others: int
) -> None:
    """With a single head every task claims a unit of its own there; a width of one a task is enough."""
    free, earlier = [others, tasks + above], []
    for _ in range(tasks):
        most = budget(free, last=1, tasks=tasks, earlier=earlier)
        assert most[1] >= 1, "a task finds no share"
        points = [
            point(place / 10, 90 - place, data.draw(st.integers(0, free[0])), data.draw(st.integers(1, free[1])))
            for place in range(data.draw(st.integers(0, 3)))
        ]
        points.append(point(0.9, 80, data.draw(st.integers(0, most[0])), data.draw(st.sampled_from((1, most[1])))))
        trial = Trial(0, points[0].correct, tuple(points))
        winner = choose_within((trial,), budget=most, total=100, majority=10, floor=Fraction(20)).winner
        assert winner.fits
        earlier.append(winner.point.claimed)
        free = [left - claimed for left, claimed in zip(free, winner.point.claimed, strict=True)]
        assert min(free) >= 0
    assert sum(claimed for _, claimed in earlier) <= tasks + above


@given(st.integers(1, 100), st.integers(2, 9))
def test_tasks_that_are_alike_after_the_first_always_fit_while_they_last(claim: int, tasks: int) -> None:
    """Another group: the first takes half, the others as much each as leaves nothing over."""
    width = 2 * (tasks - 1) * claim
    free, earlier = (width, tasks), []
    for claimed in (width // 2, *[claim] * (tasks - 1)):
        assert claimed <= budget(free, last=1, tasks=tasks, earlier=earlier)[0]
        earlier.append((claimed, 1))
        free = (free[0] - claimed, free[1] - 1)
    assert free == (0, 0)


def test_the_rule_imports_no_torch() -> None:
    code = "import sys, clnp.budget; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
