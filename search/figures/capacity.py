"""Figures of how the network fills: units claimed, reused and free, task after task (Figs. 3, 4b and 5b)."""

from collections.abc import Sequence
from statistics import mean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from search.figures.common import begun, by_task, grown, tasks_done, uneven, whole
from search.figures.style import CIVIDIS, FAINT, INK, average, empty, layer_colours, plain, task_axis, tint, titled
from search.records import CommitRecord
from search.reports.common import Known
from search.text import MANY, number

__all__ = ["units", "used"]

_SHADES = {"claimed by the task": 0.0, "reused by it": 0.45, "of earlier tasks, silent on it": 0.78}
"""How much white is in the layer's colour. What is left of the column is free."""

_TEXTED = 12


def units(known: Known, *, columns: int | None = None) -> go.Figure:
    """Units of every hidden group after each task in percent of the group: claimed, reused, silent; the rest is free.

    A panel a group; averaged over the replicas, hatched where not all have the task. The height of a column is what is
    in use, the paper's Figs. 4b and 5b.

    Args:
        columns: Panels beside each other; without it up to 3.
    """
    tasks, names = by_task(known), known.hidden
    if not tasks:
        return empty("No unit is claimed yet: no task is committed")
    columns = min(len(names), columns or (2 if len(names) in (2, 4) else 3))
    starts = range(0, len(names), columns)
    rows = len(starts)
    height = 90 + rows * (250 if len(names) <= MANY else 190)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        # No axes where the last row has fewer panels.
        specs=[[{} if at < len(names) else None for at in range(start, start + columns)] for start in starts],
        subplot_titles=[f"<b>{plain(name)}</b>" for name in names],
        shared_yaxes=True,
        vertical_spacing=min(0.3, 62 / height) if rows > 1 else 0,
        horizontal_spacing=0.04,
    )
    colours = layer_colours(known)
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        for bar in _bars(tasks, whole(known), place, name, colours[name]):
            figure.add_trace(bar, row=row + 1, col=column + 1)
        figure.layout.annotations[place].font = {"size": 13, "color": INK}
        figure.update_xaxes(title_text="task" if place + columns >= len(names) else None, row=row + 1, col=column + 1)
    for role, white in _SHADES.items():
        figure.add_trace(_key(role, tint("#555555", white)))
    figure.add_trace(_key("free", "white"))
    figure.update_xaxes(**task_axis(known.experiment.tasks.count, wide=12))
    figure.update_yaxes(range=[0, 100], dtick=25)
    figure.update_yaxes(title_text="share of units (%)", col=1)
    figure.update_layout(barmode="stack", bargap=0.15, legend_traceorder="normal")
    said = f"{_summary(known)}{_reuse(known, tasks[whole(known) - 1])}"
    return titled(figure, said + uneven(known, "hatched"), height)


def _key(role: str, colour: str) -> go.Bar:
    marker = {"color": colour, "line": {"color": FAINT, "width": 1}}
    return go.Bar(name=role, x=[None], y=[None], marker=marker, showlegend=True)


def _parts(record: CommitRecord, place: int) -> tuple[int, int, int]:
    """Units that the task claimed, reused, and that earlier tasks own beside those."""
    claimed, reused = record.claimed[place], record.usage.groups[place].reused
    return claimed, reused, record.widths[place] - record.free[place] - claimed - reused


def _bars(tasks: Sequence[Sequence[CommitRecord]], reached: int, place: int, name: str, colour: str) -> list[go.Bar]:
    shares = [
        [mean(100 * _parts(record, place)[part] / record.widths[place] for record in records) for records in tasks]
        for part in range(3)
    ]
    hover = [_hover(records, place, name) for records in tasks]
    roles = list(_SHADES.items())
    return [
        go.Bar(
            name=roles[part][0],
            x=list(range(1, len(tasks) + 1)),
            y=[round(share, 4) for share in shares[part]],
            marker={
                "color": tint(colour, roles[part][1]),
                "line": {"width": 0},
                "pattern": {
                    "shape": ["" if task < reached else "/" for task in range(len(tasks))],
                    "fgcolor": "white",
                    "fillmode": "overlay",
                },
            },
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            showlegend=False,
        )
        for part in (1, 2, 0)
    ]


def _hover(records: Sequence[CommitRecord], place: int, name: str) -> str:
    lines = [f"<b>{plain(name)}</b> after task {records[0].task + 1}"]
    for record in records:
        claimed, reused, silent = _parts(record, place)
        lines.append(
            (f"replica {record.replica + 1}: " if len(records) > 1 else "")
            + f"{claimed:,} claimed, {reused:,} reused, {silent:,} silent, {record.free[place]:,} free "
            + f"of {record.widths[place]:,}"
        )
    return "<br>".join(lines)


def used(known: Known) -> go.Figure:
    """Units in use after each task in percent of their group, averaged over the replicas: the paper's Fig. 3.

    A line a hidden group with its standard deviation over the replicas, its dots open where not all have the task; of
    more than 6 groups a row each instead.
    """
    tasks, names = by_task(known), known.hidden
    if not tasks:
        return empty("No unit is claimed yet: no task is committed")
    found = {name: [_used(records, place) for records in tasks] for place, name in enumerate(names)}
    hover = {name: [_used_hover(records, place, name) for records in tasks] for place, name in enumerate(names)}
    figure = go.Figure()
    if len(names) > MANY:
        _add_rows(figure, found, hover)
        height = 90 + 26 * len(names)
    else:
        _add_lines(figure, known, found, hover)
        height = 300
    figure.update_xaxes(title_text="after task", **task_axis(known.experiment.tasks.count))
    return titled(figure, _summary(known) + uneven(known, "open" if len(names) <= MANY else "on the right"), height)


def _used(records: Sequence[CommitRecord], place: int) -> tuple[float, float | None]:
    return average([100 * (1 - record.free[place] / record.widths[place]) for record in records])


def _used_hover(records: Sequence[CommitRecord], place: int, name: str) -> str:
    lines = [
        (f"replica {record.replica + 1}: " if len(records) > 1 else "")
        + f"{record.widths[place] - record.free[place]:,} of {record.widths[place]:,} units in use"
        for record in records
    ]
    return "<br>".join([f"<b>{plain(name)}</b> after task {records[0].task + 1}", *lines])


Shares = dict[str, list[tuple[float, float | None]]]


def _add_lines(figure: go.Figure, known: Known, found: Shares, hover: dict[str, list[str]]) -> None:
    reached = whole(known)
    symbols = ("circle", "square", "diamond", "triangle-up", "x", "star")
    for (name, shares), symbol in zip(found.items(), symbols, strict=False):
        deviations = [deviation or 0 for _, deviation in shares]
        figure.add_trace(
            go.Scatter(
                name=plain(name),
                mode="lines+markers",
                x=list(range(1, len(shares) + 1)),
                y=[round(share, 4) for share, _ in shares],
                error_y={"array": deviations, "thickness": 1, "width": 2} if any(deviations) else None,
                line={"color": layer_colours(known)[name], "width": 2},
                marker={"symbol": [symbol + "-open" * (task >= reached) for task in range(len(shares))], "size": 7},
                hovertext=hover[name],
                hovertemplate="%{hovertext}<extra></extra>",
                showlegend=True,
            )
        )
    figure.update_yaxes(title_text="units in use (% of the layer)", range=[0, 103], dtick=20)


def _add_rows(figure: go.Figure, found: Shares, hover: dict[str, list[str]]) -> None:
    count = len(next(iter(found.values())))
    texted = count <= _TEXTED
    figure.add_trace(
        go.Heatmap(
            x=list(range(1, count + 1)),
            y=list(range(1, len(found) + 1)),
            z=[[round(share, 4) for share, _ in shares] for shares in found.values()],
            zmin=0,
            zmax=100,
            colorscale=CIVIDIS,
            xgap=1,
            ygap=1,
            text=[[f"{share:.0f}" for share, _ in shares] for shares in found.values()],
            texttemplate="%{text}" if texted else None,
            textfont={"size": 11},
            colorbar={"title": {"text": "in use (%)"}, "thickness": 12},
            showscale=not texted,
            hovertext=list(hover.values()),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    figure.update_yaxes(
        title_text="units in use (%) of",
        autorange="reversed",
        showgrid=False,
        tickvals=list(range(1, len(found) + 1)),
        ticktext=list(map(plain, found)),
    )


def _summary(known: Known) -> str:
    """How full every group is after the last task that all replicas have, and what growth came to."""
    runs, reached = begun(known), whole(known)
    last = [commits[reached - 1] for commits in runs]
    level = all(len(known.commits(replica)) == reached for replica in known.replicas)
    after = tasks_done(known) if level else f"task {reached}"
    growth = f"; {text}" if (text := grown(known)) else ""
    shares = {
        name: mean(1 - record.free[place] / record.widths[place] for record in last)
        for place, name in enumerate(known.hidden)
    }
    if len(shares) <= 3:
        said = [f"{_whole(share)} of {name}" for name, share in shares.items()]
        text = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
        return f"After {after} {text} {'is' if len(said) == 1 else 'are'} in use{growth}"
    least, most = (choose(shares, key=lambda name: shares[name]) for choose in (min, max))
    return (
        f"After {after} between {_whole(shares[least])} ({least}) and {_whole(shares[most])} ({most}) of "
        f"the units of {number(len(shares))} groups are in use{growth}"
    )


def _reuse(known: Known, records: Sequence[CommitRecord]) -> str:
    """What share of the earlier tasks' units the last task builds on."""
    parts = [_parts(record, place) for record in records for place in range(len(known.hidden))]
    old = sum(reused + silent for _, reused, silent in parts)
    if not old:
        return ""
    share = sum(reused for _, reused, _ in parts) / old
    return f"; task {records[0].task + 1} uses {_whole(share) if share else 'none'} of the units that earlier tasks own"


def _whole(share: float) -> str:
    return f"{100 * share:.1f} %"
