"""Optuna's tables, as far as reading needs them, without Optuna.

Its storage class makes and migrates tables when it is opened, which a reader must not; and to import it takes longer
than a reader's whole work.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, cast, column, inspect, select, table

__all__ = ["STUDIES", "TRIALS", "finished", "has_trials", "is_finished", "study_names", "with_trial"]

STUDIES = table("studies", column("study_id"), column("study_name", String))
TRIALS = table("trials", column("trial_id"), column("study_id"), column("state", String))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json", String))


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
