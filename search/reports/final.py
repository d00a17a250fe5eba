"""What a run has come to: its tasks, and the accuracy matrix measured after every commit."""

from statistics import mean, stdev

from search.records import CommitRecord
from search.reports.common import Known, Report, cell, layers, read_run, score
from search.store import Store

__all__ = ["final", "task_row"]


def final(store: Store, name: str) -> Report:
    """The tasks committed so far, each replica's accuracy matrix, and how many old fingerprints changed (Promise 1).

    Raises:
        BadInput: No run has this name.
    """
    known = read_run(store, name)
    replicas = [_replica(known, replica) for replica in known.replicas]
    means = [mean(entry["accuracy"] for entry in replica["matrix"][-1]) for replica in replicas if replica["matrix"]]
    return {
        "run": name,
        "state": known.row.state,
        "origin": known.experiment.origin and known.experiment.origin.text,
        "layers": list(known.hidden),
        "count": known.experiment.tasks.count,
        "replicas": replicas,
        "accuracy": mean(means) if means else None,
        "deviation": stdev(means) if len(means) > 1 else None,
        "fingerprints": sum(replica["fingerprints"] for replica in replicas),
        "changed": sum(replica["changed"] for replica in replicas),
    }


def task_row(known: Known, record: CommitRecord) -> Report:
    """A commit in one row: the winner, where it was cut (if it was fine-tuned, in the last round), what it scored and
    claimed."""
    return {
        "task": record.task + 1,
        **cell(record.winner, known.experiment),
        "theta": record.rounds[-1].theta if record.rounds else record.point.theta,
        "theta_scale": known.experiment.of(record.task).rule.theta,
        "validation": score(record.validation),
        "test": score(record.test),
        "claimed": layers(known.hidden, record.claimed),
        "free": layers(known.hidden, record.free),
        "missing": list(record.missing),
        "over_budget": list(record.over_budget),
    }


def _replica(known: Known, replica: int) -> Report:
    commits = known.commits(replica)
    return {
        "replica": replica + 1,
        "tasks": [task_row(known, record) for record in commits],
        "matrix": [[score(entry) for entry in record.matrix] for record in commits],
        "fingerprints": sum(record.task for record in commits),
        "changed": sum(_changed(record, commits) for record in commits),
    }


def _changed(record: CommitRecord, commits: list[CommitRecord]) -> int:
    """Of the earlier tasks' fingerprints that were measured after this commit, how many were not what they had been."""
    earlier = zip(commits, record.fingerprints[:-1], strict=False)
    return max(record.changed, sum(old.fingerprint != now for old, now in earlier))
