"""``verify`` finds what changed, and only that."""

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import optuna
import pytest

from clnp.tensors import decode, encode, sha256
from search.artifacts import Artifacts
from search.audit import verify
from search.driver import run_experiment
from search.errors import BadInput
from search.experiment import Experiment
from search.store import open_store
from search.view import open_view

EXPERIMENT = Experiment.model_validate(
    {
        "name": "audited",
        "tasks": {"count": 3},
        "model": {"hidden": [24, 24]},
        "grid": {"alpha": [0.0003, 0.001], "learning_rate": [0.01]},
        "training": {"epochs": 4},
        "rule": {"margin": 3.0},
    }
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run, finished: three tasks of digits."""
    folder = tmp_path_factory.mktemp("audit")
    with open_store(f"sqlite:///{folder / 'a.db'}") as store, open(folder / "log", "w") as log, open_view(log) as view:
        run_experiment(store, EXPERIMENT, name="audited", backend="inline", view=view)
    return folder


@pytest.fixture
def store(finished, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(finished, tmp_path / "copy")
    with open_store(f"sqlite:///{tmp_path / 'copy' / 'a.db'}", create=False) as store:
        yield store


def artifact(store, task: int) -> Path:
    return Path(store.run("audited").artifacts) / f"{store.history('audited').commits[0, task].artifact}.safetensors"


def change_commit(store, task: int, change) -> None:
    """Change the ledger's record of a commit behind its back."""
    with sqlite3.connect(store.database.path) as connection:
        select = "SELECT record FROM clnp_commits WHERE task = ?"
        record = json.loads(connection.execute(select, (task,)).fetchone()[0])
        change(record)
        connection.execute(
            "UPDATE clnp_commits SET record = ?, artifact = ? WHERE task = ?",
            (json.dumps(record), record["artifact"], task),
        )
    connection.close()


def test_a_sound_run(store):
    """Promise 1: every fingerprint and every test score is measured again after every commit."""
    report = verify(store, "audited")
    assert report["sound"]
    assert report["problems"] == report["remarks"] == []
    assert report["verdict"].startswith(
        "nothing old has changed by a bit: 3 commits, 6 fingerprints, 6 test scores re-measured"
    )
    losers_are_gone = len(Artifacts(store.run("audited").artifacts).list())
    assert report["artifacts"] == losers_are_gone == 6


def test_one_flipped_bit_of_a_commit_is_found_and_named(store):
    path = artifact(store, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = verify(store, "audited")
    assert not report["sound"]
    assert any(
        line.startswith("replica 1, task 2, the tensors of the commit") and str(path) in line
        for line in report["problems"]
    )
    assert "replica 1: task 1 is whole; from task 2 on it cannot be put together" in report["problems"]
    assert (report["commits"], report["fingerprints"]) == (1, 1)
    assert report["verdict"].startswith("2 problems")


def test_one_flipped_bit_of_a_winners_tensors_is_found_though_its_commit_is_whole(store):
    commit = store.history("audited").commits[0, 0]
    sha = store.history("audited").cells[0, 0][commit.winner.index].artifact
    path = Path(store.run("audited").artifacts) / f"{sha}.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    (problem,) = verify(store, "audited")["problems"]
    assert problem.startswith(f"replica 1, task 1, the tensors of cell {commit.winner.index}")
    assert str(path) in problem


def test_what_can_be_recovered_depends_on_what_the_file_is(store, tmp_path):
    """A commit's tensors, those of a cell of a committed task, and those of a cell of a task that is open."""
    commit = store.history("audited").commits[0, 2]
    cell = Path(
        store.run("audited").artifacts, f"{store.history('audited').cells[0, 2][commit.winner.index].artifact}.x"
    )
    paths = artifact(store, 2), cell.with_suffix(".safetensors")
    for path in paths:
        path.unlink()
    problems = verify(store, "audited")["problems"]
    assert len(problems) == 3
    of_cell, of_commit = problems[:2]
    assert of_cell.startswith(f"replica 1, task 3, the tensors of cell {commit.winner.index}: {paths[1]} is missing")
    assert "The commit and all later tasks are whole without it; only this trial's unpruned network is lost" in of_cell
    assert of_commit.startswith(f"replica 1, task 3, the tensors of the commit: {paths[0]} is missing. Put back a copy")
    assert "In this replica tasks 1 to 2 are whole without it, task 3 and all later ones need it" in of_commit
    assert "--name NEW" in of_commit
    with sqlite3.connect(store.database.path) as connection:
        connection.execute("DELETE FROM clnp_commits WHERE task = 2")
    connection.close()
    problems = verify(store, "audited")["problems"]
    of_open = next(line for line in problems if str(paths[1]) in line)
    assert "optuna delete-study --study-name audited/replica-0/task-02 --storage URL" in of_open
    assert "it trains all cells of this task anew" in of_open
    assert "only this trial's" not in of_open


def test_the_advice_for_a_cell_of_an_open_task_works(store, capsys):
    """Without the study its cells count no longer, and the same command trains them again, hash for hash."""
    before = store.history("audited")
    winner = before.cells[0, 2][before.commits[0, 2].winner.index]
    with sqlite3.connect(store.database.path) as connection:
        connection.execute("DELETE FROM clnp_commits WHERE task = 2")
        connection.execute("UPDATE clnp_runs SET state = 'open'")
    connection.close()
    path = Path(store.run("audited").artifacts) / f"{winner.artifact}.safetensors"
    path.write_bytes(b"damaged")
    optuna.delete_study(study_name="audited/replica-0/task-02", storage=f"sqlite:///{store.database.path}")
    with open_view(sys.stderr) as view:
        run_experiment(store, EXPERIMENT, name="audited", backend="inline", view=view)
    after = store.history("audited")
    assert after.commits[0, 2].artifact == before.commits[0, 2].artifact
    assert after.commits[0, 2].fingerprints == before.commits[0, 2].fingerprints
    assert verify(store, "audited")["sound"]


def test_a_study_that_is_gone_is_named(store):
    """Not taken for trials that diverged."""
    optuna.delete_study(study_name="audited/replica-0/task-01", storage=f"sqlite:///{store.database.path}")
    (problem,) = verify(store, "audited")["problems"]
    assert problem == (
        "replica 1, task 2: its study audited/replica-0/task-01 or the winner's trial is gone from the database; "
        "restore the database from a backup"
    )


def test_a_missing_commit_is_found_and_named(store):
    path = artifact(store, 0)
    path.unlink()
    report = verify(store, "audited")
    assert any(f"{path} is missing" in line for line in report["problems"])
    assert "replica 1: none of its tasks is whole; from task 1 on it cannot be put together" in report["problems"]


def test_other_tensors_under_their_own_hash_have_another_fingerprint(store):
    """Promise 1: the hash of a file says what was stored, the fingerprint what the task answers by."""
    tensors = decode(artifact(store, 0).read_bytes())
    tensors["hidden1.weight"][0, 0] += 1.0
    data = encode(tensors)
    assert Artifacts(store.run("audited").artifacts).put(data) == sha256(data)
    change_commit(store, 0, lambda record: record.update(artifact=sha256(data)))
    report = verify(store, "audited")
    found = [line for line in report["problems"] if "the fingerprint is" in line]
    assert len(found) >= 3
    assert found[0].startswith("replica 1, task 1, after task 1")


def test_tensors_that_do_not_fit_the_network_are_damage(store):
    tensors = decode(artifact(store, 0).read_bytes())
    del tensors["hidden2.bias"]
    data = encode(tensors)
    Artifacts(store.run("audited").artifacts).put(data)
    change_commit(store, 0, lambda record: record.update(artifact=sha256(data)))
    problems = verify(store, "audited")["problems"]
    assert any("hidden2.bias" in line for line in problems)


def test_a_recorded_score_that_is_another_is_found(store):
    """Promise 1: re-measured, never copied."""
    change_commit(store, 2, lambda record: record["matrix"][0].update(correct=1))
    (problem,) = verify(store, "audited")["problems"]
    assert problem.startswith("replica 1, task 1, after task 3: ")
    assert problem.endswith("recorded as 1 of 297")


def test_a_score_that_differs_with_another_torch_is_a_remark(store):
    def change(record):
        record["matrix"][0]["correct"] -= 1
        record["provenance"]["versions"]["torch"] = "1.0.0"

    change_commit(store, 2, change)
    report = verify(store, "audited")
    assert report["sound"]
    (remark,) = report["remarks"]
    assert remark.startswith("1 test score came out otherwise although every fingerprint holds")
    assert "instead of 1.0.0" in remark


def test_a_fingerprint_that_a_later_commit_recorded_otherwise_is_found(store):
    """Promise 1."""
    change_commit(store, 2, lambda record: record["fingerprints"].__setitem__(0, "0" * 64))
    (problem,) = verify(store, "audited")["problems"]
    assert problem.startswith("replica 1, task 1, after task 3: the fingerprint is")


def test_a_commit_that_the_records_do_not_explain_is_found(store):
    """Promise 4."""
    index = store.history("audited").commits[0, 0].winner.index
    change_commit(store, 0, lambda record: record["winner"].update(index=1 - index))
    problems = verify(store, "audited")["problems"]
    assert any(f"the records give cell {index}" in line for line in problems)


def test_other_data_are_refused(store):
    with sqlite3.connect(store.database.path) as connection:
        connection.execute("UPDATE clnp_runs SET data = ?", ("0" * 64,))
    connection.close()
    with pytest.raises(BadInput, match="the data are other than the run's"):
        verify(store, "audited")


def test_missing_data_are_refused(store, tmp_path):
    with sqlite3.connect(store.database.path) as connection:
        connection.execute("""UPDATE clnp_runs SET experiment = replace(experiment, '"digits"', '"mnist"')""")
    connection.close()
    with pytest.raises(BadInput, match="MNIST is not in"):
        verify(store, "audited", data_dir=str(tmp_path))


def test_it_says_how_far_it_is(store):
    told: list[str] = []
    verify(store, "audited", note=told.append)
    assert told == ["replica 1, task 1 of 3", "replica 1, task 2 of 3", "replica 1, task 3 of 3"]


def test_the_budget_rule_is_what_a_run_under_it_is_checked_by(tmp_path):
    """Promise 4: what each task was to share is taken from the commits before it."""
    keys = {"tasks": {"count": 2}, "model": {"hidden": [64, 64]}, "training": {"epochs": 6}}
    grid = {"grid": {"alpha": [0.001], "learning_rate": [0.01]}, "rule": {"kind": "budget", "tasks": 2, "floor": 10.0}}
    experiment = Experiment.model_validate({"name": "audited", **keys, **grid})
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store, open(tmp_path / "log", "w") as log:
        with open_view(log) as view:
            run_experiment(store, experiment, name="audited", backend="inline", view=view)
        report = verify(store, "audited")
        assert report["problems"] == []
        history = store.history("audited")
        above = {
            place: [point for point in history.cells[place][0].staircase if point.correct >= commit.needed]
            for place, commit in history.commits.items()
        }
        assert any(commit.point != above[place][-1] for place, commit in history.commits.items()), (
            "the margin rule would explain it as well"
        )
        first = history.commits[0, 0]
        assert first.over_budget == tuple(
            name for name, units in zip(("hidden1", "hidden2"), first.claimed, strict=True) if units > 32
        )
        change_commit(store, 0, lambda record: record.update(over_budget=["output"]))
        (problem,) = verify(store, "audited")["problems"]
        assert problem.startswith("replica 1, task 1: by the records it is over budget in ")
        assert problem.endswith(", but recorded is output")
