"""How far a run is: what is done, what runs where, what is left of the units, and when it may be over."""

from search.decisions import dropped
from search.experiment import Experiment
from search.reports.common import Known, Report, layers, read_run, score
from search.reports.forecast import Forecast, forecast, seconds_left
from search.store import AttemptRow, Holder, JobRow, Store

__all__ = ["run_status", "status"]


def status(store: Store, name: str) -> Report:
    """A run, whole; :func:`search.reports.overview.overview` has all of them in short.

    Raises:
        BadInput: No run has this name.
        Damage: A row cannot be read.
    """
    return {"storage": store.url, "runs": [run_status(store, read_run(store, name))]}


def run_status(store: Store, known: Known, planned: Experiment | None = None) -> Report:
    """One run.

    Args:
        planned: What it is to go on with, for the forecast; without it, what it has been run with.
    """
    row = known.row
    holder = store.holder(row.name)
    live = holder is not None and holder.live
    jobs = store.jobs(row.name) if live else []  # those of a driver that is gone end with it
    attempts = store.attempts(row.name)
    return {
        "run": row.name,
        "state": "running" if row.state == "open" and live else row.state,
        "reason": row.reason,
        "created": row.created,
        "updated": row.updated,
        "artifacts": row.artifacts,
        "tasks": known.experiment.tasks.title,
        "origin": known.experiment.origin and known.experiment.origin.text,
        "head": known.experiment.head,
        "theta_scale": known.experiment.rule.theta,
        "count": known.experiment.tasks.count,
        "units": layers(known.hidden, known.experiment.outline.widths),
        "replicas": [_replica(known, replica, jobs, planned) for replica in known.replicas],
        "running": [_job(job) for job in jobs],
        "seconds_left": seconds_left(known),
        "holder": _holder(holder),
        "attempts": len(attempts),
        "last_attempt": _attempt(attempts[-1]) if attempts else None,
        "notes": _notes(attempts),
    }


def _replica(known: Known, replica: int, jobs: list[JobRow], planned: Experiment | None) -> Report:
    commits = known.commits(replica)
    task = len(commits)
    opening = known.opening(replica, task)
    units, free = known.room(replica)
    return {
        "replica": replica + 1,
        "committed": task,
        "task": task + 1 if task < known.experiment.tasks.count else None,
        "cells": _cells(known, replica, task, len(opening.cells), jobs) if opening else None,
        "test": [score(record.test) for record in commits],
        "units": layers(known.hidden, units),
        "free": layers(known.hidden, free),
        "forecast": {one.layer: _forecast(one) for one in forecast(known, replica, planned)},
    }


def _forecast(one: Forecast) -> Report:
    return {
        "claimed": float(one.claimed),
        "more": one.more,
        "full": one.full,
        "count": one.count,
        "budgeted": one.budgeted,
        "grows": one.grows,
    }


def _cells(known: Known, replica: int, task: int, total: int, jobs: list[JobRow]) -> Report:
    found = known.cells(replica, task)
    out = {cell for job in jobs if (job.kind, job.replica, job.task) == ("stack", replica, task) for cell in job.cells}
    return {
        "total": total,
        "finished": len(found),
        "diverged": sum(record.diverged is not None for record in found.values()),
        "dropped": len(dropped(found)),
        "running": len(out - found.keys()),
    }


def _job(job: JobRow) -> Report:
    return {
        "job": job.id,
        "kind": job.kind,
        "replica": job.replica + 1,
        "task": job.task + 1,
        "cells": list(job.cells),
        "worker": job.worker,
        "epoch": job.epoch,
        "accuracy": job.accuracy,
        "started": job.started,
    }


def _holder(holder: Holder | None) -> Report | None:
    if holder is None:
        return None
    return {"host": holder.host, "pid": holder.pid, "since": holder.since, "until": holder.until, "live": holder.live}


def _attempt(attempt: AttemptRow) -> Report:
    return {
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": attempt.outcome,
        "versions": dict(attempt.versions),
    }


def _notes(attempts: list[AttemptRow]) -> list[str]:
    """What the attempts wrote down, such as other versions than the one before had."""
    return [f"attempt {number}: {note}" for number, attempt in enumerate(attempts, start=1) for note in attempt.notes]
