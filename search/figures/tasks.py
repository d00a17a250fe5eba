"""Figures of how well tasks are known: right after their commits, now, and at every commit between."""

from itertools import pairwise
from statistics import mean

import plotly.graph_objects as go

from search.figures.common import begun, by_task, check_replica, now, tasks_done, uneven, whole
from search.figures.style import CIVIDIS, FAINT, INK, average, bounds, counts, empty, spread_text, task_axis, titled
from search.records import CommitRecord, Score
from search.reports.common import Known
from search.text import plural

__all__ = ["accuracy", "matrix"]

_TEXTED = 12
"""So many tasks have their accuracy written into the matrix."""


def accuracy(known: Known) -> go.Figure:
    """Test accuracy of every task right after its commit and now, in percent; mean and standard deviation of replicas.

    The title gives the mean over the tasks that all replicas have, with the standard deviation over the replicas, and
    how many samples the tasks have lost since their commits, measured again after each (Promise 1). Tasks that not all
    replicas have are pale.
    """
    tasks = by_task(known)
    if not tasks:
        return empty("No task is committed yet")
    figure = go.Figure()
    first = [[record.test for record in records] for records in tasks]
    last = [[now(known, record) for record in records] for records in tasks]
    reached = whole(known)
    figure.add_trace(_dots("right after its commit", tasks, first, reached, "circle-open", 15, FAINT, 5))
    figure.add_trace(_dots("now", tasks, last, reached, "circle", 7, INK, 1.5))
    figure.update_xaxes(title_text="task", **task_axis(known.experiment.tasks.count))
    figure.update_yaxes(title_text="test accuracy (%)")
    means = [mean(score.accuracy for score in commits[-1].matrix[:reached]) for commits in begun(known)]
    finished = min(len(known.commits(replica)) for replica in known.replicas) == known.experiment.tasks.count
    verb = "end at" if finished else "are committed and stand at"
    if len(tasks) == 1:
        verb = "ends at" if finished else "is committed and stands at"
    if reached < len(tasks):
        verb = f"are committed; the first {f'{reached} stand' if reached > 1 else 'stands'} at"
    title = f"{tasks_done(known)} {verb} {spread_text(means)} test accuracy; {_lost(tasks, last)}"
    return titled(figure, title + uneven(known, "pale"), 300)


def _dots(
    name: str,
    tasks: list[list[CommitRecord]],
    scores: list[list[Score]],
    reached: int,
    symbol: str,
    size: int,
    colour: str,
    thick: float,
) -> go.Scatter:
    shares = [average([100 * score.accuracy for score in each]) for each in scores]
    several = any(deviation is not None for _, deviation in shares)
    return go.Scatter(
        name=name,
        showlegend=True,
        mode="markers",
        x=list(range(1, len(tasks) + 1)),
        y=[round(middle, 4) for middle, _ in shares],
        error_y={"array": [round(deviation or 0, 4) for _, deviation in shares], "width": 0, "thickness": thick}
        if several
        else None,
        marker={
            "symbol": symbol,
            "size": size,
            "color": colour,
            "line": {"width": 3},
            "opacity": [1 if place < reached else 0.4 for place in range(len(tasks))],
        },
        hovertext=[
            f"task {place}, {name}<br>"
            + "<br>".join(_of_replica(record, score, several) for record, score in zip(records, each, strict=True))
            for place, (records, each) in enumerate(zip(tasks, scores, strict=True), start=1)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _of_replica(record: CommitRecord, score: Score, several: bool = True) -> str:
    return (f"replica {record.replica + 1}: " if several else "") + counts(score.correct, score.total)


def _lost(tasks: list[list[CommitRecord]], last: list[list[Score]]) -> str:
    losses = [
        record.test.correct - score.correct
        for records, each in zip(tasks, last, strict=True)
        for record, score in zip(records, each, strict=True)
    ]
    worse = [loss for loss in losses if loss > 0]
    if worse:
        return f"{len(worse)} of {len(losses)} lost {plural(sum(worse), 'sample')} since their commit"
    return "none has lost a sample since its commit" if len(losses) > 1 else "it has lost none since its commit"


def matrix(known: Known, replica: int | None = None) -> go.Figure:
    """Test accuracy of every task (column) after every commit (row), in percent.

    Args:
        replica: From 1; without it the mean over the replicas, in the rows under a line over fewer of them.

    Raises:
        BadInput: There is no such replica.
    """
    if replica is not None:
        check_replica(known, replica)
    runs = [commits for commits in begun(known) if replica in (None, commits[0].replica + 1)]
    size = max(map(len, runs), default=0)
    if not size:
        return empty("No task is committed yet" if replica is None else f"Replica {replica} has committed no task yet")
    rows = [[commits[place] for commits in runs if place < len(commits)] for place in range(size)]
    shares = [
        [
            round(100 * mean(record.matrix[task].accuracy for record in row), 4) if task <= place else None
            for task in range(size)
        ]
        for place, row in enumerate(rows)
    ]
    texted = size <= _TEXTED
    found = [share for row in shares for share in row if share is not None]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(1, size + 1)),
            y=list(range(1, size + 1)),
            z=shares,
            **bounds(found, least=2),
            colorscale=CIVIDIS,
            xgap=1,
            ygap=1,
            text=[["" if share is None else f"{share:.1f}" for share in row] for row in shares],
            texttemplate="%{text}" if texted else None,
            textfont={"size": 11},
            showscale=not texted,
            colorbar={"title": {"text": "%"}, "thickness": 12},
            hovertext=[
                [_cell(row, place, task) if task <= place else "" for task in range(size)]
                for place, row in enumerate(rows)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
        )
    )
    figure.update_xaxes(title_text="test accuracy (%) of task", **task_axis(size))
    figure.update_yaxes(title_text="after task", **task_axis(size))
    figure.update_yaxes(range=[size + 0.6, 0.4])
    if replica is None:
        _part_rows(figure, [len(row) for row in rows], len(known.replicas))
    note = uneven(known, "under the line") if replica is None else ""
    return titled(figure, _steadiness(runs) + note, max(160, 90 + 26 * min(size, 20)))


def _part_rows(figure: go.Figure, counts: list[int], replicas: int) -> None:
    """Name the rows that not all replicas have, with a line wherever the mean goes on over fewer."""
    shown = figure.layout.yaxis.tickvals or range(1, len(counts) + 1)
    if counts[-1] < counts[0]:
        said = [f" ({count} of {replicas})" if count < replicas else "" for count in counts]
        figure.update_yaxes(tickvals=list(shown), ticktext=[f"{task}{said[task - 1]}" for task in shown])
    for place, (before, after) in enumerate(pairwise(counts), start=1):
        if after < before:
            figure.add_hline(y=place + 0.5, line={"color": INK, "width": 2})


def _cell(row: list[CommitRecord], place: int, task: int) -> str:
    lines = "<br>".join(_of_replica(record, record.matrix[task]) for record in row)
    return f"task {task + 1} after the commit of task {place + 1}<br>{lines}"


def _steadiness(runs: list[list[CommitRecord]]) -> str:
    again = [
        record.matrix[task].correct == commits[task].test.correct
        for commits in runs
        for record in commits
        for task in range(record.task)
    ]
    if not again:
        return "One task is committed; nothing has been measured again yet"
    times, changed = plural(len(again), "repeated measurement"), again.count(False)
    if len(again) == 1:
        return f"The one repeated measurement counts {'other' if changed else 'the same'} right answers " + (
            "than right after the commit" if changed else "as right after the commit"
        )
    if not changed:
        return f"All {times} count the same right answers as right after the commit"
    return f"{changed:,} of {times} count other right answers than right after the commit"
