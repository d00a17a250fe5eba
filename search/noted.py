"""What the note of a committed task is made from, and which committed tasks lack theirs.

A note is what a task's study carries to explain the commit: text, figure, winner and files. The ledger is the truth,
notes are a view of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from search.attributes import read_attribute, read_carried
from search.book import Place, place
from search.ledger import Cells, Commits, read
from search.names import study_name
from search.records import CellRecord, CommitRecord
from search.rows import History, read_opening
from search.trials import Trial, read_trials

__all__ = ["EDITION", "MARK", "Noted", "read_noted", "read_unnoted"]

MARK = "clnp-search:note"
"""The study's system attribute that says which edition of its note it carries. It is written with the note."""

EDITION = 2
"""Of what a note says and shows: with another one every note is written anew."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A committed task, and how Optuna names its study and trials.

    Attributes:
        history: Of this task and, commits alone, of those before it in its replica.
        trials: By the key of their cell.
    """

    history: History
    commit: CommitRecord
    study_id: int
    trials: Mapping[str, Trial]


def read_unnoted(connection: Connection, run_id: int | None, name: str) -> list[Place]:
    """The committed tasks (replica, task) whose study is there and carries no note of :data:`EDITION`."""
    places = select(Commits.replica, Commits.task).where(Commits.run_id == run_id)
    studies = {
        study_name(name, replica, task): (replica, task)
        for replica, task in connection.execute(places.order_by(Commits.task, Commits.replica))
    }
    marks = read_attribute(connection, tuple(studies), MARK)
    return [
        here
        for study, here in studies.items()
        if study in marks and (marks[study] is None or marks[study]["edition"] != EDITION)
    ]


def read_noted(connection: Connection, run_id: int | None, name: str, replica: int, task: int) -> Noted | None:
    """A committed task, or None where its commit or its study is gone.

    Raises:
        Damage: A row cannot be read.
    """
    where = f"run {name}, {place(replica, task)}"
    carried = read_carried(connection, study_name(name, replica, task))
    mine = Commits.run_id == run_id, Commits.replica == replica, Commits.task <= task
    commits = {
        (replica, row.task): read(CommitRecord, row.record, where)
        for row in connection.execute(select(Commits.task, Commits.record).where(*mine))
    }
    if run_id is None or carried is None or (replica, task) not in commits:
        return None
    trials = read_trials(connection, carried.study_id)
    cells = select(Cells.cell, Cells.key, Cells.record).where(
        Cells.run_id == run_id, Cells.replica == replica, Cells.task == task
    )
    found = {row.cell: read(CellRecord, row.record, where) for row in connection.execute(cells) if row.key in trials}
    opening = read_opening(connection, run_id, replica, task, where)
    openings = {} if opening is None else {(replica, task): opening}
    history = History(openings, {(replica, task): found}, commits, [])
    return Noted(history, commits[replica, task], carried.study_id, trials)
