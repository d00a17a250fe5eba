"""What the rule would have picked at another margin, from the records (Promise 4)."""

from fractions import Fraction

from clnp.errors import Damaged
from search.decisions import dropped
from search.errors import BadInput, Damage
from search.replay import Replayed
from search.replay import replay as select_again
from search.reports.common import Known, Report, cell, layers, read_run
from search.store import Store

__all__ = ["replay"]


def replay(store: Store, name: str, margin: str) -> Report:
    """Every committed task at another margin: winner, what it would cost, and what it would free.

    Under the budget rule too it is the margin rule that picks, and of a task that was fine-tuned it is compared with
    the trial as it was pruned, before that: see :func:`search.replay.replay`.

    Args:
        margin: Percentage points, as a decimal is written: exact.

    Raises:
        BadInput: No run has this name, or the margin is not a number from 0 to 100, or larger than halving's in a
            task of which cells were dropped.
        Damage: A record contradicts itself.
    """
    other = _margin(margin)
    known = read_run(store, name)
    try:
        replicas = select_again(known.experiment, known.history, other, name=name)
    except Damaged as error:
        raise Damage(f"run {name!r}: {error}; restore the database from a backup") from error
    return {
        "run": name,
        "margin": float(other),
        "rule": known.experiment.rule.kind,
        "layers": list(known.hidden),
        "replicas": [
            {"replica": index + 1, "tasks": [_task(known, task) for task in tasks]}
            for index, tasks in enumerate(replicas)
        ],
    }


def _margin(text: str) -> Fraction:
    try:
        margin = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"--margin {text!r} is not a number; give percentage points, such as 0.5") from None
    if not 0 <= margin <= 100:
        raise BadInput(f"--margin {text}: give percentage points from 0 to 100")
    return margin


def _task(known: Known, task: Replayed) -> Report:
    return {
        "task": task.task + 1,
        "outcome": task.outcome,
        "rule": known.experiment.of(task.task).rule.kind,
        "margin": float(known.experiment.margin(task.task)),
        "theta_scale": known.experiment.of(task.task).rule.theta,
        "dropped": list(dropped(known.cells(task.replica, task.task))),
        "fine_tuned": bool(known.history.commits[task.replica, task.task].rounds),
        "committed": {**cell(task.committed, known.experiment), "theta": task.committed_point.theta},
        "winner": {**cell(task.winner, known.experiment), "theta": task.point.theta},
        "candidates": list(task.candidates),
        "best": task.best,
        "needed": task.needed,
        "correct": task.point.correct,
        "total": task.total,
        "accuracy": task.point.correct / task.total,
        "cost": task.cost,
        "points": task.points,
        "freed": layers(known.hidden, task.freed),
    }
