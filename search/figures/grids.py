"""The figure of a task's grid: what every α and learning rate came to."""

from collections.abc import Iterator
from typing import Any, Literal

import plotly.graph_objects as go

from search.figures.common import Trials, cell_text, groups_text, task_trials, theta_text
from search.figures.style import CHOSEN, CIVIDIS, INK, ONE_HUE, bounds, counts, plain, titled
from search.records import Cell
from search.reports.common import Known
from search.text import number, percent, plural

__all__ = ["grid"]

_State = Literal["candidate", "not pruned", "below the line", "diverged", "dropped", "not finished"]

_SIGNS: dict[_State, str] = {
    "not pruned": "–",
    "below the line": "↓",
    "diverged": "×",
    "dropped": "½",
    "not finished": "…",
}
_GREYS: dict[_State, str] = {
    "not pruned": "#e6e8eb",
    "below the line": "#d5d8dc",
    "diverged": "#3a3a3a",
    "dropped": "#c3c7cc",
    "not finished": "#f6f7f8",
}

_TEXTED = 10
"""So many learning rates leave room for a number in every cell."""

_NAMED = 3
"""So many layers are named beside their α in a row's label."""


def grid(known: Known, replica: int = 1, task: int = 1) -> go.Figure:
    """The grid of a task: α by learning rate, with the units that a cell claims and its unpruned validation accuracy.

    Units are counted where the rule would prune the cell, the winner's where it was. Cells below the cut line,
    diverged, dropped and unfinished ones, and candidates of a task that the rule refuses are marked so. Rows are named
    by what differs between their α.

    Args:
        replica, task: From 1.

    Raises:
        BadInput: There is no such replica or task, or the task is not open yet.
    """
    trials = task_trials(known, replica, task)
    alphas = list(dict.fromkeys(cell.alpha for cell in trials.cells))
    rates = list(dict.fromkeys(cell.learning_rate for cell in trials.cells))
    table = {(alphas.index(cell.alpha), rates.index(cell.learning_rate)): cell for cell in trials.cells}
    shape = (len(alphas), len(rates))
    maps = [draw(known, trials, table, shape, place) for place in range(2) for draw in (_map, _marks)]
    labels = _labels(known, alphas)
    figure = go.Figure([*maps, *_keys(trials)], _layout(labels, list(map(number, rates)), _winner(trials, table)))
    body = max(130, (14 + 17 * max(label.count("<br>") + 1 for label in labels)) * len(alphas))
    return titled(figure, _title(trials), 100 + body)


def _layout(labels: list[str], rates: list[str], winner: tuple[int, int] | None) -> dict[str, Any]:
    """Two maps beside each other, with the same rows."""
    found: dict[str, Any] = {"annotations": [], "shapes": []}
    for place, title in enumerate(("new units claimed", "unpruned validation accuracy (%)")):
        suffix, domain = ("", (0.0, 0.48)) if place == 0 else ("2", (0.52, 1.0))
        found[f"xaxis{suffix}"] = {
            "domain": domain,
            "anchor": f"y{suffix}",
            "tickvals": list(range(len(rates))),
            "ticktext": rates,
            "range": [-0.5, len(rates) - 0.5],
            "showgrid": False,
            "title": {"text": "learning rate"},
        }
        found[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}",
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "range": [len(labels) - 0.5, -0.5],
            "showgrid": False,
            "showticklabels": place == 0,
            "title": {"text": "α" if place == 0 else None},
        }
        at = {"x": sum(domain) / 2, "y": 1, "xanchor": "center", "yanchor": "bottom"}
        found["annotations"].append({"text": title, "xref": "paper", "yref": "paper", "showarrow": False, **at})
        if winner is not None:
            row, column = winner
            corners = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
            line = {"color": CHOSEN, "width": 3}
            found["shapes"].append({"xref": f"x{suffix}", "yref": f"y{suffix}", **corners, "line": line})
    return found


def _keys(trials: Trials) -> Iterator[go.Scatter]:
    """What the legend says."""
    states = {_state(trials, cell) for cell in trials.cells}
    for state, sign in _SIGNS.items():
        if state in states:
            yield _key(f"{sign} {state}".replace("the line", f"the {trials.line}"), _GREYS[state], INK)
    if trials.winner is not None:
        yield _key("winner", "white", CHOSEN, 2.5)


Table = dict[tuple[int, int], Cell]


def _each(table: Table, shape: tuple[int, int]) -> Iterator[list[Cell | None]]:
    for row in range(shape[0]):
        yield [table.get((row, column)) for column in range(shape[1])]


def _state(trials: Trials, cell: Cell) -> _State:
    record = trials.records.get(cell.index)
    if record is None:
        return "not finished"
    if record.score is None:
        return "diverged" if record.dropped is None else "dropped"
    if cell.index in trials.points:
        return "candidate"
    return "not pruned" if trials.reaches(cell.index) else "below the line"


def _map(known: Known, trials: Trials, table: Table, shape: tuple[int, int], place: int) -> go.Heatmap:
    """The numbers of one of the two maps; cells without one stay empty."""
    find = _units if place == 0 else _accuracy
    values = [[None if cell is None else find(trials, cell) for cell in row] for row in _each(table, shape)]
    texted = shape[1] <= _TEXTED
    form = "{:,.0f}" if place == 0 else "{:.2f}"
    return go.Heatmap(
        xaxis="x2" if place else "x",
        yaxis="y2" if place else "y",
        x=list(range(shape[1])),
        y=list(range(shape[0])),
        z=values,
        **bounds((value for row in values for value in row), least=1 if place == 0 else 2),
        colorscale=ONE_HUE if place == 0 else CIVIDIS,
        xgap=2,
        ygap=2,
        text=[["" if value is None else form.format(value) for value in row] for row in values],
        texttemplate="%{text}" if texted else None,
        showscale=False,
        hovertext=[
            ["" if cell is None else _hover(known, trials, cell) for cell in row] for row in _each(table, shape)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
    )


def _units(trials: Trials, cell: Cell) -> float | None:
    point = trials.points.get(cell.index)
    return None if point is None else sum(point.claimed)


def _accuracy(trials: Trials, cell: Cell) -> float | None:
    record = trials.records.get(cell.index)
    return None if record is None or record.score is None else round(100 * record.score.accuracy, 4)


def _marks(known: Known, trials: Trials, table: Table, shape: tuple[int, int], place: int) -> go.Heatmap:
    """Greys with a sign where a map has no number."""
    order = list(_GREYS)
    marked = order if place == 0 else ["diverged", "dropped", "not finished"]
    states = [
        [state if cell is not None and (state := _state(trials, cell)) in marked else None for cell in row]
        for row in _each(table, shape)
    ]
    scale = [(bound / len(order), _GREYS[state]) for at, state in enumerate(order) for bound in (at, at + 1)]
    return go.Heatmap(
        xaxis="x2" if place else "x",
        yaxis="y2" if place else "y",
        x=list(range(shape[1])),
        y=list(range(shape[0])),
        z=[[None if state is None else order.index(state) + 0.5 for state in row] for row in states],
        zmin=0,
        zmax=len(order),
        colorscale=scale,
        xgap=2,
        ygap=2,
        text=[["" if state is None else _SIGNS[state] for state in row] for row in states],
        texttemplate="%{text}",
        textfont={"size": 16},
        showscale=False,
        hovertext=[
            ["" if cell is None else _hover(known, trials, cell) for cell in row] for row in _each(table, shape)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
    )


def _hover(known: Known, trials: Trials, cell: Cell) -> str:
    record = trials.records.get(cell.index)
    lines = [cell_text(cell)]
    if len(set(cell.alpha)) > 1:
        lines += [f"  α of {plain(name)} {number(a)}" for name, a in zip(_layers(known), cell.alpha, strict=True)]
    if record is None:
        return "<br>".join([*lines, "not finished"])
    if record.dropped is not None:
        return "<br>".join([*lines, f"dropped {record.dropped}"])
    if record.score is None:
        return "<br>".join([*lines, f"diverged: {plain(record.diverged or '')}"])
    lines.append(f"unpruned {counts(record.score.correct, record.score.total)}")
    point = trials.points.get(cell.index)
    if point is None:
        lines.append(f"{'reaches' if trials.reaches(cell.index) else 'below'} the {trials.line}")
    else:
        at = theta_text(known, trials.task, point.theta)
        lines.append(f"pruned at θ {at}: {counts(point.correct, trials.total)}")
        lines.append(groups_text(known, point.claimed))
    return "<br>".join(lines)


def _layers(known: Known) -> tuple[str, ...]:
    return known.experiment.outline.layer_names


def _winner(trials: Trials, table: Table) -> tuple[int, int] | None:
    """The winner's row and column."""
    return next((place for place, cell in table.items() if cell.index == trials.winner), None)


def _key(name: str, colour: str, line: str, width: float = 1) -> go.Scatter:
    marker = {"symbol": "square", "size": 12, "color": colour, "line": {"color": line, "width": width}}
    return go.Scatter(name=name, mode="markers", x=[None], y=[None], marker=marker, showlegend=True)


def _labels(known: Known, alphas: list[tuple[float, ...]]) -> list[str]:
    """What tells the rows apart: one number, the layers that differ, or where these are many the range of each row."""
    differing = [place for place in range(len(alphas[0])) if len({alpha[place] for alpha in alphas}) > 1]
    if not differing:
        return ["the same" if len(set(alpha)) > 1 else number(alpha[0]) for alpha in alphas]
    rows = [[alpha[place] for place in differing] for alpha in alphas]
    if all(len(set(row)) == 1 for row in rows) and (len(differing) == len(alphas[0]) or len(differing) > _NAMED):
        return [number(row[0]) for row in rows]
    if len(differing) <= _NAMED:
        names = [plain(_short(_layers(known)[place])) for place in differing]
        return [
            number(alpha[0])
            if len(set(alpha)) == 1
            else "<br>".join(f"{name} {number(a)}" for name, a in zip(names, row, strict=True))
            for alpha, row in zip(alphas, rows, strict=True)
        ]
    ranges = [number(row[0]) if len(set(row)) == 1 else f"{number(min(row))} – {number(max(row))}" for row in rows]
    return [f"{text} ({place})" if ranges.count(text) > 1 else text for place, text in enumerate(ranges, start=1)]


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"…{name[-15:]}"


def _title(trials: Trials) -> str:
    states, start = [_state(trials, cell) for cell in trials.cells], f"{trials.place.capitalize()}: "
    start += f"nothing worth committing: {trials.refusal}; " if trials.refusal else ""
    said = [
        f"{states.count(state):,} {text}"
        for state, text in (
            ("below the line", "below it"),
            ("diverged", "diverged"),
            ("dropped", "dropped"),
            ("not finished", "not finished"),
        )
        if state in states
    ]
    rest = f"; {', '.join(said)}" if said else ""
    if trials.needed is None:
        if not trials.records:
            return f"{start}none of {plural(len(states), 'cell')} is finished yet"
        yet = " yet" if trials.unfinished else ""
        return f"{start}none of {plural(len(states), 'cell')} has a score{yet}{rest}"
    units = [sum(point.claimed) for point in trials.points.values()]
    reach = sum(map(trials.reaches, trials.records))
    one = reach == 1
    claims = f" and claim{'s' if one else ''} {_range(units)} new units" if units else ""
    so_far = " so far" if trials.open else ""
    return (
        f"{start}{reach:,} of {plural(len(states), 'cell')} reach{'es' if one else ''} the "
        f"{trials.line} of {percent(trials.needed / trials.total)}{so_far}{claims}{rest}"
    )


def _range(units: list[int]) -> str:
    return f"{min(units):,}" if min(units) == max(units) else f"{min(units):,} to {max(units):,}"
