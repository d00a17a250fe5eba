"""What must not grow with runs, replicas and trials is counted here; seconds are no test: README.md has some."""

import runpy
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest

from search.replica import Replica
from search.store import open_store

SCALE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scale.py"))))
GRID = {"alpha": [0.001], "learning_rate": [0.001, 0.002, 0.003]}


def test_what_the_driver_works_out_for_a_trial_does_not_grow_with_replicas(monkeypatch):
    """Every call of a run asks every replica what is next; only those that changed may have to think."""
    thought = []
    find = Replica._find_next
    monkeypatch.setattr(Replica, "_find_next", lambda self: thought.append(self.index) or find(self))
    a_trial = []
    for replicas, workers in ((2, 4), (16, 32)):
        thought.clear()
        meter, trials = SCALE.drive(replicas, workers, 2, 6)
        assert trials == replicas * 12
        assert len(meter.calls["take"]) == replicas * 14
        a_trial.append(len(thought) / trials)
    # Its own changes: handed out, returned, recorded; and its share of what the commit does.
    assert max(a_trial) < 3.5


def test_a_table_a_part(capsys):
    head, line, row = SCALE.driver_rows([(2, 4, 1, 2)])
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.startswith("| 2 | 4 | 1 | 2 | 4 | ")


@pytest.fixture
def store(tmp_path):
    with open_store(f"sqlite:///{tmp_path / 'scale.db'}") as store:
        yield store


def test_the_statements_of_a_write_do_not_grow_with_what_is_there(store):
    """Neither with the run's own trials nor with other runs'."""
    first = SCALE.write(store, "first", tasks=1, cells=8)
    second = SCALE.write(store, "second", tasks=1, cells=8)
    calls = {name: [call[2] for call in calls] for name, calls in first.calls.items()}
    assert len(calls["add_cell"]) == 8
    for name in ("hand_out", "add_cell", "close_job", "add_commit", "remove_artifacts"):
        half = (len(calls[name]) + 1) // 2
        again = [call[2] for call in second.calls[name]]
        # The lease is renewed beside it now and then.
        assert mean(calls[name][-half:]) <= mean(calls[name][:half]) + 2
        assert mean(again) <= mean(calls[name]) + 2
    head, line, *rows = SCALE.write_rows(first, second)
    assert {row.count("|") for row in (head, line, *rows)} == {8}


def test_copies_are_whole_runs(store):
    SCALE.record(store, SCALE.make_experiment(tasks={"count": 6}, replicas=1, grid=GRID))
    SCALE.copy(store, 8)
    recorded, copied, partly = (store.history(name) for name in ("made-up", "run-8", "run-2"))
    assert (copied.openings, copied.cells, copied.commits) == (recorded.openings, recorded.cells, recorded.commits)
    assert len(partly.commits) == SCALE.CUT
    assert {place: len(cells) for place, cells in partly.cells.items()}[0, SCALE.CUT] == 2
    Path(store.run("run-3").artifacts).mkdir(parents=True)  # its rows name tensors
    with store.take("run-3", experiment_json={}, data="d" * 64, versions={}) as writer:
        writer.add_cell(0, SCALE.CUT, recorded.cells[0, SCALE.CUT][2])
    assert set(store.history("run-3").cells[0, SCALE.CUT]) == {0, 1, 2}
