"""A run as one HTML page that needs nothing else: no file beside it, no network."""

import html
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.errors import BadInput
from search.figures.capacity import units, used
from search.figures.common import grown, task_trials
from search.figures.grids import grid
from search.figures.style import LEGEND, TITLE, TITLE_LINE
from search.figures.tasks import accuracy, matrix
from search.figures.trials import pareto
from search.figures.words import commit_table, facts, headline
from search.reports.common import Known

__all__ = ["SECTIONS", "page"]

SECTIONS: Mapping[str, tuple[str, str]] = {
    "accuracy": (
        "Accuracy of every task",
        "A dot that fills the middle of its ring has kept its accuracy; one that left it has forgotten or gained. Bars "
        "are the standard deviation over the replicas. The axis does not begin at 0.",
    ),
    "used": (
        "How full the network is",
        "A layer that stops filling is one whose features later tasks use again; one that fills steadily will run out.",
    ),
    "units": (
        "What every task takes, and what it uses again",
        "A column is the layer after a task: pale what belongs to earlier tasks and is silent on it, darker what it "
        "uses of theirs, full colour what it claims; the white above is free. The mean over the replicas.",
    ),
    "matrix": (
        "Accuracy after every commit",
        "Read down a column: it keeps its colour where nothing is forgotten. The mean over the replicas.",
    ),
}
"""The figures of a whole run, by their function's name: heading, and what to look at."""

_GROWN: Mapping[str, str] = {
    "used": "Shares of the layer as wide as it was then. Growth holds a line back or lowers it, whatever the tasks "
    "claim or use again; a dot names its units and the width.",
    "units": "A column is the layer after a task, as wide as it was then: pale what belongs to earlier tasks and is "
    "silent on it, darker what it uses of theirs, full colour what it claims; the white above is free, what growth "
    "added with it. The mean over the replicas.",
}
"""What to look at instead where growth acted: shares are then of widths that change."""

_TASK_SECTIONS: Mapping[str, tuple[str, str]] = {
    "pareto": (
        "Accuracy against units",
        "Each line is a trial that is pruned further and further, from the right to the left. Under a margin the one "
        "wins that comes furthest left before it falls under the cut line, under a budget the most accurate that fits; "
        "trials that begin below the line are no candidates.",
    ),
    "grid": (
        "The grid",
        "Fewer units are better, as long as the unpruned accuracy reaches the line. Cells below it, diverged "
        "and dropped ones could not win.",
    ),
}

_BETWEEN = 56
"""Pixels below a panel: for its axis, and for the title of the next one."""

# What the page may do: run what it holds, draw, and save a picture. Nothing is ever fetched.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def page(known: Known) -> str:
    """The page of a run: what it is, its commits, and its figures, drawn when it is opened."""
    committed = any(map(known.commits, known.replicas))
    tasks = _tasks(known)
    figures = {name: _figure(known, name) for name in SECTIONS} if committed else {}
    data = {"figures": figures, "tasks": tasks}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(known.row.name)}</title>",
        f"<style>{_resource('page.css')}</style></head><body>",
        *_head(known),
        *(_section(name, SECTIONS[name][0], _look(known, name)) for name in figures),
        *(_details() if tasks else ()),
        "<noscript><p>The figures need JavaScript, which is switched off here.</p></noscript>",
        f'<script type="application/json" id="figures">{_json(data)}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{_resource('page.js')}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _look(known: Known, name: str) -> str:
    """What to look at in a figure of the whole run; a share of a layer that grows says less of its units."""
    return _GROWN[name] if name in _GROWN and grown(known) else SECTIONS[name][1]


def _figure(known: Known, name: str) -> dict[str, Any]:
    if name == "units":
        return _as_data(units(known), panel=230)
    return _as_data({"accuracy": accuracy, "used": used, "matrix": matrix}[name](known))


def _tasks(known: Known) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of every task that has trials: replica → task → name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for replica in range(1, len(known.replicas) + 1):
        for task in range(1, known.experiment.tasks.count + 1):
            try:
                task_trials(known, replica, task)
            except BadInput:
                break
            drawn = grid(known, replica, task)
            found.setdefault(str(replica), {})[str(task)] = {
                "pareto": _as_data(pareto(known, replica, task)),
                "grid": _as_data(drawn, panel=drawn.layout.height - drawn.layout.margin.t),
            }
    return found


def _as_data(figure: go.Figure, *, panel: int | None = None) -> dict[str, Any]:
    """A figure as JSON-able data, its title apart so that the page can wrap it.

    Args:
        panel: Of a figure with panels how high one is, with its axis, where they stand one above the other.
    """
    found: dict[str, Any] = json.loads(figure.to_json())
    title = found["layout"]["title"]["text"].replace("<br>", " ")
    layout = _untitled(found["layout"])
    data = {"title": title, "data": found["data"], "layout": layout}
    return data if panel is None else {**data, "narrow": _stacked(layout, panel)}


def _stacked(layout: dict[str, Any], panel: int) -> dict[str, Any]:
    """The layout for a narrow window: its panels one above the other, each with its own axis."""
    axes = sorted((key[5:] for key in layout if key.startswith("xaxis")), key=lambda suffix: int(suffix or 1))
    room = panel * len(axes) - _BETWEEN
    changes: dict[str, Any] = {"height": layout["margin"]["t"] + room + _BETWEEN, "annotations": []}
    for place, suffix in enumerate(axes):
        x, y = layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"]
        top = 1 - panel * place / room
        domain = [max(0.0, top - (panel - _BETWEEN) / room), top]
        title = layout[f"xaxis{axes[-1]}"]["title"] if suffix == axes[-1] else None
        changes[f"xaxis{suffix}"] = {**x, "domain": [0, 1], "title": title}
        shared = {"matches": None, "showticklabels": True, "title": layout["yaxis"]["title"]}
        changes[f"yaxis{suffix}"] = {**y, **shared, "domain": domain}
        changes["annotations"].append({**layout["annotations"][place], "x": 0.5, "y": top})
    return {**layout, **changes}


def _untitled(layout: dict[str, Any]) -> dict[str, Any]:
    """The layout without the title and the room for it; the page makes room for the legend."""
    above = TITLE + TITLE_LINE * (layout["title"]["text"].count("<br>") + 1) + (LEGEND if layout["showlegend"] else 0)
    layout["height"] -= above
    layout["margin"]["t"] -= above
    return {key: value for key, value in layout.items() if key != "title"}


def _head(known: Known) -> Iterator[str]:
    yield f"<h1>{_text(known.row.name)}</h1>"
    yield f'<p class="lead">{_text(headline(known))}</p>'
    yield "<dl>"
    yield from (f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts(known).items())
    yield "</dl>"
    for replica in known.replicas:
        header, rows = commit_table(known, replica)
        if rows:
            yield f"<details{' open' if replica == 0 else ''}><summary>Commits of replica {replica + 1}</summary>"
            yield '<div class="scroll"><table><thead><tr>'
            yield "".join(_cell("th", column, column) for column in header)
            yield "</tr></thead><tbody>"
            for row in rows:
                cells = (_cell("td", column, value) for column, value in zip(header, row, strict=True))
                yield f"<tr>{''.join(cells)}</tr>"
            yield "</tbody></table></div></details>"


def _cell(tag: str, column: str, value: str) -> str:
    """A cell of the table of commits; remarks may take several lines."""
    kind = ' class="remarks"' if column == "remarks" else ""
    return f"<{tag}{kind}>{_text(value)}</{tag}>"


def _section(name: str, heading: str, look: str) -> str:
    return f"<section><h2>{heading}</h2>\n{_plot(name, look)}</section>"


def _plot(name: str, look: str) -> str:
    plot = f'<figure id="{name}"><p class="title"></p><div class="plot"></div>'
    return f"{plot}<figcaption>{_text(look)}</figcaption></figure>"


def _details() -> Iterator[str]:
    yield "<section><h2>The trials of a task</h2>"
    yield '<div class="choice"><label>replica <select id="replica"></select></label>'
    yield '<label>task <select id="task"></select></label></div>'
    for name, (heading, look) in _TASK_SECTIONS.items():
        yield f"<h3>{heading}</h3>\n{_plot(name, look)}"
    yield "</section>"


def _text(value: str) -> str:
    return html.escape(value)


def _json(data: object) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _resource(name: str) -> str:
    return resources.files("search.figures").joinpath(name).read_text(encoding="utf-8")
