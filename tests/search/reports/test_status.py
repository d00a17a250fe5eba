"""How far a run is, as the database tells it."""

import dataclasses
import io
import json

import pytest
from sqlalchemy import update

from clnp.budget import expected_claim
from search.backends.simulated import Fate, World
from search.errors import BadInput
from search.ledger import Leases
from search.reports.forecast import Forecast
from search.reports.status import status
from search.tables import TABLES, print_table


def test_an_unknown_name_is_refused_with_the_known_ones(store, experiment, simulate):
    simulate(experiment(), stop_after=1)
    with pytest.raises(BadInput, match=r"no run is called 'other' in .*; it holds made-up"):
        status(store, "other")


def test_a_finished_run(finished):
    (run,) = status(finished, "made-up")["runs"]
    assert (run["state"], run["seconds_left"], run["running"], run["holder"]) == ("finished", None, [], None)
    assert run["units"] == {"hidden1": 32, "hidden2": 24}
    commits = finished.history("made-up").commits
    for replica, found in enumerate(run["replicas"]):
        assert found["replica"] == replica + 1
        assert (found["committed"], found["task"], found["cells"]) == (3, None, None)
        assert [test["correct"] for test in found["test"]] == [commits[replica, task].test.correct for task in range(3)]
        assert tuple(found["free"].values()) == commits[replica, 2].free
    assert run["last_attempt"]["outcome"] == "finished"


def test_a_run_that_is_driven_now_shows_its_cells_and_jobs(store, experiment, simulate):
    simulate(experiment(), stop_after=11, keep_lease=True)
    (run,) = status(store, "made-up")["runs"]
    history = store.history("made-up")
    assert run["state"] == "running"
    assert run["holder"]["live"]
    for replica, found in enumerate(run["replicas"]):
        task = found["task"] - 1
        assert found["cells"]["finished"] == len(history.cells.get((replica, task), {}))
        assert found["cells"]["total"] == 4
    jobs = store.jobs("made-up")
    assert [job["job"] for job in run["running"]] == [job.id for job in jobs]
    assert len(jobs) > 0
    out = sum(found["cells"]["running"] for found in run["replicas"])
    assert out == sum(len(job.cells) for job in jobs if job.kind == "stack")
    assert all(1 <= job["replica"] <= 2 and job["task"] >= 1 for job in run["running"])


def test_nothing_runs_of_a_driver_that_is_gone(store, experiment, simulate):
    simulate(experiment(), stop_after=11, keep_lease=True)
    with store.database.engine.begin() as connection:
        connection.execute(update(Leases).values(expires=0.0))
    (run,) = status(store, "made-up")["runs"]
    assert store.jobs("made-up")
    assert (run["state"], run["running"]) == ("open", [])
    assert {found["cells"]["running"] for found in run["replicas"]} == {0}


def test_one_task_is_called_so(store, experiment, simulate):
    simulate(experiment(tasks={"count": 1}, replicas=1))
    stream = io.StringIO()
    print_table(TABLES["status"](status(store, "made-up")), stream)
    assert stream.getvalue().startswith("made-up, finished: 1 task of digits, single head, 1 replica\n")


def test_a_measurement_is_called_so(store, experiment):
    """It trains no cell of the grid."""
    run = experiment()
    stream = io.StringIO()
    with store.take(run.name, experiment_json=run.to_json(), data="d", versions={}) as writer:
        writer.hand_out("measure", 0, 0, ())
        print_table(TABLES["status"](status(store, run.name)), stream)
    (line,) = [line for line in stream.getvalue().splitlines() if line.lstrip().startswith("measurement")]
    assert line.split()[:3] == ["measurement", "1", "1"]


def test_before_the_first_commit_all_units_are_free(store, experiment, simulate):
    simulate(experiment(), stop_after=1)
    (run,) = status(store, "made-up")["runs"]
    assert run["replicas"][0]["free"] == {"hidden1": 32, "hidden2": 24}
    assert run["seconds_left"] is None


def test_diverged_cells_are_counted(store, experiment, simulate):
    world = World(diverges=lambda _, cell: cell.index == 3)
    simulate(experiment(replicas=1), stop_after=4, world=world)
    (run,) = status(store, "made-up")["runs"]
    history = store.history("made-up").cells[0, 0]
    assert (
        run["replicas"][0]["cells"]["diverged"] == sum(record.diverged is not None for record in history.values()) > 0
    )


@pytest.mark.parametrize("stop_after", [13, 24])
def test_the_time_left_is_what_the_rest_takes(store, experiment, simulate, stop_after):
    """Every job takes the same virtual time here, so the forecast must come close to what the rest then takes."""
    simulate(experiment(), stop_after=stop_after)
    (run,) = status(store, "made-up")["runs"]
    left = simulate(experiment())
    assert run["seconds_left"] == pytest.approx(left, rel=0.35)


def test_a_run_that_stopped_has_no_time_left(store, experiment, simulate):
    run = experiment(replicas=1, retries=0, worker={"cells": 1})
    simulate(run, plan=lambda job, _: Fate(1.0, lost="its node is gone" if job.task == 1 else None))
    store.take("made-up", experiment_json=run.to_json(), data="d" * 64, versions={}).finish("stopped", "lost too often")
    (found,) = status(store, "made-up")["runs"]
    assert (found["state"], found["replicas"][0]["committed"], found["seconds_left"]) == ("stopped", 1, None)


def test_other_versions_are_said_as_the_attempt_wrote_them_down(store, experiment, simulate):
    simulate(experiment(), stop_after=3)
    with store.take("made-up", experiment_json={}, data="", versions={"torch": "2.14.0"}) as writer:
        writer.note("since the last attempt: torch was 2.13.0, is 2.14.0")
    (run,) = status(store, "made-up")["runs"]
    assert run["attempts"] == 2
    assert run["notes"] == ["attempt 2: since the last attempt: torch was 2.13.0, is 2.14.0"]


def test_the_report_is_json(store, experiment, simulate):
    simulate(experiment(), stop_after=11, keep_lease=True)
    report = status(store, "made-up")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_forecast_says_at_which_task_a_layer_is_full(store, experiment, simulate):
    """By what the tasks since the first claimed on average (Sec. 3.1), the first alone while there is no other."""
    run = experiment(replicas=1, tasks={"count": 3})
    simulate(run, stop_after=1)
    assert status(store, "made-up")["runs"][0]["replicas"][0]["forecast"] == {}
    simulate(run)
    commits = store.history("made-up").commits
    claims = [commits[0, task].claimed[1] for task in range(3)]
    free = commits[0, 2].free[1]
    found = status(store, "made-up")["runs"][0]["replicas"][0]["forecast"]["hidden2"]
    claimed = (claims[1] + claims[2]) / 2
    more = pytest.approx(free / claimed)
    assert found == {
        "claimed": claimed,
        "more": more,
        "full": None,
        "count": 3,
        "budgeted": False,
        "grows": False,
    }
    with store.take("made-up", experiment_json={}, data="", versions={}) as writer:
        writer.update_run(experiment(replicas=1, tasks={"count": 40}).to_json())
    found = status(store, "made-up")["runs"][0]["replicas"][0]["forecast"]["hidden2"]
    assert found["full"] == 3 + int(free // claimed) + 1
    assert found["more"] == pytest.approx(free / claimed - 37)


def test_under_the_budget_rule_the_units_are_to_last_for_the_tasks_that_share_them(store, experiment, simulate):
    simulate(experiment(replicas=1, rule={"kind": "budget", "tasks": 25, "floor": 2.0}))
    report = status(store, "made-up")
    found = report["runs"][0]["replicas"][0]["forecast"]["hidden2"]
    assert (found["count"], found["budgeted"]) == (25, True)
    assert 3 < found["full"] < 25
    stream = io.StringIO()
    print_table(TABLES["status"](report), stream)
    assert f"full at task {found['full']} of 25 budgeted" in stream.getvalue()
    assert "for all 3 tasks" not in stream.getvalue()


@pytest.mark.parametrize(
    ("claims", "free", "tasks", "full", "more"),
    [
        ((12,), 18, 2, 3, -0.5),  # the first task alone: 12 more fit once
        ((12, 6), 18, 3, None, 0.0),
        ((12, 6), 17, 3, 5, -1 / 6),
        ((12, 0), 0, 3, None, None),  # what claims nothing fits for ever
        ((12, 6), 0, 1, 3, -1.0),
    ],
)
def test_what_the_budget_rule_expects_is_what_is_forecast(claims, free, tasks, full, more):
    found = Forecast("hidden2", expected_claim(claims), free, tasks, len(claims) + tasks, grows=False)
    assert (found.full, found.more) == (full, pytest.approx(more))
    assert dataclasses.replace(found, grows=True).full is None
