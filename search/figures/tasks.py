"""Figures of how well tasks are known: right after their commits, now, and at every commit between."""

from statistics import mean

import plotly.graph_objects as go

from search.figures.common import by_task, now, tasks_done
from search.figures.style import CIVIDIS, FAINT, INK, average, bounds, counts, empty, spread_text, task_axis, titled
from search.records import CommitRecord, Score
from search.reports.common import Known
from search.text import plural

__all__ = ["accuracy", "matrix"]

_TEXTED = 12
"""So many tasks have their accuracy written into the matrix."""


def accuracy(known: Known) -> go.Figure:
    """Test accuracy of every task right after its commit and now, in percent; mean and standard deviation of replicas.

    The title gives the mean over the tasks, with the standard deviation over the replicas, and how many samples the
    tasks have lost since their commits, measured again after each (Promise 1).
    """
    tasks = by_task(known)
    if not tasks:
        return empty("No task is committed yet")
    figure = go.Figure()
    first = [[record.test for record in records] for records in tasks]
    last = [[now(known, record) for record in records] for records in tasks]
    figure.add_trace(_dots("right after its commit", tasks, first, "circle-open", 15, FAINT, 5))
    figure.add_trace(_dots("now", tasks, last, "circle", 7, INK, 1.5))
    figure.update_xaxes(title_text="task", **task_axis(known.experiment.tasks.count))
    figure.update_yaxes(title_text="test accuracy (%)")
    means = [
        mean(score.accuracy for score in commits[-1].matrix)
        for replica in known.replicas
        if (commits := known.commits(replica))
    ]
    finished = min(len(known.commits(replica)) for replica in known.replicas) == known.experiment.tasks.count
    verb = "end at" if finished else "are committed and stand at"
    if len(tasks) == 1:
        verb = "ends at" if finished else "is committed and stands at"
    return titled(figure, f"{tasks_done(known)} {verb} {spread_text(means)} test accuracy; {_lost(tasks, last)}", 300)


def _dots(
    name: str,
    tasks: list[list[CommitRecord]],
    scores: list[list[Score]],
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
        marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 3}},
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
        replica: From 1; without it the mean over the replicas that got so far.
    """
    chosen = known.replicas if replica is None else [replica - 1]
    runs = [commits for one in chosen if (commits := known.commits(one))]
    size = max(map(len, runs), default=0)
    if not size:
        return empty("No task is committed yet")
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
    return titled(figure, _steadiness(runs), max(160, 90 + 26 * min(size, 20)))


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
    if not changed:
        return f"All {times} count the same right answers as right after the commit"
    return f"{changed:,} of {times} count other right answers than right after the commit"
