"""How numbers, times and sizes are written for people."""

import pytest

from search.text import duration, first_sentence, members, number, percent, plural, size, theta, times


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.002, "0.002"),
        (1e-4, "1e-4"),
        (1e-5, "1e-5"),
        (3.1623e-4, "3.1623e-4"),
        (-1e-7, "-1e-7"),
        (999999, "999999"),
        (1e6, "1e6"),
        (2.5e300, "2.5e300"),
    ],
)
def test_a_number_is_short_and_the_same_number(value, text):
    assert number(value) == text
    assert float(text) == value


def test_the_first_sentence_is_what_happened():
    assert first_sentence("4.5 of 6 is full. Do this. Or that") == "4.5 of 6 is full"
    assert first_sentence("it is full.\nit is empty. Look") == "it is full"
    assert first_sentence("") == ""


def test_digits_are_rounded():
    assert number(1.0600668756608609) == "1.06007"
    assert number(1.0600668756608609, digits=4) == "1.06"
    assert (theta(None), theta(5.016352e-6, digits=4)) == ("keep all", "5.016e-6")
    assert percent(0.97307) == "97.31 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (356400, "4 d 03 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (13_900, "13.9 kB"), (2e9, "2.0 GB"), (3e15, "3000.0 TB")],
)
def test_a_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("cells", "text"),
    [((3,), "cell 3"), ((0, 1, 2, 3), "cells 0–3"), ((0, 1, 2, 5), "cells 0–2, 5"), ((0, 2, 4), "cells 0, 2, 4")],
)
def test_the_cells_of_a_stack(cells, text):
    assert members(cells) == text


def test_plural():
    assert (plural(1, "task"), plural(2, "task"), plural(1200, "task")) == ("1 task", "2 tasks", "1,200 tasks")


def test_times():
    assert [times(count) for count in (0, 1, 2, 1200)] == ["0 times", "once", "2 times", "1,200 times"]
