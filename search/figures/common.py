"""What the figures are drawn from: a run as the database holds it, and small looks into it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Point, needed
from search.decisions import pick_winner
from search.errors import BadInput
from search.figures.style import plain
from search.records import Cell, CellRecord, CommitRecord, Opening, Score
from search.reports.common import Known, read_run
from search.store import open_store
from search.text import MANY, number, plural

__all__ = ["Trials", "alpha_text", "by_task", "cell_text", "groups_text", "load", "now", "task_trials", "tasks_done"]


def load(storage: str, name: str) -> Known:
    """A run, for figures in a notebook: ``load("sqlite:///clnp-search.db", "quickstart")``.

    Raises:
        BadInput: There is no such database, or no run of this name in it.
    """
    with open_store(storage, create=False) as store:
        return read_run(store, name)


def by_task(known: Known) -> list[list[CommitRecord]]:
    """For every task that a replica has committed, the commits of all replicas that have."""
    replicas = [known.commits(replica) for replica in known.replicas]
    return [[commits[task] for commits in replicas if task < len(commits)] for task in range(max(map(len, replicas)))]


def now(known: Known, record: CommitRecord) -> Score:
    """A committed task's test score as last measured in its replica."""
    return known.commits(record.replica)[-1].matrix[record.task]


def tasks_done(known: Known) -> str:
    """How many tasks are committed: ``5 tasks``, ``3 of 5 tasks``, ``2 to 3 of 5 tasks``."""
    done = [len(known.commits(replica)) for replica in known.replicas]
    count, least, most = known.experiment.tasks.count, min(done), max(done)
    if least == count:
        return plural(count, "task")
    return f"{least if least == most else f'{least} to {most}'} of {plural(count, 'task')}"


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of a task, and what the rule has to say of them so far.

    Attributes:
        replica, task: From 1, as people count.
        cells: The grid, finished or not.
        records: The finished cells, by their index.
        commit: None where the task is open.
        best, needed, total: Right answers of the best trial unpruned and at the cut line, of so many; None without a
            trial that has finite numbers.
        points: Cell index → where the rule prunes it, of every candidate; the winner as it was picked.
        line: What ``needed`` is called: the floor of a budget rule.
    """

    replica: int
    task: int
    cells: tuple[Cell, ...]
    records: Mapping[int, CellRecord]
    commit: CommitRecord | None
    best: int | None
    needed: int | None
    total: int
    points: Mapping[int, Point]
    line: Literal["cut line", "floor"]

    @property
    def winner(self) -> int | None:
        return None if self.commit is None else self.commit.winner.index

    @property
    def diverged(self) -> int:
        return sum(record.diverged is not None for record in self.records.values())

    @property
    def place(self) -> str:
        return f"task {self.task}, replica {self.replica}"


def task_trials(known: Known, replica: int, task: int) -> Trials:
    """The trials of a task (from 1) of a replica (from 1).

    Raises:
        BadInput: There is no such replica or task, or the task is not open yet.
    """
    name, count = known.row.name, known.experiment.tasks.count
    if not 1 <= replica <= len(known.replicas):
        raise BadInput(f"replica {replica}: run {name!r} has replicas 1 to {len(known.replicas)}")
    if not 1 <= task <= count:
        raise BadInput(f"task {task}: run {name!r} has tasks 1 to {count}")
    opening, records = known.opening(replica - 1, task - 1), known.cells(replica - 1, task - 1)
    commit = known.history.commits.get((replica - 1, task - 1))
    if opening is None and not records and commit is None:
        raise BadInput(f"task {task} of replica {replica} of run {name!r} is not open yet; there is nothing to draw")
    cells = opening.cells if opening else tuple(records[index].cell for index in sorted(records))
    scores = [record.score for record in records.values() if record.score is not None]
    best = commit.best if commit else max((score.correct for score in scores), default=None)
    total = commit.unpruned.total if commit else max((score.total for score in scores), default=0)
    line = None
    if best is not None:
        line = commit.needed if commit else needed(best, total, known.experiment.margin(task - 1))
    points = _points(known, replica - 1, task - 1, records, opening)
    if commit is not None:
        points[commit.winner.index] = commit.point
    name_of_line: Literal["cut line", "floor"] = (
        "floor" if known.experiment.of(task - 1).rule.kind == "budget" else "cut line"
    )
    return Trials(replica, task, cells, records, commit, best, line, total, points, name_of_line)


def _points(
    known: Known, replica: int, task: int, records: Mapping[int, CellRecord], opening: Opening | None
) -> dict[int, Point]:
    earlier = known.commits(replica)[:task]
    widths = opening.widths if opening else known.experiment.outline.widths
    try:
        choice = pick_winner(known.experiment, records, earlier=earlier, widths=widths)
    except (Damaged, NothingToCommit):
        return {}  # what was recorded is drawn; `show` and `verify` say what is wrong with it
    return {pick.index: pick.point for pick in choice.picks}


def alpha_text(alpha: tuple[float, ...]) -> str:
    """α of a cell: one number where all layers have the same, ``1e-4 / 5e-4`` for few layers, the range for many."""
    if len(set(alpha)) == 1:
        return number(alpha[0])
    return " / ".join(map(number, alpha)) if len(alpha) <= MANY else f"{number(min(alpha))} – {number(max(alpha))}"


def cell_text(cell: Cell) -> str:
    """A cell in words."""
    return f"cell {cell.index}: α {alpha_text(cell.alpha)}, learning rate {number(cell.learning_rate)}"


def groups_text(known: Known, claimed: Iterable[int]) -> str:
    """``12 new units: hidden1 7, hidden2 5``, safe for plotly; the groups in lines of four."""
    values = tuple(claimed)
    each = [f"{plain(name)} {count:,}" for name, count in zip(known.hidden, values, strict=True)]
    lines = [", ".join(each[start : start + 4]) for start in range(0, len(each), 4)]
    return f"{plural(sum(values), 'new unit')}: " + ",<br>  ".join(lines)
