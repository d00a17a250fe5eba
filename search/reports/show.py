"""One commit explained: from the records of its grid to the winner."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Choice
from search.decisions import budget_of, exceeded, pick_winner
from search.records import CellRecord, CommitRecord, Score
from search.reports.common import Known, Report, cell, find_commit, layers, provenance, read_run, score
from search.reports.final import task_row
from search.store import Store
from search.text import MANY, group_list, members

__all__ = ["show", "why"]


def show(store: Store, name: str, *, task: int | None = None, replica: int | None = None) -> Report:
    """Why a task's winner won, and what its commit claimed.

    The rule is applied to the records again; a commit that they do not explain is said to be so.

    Args:
        task: From 1; the last one committed without it.
        replica: From 1, the first without it.

    Raises:
        BadInput: No run has this name, it has no such replica, or the task is not committed.
    """
    known = read_run(store, name)
    record = find_commit(known, task, replica)
    margin, halving = known.experiment.margin(record.task), known.experiment.halving(record.task)
    choice = _choose(known, record)
    winner = known.cells(record.replica, record.task).get(record.winner.index)
    explained = choice is not None and _as_recorded(known, choice, record)
    return {
        "run": name,
        "replica": record.replica + 1,
        "replicas": known.experiment.replicas,
        "count": known.experiment.tasks.count,
        "origin": known.experiment.origin and known.experiment.origin.text,
        "layers": list(known.hidden),
        **task_row(known, record),
        "rule": known.experiment.of(record.task).rule.kind,
        "margin": float(margin),
        "halving": None if halving is None else {"epochs": list(halving.epochs), "margin": float(halving.margin)},
        "budget": _budget(known, record),
        "sparsity": known.experiment.of(record.task).rule.sparsity,
        "why": why(known, record),
        "best": score(Score(record.best, record.unpruned.total)),
        "needed": score(Score(record.needed, record.unpruned.total)),
        "unpruned": score(record.unpruned),
        "units": layers(known.hidden, record.widths),
        "usage": {"groups": list(map(asdict, record.usage.groups)), "layers": list(map(asdict, record.usage.layers))},
        "trials": _trials(known, record, choice),
        "rounds": _rounds(known, record),
        "explained": explained,
        "matrix": [score(entry) for entry in record.matrix],
        "fingerprint": record.fingerprint,
        "artifact": record.artifact,
        "size": record.size,
        "trained": provenance(winner.provenance) if winner else None,
        "provenance": provenance(record.provenance),
        "differed": _differed(known, record),
        "started": record.started,
        "ended": record.ended,
    }


def why(known: Known, record: CommitRecord, write: Callable[[str], str] = str) -> str:
    """Why the winner won, in words.

    Args:
        write: Makes what is read of the name of a group.
    """
    sparsity = known.experiment.of(record.task).rule.sparsity
    sparsest = f"the candidate with the {'fewest new units' if sparsity == 'units' else 'most weights left free'}"
    most = _budget(known, record)
    if most is None:
        return sparsest
    named = ", ".join(f"{count:,} of {write(group)}" for group, count in most.items())
    limits = f"at most {named if len(most) <= MANY else f'{sum(most.values()):,} in {len(most)} groups'}"
    if record.over_budget:
        over = group_list([write(group) for group in record.over_budget])
        return f"{sparsest}: above the floor none fits the budget (over in {over}; {limits})"
    return f"the most accurate that fits the budget ({limits})"


def _choose(known: Known, record: CommitRecord) -> Choice | None:
    """What the rule makes of the records now; None where it finds nothing to commit in them."""
    cells, earlier = known.cells(record.replica, record.task), known.commits(record.replica)[: record.task]
    try:
        return pick_winner(known.experiment, cells, earlier=earlier, widths=record.widths)
    except (Damaged, NothingToCommit):
        return None


def _as_recorded(known: Known, choice: Choice, record: CommitRecord) -> bool:
    """Whether the rule's choice is what was committed."""
    found = choice.winner.index, choice.winner.point, exceeded(known.experiment, choice)
    return found == (record.winner.index, record.point, record.over_budget)


def _budget(known: Known, record: CommitRecord) -> Report | None:
    """Under the budget rule the most new units of each group that the task was to claim."""
    most = budget_of(known.experiment, known.commits(record.replica)[: record.task], record.widths)
    return None if most is None else layers(known.hidden, most)


def _trials(known: Known, record: CommitRecord, choice: Choice | None) -> list[Report]:
    """Every cell of the grid: what it scored, and for a candidate the point that it would have been pruned at."""
    picks = {pick.index: pick for pick in choice.picks} if choice else {}
    rows = []
    for index, found in sorted(known.cells(record.replica, record.task).items()):
        pick = picks.get(index)
        pruned: Any = None
        if pick is not None and found.score is not None:
            point = pick.point
            pruned = {
                "theta": point.theta,
                **score(Score(point.correct, found.score.total)),
                "claimed": layers(known.hidden, point.claimed),
                "free_weights": point.free_weights,
                "over_budget": [known.hidden[place] for place in pick.exceeds],
            }
        rows.append(
            {
                **cell(found.cell, known.experiment),
                "diverged": found.diverged,
                "dropped": None if found.dropped is None else {**asdict(found.dropped), "text": str(found.dropped)},
                "unpruned": score(found.score) if found.score else None,
                "epoch": found.epoch,
                "epochs": len(found.epochs),
                "candidate": pick is not None,
                "pruned": pruned,
                "winner": index == record.winner.index,
                "seconds": found.ended - found.started,
            }
        )
    return rows


def _rounds(known: Known, record: CommitRecord) -> list[Report]:
    """Every round of fine-tuning: where it pruned, what that left, and what training again made of it."""
    total = record.validation.total
    return [
        {
            "round": number,
            "theta": one.theta,
            "claimed": layers(known.hidden, one.claimed),
            "pruned": score(Score(one.pruned, total)),
            "tuned": None if one.tuned is None else score(Score(one.tuned, total)),
            "better": one.better,
        }
        for number, one in enumerate(record.rounds, start=1)
    ]


def _differed(known: Known, record: CommitRecord) -> list[str]:
    """What could not be as it was meant to be: the bits of these records may depend on it."""
    lines = []
    if record.missing:
        lines.append(f"committed without {members(record.missing)}, lost too often")
    opening = known.opening(record.replica, record.task)
    stacks = {index: stack for stack in (opening.stacks if opening else ()) for index in stack}
    for index, found in sorted(known.cells(record.replica, record.task).items()):
        planned = stacks.get(index, found.provenance.stack)
        if tuple(found.provenance.stack) != tuple(planned):
            lines.append(
                f"cell {index} trained in a stack of {members(found.provenance.stack)} instead of {members(planned)}"
            )
        lines.extend(f"cell {index} {line}" for line in _against(found, record))
    return lines


def _against(found: CellRecord, record: CommitRecord) -> list[str]:
    """Where a cell's device, threads and versions are other than those of the commit."""
    cells, commit = found.provenance, record.provenance
    pairs = [("device", cells.device, commit.device), ("threads", str(cells.threads), str(commit.threads))]
    names = sorted(set(cells.versions) | set(commit.versions))
    pairs += [(name, cells.versions.get(name, "none"), commit.versions.get(name, "none")) for name in names]
    return [f"trained with {name} {was}, committed with {now}" for name, was, now in pairs if was != now]
