"""A figure of trials made small: a study in the database carries it, beside thousands of others."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from search.figures.style import AXIS, FONT, GREY, INK

__all__ = ["thin"]

_WIDE = 80
"""Characters of a line of the title: the dashboard shows figures side by side."""

_MOST = 300
"""Points of all lines together; at some 12 bytes each they are most of the figure."""

_STEPS = {"winner": 400, "candidate": 200, "below": 100}
"""A point less than the axes' ranges divided by this from the last one is left out, and more of them above the most."""


def thin(figure: go.Figure, names: Mapping[int, str]) -> dict[str, Any]:
    """What :func:`~search.figures.trials.pareto` draws as plotly's plain JSON, a few kB: fewer points, short labels.

    Args:
        names: What a trial is called, by its cell's index.
    """
    layout = figure.layout
    said = layout.title.text.replace("<br>", " ")
    said = re.sub(r"\bcell (\d+) wins", lambda found: f"{names[int(found[1])]} wins", said)
    title = textwrap.wrap(said, _WIDE)
    across, up = layout.xaxis.range, layout.yaxis.range
    lines = [trace for trace in figure.data if trace.meta is not None]
    marks = [trace for trace in figure.data if trace.meta is None]
    kept = _points(lines, max(1, across[1] - across[0]), up[1] - up[0])
    data = [_line(trace, names, points) for trace, points in zip(lines, kept, strict=True)]
    across_all = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1}
    shapes = [across_all | {"y0": one.y0, "y1": one.y0, "line": {"dash": one.line.dash}} for one in layout.shapes]
    texts = [
        {"text": one.text, "xref": "x domain", "x": 0, "y": one.y, "yanchor": one.yanchor} for one in layout.annotations
    ]
    return {
        "data": [*_legend(lines), *data, *(_mark(trace) for trace in marks)],
        "layout": {
            "title": {"text": "<br>".join(title)},
            "margin": {"t": 50 + 18 * len(title)},
            "xaxis": {"title": {"text": layout.xaxis.title.text}, "range": [across[0], round(across[1], 1)]},
            "yaxis": {"title": {"text": layout.yaxis.title.text}, "range": [round(end, 2) for end in up]},
            "shapes": shapes,
            "annotations": texts,
            "template": _TEMPLATE,
        },
    }


_TEMPLATE = {
    # What all traces share is said once.
    "data": {
        "scatter": [
            {
                "mode": "lines",
                "line": {"shape": "hv", "width": 1, "color": GREY},
                "opacity": 0.75,
                "showlegend": False,
                "hovertemplate": "%{y:.2f} % with %{x:,} new units",
            }
        ]
    },
    "layout": {
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {
            "x": 0,
            "xref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 12, "t": 36},
            "font": {"size": 13},
        },
        "margin": {"l": 60, "r": 16, "b": 40},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": -0.17, "yanchor": "top"},
        "xaxis": AXIS,
        "yaxis": AXIS,
        "shapedefaults": {"line": {"color": INK, "width": 1}},
        "annotationdefaults": {"showarrow": False, "xanchor": "left", "bgcolor": "rgba(255, 255, 255, 0.8)"},
    },
}


def _points(lines: Sequence[go.Scatter], width: float, height: float) -> list[list[tuple[int, float]]]:
    """The points that are kept of each line: all where that are few, ever fewer where it would be too many."""
    coarser = 1
    while True:
        steps = [coarser / _STEPS[trace.legendgroup] for trace in lines]
        kept = [list(_apart(trace, step * width, step * height)) for trace, step in zip(lines, steps, strict=True)]
        if sum(map(len, kept)) <= max(_MOST, 2 * len(lines)):
            return kept
        coarser *= 2


def _apart(trace: go.Scatter, across: float, up: float) -> Iterator[tuple[int, float]]:
    """The points that are so far from the one before; the first and the last ones always."""
    points = list(zip(trace.x, trace.y, strict=True))
    last = points[0]
    yield last[0], round(last[1], 2)
    for place, (x, y) in enumerate(points[1:], start=1):
        if abs(x - last[0]) >= across or abs(y - last[1]) >= up or place == len(points) - 1:
            last = x, y
            yield x, round(y, 2)


def _line(trace: go.Scatter, names: Mapping[int, str], points: list[tuple[int, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"x": [x for x, _ in points], "y": [y for _, y in points], "name": names[trace.meta]}
    if len(points) == 1:
        found["mode"] = "markers"
    return found | _look(trace)


def _look(trace: go.Scatter) -> dict[str, Any]:
    """How a line differs from most, which the template describes."""
    if trace.legendgroup == "below":
        return {}
    return {"line": {"color": trace.line.color, "width": trace.line.width}}


def _legend(lines: Sequence[go.Scatter]) -> Iterator[dict[str, Any]]:
    """An entry a kind of line: the lines themselves are called by their trials."""
    for trace in lines:
        if trace.showlegend:
            yield {"x": [None], "y": [None], "name": trace.name, "showlegend": True, **_look(trace)}


def _mark(trace: go.Scatter) -> dict[str, Any]:
    """Marked points, with their name in the legend."""
    found = trace.to_plotly_json()
    kept = {key: found[key] for key in ("mode", "marker", "line", "name", "showlegend") if key in found}
    return kept | {"x": list(trace.x), "y": [round(y, 2) for y in trace.y]}
