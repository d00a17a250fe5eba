"""Every run of a database in a few queries: how far each is, whatever their number. No record is read whole."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Executable, Select, String, and_, case, cast, func, select

from search.database import Database
from search.lease import Holder, holders
from search.ledger import Commits, Jobs, Openings, Runs
from search.trials import STUDIES, TRIALS, has_trials, is_finished

__all__ = ["Overview", "read_overview"]


@dataclass(frozen=True, slots=True)
class Overview:
    """A run in short.

    Attributes:
        replicas, tasks: What it is to have; None where its experiment does not say.
        committed: Tasks, over all replicas.
        finished, cells: Of the tasks that are open, cells with a trial, of so many.
        jobs: How many are handed out.
        accuracy: Test accuracy of the committed tasks, on average; None before the first.
        damaged: Replicas whose last commit, or open task, cannot be read; they count in none of the figures from it.
        changed: When something of it was last written, in seconds since 1970: a lease's renewals are not.
        holder: Who holds its lease.
    """

    name: str
    state: str
    reason: str
    replicas: int | None
    tasks: int | None
    committed: int
    finished: int
    cells: int
    jobs: int
    accuracy: float | None
    damaged: int
    created: float
    changed: float
    holder: Holder | None


@dataclass(slots=True)
class _Tasks:
    """What is added up over a run's replicas."""

    committed: int = 0
    scores: int = 0
    total: float = 0.0
    cells: int = 0
    damaged: int = 0


def read_overview(connection: Connection, database: Database) -> list[Overview]:
    """Every run, the oldest first."""
    tasks: dict[int, _Tasks] = defaultdict(_Tasks)
    for row in connection.execute(_last_commits()):
        tasks[row.run_id].committed += row.task + 1
        _add_scores(tasks[row.run_id], row.record)
    for run_id, record in connection.execute(_open_tasks(Openings.run_id, Openings.record)):
        _add_cells(tasks[run_id], record)
    finished: dict[int, int] = {}
    if has_trials(connection):
        finished.update((run_id, count) for run_id, count in connection.execute(_finished_cells()))
    jobs = {row.run_id: row for row in connection.execute(_jobs())}
    held = holders(connection, database.clock(connection))
    return [
        _overview(row, tasks[row.id], finished.get(row.id, 0), jobs.get(row.id), held.get(row.id))
        for row in connection.execute(select(*Runs.__table__.columns).order_by(Runs.id))
    ]


def _overview(row: Any, tasks: _Tasks, finished: int, jobs: Any, holder: Holder | None) -> Overview:
    experiment = row.experiment
    shape = experiment.get("tasks")
    return Overview(
        name=row.name,
        state=row.state,
        reason=row.reason,
        replicas=experiment.get("replicas"),
        tasks=shape.get("count") if isinstance(shape, dict) else None,
        committed=tasks.committed,
        finished=finished,
        cells=tasks.cells,
        jobs=0 if jobs is None else jobs.open,
        accuracy=tasks.total / tasks.scores if tasks.scores else None,
        damaged=tasks.damaged,
        created=row.created,
        changed=max(_times((row.updated, *(() if jobs is None else (jobs.started, jobs.ended))))),
        holder=holder,
    )


def _times(found: Iterable[float | None]) -> Iterable[float]:
    return (time for time in found if time is not None)


def _add_scores(tasks: _Tasks, record: str) -> None:
    """The matrix of a replica's last commit has the test score of every task so far."""
    try:
        scores = [score["correct"] / score["total"] for score in json.loads(record)["matrix"]]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        tasks.damaged += 1
        return
    tasks.total += sum(scores)
    tasks.scores += len(scores)


def _add_cells(tasks: _Tasks, record: str) -> None:
    try:
        tasks.cells += len(json.loads(record)["cells"])
    except (ValueError, TypeError, KeyError):
        tasks.damaged += 1


def _last_commits() -> Executable:
    """Of every replica the last one: commits come in order, so its task says how many there are."""
    last = select(Commits.run_id, Commits.replica, func.max(Commits.task).label("task"))
    last = last.group_by(Commits.run_id, Commits.replica)
    found = last.subquery()
    same = and_(Commits.run_id == found.c.run_id, Commits.replica == found.c.replica, Commits.task == found.c.task)
    return select(Commits.run_id, Commits.task, Commits.record).join(found, same)


def _open_tasks(*columns: Any) -> Select[Any]:
    """Openings without their commit."""
    same = and_(Commits.run_id == Openings.run_id, Commits.replica == Openings.replica, Commits.task == Openings.task)
    return select(*columns).outerjoin(Commits, same).where(Commits.run_id.is_(None))


def _finished_cells() -> Select[Any]:
    """Run → its finished cells in open tasks: by their trials, as everywhere."""
    number = cast(Openings.task, String)
    task = case((Openings.task < 10, "0" + number), else_=number)
    # As search.names.study_name writes it.
    name = Runs.name + "/replica-" + cast(Openings.replica, String) + "/task-" + task
    found = _open_tasks(Openings.run_id, func.count(TRIALS.c.trial_id))
    found = found.join(Runs, Runs.id == Openings.run_id).join(STUDIES, STUDIES.c.study_name == name)
    return found.join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id).where(is_finished()).group_by(Openings.run_id)


def _jobs() -> Executable:
    is_open = case((Jobs.state == "open", 1), else_=0)
    return select(
        Jobs.run_id,
        func.sum(is_open).label("open"),
        func.max(Jobs.started).label("started"),
        func.max(Jobs.ended).label("ended"),
    ).group_by(Jobs.run_id)
