"""How far all runs of a database are, in a line each."""

import io
import json
import runpy
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import event, select, update

from search import ledger, records
from search.ledger import Commits, Leases, Openings, Runs
from search.reports.overview import overview
from search.reports.status import status
from search.store import open_store
from search.tables import TABLES, print_table

SCALE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "scale.py")))
SMALL = {"tasks": {"count": 7}, "replicas": 1, "grid": {"alpha": [0.001], "learning_rate": [0.001, 0.002, 0.003]}}
COPIES = 15


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(request, tmp_path_factory):
    """16 runs in every state, on SQLite and on PostgreSQL, to be read only."""
    folder = tmp_path_factory.mktemp("many")
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), folder / 'many.db')}"
    else:
        server, template = request.getfixturevalue("postgres"), request.getfixturevalue("postgres_template")
        server.execute(f"CREATE DATABASE many TEMPLATE {template}")
        url = server.url("many")
    with open_store(url, str(folder / "artifacts")) as store:
        SCALE.record(store, SCALE.make_experiment(**SMALL))
        SCALE.copy(store, COPIES)
        yield store


@pytest.fixture
def one(many, tmp_path):
    """A copy of it in a file, to be changed."""
    if many.database.path is None:
        pytest.skip("what is read is the same")
    with sqlite3.connect(many.database.path) as source, sqlite3.connect(tmp_path / "copy.db") as target:
        source.backup(target)
    with open_store(f"sqlite:///{tmp_path / 'copy.db'}") as store:
        yield store


def count_statements(store, work):
    statements = []
    listener = lambda *arguments: statements.append(arguments[2])  # noqa: E731
    event.listen(store.database.engine, "before_cursor_execute", listener)
    try:
        work()
    finally:
        event.remove(store.database.engine, "before_cursor_execute", listener)
    return len(statements)


def printed(report):
    stream = io.StringIO()
    print_table(TABLES["overview"](report), stream)
    return stream.getvalue().splitlines()


def test_an_empty_database_has_no_runs(store):
    report = overview(store)
    assert (report["runs"], report["states"]) == ([], {})
    assert "clnp-search run quickstart makes one" in printed(report)[0]


def test_it_says_of_every_run_what_its_whole_status_says(many):
    for run in overview(many)["runs"]:
        (whole,) = status(many, run["run"])["runs"]
        assert [run[key] for key in ("state", "reason", "count")] == [
            whole[key] for key in ("state", "reason", "count")
        ]
        assert run["replicas"] == len(whole["replicas"])
        assert run["committed"] == sum(replica["committed"] for replica in whole["replicas"])
        assert run["tasks"] == len(whole["replicas"]) * whole["count"]
        cells = [replica["cells"] for replica in whole["replicas"] if replica["cells"]]
        found = {key: sum(one[key] for one in cells) for key in ("total", "finished")} if cells else None
        assert run["cells"] == found
        tests = [test["accuracy"] for replica in whole["replicas"] for test in replica["test"]]
        assert run["accuracy"] == pytest.approx(sum(tests) / len(tests))


def test_states_come_in_turn_and_the_last_change_first(many):
    report = overview(many)
    assert report["states"] == {"running": 2, "stopped": 2, "open": 2, "finished": 10}
    states = [run["state"] for run in report["runs"]]
    assert states == [state for state, count in report["states"].items() for _ in range(count)]
    for state in report["states"]:
        changes = [run["updated"] for run in report["runs"] if run["state"] == state]
        assert changes == sorted(changes, reverse=True)
    running = report["runs"][0]
    assert running["holder"] == {"host": "node-7", "pid": 7, "live": True}
    assert running["cells"] == {"total": 3, "finished": 2}


def test_neither_statements_nor_parsed_records_grow_with_the_runs(many, finished, monkeypatch):
    """What 1,000 runs take is in tests/benchmarks/README.md; what it is made of is counted here."""
    parsed = []
    monkeypatch.setattr(ledger, "read", lambda *arguments: parsed.append(arguments))
    monkeypatch.setattr(records, "load", lambda *arguments: parsed.append(arguments))
    assert len(finished.overview()) == 1
    assert len(many.overview()) == COPIES + 1
    assert count_statements(finished, finished.overview) == count_statements(many, many.overview) <= 10
    assert parsed == []


def test_a_damaged_record_spoils_its_own_line_only(one):
    """Promise 8's other side: what cannot be read is named, and hides no other run."""
    sound = {run["run"]: run for run in overview(one)["runs"]}
    first = select(Runs.id).where(Runs.name == "run-1").scalar_subquery()
    second = select(Runs.id).where(Runs.name == "run-2").scalar_subquery()
    with one.database.engine.begin() as connection:
        connection.execute(update(Commits).where(Commits.run_id == first).values(record='{"matrix": [{"correct"'))
        connection.execute(update(Openings).where(Openings.run_id == second).values(record="[]"))
    report = overview(one)
    for run in report["runs"]:
        assert run["damaged"] == (run["run"] in ("run-1", "run-2"))
        if not run["damaged"]:
            assert run == sound[run["run"]]
    damaged = [line.split()[0] for line in printed(report)[3:] if "damaged" in line]
    assert sorted(damaged) == ["run-1", "run-2"]


def test_a_line_a_run_with_why_it_stopped(many):
    report = overview(many)
    head, empty, columns, *lines = printed(report)
    assert head == f"16 runs in {many.url}: 2 running, 2 stopped, 2 open, 10 finished"
    assert (empty, columns.split()) == ("", ["run", "state", "tasks", "cells", "test", "last", "change", "why"])
    assert len(lines) == COPIES + 1
    assert lines[0].startswith("run-7    running on node-7  5 of 7  2 of 3  ")
    stopped = [line for line in lines if " stopped " in line]
    assert all(line.endswith("replica 1, task 6: cell 2 was lost 3 times") for line in stopped)
    report["runs"][2]["reason"] = f"{'long ' * 30}\nand more"
    assert "and more" not in "".join(printed(report))
    assert max(map(len, printed(report))) < 150


def test_a_fresh_run_and_one_whose_driver_is_gone(store, experiment, simulate):
    store.take("made-up", experiment_json=experiment().to_json(), data="", versions={}).release("interrupted")
    (fresh,) = overview(store)["runs"]
    assert [fresh[key] for key in ("state", "committed", "tasks", "cells", "accuracy")] == ["open", 0, 6, None, None]
    simulate(experiment(), stop_after=11, keep_lease=True)
    (held,) = overview(store)["runs"]
    assert (held["state"], held["running"]) == ("running", len(store.jobs("made-up")))
    assert held["updated"] > fresh["updated"]
    with store.database.engine.begin() as connection:
        connection.execute(update(Leases).values(expires=0.0))
    (left,) = overview(store)["runs"]
    assert (left["state"], left["running"], left["holder"]["live"]) == ("open", 0, False)
    line = printed(overview(store))[-1]
    assert line.endswith(f"  left by process {left['holder']['pid']} on {left['holder']['host']}, which is gone")


def test_the_report_is_json(many):
    report = overview(many)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_reads_in_short_imports_no_optuna_and_no_experiment(sqlite_url):
    """Promise 8: it is there at once. Ray, torch and Optuna take seconds together, experiments half a second."""
    program = (
        "import sys; from search.cli import main; main(['status', '--storage', sys.argv[1]]); "
        "print([name for name in ('torch', 'ray', 'optuna', 'numpy', 'search.experiment') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, sqlite_url], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
