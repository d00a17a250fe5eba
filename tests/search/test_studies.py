"""Optuna studies and trials."""

import json
import random
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import Connection

from search.database import Database
from search.errors import BadInput, Damage
from search.names import cell_key
from search.records import Cell, CellRecord
from search.studies import Studies
from search.trials import finished, study_names

LAYERS = ("hidden1", "hidden2", "output")
NAME = "run/replica-0/task-00"


def free(connection: Connection) -> None:
    """A lease that nobody takes."""


@pytest.fixture
def studies(storage_url: str) -> Iterator[Studies]:
    found = Studies(Database(storage_url))
    yield found
    found.close()
    found._database.close()


@pytest.fixture
def add(studies: Studies, make: Any) -> Callable[[CellRecord], None]:
    def add_one(record: CellRecord) -> None:
        study = studies.open(NAME, free)
        studies.add(study, record, layers=LAYERS, grid=make.opening().cells, check=free)

    return add_one


def test_a_finished_cell_is_one_trial_with_true_times(studies: Studies, add: Any, make: Any) -> None:
    add(make.record(1))
    study = optuna.load_study(study_name=NAME, storage=studies._storage)
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["validation accuracy"]
    (trial,) = study.trials
    assert trial.state is TrialState.COMPLETE
    assert trial.value == 0.9
    assert trial.params == {"alpha/hidden1": 1e-4, "alpha/hidden2": 1e-3, "alpha/output": 1 / 3, "learning_rate": 0.002}
    assert all(axis == FloatDistribution(1e-12, 1e3, log=True) for axis in trial.distributions.values())
    assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.8}
    assert trial.datetime_start == datetime.fromtimestamp(1_700_000_000.25)
    assert trial.datetime_complete == datetime.fromtimestamp(1_700_000_060.5)
    assert trial.user_attrs == {"cell": cell_key(make.cell(1)), "index": 1, "epoch": 2, "artifact": f"{1:064x}"}
    assert len(json.dumps(trial.user_attrs)) < 500


def test_a_diverged_cell_is_a_failed_trial_with_its_reason(studies: Studies, add: Any, make: Any) -> None:
    add(make.diverged(0))
    (trial,) = studies.open(NAME, free).trials
    assert trial.state is TrialState.FAIL
    assert trial.value is None
    assert trial.user_attrs["diverged"] == "not finite after epoch 3"
    with studies._database.engine.connect() as connection:
        assert finished(connection, [NAME]) == {(NAME, cell_key(make.cell(0)))}


def test_a_dropped_cell_is_a_pruned_trial_with_its_reason(studies: Studies, add: Any, make: Any) -> None:
    """As after Optuna's own pruning: its value is what it had then. It is finished: never tried again."""
    for _ in range(2):
        add(make.dropped(0))
    add(make.record(1))
    study = studies.open(NAME, free)
    trial = study.trials[0]
    assert trial.state is TrialState.PRUNED
    assert (trial.value, trial.intermediate_values) == (0.3, {1: 0.2, 2: 0.3})
    reason = "after epoch 2: 30 of 100 right, 89 needed (the best of its stack: 90)"
    assert trial.user_attrs == {"cell": cell_key(make.cell(0)), "index": 0, "epoch": 0, "dropped": reason}
    assert study.best_trial.number == 1
    with studies._database.engine.connect() as connection:
        assert finished(connection, [NAME]) == {(NAME, cell_key(make.cell(index))) for index in (0, 1)}


def test_an_axis_with_a_zero_is_linear_for_every_trial(studies: Studies, make: Any) -> None:
    grid = tuple(Cell(index, (alpha, 1e-3, 2e3), 1e-14) for index, alpha in enumerate((0.0, 1e-4)))
    study = studies.open(NAME, free)
    for cell in grid:
        record = CellRecord(**{**_fields(make.record(0)), "cell": cell})
        studies.add(study, record, layers=LAYERS, grid=grid, check=free)
    for trial in study.trials:
        axes = trial.distributions
        assert axes["alpha/hidden1"] == FloatDistribution(0.0, 1e3)
        assert axes["alpha/hidden2"] == FloatDistribution(1e-12, 1e3, log=True)
        assert axes["alpha/output"] == FloatDistribution(1e-12, 2e3, log=True)
        assert axes["learning_rate"] == FloatDistribution(1e-14, 1e3, log=True)


def _fields(record: CellRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in CellRecord.__dataclass_fields__}


def test_adding_twice_makes_one_trial(studies: Studies, add: Any, make: Any) -> None:
    """Promise 3: no cell has two trials."""
    for _ in range(3):
        add(make.record(0))
    add(make.record(1))
    assert len(studies.open(NAME, free).trials) == 2


@pytest.mark.parametrize("lost", ["answer", "write"])
def test_a_commit_whose_answer_is_lost_makes_one_trial(
    studies: Studies, add: Any, make: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Promise 3: never two trials, although Optuna itself tries again without a look."""
    studies.open(NAME, free)
    monkeypatch.setattr(random, "random", lambda: 0.0)  # Optuna's pauses
    dialect = studies._storage.engine.dialect
    commit = dialect.do_commit
    calls = iter(range(1000))

    def losing(connection: Any) -> None:
        turn = next(calls)
        if lost == "answer" or turn % 2:
            commit(connection)
        if turn < 2 if lost == "answer" else turn % 2 == 0:
            raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", losing)
    add(make.record(0))
    monkeypatch.setattr(dialect, "do_commit", commit)
    assert [trial.user_attrs["index"] for trial in studies.open(NAME, free).trials] == [0]
    assert [trial.state.name for trial in studies.open(NAME, free).trials] == ["COMPLETE"]


def test_reading_agrees_with_optuna(studies: Studies, add: Any, make: Any) -> None:
    for index in range(3):
        add(make.record(index))
    add(make.diverged(3))
    add(make.dropped(4))
    studies.open(NAME, free).ask()  # a row that is RUNNING is no finished cell
    studies.open("run_/replica-0/task-00", free)
    with studies._database.engine.connect() as connection:
        found = finished(connection, [NAME, "run/replica-0/task-01"])
        names = study_names(connection, "run/replica-")
        wild = study_names(connection, "run_/replica-")
    trials = optuna.load_study(study_name=NAME, storage=studies._storage).trials
    assert found == {(NAME, trial.user_attrs["cell"]) for trial in trials if trial.state.is_finished()}
    assert len(found) == 5
    assert names == [NAME]
    assert wild == ["run_/replica-0/task-00"]


def test_reading_a_database_that_optuna_never_saw(empty_url: str) -> None:
    database = Database(empty_url)
    with database.engine.connect() as connection:
        assert finished(connection, [NAME]) == set()
        assert study_names(connection, "run") == []
    database.close()


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_refuses_a_study_that_is_something_else(studies: Studies, directions: list[str]) -> None:
    optuna.create_study(storage=studies._storage, study_name=NAME, directions=directions)
    with pytest.raises(BadInput, match=r"its direction is .*not maximize; give this run another --name"):
        studies.open(NAME, free)


def test_deleting_twice_is_no_error(studies: Studies, add: Any, make: Any) -> None:
    add(make.record(0))
    studies.open("other/replica-0/task-00", free)
    studies.delete(NAME, free)
    studies.delete(NAME, free)
    assert [study.study_name for study in studies._storage.get_all_studies()] == ["other/replica-0/task-00"]


def test_a_study_that_somebody_removed_is_damage(
    studies: Studies, add: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: cells without a trial are not finished; the next driver makes the study anew."""
    add(make.record(0))
    optuna.delete_study(storage=studies._storage, study_name=NAME)
    with pytest.raises(Damage, match=rf"the study {NAME} was deleted .*restore the database .*trains the task's cells"):
        add(make.record(1))
    add(make.record(1))
    assert [trial.user_attrs["index"] for trial in studies.open(NAME, free).trials] == [1]

    def create(*arguments: Any, **options: Any) -> optuna.Study:
        study = optuna.study.create_study(*arguments, **options)
        optuna.delete_study(storage=studies._storage, study_name=options["study_name"])
        return study

    monkeypatch.setattr(optuna, "create_study", create)
    with pytest.raises(Damage, match="the study another/task was deleted"):
        studies.open("another/task", free)


def test_refuses_layers_that_do_not_fit(studies: Studies, make: Any) -> None:
    with pytest.raises(ValueError, match=r"2 layers .* but 3 values of alpha"):
        studies.add(studies.open(NAME, free), make.record(0), layers=LAYERS[:2], grid=make.opening().cells, check=free)
