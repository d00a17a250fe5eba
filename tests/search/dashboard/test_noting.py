"""The notes of committed tasks: a view of the ledger, made good whenever it was cut off."""

import json
from collections.abc import Callable
from typing import Any

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

import search.noted
from search.backends.simulated import World
from search.dashboard.noting import Notes, complete
from search.errors import Damage, Held
from search.experiment import Experiment
from search.names import study_name
from search.snapshot import Event
from search.store import Store

COMMITTED = Event("task committed", "", 0, 0)


def studies(store: Store, name: str = "run", tasks: int = 2) -> list[optuna.Study]:
    storage = store.database.rdb_storage()
    return [optuna.load_study(study_name=study_name(name, 0, task), storage=storage) for task in range(tasks)]


def carried(store: Store) -> list[dict[str, Any]]:
    return [{**study.user_attrs, **study._storage.get_study_system_attrs(study._study_id)} for study in studies(store)]


def write(store: Store, *, tell: Callable[[str], None] = pytest.fail) -> None:
    complete(store, "run", tell=lambda text: text.startswith("writing") or tell(text))


def test_a_note_explains_the_commit(store: Store, learn: Any) -> None:
    learn(store)
    assert store.unnoted("run") == [(0, 0), (0, 1)]
    write(store)
    assert store.unnoted("run") == []
    for task, study in enumerate(studies(store)):
        commit = store.history("run").commits[0, task]
        (winner,) = (trial for trial in study.trials if trial.user_attrs["index"] == commit.winner.index)
        facts = {
            "test accuracy": commit.test.accuracy,
            "new units": sum(commit.claimed),
            "free units": sum(commit.free),
        }
        said = {"winner": winner.number, "winner cell": winner.user_attrs["cell"]}
        assert study.user_attrs == {**facts, **said}
        text = optuna_dashboard.get_note(study)
        link = f"[trial {winner.number}](/dashboard/studies/{study._study_id}/trials?numbers={winner.number}) wins"
        assert link in text
        for number in (commit.best, commit.needed, commit.unpruned.correct, commit.validation.correct):
            assert f"{number:,} of {commit.unpruned.total:,}" in text
        assert f"{commit.test.correct:,} of {commit.test.total:,}" in text
        assert f"{len(commit.candidates)} of 3 trials reach it" in text
        assert all(f"| {new} | {free} | 9 |" in text for new, free in zip(commit.claimed, commit.free, strict=True))
        assert commit.fingerprint in text
        assert f"clnp-search show run --task {task + 1}`" in text
        assert f"learning rate {winner.params['learning_rate']:g}, θ = " in text
        assert optuna_dashboard.get_note(winner_of(study, winner)).startswith("**Winner** of run `run`, task")


def winner_of(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> Any:
    return optuna.trial.Trial(study, trial._trial_id)


def test_the_figure_shows_the_cut_line_and_the_winner_in_few_bytes(empty: Store, learn: Any) -> None:
    store = empty
    learn(
        store,
        grid={"alpha": [0.001, 0.002, 0.003], "learning_rate": [i / 1000 for i in range(1, 9)]},
        tasks={"count": 1},
    )
    write(store)
    (study,) = studies(store, tasks=1)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    (text,) = get_plotly_graph_objects(attributes).values()
    figure, commit = go.Figure(json.loads(text)), store.history("run").commits[0, 0]
    (star,) = (trace for trace in figure.data if trace.marker.symbol == "star")
    assert star.x == (sum(commit.point.claimed),)
    assert [line.y0 for line in figure.layout.shapes] == pytest.approx(
        [100 * commit.best / commit.unpruned.total, 100 * commit.needed / commit.unpruned.total], abs=1e-3
    )
    assert {trace.name for trace in figure.data if trace.x[0] is not None and trace.name.startswith("trial")} <= {
        f"trial {number}" for number in range(24)
    }
    pieces = sum(key.startswith("dashboard:plot_data:") for key in attributes)
    assert (len(text) < 6000, pieces <= 3) == (True, True)


def test_a_note_is_written_once(store: Store, learn: Any) -> None:
    """Promise 3: again and again, two at once, the same attributes come of it."""
    learn(store)
    write(store)
    before = carried(store)
    write(store)
    assert carried(store) == before
    assert [sum(key.startswith("dashboard:note_str:") for key in one) for one in before] == [1, 1]
    assert all(one["dashboard:note_ver"] == 1 for one in before)


def test_a_write_that_is_cut_off_leaves_no_part_of_a_note(
    store: Store, learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: all of it or nothing, and the next attempt makes it good."""
    learn(store)
    before = carried(store)

    def dies(*_: object) -> None:
        raise Damage("cut off")

    with monkeypatch.context() as patch:
        put = search.writer.write_carried
        patch.setattr("search.writer.write_carried", lambda *given: (put(*given), dies()))
        with pytest.raises(Damage, match="cut off"):
            write(store)
    assert carried(store) == before
    write(store)
    assert store.unnoted("run") == []


def test_another_edition_writes_every_note_anew(learnt: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = learnt
    write(store)
    for module in ("search.noted", "search.dashboard.note"):
        monkeypatch.setattr(f"{module}.EDITION", 99)
    monkeypatch.setattr("search.dashboard.note._Words._head", lambda _: "words of another edition")
    assert len(store.unnoted("run")) == 2
    write(store)
    assert store.unnoted("run") == []
    for study in studies(store):
        text = optuna_dashboard.get_note(study)
        assert text.startswith("words of another edition")
        assert "wins" not in text


def test_what_a_person_wrote_stays(learnt: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = learnt
    first, second = studies(store)
    optuna_dashboard.save_note(first, "looks too good: check the split")
    write(store)
    text = optuna_dashboard.get_note(first)
    assert text.startswith("looks too good: check the split\n\n---\n\n")
    assert text.count(" wins**") == 1
    optuna_dashboard.save_note(second, "mine alone now")
    for module in ("search.noted", "search.dashboard.note"):
        monkeypatch.setattr(f"{module}.EDITION", 99)
    write(store)
    assert optuna_dashboard.get_note(second) == "mine alone now"
    assert store.unnoted("run") == []


def test_a_study_that_is_gone_gets_none(learnt: Store) -> None:
    store = learnt
    optuna.delete_study(study_name=study_name("run", 0, 0), storage=store.database.rdb_storage())
    assert store.unnoted("run") == [(0, 1)]
    write(store)
    assert store.unnoted("run") == []


def test_another_driver_s_run_is_left_alone(store: Store, learn: Any) -> None:
    """Promise 6: notes are written under the lease."""
    made = learn(store)
    with (
        store.take("run", experiment_json=made.to_json(), data="d" * 64, versions={}) as writer,
        pytest.raises(Held, match="is held by"),
    ):
        write(store)
    before = carried(store)
    with pytest.raises(Held):
        writer.carry(0, 0, lambda held: held)
    assert carried(store) == before


def test_what_is_missing_is_found_by_few_queries(store: Store, learn: Any) -> None:
    """However many tasks are committed."""
    from sqlalchemy import event

    learn(store, tasks={"count": 4}, replicas=2)
    seen: list[str] = []
    event.listen(store.database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    assert len(store.unnoted("run")) == 8
    mine = [text for text in seen if text.startswith("SELECT") and ("clnp_" in text or "studies" in text)]
    assert len(mine) <= 3


def test_a_driver_s_notes_follow_its_commits(learnt: Store, made: Experiment) -> None:
    """Those of an attempt before first; one that cannot be read is told of, the others are written."""
    store = learnt
    said: list[str] = []
    with store.take("run", experiment_json=made.to_json(), data="d" * 64, versions={}) as writer:
        with Notes(store, writer, tell=said.append, hurried=lambda: False) as notes:
            notes.told(COMMITTED)
        assert store.unnoted("run") == []
    assert said == []


def test_a_note_that_cannot_be_made_is_told_of_and_the_others_are_written(
    learnt: Store, made: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = learnt
    real, said = store.noted, []

    def noted(name: str, replica: int, task: int) -> Any:
        if task == 0:
            raise Damage("run run, replica 1, task 1: the ledger's CommitRecord cannot be read")
        return real(name, replica, task)

    monkeypatch.setattr(store, "noted", noted)
    with (
        store.take("run", experiment_json=made.to_json(), data="d" * 64, versions={}) as writer,
        Notes(store, writer, tell=said.append, hurried=lambda: False),
    ):
        pass
    assert store.unnoted("run") == [(0, 0)]
    (line,) = set(said)
    assert line.startswith(
        "a task's note for the dashboard is not written yet: run run, replica 1, task 1: the ledger's"
    )


def test_who_is_in_a_hurry_leaves_them_to_the_next_attempt(learnt: Store, made: Experiment) -> None:
    store = learnt
    with (
        store.take("run", experiment_json=made.to_json(), data="d" * 64, versions={}) as writer,
        Notes(store, writer, tell=pytest.fail, hurried=lambda: True),
    ):
        pass
    assert len(store.unnoted("run")) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fine_tuning": {"rounds": 2}}, ("winner, pruned |", "fine-tuning")),
        (
            {"rule": {"kind": "budget", "tasks": 2, "floor": 5.0}},
            (
                "| floor | 93.60 %",
                "of the budget rule",
                "the winner is the most accurate that fits the budget (at most 4 of `hidden1`, 4 of `hidden2`).",
            ),
        ),
        (
            {"rule": {"kind": "budget", "tasks": 99, "floor": 5.0}},
            ("above the floor none fits the budget (over in `hidden2`; at most 4 of `hidden1`, 0 of `hidden2`)",),
        ),
        (
            {"model": {"hidden": [40] * 9}, "rule": {"sparsity": "weights"}},
            ("| 9 groups |", "the winner is the candidate with the most weights left free."),
        ),
        (
            {"replicas": 2},
            (
                "replica 1 of 2, task 1 of 2",
                "--task 1 --replica 1`",
                "the winner is the candidate with the fewest new units.",
            ),
        ),
    ],
)
def test_a_note_says_what_is_special(empty: Store, learn: Any, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    learn(empty, **changes)
    write(empty)
    text = optuna_dashboard.get_note(studies(empty)[0])
    assert [word for word in words if word not in text] == []


def test_a_note_says_that_the_grid_was_not_complete(empty: Store, learn: Any) -> None:
    learn(
        empty, training={"epochs": 30, "halving": [20], "halving_margin": 1}, rule={"margin": 1.0}, worker={"cells": 3}
    )
    write(empty)
    text = optuna_dashboard.get_note(studies(empty)[0])
    assert "of 3 trials reach it unpruned; 1 dropped. Each pruned" in text
    assert "The grid is not complete: what was dropped was not trained to its end." in text


def test_a_diverged_trial_is_counted(empty: Store, learn: Any) -> None:
    learn(empty, world=World(diverges=lambda _, cell: cell.index == 2))
    write(empty)
    assert "of 3 trials reach it unpruned; 1 diverged." in optuna_dashboard.get_note(studies(empty)[0])
