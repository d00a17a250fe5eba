"""How all figures look: one plain template, colours that colour-blind readers can tell apart, and text that is safe."""

import html
import textwrap
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

import plotly.graph_objects as go

from search.reports.common import Known
from search.text import percent

__all__ = [
    "AXIS",
    "CHOSEN",
    "CIVIDIS",
    "FAINT",
    "FONT",
    "GREY",
    "INK",
    "LEGEND",
    "ONE_HUE",
    "TITLE",
    "TITLE_LINE",
    "average",
    "bounds",
    "counts",
    "empty",
    "layer_colours",
    "plain",
    "spread_text",
    "task_axis",
    "titled",
    "tint",
]

INK = "#2b2b2b"
FAINT = "#b4b8bd"
GREY = "#8d949b"
PALE = "#eceef1"
CHOSEN = "#d55e00"
"""Vermillion, of what the rule chose and of nothing else."""

_LAYERS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#4d4d4d")
"""Okabe and Ito's palette without vermillion."""

TITLE, TITLE_LINE, LEGEND, PANEL = 12, 20, 26, 30
"""Pixels above a title, of each of its lines, of a legend in one row, and of the panels' own titles."""

CIVIDIS = "Cividis"
ONE_HUE = ((0.0, "#e8f1fa"), (0.5, "#6baed6"), (1.0, "#08306b"))

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

AXIS = {
    "showline": True,
    "linecolor": FAINT,
    "ticks": "outside",
    "tickcolor": FAINT,
    "gridcolor": PALE,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8},
}

_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 15}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 16, "t": 60, "b": 50},
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": FAINT, "font": {"color": INK}},
        "hovermode": "closest",
        "legend": {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "yanchor": "top"},
        "xaxis": AXIS,
        "yaxis": AXIS,
        "colorway": _LAYERS,
    }
)


def titled(figure: go.Figure, title: str, height: int) -> go.Figure:
    """The figure in our template, ``title`` (plain text) above it, as wide as there is room.

    Below the title stand the legend, where there is one, then the titles of panels, where there are some.

    Args:
        height: Of all but the title and the legend, in pixels.
    """
    lines = textwrap.wrap(title, 100)
    top = TITLE + TITLE_LINE * len(lines)
    legend = LEGEND if any(trace.showlegend for trace in figure.data) else 0
    panels = PANEL if figure.layout.annotations and figure.layout.annotations[0].yref == "paper" else 10
    panels = panels if legend else max(panels, 26)  # the buttons stand there
    height += top + legend
    figure.layout.template = _TEMPLATE
    figure.layout.title = {
        "text": "<br>".join(map(plain, lines)),
        "yref": "container",
        "y": 1,
        "yanchor": "top",
        "pad": {"t": TITLE},
    }
    figure.layout.legend.y = 1 - top / height
    figure.layout.showlegend = bool(legend)
    figure.layout.margin.t = top + legend + panels
    figure.layout.height = height
    return figure


def empty(title: str) -> go.Figure:
    """A figure that holds a title alone."""
    figure = titled(go.Figure(), title, 80)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def plain(text: str) -> str:
    """``text`` so that plotly shows it as it is: no tags, no links, no templates."""
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")


def counts(correct: int, total: int) -> str:
    """``5,870 of 6,000 right (97.83 %)``."""
    return f"{correct:,} of {total:,} right ({percent(correct / total)})"


def average(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; no deviation of one value."""
    return mean(values), stdev(values) if len(values) > 1 else None


def spread_text(values: Sequence[float]) -> str:
    """``96.70 % ± 0.10 %`` of shares; without the second number of one."""
    middle, deviation = average(values)
    return percent(middle) if deviation is None else f"{percent(middle)} ± {percent(deviation)}"


def bounds(values: Iterable[float | None], *, least: float) -> dict[str, float]:
    """The ends of a colour scale, ``least`` apart at least: what hardly differs looks so."""
    found = [value for value in values if value is not None] or [0.0]
    pad = max(0.0, least - (max(found) - min(found))) / 2
    return {"zmin": min(found) - pad, "zmax": max(found) + pad}


def layer_colours(known: Known) -> dict[str, str]:
    """The colour of each hidden group, the same in every figure; one for all where there are more than colours."""
    many = len(known.hidden) > len(_LAYERS)
    return {name: _LAYERS[0 if many else place] for place, name in enumerate(known.hidden)}


def tint(colour: str, share: float) -> str:
    """``colour`` (``#rrggbb``) with so much of white in it: 0 leaves it, 1 is white."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def task_axis(count: int, *, wide: int = 14) -> dict[str, object]:
    """An axis of ``count`` tasks from 1; every fifth is named where more than ``wide`` would be."""
    step = {"dtick": 1} if count <= wide else {"tickvals": [1, *range(5, count + 1, 5)]}
    return {"range": [0.4, count + 0.6], "showgrid": False, **step}
