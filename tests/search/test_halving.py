"""Halving from end to end: what a worker records of a dropped cell, what follows from it, and what is said of it."""

import functools
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from search.audit import verify
from search.backends.simulated import Simulated, World
from search.checks import unsound_halving
from search.driver import run_experiment
from search.errors import BadInput
from search.experiment import Experiment, differences
from search.fork import with_origin
from search.memory import MemoryBook
from search.names import study_name
from search.records import CellRecord, CommitRecord, dump, load
from search.replay import replay
from search.reports.plan import plan
from search.reports.show import show
from search.reports.status import status
from search.run import Run
from search.store import Store, open_store
from search.tables import TABLES, print_table
from search.view import open_view, progress_line
from search.writer import Writer

PLAIN: dict[str, Any] = {
    "name": "halved",
    "tasks": {"count": 2},
    "model": {"hidden": [40, 30]},
    "grid": {"alpha": [1e-3, 2e-2], "learning_rate": [0.0001, 0.005, 0.01]},
    "training": {"epochs": 4, "halving": [1, 3], "halving_margin": 2},
    "rule": {"margin": 3},
    "worker": {"cells": 6, "gpu": 0},
}


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**PLAIN, **changes})


def drive(store: Store, asked: Experiment, name: str) -> None:
    with open(os.devnull, "w") as nowhere, open_view(nowhere) as view:
        run_experiment(store, asked, name=name, backend="inline", view=view)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real run."""
    folder = tmp_path_factory.mktemp("halved")
    with open_store(f"sqlite:///{folder / 'store.db'}") as store:
        drive(store, experiment(), "halved")
    return folder


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with open_store(f"sqlite:///{tmp_path / 'store.db'}", create=False) as found:
        yield found


def records(store: Store, name: str = "halved") -> dict[str, Any]:
    """What a run holds, without when it came about."""

    def timeless(record: CellRecord | CommitRecord) -> CellRecord | CommitRecord:
        return replace(record, started=0.0, ended=0.0)

    history, row = store.history(name), store.run(name)
    assert row is not None
    storage = store.database.rdb_storage()
    studies = {
        place: optuna.load_study(study_name=study_name(name, *place), storage=storage) for place in history.cells
    }
    trials = {
        place: {each.user_attrs["cell"]: (each.state, each.values, each.user_attrs) for each in study.trials}
        for place, study in studies.items()
    }
    assert all(len(trials[place]) == len(study.trials) for place, study in studies.items()), "a cell has two trials"
    storage.engine.dispose()
    return {
        "openings": history.openings,
        "cells": {place: {i: timeless(one) for i, one in cells.items()} for place, cells in history.cells.items()},
        "commits": {place: timeless(one) for place, one in history.commits.items()},
        "trials": trials,
        "files": sorted(path.name for path in Path(row.artifacts).iterdir()),
    }


def printed(command: str, report: Any) -> str:
    stream = io.StringIO()
    print_table(TABLES[command](report), stream)
    return stream.getvalue()


# ── What is recorded ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dropped_cell_has_its_record_and_its_trial_and_nothing_else(store: Store) -> None:
    """No score, no staircase, no tensors; its counts, and in Optuna PRUNED with what it had then."""
    found, total = records(store), 150
    for place, cells in found["cells"].items():
        dropped = {index: record for index, record in cells.items() if record.dropped}
        assert 2 <= len(dropped) <= 4, "this shows too little"
        for record in cells.values():
            state, values, attributes = found["trials"][place][f"{cell_key_of(record)}"]
            if record.dropped is None:
                assert (state, len(record.epochs), record.epoch) == (TrialState.COMPLETE, 4, 4)
                assert "dropped" not in attributes
                continue
            why = record.dropped
            assert (record.score, record.staircase, record.artifact, record.size, record.epoch) == (
                None,
                (),
                None,
                0,
                0,
            )
            assert (len(record.epochs), record.epochs[-1], why.total) == (why.epoch, why.correct, total)
            assert why.needed == why.best - 4, "3 % of 150 are 4.5"
            assert (state, values) == (TrialState.PRUNED, [why.correct / total])
            assert attributes["dropped"] == str(why)
            assert attributes.keys() == {"cell", "index", "epoch", "dropped"}
        assert not dropped.keys() & set(found["commits"][place].candidates)


def cell_key_of(record: CellRecord) -> str:
    from search.names import cell_key

    return cell_key(record.cell)


def test_a_record_comes_back_from_its_json_and_an_older_one_was_not_dropped(make: Any) -> None:
    gone = make.dropped(0)
    assert load(CellRecord, dump(gone)) == gone
    older = dump(make.record(0)).replace(',"dropped":null', "")
    assert "dropped" not in older
    assert load(CellRecord, older) == make.record(0)


@pytest.mark.parametrize("cut", range(1, 13, 3))
def test_a_run_that_was_cut_off_ends_with_the_same_records(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Promise 3: also within a stack's records; a dropped cell that has its trial is never tried again."""
    calls, add = iter(range(1, 10_000)), Writer.add_cell

    def dying(self: Writer, replica: int, task: int, record: CellRecord, **given: Any) -> None:
        if next(calls) == cut:
            raise KeyboardInterrupt
        add(self, replica, task, record, **given)

    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        monkeypatch.setattr(Writer, "add_cell", dying)
        with pytest.raises(KeyboardInterrupt):
            drive(store, experiment(), "halved")
        half = sum(len(cells) for cells in store.history("halved").cells.values())
        assert half == cut - 1
        drive(store, experiment(), "halved")
        found = records(store)
    with open_store(f"sqlite:///{finished / 'store.db'}", create=False) as whole:
        assert found == records(whole)


# ── What follows from the records ─────────────────────────────────────────────────────────────────────────────────────


def simulated(world: World | None = None, **changes: Any) -> tuple[Experiment, MemoryBook, Run]:
    asked = experiment(
        **{
            "training": {"epochs": 30, "halving": [10, 20], "halving_margin": 0},
            "replicas": 2,
            "rule": {"margin": 1},
            **changes,
        }
    )
    book = MemoryBook()
    run = Run(asked, book, book, data=lambda *_: "d" * 64, workers=2)
    Simulated(workers=2, world=world or World()).execute(run)
    return asked, book, run


@functools.cache
def plain() -> tuple[Experiment, MemoryBook]:
    asked, book, run = simulated()
    assert run.finished
    assert any(record.dropped for cells in book.cells.values() for record in cells.values())
    return asked, book


@given(margin=st.fractions(0, 1))
def test_up_to_the_margin_of_the_run_replay_is_what_the_rule_says(margin: Fraction) -> None:
    """Promise 4: the rule on the records, in which a dropped cell is no candidate."""
    asked, book = plain()
    replicas = replay(asked, book, margin)
    for tasks in replicas:
        for task in tasks:
            cells = book.cells[task.replica, task.task]
            assert not any(cells[index].dropped for index in (*task.candidates, task.winner.index))
    assert margin < 1 or {task.outcome for tasks in replicas for task in tasks} == {"same"}


@settings(max_examples=20)
@given(beyond=st.fractions(0, 99).filter(bool))
def test_beyond_it_replay_is_refused_before_anything(beyond: Fraction) -> None:
    """Promise 4: what was dropped might have won there, and nobody knows."""
    asked, book = plain()
    with pytest.raises(BadInput, match="cannot be replayed"):
        replay(asked, book, 1 + beyond)


def test_a_refusal_says_what_was_dropped_and_what_to_do() -> None:
    asked, book = plain()
    first = [index for index, record in sorted(book.cells[0, 0].items()) if record.dropped]
    assert first == [0, 1, 3, 4]
    with pytest.raises(BadInput) as caught:
        replay(asked, book, Fraction("1.5"))
    assert str(caught.value) == (
        "a margin of 1.5 cannot be replayed: in replica 1, task 1 halving dropped cells 0–1, 3–4, more than 1 point "
        "behind, and at 1.5 such a cell might have won, and so in 3 other tasks; give a margin of 1 at most, or run it "
        "again with every cell trained to its end: --set training.halving=null training.halving_margin=null --name NEW"
    )


def test_a_task_without_a_dropped_cell_holds_no_margin_back() -> None:
    """Each task has the margin that it was halved with, its own at least; where nobody went, any will do."""
    asked, book, _ = simulated(rule={"margin": [2, 1]}, replicas=1)
    assert all(any(record.dropped for record in book.cells[0, task].values()) for task in range(2))
    with pytest.raises(BadInput, match=r"in replica 1, task 2 .* more than 1 point behind, and .* a margin of 1 at"):
        replay(asked, book, Fraction("1.5"))
    cells = {place: {i: replace(one, dropped=None) for i, one in found.items()} for place, found in book.cells.items()}
    only = MemoryBook()
    only.openings, only.commits, only.cells = book.openings, book.commits, {**cells, (0, 0): book.cells[0, 0]}
    replay(asked, only, Fraction(2))
    with pytest.raises(BadInput, match="in replica 1, task 1 "):
        replay(asked, only, Fraction(4))
    only.cells = cells
    replay(asked, only, Fraction(100))
    asked, book, _ = simulated(rule={"kind": "budget", "tasks": 2, "floor": 1}, replicas=1)
    with pytest.raises(BadInput, match="more than 1 point behind, and at 2 such a cell might have won"):
        replay(asked, book, Fraction(2))


def test_where_nobody_came_to_an_end_the_reason_is_said() -> None:
    """A stack whose better half diverges after the others were dropped."""
    asked, book = plain()
    cells = {
        index: record if record.dropped else replace(record, diverged="not finite after epoch 25", score=None)
        for index, record in book.cells[0, 0].items()
    }
    again = MemoryBook()
    again.openings, again.cells = {(0, 0): book.openings[0, 0]}, {(0, 0): cells}
    run = Run(asked, again, again, data=lambda *_: "d" * 64, workers=2)
    Simulated(workers=2).execute(run)
    assert str(run.stopped).startswith(
        "replica 1, task 1: 4 of 6 trials of the task were dropped by halving, and every other one diverged; lower the "
        "learning rates or α, or leave training.halving out"
    )


def test_the_setting_is_part_of_what_makes_a_run_the_same() -> None:
    """And a run from before there was one goes on without it."""
    with_it, without = experiment(), experiment(training={"epochs": 4})
    assert differences(without, with_it, "d", "d") == [
        "training.halving: was [], is [1, 3]",
        "training.halving_margin: was null, is 2.0",
    ]
    five = {"epochs": 4, "halving": [1, 3], "halving_margin": 5}
    assert experiment(training=five) == experiment(training={"epochs": 4, "halving": [1, 3]})
    recorded = without.to_json()
    del recorded["training"]["halving"], recorded["training"]["halving_margin"]
    assert not differences(Experiment.from_json(recorded), without, "d", "d")
    assert experiment(training={"epochs": 4, "halving": None}) == without
    assert not differences(Experiment.from_json(with_it.to_json()), with_it, "d", "d")


def test_a_fork_holds_what_was_dropped_and_its_margin(store: Store) -> None:
    """Under a rule of its own, with every cell trained to its end from then on."""
    asked = experiment(training={"epochs": 4}, rule={"margin": 20})
    drive(store, with_origin(store, asked, "new", "halved", 1), "new")
    old, new = records(store), records(store, "new")
    assert new["cells"][0, 0] == old["cells"][0, 0]
    assert new["trials"][0, 0] == old["trials"][0, 0]
    assert not any(record.dropped for record in new["cells"][0, 1].values())
    with pytest.raises(
        BadInput, match=r"in replica 1, task 1 halving dropped .* more than 3 points behind, and at 4 such"
    ):
        replay(recorded(store, "new"), store.history("new"), Fraction(4))
    assert verify(store, "new")["sound"]


def recorded(store: Store, name: str) -> Experiment:
    row = store.run(name)
    assert row is not None
    return Experiment.from_json(row.experiment)


# ── What verify sees ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_verify_drops_again_by_the_counts(store: Store) -> None:
    """Promise 4: who was dropped follows from the records, too."""
    assert verify(store, "halved")["problems"] == []
    record = next(one for one in store.history("halved").cells[0, 1].values() if one.dropped)
    assert record.dropped is not None
    text = dump(replace(record, dropped=replace(record.dropped, needed=1)))
    with store.database.engine.begin() as connection:
        where = "replica = 0 AND task = 1 AND cell = ?"
        connection.exec_driver_sql(f"UPDATE clnp_cells SET record = ? WHERE {where}", (text, record.cell.index))
    (problem,) = verify(store, "halved")["problems"]
    assert problem == (
        f"replica 1, task 2: cell {record.cell.index}: by the counts of its stack it is dropped {record.dropped}, by "
        f"its own record it is dropped {replace(record.dropped, needed=1)}"
    )


def test_a_drop_that_does_not_follow_is_named() -> None:
    asked, book = plain()
    cells = dict(book.cells[1, 1])
    assert unsound_halving(asked, 1, cells) is None
    gone = next(record for record in cells.values() if record.dropped)
    stayed = next(record for record in cells.values() if not record.dropped)
    index = stayed.cell.index
    wrong = {**cells, index: replace(stayed, dropped=gone.dropped)}
    problem = unsound_halving(asked, 1, wrong)
    assert (
        problem == f"cell {index}: by the counts of its stack it stays, by its own record it is dropped {gone.dropped}"
    )
    elsewhere = replace(stayed, provenance=replace(stayed.provenance, device="another"))
    assert unsound_halving(asked, 1, {**wrong, index: replace(elsewhere, dropped=gone.dropped)}) is None
    del wrong[gone.cell.index]
    assert unsound_halving(asked, 1, wrong) is None, "without a member nobody knows"
    lost = {i: replace(record, score=None, diverged="not finite after epoch 21") for i, record in cells.items()}
    lost = {i: replace(record, dropped=None) for i, record in lost.items()}
    assert unsound_halving(asked, 1, lost) is None, "nor without a trial that says of how many samples the counts are"


def test_what_is_trained_again_is_dropped_by_nothing(tmp_path: Path) -> None:
    """Fine-tuning has its own epochs, fewer than halving waits for; and where it has a margin, that is the limit."""
    asked = experiment(fine_tuning={"epochs": 1, "margin": 5}, tasks={"count": 1})
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        drive(store, asked, "halved")
        assert verify(store, "halved")["sound"]
        history = store.history("halved")
    why = next(record.dropped for record in history.cells[0, 0].values() if record.dropped)
    assert why.needed == why.best - 7, "5 % of 150 are 7.5"
    assert replay(asked, history, Fraction(5))
    with pytest.raises(BadInput, match="more than 5 points behind, and at 6 such"):
        replay(asked, history, Fraction(6))


@pytest.mark.parametrize("patience", [None, 1, 2])
def test_verify_knows_every_other_end(tmp_path: Path, patience: int | None) -> None:
    """Early stopping, patience and divergence among those that halving drops."""
    training = {"epochs": 9, "halving": [2, 5], "halving_margin": 0, "early_stopping": True, "patience": patience}
    grid = {"alpha": [1e-3], "learning_rate": [0.0001, 0.02, 0.1, 0.05, 0.005, 1e30]}
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        drive(store, experiment(training=training, grid=grid, tasks={"count": 1}), "halved")
        assert verify(store, "halved")["problems"] == []
        cells = store.history("halved").cells[0, 0]
    assert cells[5].diverged
    assert any(record.dropped for record in cells.values())
    assert patience is None or any(record.score and len(record.epochs) < 9 for record in cells.values())


# ── What is said ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_says_that_the_grid_was_not_complete(store: Store) -> None:
    report = show(store, "halved", task=1)
    cells = store.history("halved").cells[0, 0]
    gone = [index for index, record in sorted(cells.items()) if record.dropped]
    assert [trial["cell"] for trial in report["trials"] if trial["dropped"]] == gone
    assert report["explained"]
    text = " ".join(printed("show", report).split())
    assert "unpruned, over what is left of the whole grid" in text
    assert f"{len(gone)} of 6 cells (" in text
    assert "dropped by halving before the end; replay goes up to 3 %" in text
    why = cells[gone[0]].dropped
    assert why is not None
    assert f"dropped after epoch {why.epoch} with {100 * why.correct / why.total:.2f} %" in text
    assert "below the cut line" not in text or len(gone) < 5


def test_without_halving_nothing_of_it_is_said(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        drive(store, experiment(training={"epochs": 1}, tasks={"count": 1}), "halved")
        texts = [printed("show", show(store, "halved")), printed("status", status(store, "halved"))]
    assert not [text for text in texts if "dropped" in text or "halving" in text]


def test_replay_says_that_the_dropped_are_no_candidates(store: Store) -> None:
    from search.reports.replay import replay as report

    found = report(store, "halved", "1")
    assert found["replicas"][0]["tasks"][0]["dropped"] == [
        index for index, record in sorted(store.history("halved").cells[0, 0].items()) if record.dropped
    ]
    assert "Cells that halving dropped are no candidates; a margin larger than halving's is refused." in " ".join(
        printed("replay", found).split()
    )
    with pytest.raises(BadInput, match="a margin of 4 cannot be replayed"):
        report(store, "halved", "4")


def test_a_run_counts_them_as_finished(tmp_path: Path) -> None:
    """In the status, on the terminal and in the lines; each with its reason in a line of its own."""
    told: list[str] = []
    asked = experiment(training={"epochs": 30, "halving": [20], "halving_margin": 1}, rule={"margin": 1})
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        taken: dict[str, Any] = {"experiment_json": asked.to_json(), "data": "d" * 64, "versions": {}}
        writer = store.take("halved", **taken, layers=asked.outline.layer_names)
        backend = Simulated(workers=1)

        def note(event: Any) -> None:
            told.append(f"{event.kind}: {event.text}")
            if event.kind == "cell finished":
                backend.stop.set()

        run = Run(asked, writer, store.history("halved"), data=lambda *_: "d" * 64, workers=1, on_event=note)
        backend.execute(run)
        gone = [text for text in told if text.startswith("cell dropped: alpha=")]
        assert gone
        assert all(" after epoch 20: " in text and "needed (the best of its stack: " in text for text in gone)
        words = f"6 of 6 ({len(gone)} dropped)"
        assert words.replace("6 (", "6 cells (") in progress_line(run.snapshot())
        assert words in printed("status", status(store, "halved"))
        writer.release("interrupted")


def test_plan_says_what_halving_costs() -> None:
    text = " ".join(printed("plan", plan(experiment(), "halved", store=None)).split())
    assert "4 epochs each, halving after epoch 1 and 3 (2 %)" in text
    assert (
        "warning: training.halving is on: who is more than 2 points behind after epoch 1 and 3 is dropped, whatever it "
        "might have come to, and replay refuses a larger margin" in text
    )
    once = experiment(grid={**PLAIN["grid"], "after_first": "winner"})
    assert "drops nobody" not in text + printed("plan", plan(once, "halved", store=None))
    alone = " ".join(printed("plan", plan(experiment(worker={"cells": 1}), "halved", store=None)).split())
    assert (
        "training.halving drops nobody: each of the 6 cells trains alone, and who is behind is seen within a stack "
        "only; worker.cells=6 makes them one" in alone
    )
