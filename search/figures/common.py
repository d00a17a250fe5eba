"""What the figures are drawn from: a run as the database holds it, and small looks into it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clnp.errors import Damaged, NothingToCommit
from clnp.forgetting import Point, needed
from search.decisions import budget_of, dropped, pick_winner
from search.errors import BadInput
from search.figures.style import plain
from search.records import Cell, CellRecord, CommitRecord, Score
from search.reports.common import Known, read_run
from search.store import open_store
from search.text import MANY, number, plural, theta, up_to

__all__ = [
    "Trials",
    "alpha_text",
    "begun",
    "by_task",
    "cell_text",
    "check_replica",
    "groups_text",
    "grown",
    "load",
    "now",
    "task_trials",
    "tasks_done",
    "theta_text",
    "tuned_text",
    "uneven",
    "whole",
]


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


def begun(known: Known) -> list[list[CommitRecord]]:
    """The commits of every replica that has some."""
    return [commits for replica in known.replicas if (commits := known.commits(replica))]


def whole(known: Known) -> int:
    """How many tasks all replicas have that have any: a mean over fewer of them is no measure of what became of one."""
    return min(map(len, begun(known)), default=0)


def uneven(known: Known, mark: str) -> str:
    """What a title adds where replicas are at different tasks; ``mark`` is how the tasks look that not all have."""
    runs, count = begun(known), len(known.replicas)
    said = "" if len(runs) == count else f"; {len(runs)} of {plural(count, 'replica')}"
    first, last = whole(known) + 1, max(map(len, runs), default=0)
    if first > last:
        return said
    tasks = f"task {last}" if first == last else f"tasks {first} to {last}"
    most, least = (sum(len(commits) >= task for commits in runs) for task in (first, last))
    return f"{said}; {tasks} ({mark}): {least if most == least else f'{least} to {most}'} of {plural(count, 'replica')}"


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


def grown(known: Known) -> str:
    """What growth has come to in the committed tasks, such as ``hidden1 grew from 64 to 96 units``; often nothing."""
    lasts = [commits[-1].widths for commits in begun(known)]
    found = []
    for name, first, *now in zip(known.hidden, known.experiment.outline.widths, *lasts, strict=True):
        if max(now, default=first) > first:
            least, most = min(now), max(now)
            found.append((name, f"{first:,} to {f'{least:,}' if least == most else f'{least:,} – {most:,}'}"))
    if len(found) > MANY:
        return f"{len(found)} of {len(known.hidden)} groups grew"
    texts = [f"{name} grew from {change}" for name, change in found[:1]]
    return ", ".join([*texts, *(f"{name} from {change}" for name, change in found[1:])]) + (" units" if found else "")


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of a task, and what the rule has to say of them so far.

    Attributes:
        replica, task: From 1, as people count.
        cells: The grid, finished or not.
        records: The finished cells, by their index.
        commit: None where the task is open.
        best, needed, total: Right answers of the best trial unpruned and at the cut line, of so many; None without a
            trial that has a score.
        points: Cell index → where the rule prunes it, of every candidate; the winner as it was picked. Empty where the
            rule refuses the task.
        line: What ``needed`` is called: the floor of a budget rule.
        budget: The most new units of each hidden group under a budget rule; None under another.
        refusal: Why nothing of all the task's trials is worth committing, or None.
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
    budget: tuple[int, ...] | None
    refusal: str | None

    @property
    def winner(self) -> int | None:
        return None if self.commit is None else self.commit.winner.index

    @property
    def diverged(self) -> int:
        return sum(record.diverged is not None for record in self.records.values())

    @property
    def dropped(self) -> int:
        return len(dropped(self.records))

    @property
    def ended(self) -> str:
        """How many trials have no score, such as ``1 diverged, 3 dropped``; often nothing."""
        counts = ((self.diverged, "diverged"), (self.dropped, "dropped"))
        return ", ".join(f"{count:,} {word}" for count, word in counts if count)

    @property
    def unfinished(self) -> int:
        return len(self.cells) - len(self.records)

    @property
    def open(self) -> bool:
        """Whether what the trials have come to is so only so far."""
        return self.commit is None and self.unfinished > 0

    def reaches(self, index: int) -> bool:
        """Whether a cell's trial reaches the line unpruned: a candidate, whatever becomes of the task."""
        score = self.records[index].score if index in self.records else None
        return score is not None and self.needed is not None and score.correct >= self.needed

    @property
    def place(self) -> str:
        return f"task {self.task}, replica {self.replica}"


def task_trials(known: Known, replica: int, task: int) -> Trials:
    """The trials of a task (from 1) of a replica (from 1).

    Raises:
        BadInput: There is no such replica or task, or the task is not open yet.
    """
    name, count = known.row.name, known.experiment.tasks.count
    check_replica(known, replica)
    if not 1 <= task <= count:
        raise BadInput(f"task {task}: run {name!r} has {up_to(count, 'task')}")
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
    earlier = known.commits(replica - 1)[: task - 1]
    widths = opening.widths if opening else known.experiment.outline.widths
    points, refusal = _points(known, records, earlier, widths)
    if commit is not None:
        points[commit.winner.index] = commit.point
    name_of_line: Literal["cut line", "floor"] = (
        "floor" if known.experiment.of(task - 1).rule.kind == "budget" else "cut line"
    )
    most = budget_of(known.experiment, earlier, widths)
    if commit is not None or len(records) < len(cells):
        refusal = None  # the trials that are not there yet may be worth it
    return Trials(replica, task, cells, records, commit, best, line, total, points, name_of_line, most, refusal)


def check_replica(known: Known, replica: int) -> None:
    """Refuse a replica (from 1) that the run does not have.

    Raises:
        BadInput: There is none.
    """
    if not 1 <= replica <= len(known.replicas):
        raise BadInput(f"replica {replica}: run {known.row.name!r} has {up_to(len(known.replicas), 'replica')}")


def _points(
    known: Known, records: Mapping[int, CellRecord], earlier: Sequence[CommitRecord], widths: Sequence[int]
) -> tuple[dict[int, Point], str | None]:
    """Where the rule prunes the candidates, or why it refuses them all."""
    try:
        choice = pick_winner(known.experiment, records, earlier=earlier, widths=widths)
    except NothingToCommit as error:
        return {}, str(error)
    except Damaged:
        return {}, None  # what was recorded is drawn; `show` and `verify` say what is wrong with it
    return {pick.index: pick.point for pick in choice.picks}, None


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


def theta_text(known: Known, task: int, value: float | None) -> str:
    """A threshold of a task (from 1) in its unit: an activity, or a multiple of each layer's mean one."""
    layers = value is not None and known.experiment.of(task - 1).rule.theta == "layers"
    return theta(value, digits=4) + (" × layer's mean activity" if layers else "")


def tuned_text(record: CommitRecord) -> str:
    """What fine-tuning came to, such as ``2 rounds of fine-tuning``; nothing where there was none."""
    rounds = record.rounds
    if not rounds or any(entry.better for entry in rounds):
        return f"{plural(len(rounds), 'round')} of fine-tuning" if rounds else ""
    return f"fine-tuning {'diverged' if all(entry.tuned is None for entry in rounds) else 'gained nothing'}"
