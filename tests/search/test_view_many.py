"""The live view of a run of 100 replicas, 20 tasks and 1,000 jobs: what a terminal shows, and one line a minute."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from search.records import Score
from search.snapshot import ReplicaState, RunningJob, Snapshot
from search.tables import TABLES, print_table
from search.view import progress_line, render


def state(index: int, committed: int, *, stopped: str | None = None) -> ReplicaState:
    tests = tuple(Score(900 + task, 1000) for task in range(committed))
    cells = 24 if committed < 20 else 0
    return ReplicaState(index, committed, 20, 5 if cells else 0, 1 if cells else 0, cells, tests, (11, 7), stopped)


MANY = Snapshot(
    replicas=(*(state(index, min(20, 3 + index)) for index in range(99)), state(99, 2, stopped="no unit is left")),
    running=tuple(
        RunningJob(job, "stack", job % 100, 3, (job % 24,), f"node-{job % 9}:12", 12, 30, 0.9) for job in range(1000)
    ),
)


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_a_terminal(width):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render("wide", MANY, 83.0))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "100 replicas: 1,829 of 2,000 tasks committed; of the open ones 90 of 432 cells (18 diverged)" in " ".join(
        lines
    )
    assert "… and 90 more replicas that have come further" in text
    assert "… and 990 more jobs" in text
    rows = [line.split()[0] for line in lines if " of 20 " in line]
    assert rows == ["100", *map(str, range(1, 10))], "those that are furthest behind, the stopped one first"


def test_many_tasks_are_summed_up():
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(render("long", Snapshot((state(0, 10), state(1, 20)), ()), 1.0))
    text = console.export_text()
    assert "90.00  90.10  " in text
    assert "mean 90.95, last 91.90 (20)" in text


def test_what_has_no_score_is_counted_by_its_reason():
    """Of one replica and of all together: who was dropped is finished, and no candidate."""
    gone = replace(state(0, 3), dropped=4)
    assert progress_line(Snapshot((gone,), ())) == "replica 1 task 4 of 20, 5 of 24 cells (1 diverged, 4 dropped)"
    many = Snapshot((replace(gone, diverged=0), *MANY.replicas[1:]), ())
    assert "90 of 432 cells (17 diverged, 4 dropped)" in progress_line(many)


def test_progress_is_one_readable_line():
    line = progress_line(MANY)
    assert line == (
        "100 replicas: 1,829 of 2,000 tasks committed; of the open ones 90 of 432 cells (18 diverged); 1 replica "
        "stopped; 1,000 jobs running"
    )


def test_status_lists_the_first_jobs_alone(finished_status):
    stream = io.StringIO()
    print_table(TABLES["status"](finished_status), stream)
    text = stream.getvalue()
    assert text.count("node-1") == 20
    assert "… and 980 more; --format json has all of them" in text


@pytest.fixture
def finished_status():
    job = {"kind": "stack", "replica": 1, "task": 1, "cells": [0], "worker": "node-1", "epoch": 1, "accuracy": 0.9}
    replica = {"replica": 1, "task": 1, "cells": None, "units": {"a": 2}, "free": {"a": 1}, "test": [], "forecast": {}}
    keys = dict.fromkeys(("reason", "origin", "seconds_left", "holder", "last_attempt", "memory"))
    run = {"run": "wide", "state": "open", "count": 1, "tasks": "digits", "head": "single", "theta_scale": "shared"}
    run |= {
        "replicas": [replica],
        "units": {"a": 2},
        "running": [{**job, "job": number, "started": 1.0} for number in range(1000)],
    }
    return {"storage": "sqlite:///x", "runs": [{**keys, **run, "attempts": 1, "notes": []}]}
