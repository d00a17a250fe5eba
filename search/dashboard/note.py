"""The note of a committed task: why the winner won, as text and as a figure, and where its tensors are."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from search.attributes import Carried
from search.dashboard.layout import figure_attributes, file_attributes, note_attributes, note_text
from search.experiment import Experiment
from search.figures.common import Trials, alpha_text, task_trials, theta_text, tuned_text
from search.figures.thin import thin
from search.figures.trials import pareto
from search.names import cell_key
from search.noted import EDITION, MARK, Noted
from search.records import CommitRecord
from search.reports.common import Known
from search.reports.show import why
from search.store import RunRow
from search.text import MANY, members, number, percent, plural, points_text
from search.trials import Trial

__all__ = ["Note", "compose", "merge"]

_FIGURE = "accuracy-units"

_OF_WINNER = "**Winner** of"


@dataclass(frozen=True, slots=True)
class Note:
    """What a study carries of ours.

    Attributes:
        text, trial_text: In Markdown, on the study and on its winner (``trial_id``).
        figure: Validation accuracy against units, as plotly's JSON.
        facts: User attributes: in tables and comparisons of the dashboard.
        files: SHA-256 → name.
    """

    text: str
    trial_id: int
    trial_text: str
    figure: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]


def compose(row: RunRow, noted: Noted) -> Note:
    """The note of a committed task.

    Raises:
        KeyError: The winner has no trial, which :func:`~search.noted.read_noted` would have found.
    """
    known, commit = Known(row, Experiment.from_json(row.experiment), noted.history), noted.commit
    trials = task_trials(known, commit.replica + 1, commit.task + 1)
    names = {index: noted.trials[cell_key(record.cell)] for index, record in trials.records.items()}
    winner = names[commit.winner.index]
    figure = pareto(known, commit.replica + 1, commit.task + 1)
    said = _Words(known, commit, trials, names, noted.study_id)
    return Note(
        text=said.text(),
        trial_id=winner.trial_id,
        trial_text=said.of_winner(),
        figure=thin(figure, {index: f"trial {trial.number}" for index, trial in names.items()}),
        facts={
            "winner": winner.number,
            "winner cell": cell_key(commit.winner),
            "test accuracy": commit.test.accuracy,
            "new units": sum(commit.claimed),
            "free units": sum(commit.free),
        },
        files=_files(row.name, trials, commit),
    )


def merge(note: Note, held: Carried) -> Carried:
    """What the study is to carry: ours, beside what people wrote. A note that somebody edited is theirs and stays."""
    system = figure_attributes(_FIGURE, note.figure, held.system)
    theirs = note_text(held.system, note.trial_id)
    if not theirs or theirs.startswith(_OF_WINNER):
        system |= note_attributes(note.trial_text, held.system, note.trial_id)
    for sha256, name in note.files.items():
        system |= file_attributes(sha256, name)
    now, mark = note_text(held.system), held.system.get(MARK)
    text = note.text if not now or mark is not None else f"{now}\n\n---\n\n{note.text}"
    if mark is None or mark["text"] == _hash(now):
        system |= note_attributes(text, held.system)
        mark = {"text": _hash(text)}
    return Carried(held.study_id, note.facts, {**system, MARK: {**mark, "edition": EDITION}})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files(run: str, trials: Trials, commit: CommitRecord) -> dict[str, str]:
    start = f"{run}-replica{commit.replica + 1}-task{commit.task + 1}"
    found = {commit.artifact: f"{start}-commit.safetensors"}
    winner = trials.records[commit.winner.index].artifact
    return found if winner is None else {**found, winner: f"{start}-winner-unpruned.safetensors"}


@dataclass(frozen=True, slots=True)
class _Words:
    """The note in Markdown. ``trials`` are the records, ``names`` what Optuna calls them."""

    known: Known
    commit: CommitRecord
    trials: Trials
    names: dict[int, Trial]
    study_id: int

    def text(self) -> str:
        return "\n\n".join(
            (self._head(), self._where(), self._accuracies(), self._candidates(), self._units(), *self._rest())
        )

    def of_winner(self) -> str:
        """On the winner's own page."""
        kept, units = percent(self.commit.validation.accuracy), plural(sum(self.commit.claimed), "new unit")
        return (
            f"{_OF_WINNER} {self._where()}: pruned at θ = {self._theta()} it keeps {kept} of validation accuracy with "
            f"{units}. The study's note says why."
        )

    def _head(self) -> str:
        cell = self.commit.winner
        return (
            f"**{self._link(cell.index)} wins**: α {alpha_text(cell.alpha)}, learning rate "
            f"{number(cell.learning_rate)}, θ = {self._theta()}"
        )

    def _where(self) -> str:
        experiment = self.known.experiment
        replica = f"replica {self.commit.replica + 1} of {experiment.replicas}, " if experiment.replicas > 1 else ""
        return f"run {_code(self.known.row.name)}, {replica}task {self.commit.task + 1} of {experiment.tasks.count}"

    def _theta(self) -> str:
        """Of what was committed: the last round's, where there were some."""
        last = self.commit.rounds[-1].theta if self.commit.rounds else self.commit.point.theta
        return theta_text(self.known, self.commit.task + 1, last)

    def _link(self, index: int) -> str:
        at = self.names[index].number
        return f"[trial {at}](/dashboard/studies/{self.study_id}/trials?numbers={at})"

    def _accuracies(self) -> str:
        commit, total = self.commit, self.commit.unpruned.total
        scored = {index: record.score for index, record in self.trials.records.items() if record.score}
        best = next(index for index, score in sorted(scored.items()) if score.correct == commit.best)
        rows = [
            ("best of the grid, unpruned", commit.best, total, self._link(best)),
            (self.trials.line, commit.needed, total, self._margin()),
            ("winner, unpruned", commit.unpruned.correct, total, ""),
        ]
        if commit.rounds:
            rows.append(("winner, pruned", commit.point.correct, total, ""))
        rows.append(("**committed**", commit.validation.correct, total, tuned_text(commit)))
        rows.append(("**test split**", commit.test.correct, commit.test.total, "opened after the choice was made"))
        lines = [f"| {name} | {percent(right / of)} | {right:,} of {of:,} | {said} |" for name, right, of, said in rows]
        return "\n".join(["| accuracy | | right answers | |", "|:--|--:|--:|:--|", *lines])

    def _margin(self) -> str:
        margin = points_text(float(self.known.experiment.margin(self.commit.task)))
        if self.trials.budget is not None:
            return f"of the budget rule, {margin} under the best"
        return f"a margin of {margin} under the best"

    def _candidates(self) -> str:
        count = len(self.trials.records)
        reach = f"{len(self.commit.candidates):,} of {plural(count, 'trial')} reach it unpruned"
        ended = f"; {self.trials.ended}" if self.trials.ended else ""
        reason = why(self.known, self.commit, _code)
        lines = [f"{reach}{ended}. Each pruned as far as it stays there, the winner is {reason}."]
        if self.trials.dropped:
            lines.append("The grid is not complete: what was dropped was not trained to its end.")
        if self.commit.missing:
            lines.append(f"Committed without {members(self.commit.missing)}, lost too often.")
        return " ".join(lines)

    def _units(self) -> str:
        commit, hidden = self.commit, self.known.hidden
        rows = [*zip(map(_code, hidden), commit.claimed, commit.free, commit.widths, strict=True)]
        if len(rows) > MANY:
            rows = [(f"{len(hidden)} groups", sum(commit.claimed), sum(commit.free), sum(commit.widths))]
        lines = [f"| {name} | {new:,} | {free:,} | {width:,} |" for name, new, free, width in rows]
        return "\n".join(["| units | new | still free | in all |", "|:--|--:|--:|--:|", *lines])

    def _rest(self) -> Iterator[str]:
        commit, name = self.commit, self.known.row.name
        yield f"fingerprint {_code(commit.fingerprint)}"
        replica = f" --replica {commit.replica + 1}" if self.known.experiment.replicas > 1 else ""
        yield _code(f"clnp-search show {name} --task {commit.task + 1}{replica}") + " says all of it."


def _code(text: str) -> str:
    """As it is, whatever Markdown would make of it."""
    return "`" + text.replace("`", "'").replace("|", "¦").replace("\n", " ") + "`"
