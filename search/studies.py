"""Optuna studies and trials: one study a task, one trial a finished cell."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NoReturn

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, event, func, select
from sqlalchemy.orm import Session

from search.database import Database
from search.errors import BadInput, Damage
from search.names import cell_key
from search.records import Cell, CellRecord
from search.trials import with_trial

__all__ = ["METRIC", "Studies"]

METRIC = "validation accuracy"

# Wide enough for every grid seen; a value beyond them widens them, which Optuna allows within a study.
_LOWEST, _HIGHEST = 1e-12, 1e3


class _Doubled(Exception):
    """The trial that is about to be committed is there already."""


class Studies:
    """The studies of a database, for writing.

    It holds credentials and cannot be pickled.

    Raises:
        BadInput: The tables belong to another version of Optuna.
    """

    def __init__(self, database: Database) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line a study on the terminal
        self._database = database
        self._storage = database.rdb_storage()
        self._open: dict[str, optuna.Study] = {}
        self._check: Callable[[Connection], None] | None = None
        event.listen(self._storage.scoped_session, "before_commit", self._before_commit)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Studies hold database credentials and cannot be pickled")

    def open(self, name: str, check: Callable[[Connection], None]) -> optuna.Study:
        """The study of that name, made where it is missing: to maximize, its value named :data:`METRIC`.

        Args:
            name: See :func:`search.names.study_name`.
            check: Runs within each of Optuna's transactions before it commits; what it raises undoes it.

        Raises:
            BadInput: There is one of that name that is something else.
            Damage: Somebody removed it meanwhile.
        """

        def make() -> optuna.Study:
            with self._checked(check):
                study = optuna.create_study(
                    storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
                )
                # Optuna keeps an old study's direction without a word.
                if study.directions != [StudyDirection.MAXIMIZE]:
                    found = ", ".join(direction.name.lower() for direction in study.directions)
                    raise BadInput(
                        f"the study {name} in {self._database.url} is not one of ours: its direction is {found}, not "
                        "maximize; give this run another --name"
                    )
                if study.metric_names != [METRIC]:
                    study.set_metric_names([METRIC])
                return study

        if name not in self._open:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                try:
                    self._open[name] = self._database.retry(make)
                except KeyError:
                    raise self._gone(name) from None
        return self._open[name]

    def add(
        self,
        study: optuna.Study,
        record: CellRecord,
        *,
        layers: Sequence[str],
        grid: Sequence[Cell],
        check: Callable[[Connection], None],
    ) -> None:
        """Add the cell's trial, unless there is one: never two, whatever becomes of a write's answer.

        Args:
            layers: The name of each layer, the output layer last: an α parameter each.
            grid: Every cell of the task: an axis that holds a 0 is linear, any other logarithmic.
            check: As in :meth:`open`.

        Raises:
            Damage: Somebody removed the study.
        """
        trial = _trial(record, layers, grid)
        # Of the study's trials the cell's own only, however many there are.
        found = with_trial([study.study_name]).subquery()
        own = found.c.key == json.dumps(cell_key(record.cell))
        count = select(func.count()).select_from(found).where(own)

        def once(connection: Connection) -> None:
            check(connection)
            # Optuna locks the study before it adds a trial, so nobody else adds one between this look and its commit.
            # It also tries again by itself, after a commit whose answer was lost too.
            if connection.execute(count).scalar_one() > 1:
                raise _Doubled

        def add() -> None:
            with self._database.engine.connect() as connection:
                if connection.execute(count).scalar_one():
                    return
            with self._checked(once):
                study.add_trial(trial)

        try:
            self._database.retry(add)
        except _Doubled:
            return
        except KeyError:
            raise self._gone(study.study_name) from None

    def delete(self, name: str, check: Callable[[Connection], None]) -> None:
        """Remove a study with its trials; nothing happens where there is none."""
        self._open.pop(name, None)

        def remove() -> None:
            with self._checked(check):
                try:
                    optuna.delete_study(study_name=name, storage=self._storage)
                except KeyError:
                    return

        self._database.retry(remove)

    def close(self) -> None:
        """Close every idle connection."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @contextmanager
    def _checked(self, check: Callable[[Connection], None]) -> Iterator[None]:
        self._check = check
        try:
            yield
        finally:
            self._check = None

    def _gone(self, name: str) -> Damage:
        self._open.pop(name, None)
        return Damage(
            f"the study {name} was deleted from {self._database.url} while its task was open, and its trials with it; "
            "restore the database from a backup, or give the same command again: it trains the task's cells anew"
        )

    def _before_commit(self, session: Session) -> None:
        if self._check is not None:
            session.flush()
            self._check(session.connection())


def _trial(record: CellRecord, layers: Sequence[str], grid: Sequence[Cell]) -> FrozenTrial:
    names = [f"alpha/{layer}" for layer in layers]
    if len(names) != len(record.cell.alpha):
        raise ValueError(f"{len(layers)} layers ({', '.join(layers)}) but {len(record.cell.alpha)} values of alpha")
    axes = dict(zip(names, zip(*(cell.alpha for cell in grid), strict=True), strict=True))
    axes["learning_rate"] = tuple(cell.learning_rate for cell in grid)
    distributions: dict[str, BaseDistribution] = {name: _distribution(values) for name, values in axes.items()}
    attributes = {
        "cell": cell_key(record.cell),
        "index": record.cell.index,
        "epoch": record.epoch,
        "artifact": record.artifact,
        "diverged": record.diverged,
        "dropped": None if record.dropped is None else str(record.dropped),
    }
    state, value, total = _outcome(record)
    trial = optuna.trial.create_trial(
        state=state,
        value=value,
        params=dict(zip(names, record.cell.alpha, strict=True)) | {"learning_rate": record.cell.learning_rate},
        distributions=distributions,
        user_attrs={key: value for key, value in attributes.items() if value is not None},
        intermediate_values={epoch: correct / total for epoch, correct in enumerate(record.epochs, start=1)}
        if total
        else {},
    )
    # create_trial knows no times but now; Optuna wants naive local ones.
    trial.datetime_start = datetime.fromtimestamp(record.started)
    trial.datetime_complete = datetime.fromtimestamp(record.ended)
    return trial


def _outcome(record: CellRecord) -> tuple[TrialState, float | None, int]:
    """A trial's state, its value, and the samples that its epochs were counted on, 0 where that is not known.

    What was dropped is PRUNED in Optuna's words, and has what it had then for its value, as after Optuna's own pruning.
    """
    if record.dropped is not None:
        return TrialState.PRUNED, record.dropped.correct / record.dropped.total, record.dropped.total
    if record.score is not None:
        return TrialState.COMPLETE, record.score.accuracy, record.score.total
    return TrialState.FAIL, None, 0


def _distribution(values: Sequence[float]) -> FloatDistribution:
    linear = min(values) <= 0
    return FloatDistribution(0.0 if linear else min(_LOWEST, *values), max(_HIGHEST, *values), log=not linear)
