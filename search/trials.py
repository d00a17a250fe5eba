"""Optuna's tables, as far as reading needs them, without Optuna.

Its storage class makes and migrates tables when it is opened, which a reader must not; and to import it takes longer
than a reader's whole work.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, cast, column, inspect, select, table

__all__ = [
    "STUDIES",
    "TRIALS",
    "Study",
    "Trial",
    "finished",
    "has_trials",
    "is_finished",
    "read_studies",
    "read_trials",
    "study_names",
    "with_trial",
]

STUDIES = table("studies", column("study_id"), column("study_name", String))
TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"), column("state", String))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json", String))
_DIRECTIONS = table("study_directions", column("study_id"), column("direction"), column("objective"))


@dataclass(frozen=True, slots=True)
class Study:
    """A study without what it carries; ``directions`` as Optuna names them."""

    study_id: int
    name: str
    directions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """How Optuna names a trial: within its database, and from 0 within its study."""

    trial_id: int
    number: int


def has_trials(connection: Connection) -> bool:
    """Whether Optuna's tables are there: the first run that is taken makes them."""
    return inspect(connection).has_table(_ATTRIBUTES.name)


def is_finished() -> ColumnElement[bool]:
    """Whether a row of :data:`TRIALS` is of a finished trial, a diverged or dropped one among them."""
    return cast(TRIALS.c.state, String).in_(["COMPLETE", "FAIL", "PRUNED"])


def study_names(connection: Connection, prefix: str) -> list[str]:
    """The names of the studies that begin so."""
    if not inspect(connection).has_table(STUDIES.name):
        return []
    name = STUDIES.c.study_name
    return list(
        connection.execute(select(name).where(name.startswith(prefix, autoescape=True)).order_by(name)).scalars()
    )


def read_studies(connection: Connection, *, prefix: str = "", study_id: int | None = None) -> list[Study]:
    """The studies whose name begins so, or the one of that id, in the order in which they were made."""
    if not inspect(connection).has_table(_DIRECTIONS.name):
        return []
    found = (
        select(STUDIES.c.study_id, STUDIES.c.study_name, cast(_DIRECTIONS.c.direction, String).label("direction"))
        .join(_DIRECTIONS, _DIRECTIONS.c.study_id == STUDIES.c.study_id)
        .order_by(STUDIES.c.study_id, _DIRECTIONS.c.objective)
    )
    if prefix:
        found = found.where(STUDIES.c.study_name.startswith(prefix, autoescape=True))
    if study_id is not None:
        found = found.where(STUDIES.c.study_id == study_id)
    studies: dict[int, Study] = {}
    for row in connection.execute(found):
        before = studies[row.study_id].directions if row.study_id in studies else ()
        studies[row.study_id] = Study(row.study_id, row.study_name, (*before, row.direction))
    return list(studies.values())


def finished(connection: Connection, names: Sequence[str]) -> set[tuple[str, str]]:
    """The cells that have a finished trial in one of these studies: (study name, cell key)."""
    if not has_trials(connection):
        return set()
    return {(row.study_name, json.loads(row.key)) for row in connection.execute(with_trial(names))}


def with_trial(names: Sequence[str]) -> Select[Any]:
    """The same as a query: ``study_name`` and, as JSON, ``key``."""
    return (
        select(STUDIES.c.study_name, _ATTRIBUTES.c.value_json.label("key"))
        .join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id)
        .join(_ATTRIBUTES, _ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(STUDIES.c.study_name.in_(names), _ATTRIBUTES.c.key == "cell", is_finished())
    )


def read_trials(connection: Connection, study_id: int) -> dict[str, Trial]:
    """The trials of a study by the key of their cell."""
    found = (
        select(_ATTRIBUTES.c.value_json, TRIALS.c.trial_id, TRIALS.c.number)
        .join(TRIALS, TRIALS.c.trial_id == _ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, _ATTRIBUTES.c.key == "cell")
    )
    return {json.loads(key): Trial(trial, number) for key, trial, number in connection.execute(found)}
