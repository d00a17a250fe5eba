"""The rule at another margin, reported."""

import io
import json

import pytest

from search.errors import BadInput
from search.reports.replay import replay
from search.tables import TABLES, print_table


def test_at_the_same_margin_everything_is_the_same(finished):
    """Promise 4: selection is a pure function of records."""
    for replica in replay(finished, "made-up", "1.0")["replicas"]:
        assert [task["outcome"] for task in replica["tasks"]] == ["same"] * 3
        assert all(task["cost"] == 0 and set(task["freed"].values()) == {0} for task in replica["tasks"])


def test_after_the_first_task_that_differs_the_others_are_given_the_history(finished):
    """Promise 4: exact up to the first task whose winner would differ."""
    for replica in replay(finished, "made-up", "50")["replicas"]:
        outcomes = [task["outcome"] for task in replica["tasks"]]
        first = outcomes.index("would differ")
        assert outcomes == ["same"] * first + ["would differ"] + ["given the history"] * (2 - first)


def test_what_would_be_picked_is_of_the_records(finished):
    history = finished.history("made-up")
    for replica in replay(finished, "made-up", "3/2")["replicas"]:
        for task in replica["tasks"]:
            points = history.cells[replica["replica"] - 1, task["task"] - 1][task["winner"]["cell"]].staircase
            point = next(point for point in points if point.theta == task["winner"]["theta"])
            assert task["accuracy"] == point.correct / 1000
            assert point.correct >= task["needed"]


@pytest.mark.parametrize("margin", ["", "x", "nan", "1/0", "-0.1", "100.1", "inf"])
def test_a_margin_that_is_none_is_refused(store, margin):
    with pytest.raises(BadInput, match="--margin"):
        replay(store, "made-up", margin)


def test_a_run_without_a_commit_says_so(store, experiment, simulate):
    simulate(experiment(), stop_after=2)
    report = replay(store, "made-up", "1")
    assert [replica["tasks"] for replica in report["replicas"]] == [[], []]
    stream = io.StringIO()
    print_table(TABLES["replay"](report), stream)
    text = stream.getvalue()
    assert text.count("no task is committed yet; status made-up says how far it is") == 2
    assert "would be" not in text
    assert "cost" not in text


def test_the_report_is_json(finished):
    report = replay(finished, "made-up", "0.05")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_run_under_a_budget_is_replayed_by_the_margin_rule(store, experiment, simulate):
    """At its own floor the margin rule prunes as far as it may, whatever the budget left."""
    simulate(experiment(rule={"kind": "budget", "tasks": 3, "floor": 2.0}, replicas=1))
    report = replay(store, "made-up", "2")
    (replica,) = report["replicas"]
    first = replica["tasks"][0]
    points = store.history("made-up").cells[0, 0][first["winner"]["cell"]].staircase
    assert first["winner"]["theta"] == [point.theta for point in points if point.correct >= first["needed"]][-1]
    assert first["outcome"] == "would differ"
    assert sum(first["freed"].values()) > 0
    stream = io.StringIO()
    print_table(TABLES["replay"](report), stream)
    assert "The run's own rule is the budget rule; what is tried here is the margin rule." in stream.getvalue()
    assert "floor" in stream.getvalue()
