"""One commit explained."""

import dataclasses
import io
import json

import pytest

from search.backends.simulated import Fate
from search.errors import BadInput
from search.records import dump
from search.reports.final import final
from search.reports.show import show
from search.tables import TABLES, print_table


def test_the_last_commit_of_the_first_replica_is_explained(finished):
    report = show(finished, "made-up")
    record = finished.history("made-up").commits[0, 2]
    assert (report["replica"], report["task"], report["count"]) == (1, 3, 3)
    assert report["best"]["correct"] == record.best
    assert report["needed"]["correct"] == record.needed
    assert report["alpha"] == dict(zip(("hidden1", "hidden2", "output"), record.winner.alpha, strict=True))
    assert (report["learning_rate"], report["theta"]) == (record.winner.learning_rate, record.point.theta)
    assert report["validation"]["correct"] == record.validation.correct
    assert report["test"]["correct"] == record.test.correct
    assert tuple(report["claimed"].values()) == record.claimed
    assert tuple(report["free"].values()) == record.free
    assert report["fingerprint"] == record.fingerprint
    assert report["explained"]
    assert report["differed"] == []


def test_candidates_are_those_of_the_record_each_at_the_largest_threshold_within_the_margin(finished):
    """Promise 4: the records explain the commit."""
    for replica, task in finished.history("made-up").commits:
        report = show(finished, "made-up", task=task + 1, replica=replica + 1)
        history = finished.history("made-up")
        record = history.commits[replica, task]
        trials = report["trials"]
        assert tuple(trial["cell"] for trial in trials if trial["candidate"]) == record.candidates
        assert [trial["cell"] for trial in trials if trial["winner"]] == [record.winner.index]
        for trial in trials:
            if not trial["candidate"]:
                assert trial["pruned"] is None
                assert trial["diverged"] or trial["unpruned"]["correct"] < record.needed
                continue
            reaching = [p for p in history.cells[replica, task][trial["cell"]].staircase if p.correct >= record.needed]
            assert trial["pruned"]["theta"] == max(reaching, key=lambda point: point.theta).theta


def test_what_had_to_differ_is_said(store, experiment, simulate):
    def plan(job, attempt):
        lost = job.kind == "stack" and len(job.cells) > 1 and job.replica == 0 and attempt < 2
        return Fate(1.0, lost="the worker died") if lost else Fate(1.0)

    simulate(experiment(tasks={"count": 1}), plan=plan)
    report = show(store, "made-up")
    assert [line for line in report["differed"] if "trained in a stack of cell 0 instead of cells 0–3" in line]
    assert show(store, "made-up", replica=2)["differed"] == []


def test_missing_cells_are_said(store, experiment, simulate):
    def plan(job, attempt):
        lost = job.kind == "stack" and any(cell.index == 2 for cell in job.cells)
        return Fate(1.0, lost="out of memory") if lost else Fate(1.0)

    simulate(experiment(tasks={"count": 1}, replicas=1, worker={"cells": 1}), plan=plan, allow_missing=True)
    report = show(store, "made-up")
    assert report["missing"] == [2]
    assert report["differed"] == ["committed without cell 2, lost too often"]


def test_diverged_trials_say_why(finished):
    trial = show(finished, "made-up")["trials"][3]
    assert (trial["diverged"], trial["unpruned"], trial["candidate"]) == ("not finite after epoch 1", None, False)


def test_a_commit_that_the_records_do_not_explain_is_said_to_be_so(finished):
    """Promise 4."""
    record = finished.history("made-up").commits[0, 2]
    other = dataclasses.replace(record, winner=dataclasses.replace(record.winner, index=3 - record.winner.index))
    with finished.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE clnp_commits SET record = ? WHERE replica = 0 AND task = 2", (dump(other),))
    assert not show(finished, "made-up")["explained"]


def test_a_place_that_is_not_there_is_refused(store, experiment, simulate):
    simulate(experiment(), stop_after=17)
    for place, message in (
        ({"replica": 3}, "--replica 3: run 'made-up' has replicas 1 to 2"),
        ({"replica": 0}, "--replica 0: run 'made-up' has replicas 1 to 2"),
        ({"task": 4}, "--task 4: run 'made-up' has tasks 1 to 3"),
        ({"task": 0}, "--task 0: run 'made-up' has tasks 1 to 3"),
        ({"task": 3}, "replica 1: task 3 is not committed yet; task 1 is; status made-up"),
    ):
        with pytest.raises(BadInput, match=message):
            show(store, "made-up", **place)


def test_a_run_without_a_commit_is_refused(store, experiment, simulate):
    simulate(experiment(), stop_after=1)
    with pytest.raises(BadInput, match="no task is committed yet; status made-up"):
        show(store, "made-up")


def test_the_report_is_json(finished):
    report = show(finished, "made-up")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("tasks", [6, 100])
def test_the_budget_rule_is_explained_by_its_limits(store, experiment, simulate, tasks):
    """Promise 4: by the run's own rule."""
    run = experiment(rule={"kind": "budget", "tasks": tasks, "floor": 2.0}, replicas=1)
    simulate(run)
    history = store.history("made-up")
    free = (32, 24)
    for task in range(3):
        report, record = show(store, "made-up", task=task + 1), history.commits[0, task]
        assert report["explained"]
        assert (report["rule"], report["margin"]) == ("budget", 2.0)
        limits = report["budget"]
        assert limits["hidden2"] == free[1] // (tasks - task)
        if task == 0:
            assert limits["hidden1"] == 16
        over = [name for name, units in report["claimed"].items() if units > limits[name]]
        assert report["over_budget"] == over == list(record.over_budget)
        for trial in report["trials"]:
            if trial["candidate"]:
                claimed = trial["pruned"]["claimed"]
                assert trial["pruned"]["over_budget"] == [name for name in limits if claimed[name] > limits[name]]
        text = printed(report)
        if over:
            assert "the candidate with the fewest new units: above the floor none fits the budget (over in" in text
            assert "winner, over budget" in text
        else:
            assert f"cell {report['cell']}, the most accurate that fits the budget" in text
        assert ", at a floor of 2 %" in text
        assert f"at most {limits['hidden1']} of hidden1, {limits['hidden2']} of hidden2" in text
        free = record.free
    if tasks == 100:
        ending = final(store, "made-up")
        assert ending["replicas"][0]["tasks"][0]["over_budget"] == list(history.commits[0, 0].over_budget)
        stream = io.StringIO()
        print_table(TABLES["final"](ending), stream)
        assert "replica 1 was over budget, even at the floor, in task 1 (" in stream.getvalue()


def printed(report):
    stream = io.StringIO()
    print_table(TABLES["show"](report), stream)
    return stream.getvalue()


def test_another_precision_than_float32_is_said(store, experiment, simulate):
    simulate(experiment(tasks={"count": 1}))
    report = show(store, "made-up")
    for precision, said in (("float32", False), ("bf16", True)):
        report["provenance"]["precision"] = precision
        out = io.StringIO()
        print_table(TABLES["show"](report), out)
        assert ("bf16 products in training" in out.getvalue()) is said
