"""The figure of a task's trials: how accurate each still is with so many units (Sec. 2.2)."""

import plotly.graph_objects as go

from clnp.forgetting import Point
from search.figures.common import Trials, cell_text, groups_text, task_trials, theta_text, tuned_text
from search.figures.style import CHOSEN, GREY, INK, counts, empty, plain, titled
from search.records import CellRecord, CommitRecord
from search.reports.common import Known
from search.text import MANY, percent, plural, points_text

__all__ = ["pareto"]

_BELOW = 10.0

_LINES = {"below": (GREY, 1.0), "candidate": (INK, 1.0), "winner": (CHOSEN, 2.5)}
"""Colour and width of a trial's line, the one that matters most last."""


def pareto(known: Known, replica: int = 1, task: int = 1, *, below: float = _BELOW) -> go.Figure:
    """Validation accuracy (%) of every trial of a task against the units that it claims, pruned further and further.

    Each trial's staircase is a stepped line. The dotted line is the best unpruned accuracy of the grid, the dashed one
    the cut line under it (of a budget rule its floor); candidates are marked where they would be pruned, the winner
    where it was, and after fine-tuning what was committed.

    Args:
        replica, task: From 1.
        below: Points more than so many percentage points under the cut line are left out.

    Raises:
        BadInput: There is no such replica or task, or the task is not open yet.
    """
    trials = task_trials(known, replica, task)
    if trials.best is None or trials.needed is None:
        yet = f", {trials.ended}" if trials.ended else ""
        why = _refusal(trials) or f"no trial with a score yet{yet}"
        return empty(f"{trials.place.capitalize()}: {why}")
    figure = go.Figure()
    _add_staircases(figure, known, trials, below)
    candidates = {index: point for index, point in trials.points.items() if index != trials.winner}
    if candidates:
        figure.add_trace(_picks(known, trials, candidates))
    commit = trials.commit
    if commit is not None:
        figure.add_trace(_chosen(known, trials, commit))
        if commit.rounds:
            figure.add_trace(_tuning(known, trials, commit))
    _add_lines(figure, trials)
    figure.update_xaxes(title_text="new units (all hidden layers)", range=[0, _widest(figure)])
    figure.update_yaxes(title_text="validation accuracy (%)", range=_range(trials, below))
    return titled(figure, _title(known, trials) + _low(trials, below), 360)


def _add_staircases(figure: go.Figure, known: Known, trials: Trials, below: float) -> None:
    """The lines that matter most last, on top of the others; one entry in the legend a kind."""
    for kind, (colour, width) in _LINES.items():
        scored = [record for index, record in sorted(trials.records.items()) if record.score]
        shown = [(record, points) for record in scored if (points := _high(trials, record, below))]
        chosen = [(record, points) for record, points in shown if _kind(trials, record.cell.index) == kind]
        for place, (record, points) in enumerate(chosen):
            figure.add_trace(_staircase(known, trials, record, points, kind, colour, width, first=place == 0))


def _high(trials: Trials, record: CellRecord, below: float) -> list[Point]:
    """The points of a trial that are not too low to show, the most pruned one first."""
    line = (trials.needed or 0) / trials.total - below / 100
    return [point for point in reversed(record.staircase) if point.correct / trials.total >= line]


def _low(trials: Trials, below: float) -> str:
    """How many trials are too low to show, for the title."""
    low = sum(bool(record.score) and not _high(trials, record, below) for record in trials.records.values())
    return f"; {low:,} too low to show" if low else ""


def _kind(trials: Trials, index: int) -> str:
    if index == trials.winner:
        return "winner"
    return "candidate" if trials.reaches(index) else "below"


def _staircase(
    known: Known,
    trials: Trials,
    record: CellRecord,
    points: list[Point],
    kind: str,
    colour: str,
    width: float,
    *,
    first: bool,
) -> go.Scatter:
    return go.Scatter(
        name=f"trial below the {trials.line}" if kind == "below" else kind,
        legendgroup=kind,
        meta=record.cell.index,
        showlegend=first,
        mode="lines" if len(points) > 1 else "lines+markers",  # a line of one point is none
        x=[sum(point.claimed) for point in points],
        y=[_percent(point.correct, trials.total) for point in points],
        line={"shape": "hv", "color": colour, "width": width},
        marker={"size": 5, "color": colour},
        opacity=1 if kind == "winner" else 0.75,
        customdata=[[_point(known, trials, point), counts(point.correct, trials.total)] for point in points],
        hovertemplate=f"{plain(cell_text(record.cell))}<br>%{{customdata[1]}}<br>%{{customdata[0]}}<extra></extra>",
    )


def _point(known: Known, trials: Trials, point: Point) -> str:
    return f"θ {theta_text(known, trials.task, point.theta)}, {groups_text(known, point.claimed)}"


def _picks(known: Known, trials: Trials, candidates: dict[int, Point]) -> go.Scatter:
    cells = {cell.index: cell for cell in trials.cells}
    return go.Scatter(
        name="where it would be pruned",
        showlegend=True,
        mode="markers",
        x=[sum(point.claimed) for point in candidates.values()],
        y=[_percent(point.correct, trials.total) for point in candidates.values()],
        marker={"symbol": "circle-open", "size": 9, "color": INK, "line": {"width": 1.5}},
        hovertext=[
            f"{cell_text(cells[index])}, where it would be pruned<br>{counts(point.correct, trials.total)}<br>"
            + _point(known, trials, point)
            for index, point in candidates.items()
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _chosen(known: Known, trials: Trials, commit: CommitRecord) -> go.Scatter:
    tuned = "before fine-tuning" if commit.rounds else "committed"
    return go.Scatter(
        name="where it was pruned",
        showlegend=True,
        mode="markers",
        x=[sum(commit.point.claimed)],
        y=[_percent(commit.point.correct, trials.total)],
        marker={"symbol": "star", "size": 16, "color": CHOSEN, "line": {"color": "white", "width": 1}},
        hovertext=f"winner, {tuned}: {cell_text(commit.winner)}<br>{counts(commit.point.correct, trials.total)}<br>"
        + _point(known, trials, commit.point),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _tuning(known: Known, trials: Trials, commit: CommitRecord) -> go.Scatter:
    """The way from the picked point to what was committed: pruned, trained again, pruned, …"""
    steps = [(sum(commit.point.claimed), commit.point.correct, "picked")]
    for place, entry in enumerate(commit.rounds, start=1):
        units = groups_text(known, entry.claimed)
        at = theta_text(known, trials.task, entry.theta)
        steps.append((sum(entry.claimed), entry.pruned, f"round {place}, pruned at θ {at}, {units}"))
        if entry.tuned is not None:
            kept = "" if entry.better else "; not kept"
            steps.append((sum(entry.claimed), entry.tuned, f"round {place}, fine-tuned{kept}, {units}"))
    units = groups_text(known, commit.claimed)
    end = "after fine-tuning" if _gained(commit) else f"as it was pruned: {tuned_text(commit)}"
    steps.append((sum(commit.claimed), commit.validation.correct, f"committed {end}, {units}"))
    return go.Scatter(
        name="fine-tuning, to what was committed",
        showlegend=True,
        mode="lines+markers",
        x=[claimed for claimed, _, _ in steps],
        y=[_percent(correct, trials.total) for _, correct, _ in steps],
        line={"color": CHOSEN, "width": 1, "dash": "dot"},
        marker={
            "symbol": [*["circle"] * (len(steps) - 1), "diamond"],
            "size": [0, *[5] * (len(steps) - 2), 14],
            "color": CHOSEN,
            "line": {"color": INK, "width": [*[0] * (len(steps) - 1), 1.5]},
            "opacity": 1,
        },
        hovertext=[f"{said}<br>{counts(correct, trials.total)}" for _, correct, said in steps],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _add_lines(figure: go.Figure, trials: Trials) -> None:
    so_far = " so far" if trials.open else ""
    for name, correct, dash, side in (
        (f"best{so_far}", trials.best or 0, "dot", "bottom"),
        (f"{trials.line}{so_far}", trials.needed or 0, "dash", "top"),
    ):
        figure.add_hline(
            y=_percent(correct, trials.total),
            line={"color": INK, "dash": dash, "width": 1},
            annotation={
                "text": f"{name} {percent(correct / trials.total)}",
                "xanchor": "left",
                "yanchor": side,
                "x": 0,
                "font": {"size": 12},
                "bgcolor": "rgba(255, 255, 255, 0.8)",
                "borderpad": 1,
            },
        )


def _widest(figure: go.Figure) -> float:
    """The end of the axis of units: a little beyond the last point."""
    most: int = max((units for trace in figure.data for units in trace.x), default=1)
    return 1.03 * most


def _range(trials: Trials, below: float) -> list[float]:
    """All unpruned trials that are not too low to show, and as much below the cut line as the rule gave up."""
    best, line = _percent(trials.best or 0, trials.total), _percent(trials.needed or 0, trials.total)
    scores = [record.score.correct for record in trials.records.values() if record.score]
    marked = [point.correct for point in trials.points.values()]
    if trials.commit:
        marked += [trials.commit.validation.correct, *(entry.pruned for entry in trials.commit.rounds)]
    tops = [_percent(point.correct, trials.total) for record in trials.records.values() for point in record.staircase]
    top = max([best, *tops, *(_percent(correct, trials.total) for correct in marked)])
    low = min([line, *(_percent(correct, trials.total) for correct in marked)])
    low = min(low, max(line - below, min((_percent(correct, trials.total) for correct in scores), default=line)))
    pad = max(0.1, 0.14 * (top - low), 0.5 * (best - line))
    return [low - pad, top + pad]


def _title(known: Known, trials: Trials) -> str:
    commit, start = trials.commit, f"{trials.place.capitalize()}: "
    if commit is None:
        return f"{start}{_refusal(trials) or _standing(trials)}{_budget(known, trials)}"
    gap = 100 * (commit.best - commit.validation.correct) / trials.total
    under = f"{points_text(abs(gap))} {'under' if gap > 0 else 'above'}" if gap else "level with"
    text = (
        f"{start}{plural(len(trials.records), 'trial')}{_ended(trials)}; cell {commit.winner.index} wins with "
        f"{plural(sum(commit.claimed), 'new unit')} at {percent(commit.validation.accuracy)}, {under} the best"
    )
    if commit.rounds:
        picked = f"picked at {percent(commit.point.correct / trials.total)} with {sum(commit.point.claimed):,} units"
        if _gained(commit):
            text += f", after {tuned_text(commit)} ({picked})"
        else:
            text += f"; {tuned_text(commit)}, committed as it was pruned" + (
                f" ({picked})" if commit.claimed != commit.point.claimed else ""
            )
    return text + _budget(known, trials)


def _standing(trials: Trials) -> str:
    """How an open task's trials stand."""
    cells, reach = plural(len(trials.cells), "cell"), sum(map(trials.reaches, trials.records))
    line = f"{reach:,} reach{'es' if reach == 1 else ''} {percent((trials.needed or 0) / trials.total)}"
    if trials.open:
        return f"still open, {len(trials.records)} of {cells} finished{_ended(trials)}; {line} so far"
    every = f"all {cells}" if len(trials.cells) > 1 else cells
    return f"not committed yet, {every} finished{_ended(trials)}; {line}"


def _refusal(trials: Trials) -> str:
    return f"nothing worth committing: {trials.refusal}" if trials.refusal else ""


def _gained(commit: CommitRecord) -> bool:
    """Whether what fine-tuning made of the winner is in what was committed."""
    return any(entry.better for entry in commit.rounds)


def _budget(known: Known, trials: Trials) -> str:
    """What a budget rule adds to the title; of many groups their sum."""
    if trials.budget is None:
        return ""
    most = [f"{count:,} of {name}" for name, count in zip(known.hidden, trials.budget, strict=True)]
    named = ", ".join(most) if len(most) <= MANY else f"{sum(trials.budget):,} in {len(most)} groups"
    over = trials.commit.over_budget if trials.commit else ()
    nothing = f", and no point above it fits the budget of {', '.join(over)}" if over else ""
    return f"; budget: at most {named}; the line is the floor{nothing}"


def _ended(trials: Trials) -> str:
    """How many of the trials have no score: ``, 1 of them diverged, 3 dropped``."""
    first, *others = trials.ended.split(" ", 1)
    return f", {first} of them {others[0]}" if others else ""


def _percent(correct: int, total: int) -> float:
    return round(100 * correct / total, 4)
