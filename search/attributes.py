"""What an Optuna study carries beside its trials, in Optuna's tables: attributes of people's and those of tools.

All that a task's study carries of ours is written in one transaction with the lease's check. Optuna's own functions
commit each attribute alone, and those of its dashboard take 2 s to import.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, String, TableClause, column, inspect, select, table, text

from search.trials import STUDIES

__all__ = ["Carried", "read_attribute", "read_carried", "write_carried"]

_USER = table("study_user_attributes", column("study_id"), column("key"), column("value_json", String))
_SYSTEM = table("study_system_attributes", column("study_id"), column("key"), column("value_json", String))
# Somebody may write the same attribute at this moment.
_PUT = """INSERT INTO {} (study_id, key, value_json) VALUES (:study, :key, :value)
          ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json"""


@dataclass(frozen=True, slots=True)
class Carried:
    """The attributes of a study: ``user`` is what people see as such, ``system`` what Optuna and its dashboard keep."""

    study_id: int
    user: Mapping[str, Any]
    system: Mapping[str, Any]


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


def _values(connection: Connection, kind: TableClause, study_id: int) -> dict[str, Any]:
    rows = connection.execute(select(kind.c.key, kind.c.value_json).where(kind.c.study_id == study_id))
    return {key: json.loads(value) for key, value in rows}
