"""What a run has come to."""

import dataclasses
import json
from statistics import mean

import pytest

from search.records import dump
from search.reports.final import final


def test_every_task_and_the_whole_matrix_are_there(finished):
    report = final(finished, "made-up")
    commits = finished.history("made-up").commits
    assert (report["changed"], report["fingerprints"]) == (0, 6)
    for replica, found in enumerate(report["replicas"]):
        assert [task["theta"] for task in found["tasks"]] == [commits[replica, task].point.theta for task in range(3)]
        assert [len(row) for row in found["matrix"]] == [1, 2, 3]
    last = [mean(entry["accuracy"] for entry in found["matrix"][-1]) for found in report["replicas"]]
    assert report["accuracy"] == pytest.approx(mean(last))


def test_a_fingerprint_that_changed_is_counted(finished):
    """Promise 1: re-measured, never copied."""
    record = finished.history("made-up").commits[0, 2]
    other = dataclasses.replace(record, fingerprints=("0" * 64, *record.fingerprints[1:]))
    with finished.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE clnp_commits SET record = ? WHERE replica = 0 AND task = 2", (dump(other),))
    assert final(finished, "made-up")["changed"] == 1


def test_a_run_without_a_commit_has_empty_tables(store, experiment, simulate):
    simulate(experiment(), stop_after=1)
    report = final(store, "made-up")
    assert (report["accuracy"], report["deviation"], report["replicas"][0]["matrix"]) == (None, None, [])


def test_the_report_is_json(finished):
    report = final(finished, "made-up")
    assert json.loads(json.dumps(report, allow_nan=False)) == report
