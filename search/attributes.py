"""What an Optuna study carries beside its trials, in Optuna's tables: attributes of people's and those of tools.

All that a task's study carries of ours is written in one transaction with the lease's check. Optuna's own functions
commit each attribute alone, and those of its dashboard take 2 s to import.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, String, TableClause, cast, column, inspect, select, table, text

from search.trials import STUDIES

__all__ = [
    "Carried",
    "Study",
    "Trial",
    "read_attribute",
    "read_carried",
    "read_studies",
    "read_trials",
    "write_carried",
]

_USER = table("study_user_attributes", column("study_id"), column("key"), column("value_json", String))
_SYSTEM = table("study_system_attributes", column("study_id"), column("key"), column("value_json", String))
# Somebody may write the same attribute at this moment.
_PUT = """INSERT INTO {} (study_id, key, value_json) VALUES (:study, :key, :value)
          ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json"""

_DIRECTIONS = table("study_directions", column("study_id"), column("direction"), column("objective"))
_OF_TRIALS = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json", String))
_NUMBERS = table("trials", column("trial_id"), column("study_id"), column("number"))


@dataclass(frozen=True, slots=True)
class Carried:
    """The attributes of a study: ``user`` is what people see as such, ``system`` what Optuna and its dashboard keep."""

    study_id: int
    user: Mapping[str, Any]
    system: Mapping[str, Any]


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


def read_attribute(connection: Connection, names: Sequence[str], key: str) -> dict[str, Any]:
    """A system attribute of each of these studies that is there; None where it carries none."""
    if not inspect(connection).has_table(_SYSTEM.name):
        return {}
    mine = (_SYSTEM.c.study_id == STUDIES.c.study_id) & (_SYSTEM.c.key == key)
    found = (
        select(STUDIES.c.study_name, _SYSTEM.c.value_json)
        .select_from(STUDIES.outerjoin(_SYSTEM, mine))
        .where(STUDIES.c.study_name.in_(names))
    )
    return {name: None if value is None else json.loads(value) for name, value in connection.execute(found)}


def read_carried(connection: Connection, name: str) -> Carried | None:
    """All attributes of a study, or None where it is gone."""
    if not inspect(connection).has_table(STUDIES.name):
        return None
    study = connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).scalar()
    return None if study is None else Carried(study, *(_values(connection, kind, study) for kind in (_USER, _SYSTEM)))


def write_carried(connection: Connection, now: Carried) -> None:
    """Set these attributes; all others stay as they are."""
    for kind, wanted in ((_USER, now.user), (_SYSTEM, now.system)):
        rows = [{"study": now.study_id, "key": key, "value": json.dumps(value)} for key, value in wanted.items()]
        if rows:
            connection.execute(text(_PUT.format(kind.name)), rows)


def read_trials(connection: Connection, study_id: int) -> dict[str, Trial]:
    """The trials of a study by the key of their cell."""
    found = (
        select(_OF_TRIALS.c.value_json, _NUMBERS.c.trial_id, _NUMBERS.c.number)
        .join(_NUMBERS, _NUMBERS.c.trial_id == _OF_TRIALS.c.trial_id)
        .where(_NUMBERS.c.study_id == study_id, _OF_TRIALS.c.key == "cell")
    )
    return {json.loads(key): Trial(trial, number) for key, trial, number in connection.execute(found)}


def _values(connection: Connection, kind: TableClause, study_id: int) -> dict[str, Any]:
    rows = connection.execute(select(kind.c.key, kind.c.value_json).where(kind.c.study_id == study_id))
    return {key: json.loads(value) for key, value in rows}
