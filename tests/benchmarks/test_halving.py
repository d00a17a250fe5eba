"""What the benchmark compares is the same search without halving and with it; how long it takes is no test."""

import runpy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

from clnp.forgetting import Choice, Pick, Point
from clnp.halving import Halving
from clnp.tasks import permuted
from clnp.training import Settings

BENCHMARK = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("halving.py"))))

SMALL = replace(
    BENCHMARK.GRIDS["digits-6"],
    hidden=(24, 24),
    members=BENCHMARK.grid(((1e-4,) * 3, (0.1,) * 3), (0.01, 1e-5)),
    settings=Settings(epochs=3, batch_size=32),
    halvings=BENCHMARK.halvings(("5",), (1,), (1, 2)),
    tasks=2,
)


def test_a_row_for_each_halving():
    lines = list(BENCHMARK.rows("small", SMALL, 1))
    assert [line[:3] for line in lines] == [["small", "1 of 3", "5"], ["small", "1 and 2 of 3", "5"]]
    assert {len(line) for line in lines} == {len(BENCHMARK.HEAD)}
    assert all(line[4].endswith(" of 2") for line in lines), "a seed, two tasks"


def test_without_halving_nobody_is_dropped_and_with_it_never_a_candidate_of_what_is_left():
    tasks = permuted("digits", count=2, seed=0, validation=0.1)
    for plain, *halved in BENCHMARK.searches(tasks, SMALL, 0):
        assert not plain.dropped
        assert sorted(plain.networks) == list(range(4))
        for found in halved:
            assert found.dropped
            assert not found.dropped & set(found.choice.candidates)
            assert found.dropped.isdisjoint(found.networks)


def test_what_a_row_counts():
    def found(winner, units, dropped, candidates, training, scanning):
        point = Point(0.1, 90, (units, 1), 0)
        choice = Choice(90, 89, tuple(Pick(index, point) for index in candidates), Pick(winner, point))
        networks = {index: None for index in range(4) if index not in dropped}
        return BENCHMARK.Found(choice, frozenset(dropped), networks, training, scanning)

    pairs = [
        (found(0, 9, (), (0, 1), 3.0, 1.0), found(0, 9, (2, 3), (0,), 1.0, 0.5)),
        (found(0, 9, (), (0, 1), 3.0, 1.0), found(2, 19, (0,), (2,), 1.0, 0.5)),
        (found(0, 9, (), (0, 1), 3.0, 1.0), found(2, 19, (1,), (2,), 1.0, 0.5)),
    ]
    assert BENCHMARK.row("x", Halving((2, 5), Fraction("0.5")), 9, pairs) == [
        "x",
        "2 and 5 of 9",
        "0.5",
        "1.3 of 4",
        "2 of 3",
        "1 of 3",
        "2 of 3",
        "10.0",
        "16.7",
        "3.00",
        "2.67",
    ]


def test_the_grids_are_halved_before_their_end():
    for asked in BENCHMARK.GRIDS.values():
        assert all(halving.epochs[-1] < asked.settings.epochs for halving in asked.halvings)
        assert all(halving.margin >= Fraction(asked.margin) for halving in asked.halvings)
