"""A fork holds the first commits of another run hash for hash, needs it no longer, and goes on by a rule of its own."""

import io
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import search.fork
from clnp.budget import budget
from search.artifacts import Artifacts
from search.audit import verify
from search.driver import run_experiment
from search.errors import BadInput, Damage, SearchError
from search.experiment import Experiment, Origin, differences
from search.fork import with_origin
from search.names import study_name
from search.records import CellRecord, CommitRecord
from search.reports.final import final
from search.reports.plan import plan
from search.reports.replay import replay
from search.reports.show import show
from search.reports.status import status
from search.store import Store, open_store
from search.studies import Studies
from search.tables import TABLES, print_table
from search.view import open_view
from search.writer import Writer

SMALL: dict[str, Any] = {
    "name": "base",
    "tasks": {"count": 3},
    "model": {"hidden": [100, 80]},
    "replicas": 2,
    "grid": {"alpha": [1e-3, 1.5e-3], "learning_rate": [0.01]},
    "training": {"epochs": 2},
    "rule": {"margin": 3},
    "worker": {"cells": 2, "gpu": 0},
    "keep": "candidates",
}


def small(**changes: Any) -> Experiment:
    return Experiment.model_validate({**SMALL, **changes})


def open_folder(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'store.db'}", None)


def drive(store: Store, experiment: Experiment, name: str) -> None:
    with open(os.devnull, "w") as nowhere, open_view(nowhere) as view:
        run_experiment(store, experiment, name=name, backend="inline", view=view)


def fork(
    store: Store, experiment: Experiment | None = None, *, name: str = "new", run: str = "base", task: int = 2
) -> None:
    drive(store, with_origin(store, experiment or small(), name, run, task), name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that is forked: three tasks in each of two replicas."""
    folder = tmp_path_factory.mktemp("base")
    with open_folder(folder) as store:
        drive(store, small(), "base")
    return folder


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of it."""
    with open_folder(copied(base, tmp_path)) as found:
        yield found


def copied(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a fork at task 2 that nothing disturbed, and its records."""
    folder = copied(base, tmp_path_factory.mktemp("whole"))
    with open_folder(folder) as store:
        fork(store)
        return folder, records(store, "new")


def untimed(record: CellRecord | CommitRecord) -> CellRecord | CommitRecord:
    return replace(record, started=0.0, ended=0.0)


def records(store: Store, name: str, tasks: int = 99, *, timed: bool = False) -> dict[str, Any]:
    """What a run holds of its first tasks: rows, trials and files; when they came about only if ``timed``."""
    history, row = store.history(name), store.run(name)
    assert row is not None
    here = {place for place in history.openings if place[1] < tasks}
    keep = (lambda record: record) if timed else untimed
    storage = store.database.rdb_storage()
    trials = {}
    for place in sorted(here):
        for trial in optuna.load_study(study_name=study_name(name, *place), storage=storage).trials:
            key = (*place, trial.user_attrs["cell"])
            assert key not in trials
            trials[key] = (trial.values, trial.params, trial.user_attrs, trial.intermediate_values, trial.distributions)
            if timed:
                trials[key] += (trial.datetime_start, trial.datetime_complete)
    storage.engine.dispose()
    return {
        "openings": {place: history.openings[place] for place in here},
        "cells": {place: {i: keep(one) for i, one in history.cells[place].items()} for place in here},
        "commits": {place: keep(one) for place, one in history.commits.items() if place in here},
        "given_up": {entry for entry in history.given_up if entry[:2] in here},
        "trials": trials,
        "files": Artifacts(row.artifacts).list() if tasks == 99 else (),
    }


def later(store: Store, name: str) -> list[CommitRecord]:
    return [untimed(one) for place, one in sorted(store.history(name).commits.items()) if place[1] == 2]  # type: ignore[misc]


# What a fork is


def test_a_fork_has_the_records_of_the_other_run_and_goes_on_as_it_did(whole: tuple[Path, Any]) -> None:
    """Promise 3: the copied tasks hash for hash with their times and versions; of the same experiment what is trained
    after them too, to the last bit."""
    with open_folder(whole[0]) as store:
        assert records(store, "new", 2, timed=True) == records(store, "base", 2, timed=True)
        assert records(store, "new") == records(store, "base")
        assert [one.fingerprints for one in later(store, "new")] == [one.fingerprints for one in later(store, "base")]
        began = {name: store.runs()[place].created for place, name in enumerate(("base", "new"))}
        assert all(one.started > began["new"] for place, one in store.history("new").commits.items() if place[1] == 2)
        jobs = _rows(
            whole[0], "SELECT DISTINCT task FROM clnp_jobs JOIN clnp_runs r ON r.id = run_id WHERE r.name = 'new'"
        )
        assert jobs == [(2,)]


def _rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "store.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_fork_does_without_the_other_run(whole: tuple[Path, Any], tmp_path: Path) -> None:
    """Promise 1: nothing old has changed by a bit, and everything says so from the fork alone."""
    with open_folder(copied(whole[0], tmp_path)) as store:
        before = show(store, "new", task=1), replay(store, "new", "0.5")
        store.delete("base")
        assert (show(store, "new", task=1), replay(store, "new", "0.5")) == before
        assert before[0]["explained"]
        report = verify(store, "new")
        assert (report["sound"], report["commits"], report["problems"]) == (True, 6, [])
        (run,) = status(store, "new")["runs"]
        assert run["origin"] == "forked from base after task 2"
        # The same command still continues it, and so does resume, of which the record is enough.
        grown = small(tasks={"count": 4})
        fork(store, grown)
        assert recorded(store, "new").origin == Origin("base", 2, small())
        drive(store, recorded(store, "new"), "new")
        assert sorted(store.history("new").commits) == [(r, t) for r in range(2) for t in range(4)]


def test_its_own_rule_decides_what_it_trains_and_the_old_one_what_it_was_given(store: Store) -> None:
    """Promise 4: every commit follows from the records, each by the rule that it was decided by."""
    other = small(
        rule={"margin": [9, 9, 20], "sparsity": "weights"},
        grid={"alpha": [3e-3], "learning_rate": [0.005, 0.01]},
        training={"epochs": 3},
        keep="all",
        replicas=1,
    )
    fork(store, other)
    assert records(store, "new", 2)["commits"].keys() == {(0, 0), (0, 1)}
    for task in (1, 2, 3):
        found = show(store, "new", task=task)
        assert found["explained"]
        assert (found["margin"], found["sparsity"]) == ((3.0, "units") if task < 3 else (20.0, "weights"))
    assert len(store.history("new").commits[0, 2].provenance.versions) > 0
    assert verify(store, "new")["problems"] == []
    # A fork of the fork: three tasks, by two rules.
    fork(store, small(replicas=1, tasks={"count": 4}), name="third", run="new", task=3)
    store.delete("base")
    store.delete("new")
    assert [show(store, "third", task=task)["margin"] for task in (1, 2, 3, 4)] == [3.0, 3.0, 20.0, 3.0]
    assert verify(store, "third")["problems"] == []


def test_the_first_winner_is_the_grid_of_what_follows(store: Store) -> None:
    after = small(grid={"alpha": [1e-3, 5e-3], "learning_rate": [0.02], "after_first": "winner"}, replicas=1)
    fork(store, after)
    history = store.history("new")
    (cell,) = history.openings[0, 2].cells
    winner = history.commits[0, 0].winner
    assert (cell.alpha, cell.learning_rate) == (winner.alpha, winner.learning_rate)


def test_all_tasks_may_be_copied_and_none_trained(store: Store) -> None:
    """While another driver has the other run: reading needs no lease."""
    source = store.run("base")
    assert source is not None
    with store.take("base", experiment_json=source.experiment, data=source.data, versions={}):
        fork(store, task=3)
    row = store.run("new")
    assert row is not None
    assert row.state == "finished"
    assert records(store, "new", timed=True) == records(store, "base", timed=True)


@pytest.mark.parametrize("keep", ["winners", "all"])
def test_only_what_is_kept_is_copied_and_nothing_else_is_missed(store: Store, keep: str) -> None:
    """The tensors that the other run gave up are not to be had."""
    fork(store, small(keep=keep), task=3)
    held, given = records(store, "new"), records(store, "base")
    winners = {given["cells"][place][one.winner.index].artifact for place, one in given["commits"].items()}
    if keep == "winners":
        assert set(held["files"]) == winners | {one.artifact for one in given["commits"].values()}
    else:
        assert held["files"] == given["files"]
    assert verify(store, "new")["problems"] == []


# Killed in between


class Killed(BaseException):
    """No part of the program sees it: what it left is all that the next one finds."""


def die(patch: pytest.MonkeyPatch, owner: Any, name: str, count: int, *, after: bool) -> None:
    real, left = getattr(owner, name), [count]

    def deadly(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        result = real(*arguments, **options)
        if left[0] == 0:
            raise Killed
        return result

    patch.setattr(owner, name, deadly)


# Of 2 replicas of 2 tasks with 2 cells: 8 to 12 files, 4 openings, 8 cells, 4 commits.
POINTS: dict[str, tuple[Any, str, int, bool]] = {
    "after a file": (Artifacts, "put", 5, True),
    "after an opening": (Writer, "open_task", 2, True),
    "between a row and its trial": (Studies, "add", 3, False),
    "after a trial": (Studies, "add", 6, True),
    "after a commit": (Writer, "add_commit", 3, True),
    "after all of them": (Writer, "add_commit", 4, True),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_copy_that_was_killed_is_completed(store: Store, whole: tuple[Path, Any], point: str) -> None:
    """Promise 3: with the same records as one that was not; nothing is trained before all of them are there."""
    owner, name, count, after = POINTS[point]
    goes_on = point == "after a commit"
    experiment = small(tasks={"count": 3 if goes_on else 2})
    with pytest.MonkeyPatch.context() as patch:
        die(patch, owner, name, count, after=after)
        with pytest.raises(Killed):
            fork(store, experiment)
    assert all(place[1] < 2 for place in store.history("new").openings)
    assert store.jobs("new") == []
    if point == "after a file":
        fork(store, experiment)  # the same command
    else:
        drive(store, recorded(store, "new"), "new")  # resume
    assert records(store, "new", 2, timed=True) == records(store, "base", 2, timed=True)
    if goes_on:
        assert records(store, "new") == whole[1]
    else:
        held = [set(Artifacts(str(row.artifacts)).list()) for row in store.runs()]
        assert held[1] == _named(store) < held[0]


def _named(store: Store) -> set[str]:
    """The files that the fork's records name, without those that were given up."""
    history = store.history("new")
    found = {one.artifact for one in history.commits.values()}
    for place, cells in history.cells.items():
        found |= {one.artifact for i, one in cells.items() if one.artifact and (*place, i) not in history.given_up}
    return found


def recorded(store: Store, name: str) -> Experiment:
    row = store.run(name)
    assert row is not None
    return Experiment.from_json(row.experiment)


DRIVER = """
import os, signal, sys

from search.driver import run_experiment
from search.experiment import Experiment
from search.fork import with_origin
from search.store import open_store
from search.view import open_view
from search.writer import Writer

folder, experiment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
real, left = Writer.add_cell, [count]


def deadly(*arguments, **options):
    left[0] -= 1
    real(*arguments, **options)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


Writer.add_cell = deadly
with open_store(f"sqlite:///{folder}/store.db", None) as store, open_view(sys.stderr) as view:
    forked = with_origin(store, Experiment.model_validate_json(experiment), "new", "base", 2)
    run_experiment(store, forked, name="new", backend="inline", view=view)
"""


@pytest.mark.slow
def test_killed_by_the_system(store: Store, tmp_path: Path, whole: tuple[Path, Any], child: Any) -> None:
    """Promise 3, with a driver of its own that SIGKILL ends: again and again, its lease still there."""
    for _ in range(3):
        process = child(DRIVER, str(tmp_path), small().model_dump_json(), "3")
        _, said = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, said
        holder = store.holder("new")
        assert holder is not None
        assert not holder.live
    fork(store)
    assert records(store, "new") == whole[1]


@pytest.fixture
def half(store: Store) -> Store:
    """A fork that was killed after two of its four commits."""
    with pytest.MonkeyPatch.context() as patch:
        die(patch, Writer, "add_commit", 3, after=False)
        with pytest.raises(Killed):
            fork(store)
    assert len(store.history("new").commits) == 2
    return store


def refusal(
    store: Store, experiment: Experiment | None = None, kind: type[SearchError] = BadInput, **options: Any
) -> str:
    """What a fork is refused with; it changes nothing."""
    name = options.get("name", "new")
    before = store.run(name), store.history(name)
    with pytest.raises(kind) as caught:
        fork(store, experiment, **options)
    assert (store.run(name), store.history(name)) == before
    return str(caught.value)


def test_half_a_copy_whose_source_is_gone_is_said_in_one_line(half: Store) -> None:
    half.delete("base")
    said = refusal(half)
    assert said.startswith(
        "run new begins with the first 2 tasks of base and lacks some of their records, but run base"
    )
    assert "\n" not in said


def test_half_a_copy_whose_source_is_another_run_is_refused(half: Store) -> None:
    """Made anew under the same name: its results may be the same, its records are not."""
    record = json.loads(_one(half, "SELECT record FROM clnp_commits WHERE run_id = 1 AND replica = 0 AND task = 0"))
    record["started"] += 1
    _one(half, "UPDATE clnp_commits SET record = ? WHERE run_id = 1 AND replica = 0 AND task = 0", json.dumps(record))
    assert "replica 1, task 1: base has other records than those that new holds already" in refusal(half)
    other = json.dumps(small(rule={"margin": 1}).to_json())
    _one(half, "UPDATE clnp_runs SET experiment = ? WHERE name = 'base'", other)
    assert "base is another run than the one that new was begun with" in refusal(half)


def _one(store: Store, query: str, *values: Any) -> Any:
    with store.database.engine.begin() as connection:
        found = connection.exec_driver_sql(query, values)
        return found.scalar_one() if found.returns_rows else None


def test_a_source_that_is_lost_during_the_copy_stops_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the copy: the reason is written down, and nothing is trained."""
    monkeypatch.setattr(search.fork, "check_records", lambda *_: store.delete("base"))
    with pytest.raises(BadInput, match="run base is there no longer"):
        fork(store, name="new")
    row = store.run("new")
    assert row is not None
    assert row.state == "stopped"
    assert "run base is there no longer" in row.reason
    assert store.history("new").openings == {}


def test_more_replicas_are_copied_while_there_are_some(store: Store) -> None:
    two = {"count": 2}
    fork(store, small(replicas=1, tasks=two))
    fork(store, small(replicas=2, tasks=two))
    assert records(store, "new", 2, timed=True) == records(store, "base", 2, timed=True)
    assert "replicas: was 2, is 3; base has no more to copy" in refusal(store, small(replicas=3, tasks=two))


# Refused before anything starts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": "nobody"}, "--from nobody: no run is called that in sqlite:///"),
        ({"run": "nobody"}, "it holds base"),
        ({"name": "base"}, "--from base: this is the new run's own name; give it another one with --name"),
        ({"task": 0}, "--task 0: give how many tasks of base the new run begins with, 1 or more"),
        (
            {"task": 4, "experiment": small(tasks={"count": 5})},
            "replica 1 of base has committed 3 tasks, and --task is 4",
        ),
        ({"experiment": small(tasks={"count": 1})}, "tasks.count: is 1, and 2 tasks are to be copied"),
        ({"experiment": small(replicas=3)}, "replicas: was 2, is 3; base has no more to copy"),
        ({"experiment": small(seed=1)}, "seed: was 0, is 1"),
        ({"experiment": small(head="multi")}, 'head: was "single", is "multi"'),
        ({"experiment": small(validation=0.2)}, "validation: was 0.1, is 0.2"),
        ({"experiment": small(model={"hidden": [100, 81]})}, "model.hidden: was [100, 80], is [100, 81]"),
        (
            {"experiment": small(tasks={"count": 3, "kind": "split", "classes": 3})},
            'tasks.kind: was "permuted", is "split"',
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(store: Store, options: dict[str, Any], said: str) -> None:
    """Promise 8: run and plan say the same."""
    files = sorted(path for path in Path(store.artifacts).rglob("*"))
    found = refusal(store, **options)
    assert said in found
    with pytest.raises(BadInput) as caught:
        planned(store, **options)
    assert str(caught.value) == found
    assert sorted(path for path in Path(store.artifacts).rglob("*")) == files
    assert [row.name for row in store.runs()] == ["base"]


def planned(
    store: Store, experiment: Experiment | None = None, *, name: str = "new", run: str = "base", task: int = 2
) -> dict[str, Any]:
    return plan(with_origin(store, experiment or small(), name, run, task), name, store=store)


def test_other_data_are_refused(store: Store) -> None:
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE clnp_runs SET data = '{'0' * 64}'")
    assert f'data: was "{"0" * 64}", is ' in refusal(store)


@pytest.mark.parametrize("how", ["is missing", "is damaged"])
def test_a_task_whose_tensors_are_gone_cannot_be_forked(store: Store, how: str) -> None:
    """Promise 8: the task, the file and what is whole are named; what comes before can be forked."""
    row = store.run("base")
    assert row is not None
    commit = store.history("base").commits[1, 1]
    path = Path(row.artifacts) / f"{commit.artifact}.safetensors"
    if how == "is missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = refusal(store, kind=Damage)
    assert said.startswith("run base cannot be forked after task 2: replica 2, task 2, the tensors of the commit: ")
    assert f"{path} {how}" in said
    assert said.endswith("Before that, task 1 is whole: --task 1 forks there")
    with pytest.raises(Damage) as caught:
        planned(store)
    assert str(caught.value) == said
    fork(store, small(tasks={"count": 1}), task=1)


def test_records_that_are_gone_are_damage(store: Store) -> None:
    storage = store.database.rdb_storage()
    optuna.delete_study(study_name=study_name("base", 0, 1), storage=storage)
    storage.engine.dispose()
    with pytest.raises(Damage, match=r"replica 1, task 2: its study base/replica-0/task-01"):
        fork(store)
    assert store.run("new") is None


def test_a_run_goes_on_as_it_was_begun(store: Store) -> None:
    """Promise 8: a fork is another run than one that was not forked, and than a fork from elsewhere."""
    two = small(tasks={"count": 2})
    fork(store, two)
    with pytest.raises(BadInput) as caught:
        drive(store, two, "new")
    line = 'from: was "2 tasks of base", is null; give --from base --task 2, or resume, which needs neither'
    assert line in str(caught.value)
    assert 'from: was "2 tasks of base", is "1 task of base"' in refusal(store, task=1)
    assert 'from: was null, is "2 tasks of new"' in refusal(store, name="base", run="new")
    (found,) = planned(store, two, task=1)["refused"]
    assert found == line.replace("null", '"1 task of base"')


# What is said of it


def test_plan_shows_what_is_trained(store: Store) -> None:
    report = planned(store, small(tasks={"count": 5}))
    assert report["origin"] == "forked from base after task 2"
    assert [(part["first"], part["last"]) for part in report["grids"]] == [(3, 5)]
    after = small(grid={**SMALL["grid"], "after_first": {"alpha": [1e-3], "learning_rate": [0.1]}})
    assert [(part["first"], part["last"], part["count"]) for part in planned(store, after)["grids"]] == [(3, 3, 1)]
    assert planned(store, task=3)["grids"] == []
    assert [row.name for row in store.runs()] == ["base"]


def printed(kind: str, report: dict[str, Any]) -> str:
    out = io.StringIO()
    print_table(TABLES[kind](report), out)
    return out.getvalue()


BUDGET = {"kind": "budget", "tasks": 6, "floor": 2.0}


def test_the_plan_of_a_fork_tells_the_budget_of_the_task_that_it_decides(store: Store) -> None:
    """Whatever rule decided those that it is given."""
    report = planned(store, small(rule=BUDGET))
    commits = store.history("base").commits
    each = [
        budget(commits[r, 1].free, last=1, tasks=6, earlier=[commits[r, task].claimed for task in (0, 1)])
        for r in (0, 1)
    ]
    most = list(map(max, zip(*each, strict=True)))
    named = dict(zip(("hidden1", "hidden2"), most, strict=True))
    assert report["budget"] == {"tasks": 6, "floor": 2.0, "task": 3, "most": named}
    assert f"floor 2 %, new units of task 3 at most {most[0]} + {most[1]}, sparsity" in printed("plan", report)
    whole = planned(store, small(rule=BUDGET), task=3)
    assert whole["budget"]["most"] is None
    assert "budget for 6 tasks, floor 2 %, sparsity by units" in printed("plan", whole)
    with store.take("base", experiment_json={}, data="", versions={}) as writer:
        writer.update_run(small(rule=BUDGET).to_json())
    report = planned(store)
    assert report["budget"] is None
    assert "rule         margin 3 %, sparsity by units\n" in printed("plan", report)


def test_the_plan_of_a_fork_forecasts_from_the_claims_that_it_is_given(store: Store) -> None:
    commits = store.history("base").commits
    lines = [line for line in planned(store, small(tasks={"count": 90}))["warnings"] if "hidden2 has" in line]
    assert len(lines) == 2
    for replica, line in enumerate(lines):
        claimed, free = commits[replica, 1].claimed[1], commits[replica, 1].free[1]
        assert f"replica {replica + 1}: hidden2 has {free} free units and a task claimed {claimed} on average" in line
        assert f"so task {3 + free // claimed} of 90 would find too few; a higher α or margin leaves more room," in line


def test_a_replay_names_the_rule_of_each_task(store: Store) -> None:
    fork(store, small(rule=BUDGET, replicas=1))
    report = replay(store, "new", "3")
    (found,) = report["replicas"]
    assert [(task["rule"], task["margin"]) for task in found["tasks"]] == [("margin", 3), ("margin", 3), ("budget", 2)]
    text = printed("replay", report)
    assert "margin or" in text
    assert "floor was" in text
    assert text.endswith(" The budget rule decided task 3; what is tried here is the margin rule.\n")
    assert "margin or" not in printed("replay", replay(store, "base", "3"))


def test_tables_say_where_a_fork_comes_from(whole: tuple[Path, Any], tmp_path: Path) -> None:
    """In one short place each; of a run that is none, nowhere."""
    with open_folder(copied(whole[0], tmp_path)) as store:
        for name in ("new", "base"):
            tables = (
                TABLES["status"](status(store, name)),
                TABLES["show"](show(store, name)),
                TABLES["final"](final(store, name)),
                TABLES["plan"](plan(recorded(store, name), name, store=store)),
            )
            for table in tables:
                out = io.StringIO()
                print_table(table, out)
                assert ("forked from base after task 2" in out.getvalue()) == (name == "new")


def test_the_origin_is_part_of_the_experiment() -> None:
    experiment = small().with_origin(
        Origin("other", 2, small(rule={"margin": 0.5}).with_origin(Origin("first", 1, small())))
    )
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment
    assert [float(experiment.margin(task)) for task in (0, 1, 2)] == [3.0, 0.5, 3.0]
    (line,) = differences(small(), experiment, "d", "d")
    assert line == 'from: was null, is "2 tasks of other"'
    assert "origin" not in experiment.to_file()


def test_an_interrupted_copy_trains_nothing_and_goes_on(store: Store) -> None:
    """As after Ctrl-C: what was copied stays."""
    asked: list[None] = []
    forked = with_origin(store, small(tasks={"count": 2}), "new", "base", 2)
    chosen = forked.to_json()
    row = store.run("base")
    assert row is not None

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 9

    with store.take("new", experiment_json=chosen, data=row.data, versions={}) as writer:
        assert not search.fork.copy_tasks(store, writer, forked, note=lambda _: None, stop=stop)
    assert 0 < len(store.history("new").openings) < 4
    drive(store, recorded(store, "new"), "new")
    assert records(store, "new", 2, timed=True) == records(store, "base", 2, timed=True)


def test_the_origin_that_is_recorded_first_stands(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Promise 4: of two drivers that start a fork the second may have read an origin that was made anew since."""
    with open_folder(copied(whole[0], tmp_path)) as store:
        other = Origin("base", 2, small(rule={"margin": 9}))
        drive(store, small(tasks={"count": 4}, replicas=2).with_origin(other), "new")
        row = store.run("new")
        assert row is not None
        found = Experiment.from_json(row.experiment)
        assert found.tasks.count == 4
        assert found.margin(0) == small().margin(0)
