"""The figures say what the records say, and their titles say it in numbers."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

from search.backends.simulated import World
from search.errors import BadInput
from search.figures import accuracy, grid, load, matrix, pareto, units, used
from search.figures.common import task_trials
from search.figures.style import plain
from search.reports.common import Known

Simulate = Callable[..., Known]


def title(figure: go.Figure) -> str:
    return html.unescape(figure.layout.title.text.replace("<br>", " "))


def named(figure: go.Figure, name: str) -> go.Scatter:
    return next(trace for trace in figure.data if trace.name == name)


def changed(known: Known, place: tuple[int, int], **fields: object) -> Known:
    """The same run with another record of a commit."""
    commits = {**known.history.commits, place: replace(known.history.commits[place], **fields)}
    return replace(known, history=replace(known.history, commits=commits))


def test_accuracy_is_that_of_the_records(made_up: Known) -> None:
    """Right after the commit and now, the mean of both replicas; none was lost (Promise 1)."""
    figure = accuracy(made_up)
    for task in range(3):
        shares = [100 * made_up.commits(replica)[task].test.accuracy for replica in range(2)]
        for name in ("right after its commit", "now"):
            assert named(figure, name).y[task] == pytest.approx(sum(shares) / 2, abs=1e-3)
    assert re.fullmatch(
        r"3 tasks end at \d\d\.\d\d % ± \d\.\d\d % test accuracy; none has lost a sample since its commit",
        title(figure),
    )
    assert "replica 2: " in named(figure, "now").hovertext[0]
    assert " of 1,000 right (" in named(figure, "now").hovertext[0]


def test_what_was_forgotten_is_seen(made_up: Known) -> None:
    """A sample lost: the title counts it, the two dots part, and the matrix counts a measurement that differs."""
    last = made_up.commits(0)[2]
    worse = (replace(last.matrix[0], correct=last.matrix[0].correct - 7), *last.matrix[1:])
    known = changed(made_up, (0, 2), matrix=worse)
    assert title(accuracy(known)).endswith("1 of 6 lost 7 samples since their commit")
    now, then = (named(accuracy(known), name).y[0] for name in ("now", "right after its commit"))
    assert now < then
    assert title(matrix(known)).startswith("1 of 6 repeated measurements count other right answers")
    assert title(matrix(made_up)).startswith("All 6 repeated measurements count the same right answers")


def test_columns_of_units_are_what_is_in_use(made_up: Known) -> None:
    """Claimed, reused and silent units add up to all that is not free, in each layer after each task."""
    figure = units(made_up)
    for axis, place in (("y", 0), ("y2", 1)):
        bars = [trace for trace in figure.data if trace.yaxis == axis and trace.x != (None,)]
        assert [bar.name for bar in bars] == [
            "reused by it",
            "of earlier tasks, silent on it",
            "claimed by the task",
        ]
        for task in range(3):
            records = [made_up.commits(replica)[task] for replica in range(2)]
            used_now = sum(100 - 100 * record.free[place] / record.widths[place] for record in records) / 2
            assert sum(bar.y[task] for bar in bars) == pytest.approx(used_now, abs=1e-3)
            assert used(made_up).data[place].y[task] == pytest.approx(used_now, abs=1e-3)
    assert "are in use" in title(figure)
    assert f"of {made_up.commits(0)[0].widths[0]}" in bars[0].hovertext[0].replace("24", "32")


def test_many_layers_and_tasks_stay_readable(deep: Known) -> None:
    """A row a layer instead of lines that cross, ticks that do not touch, no numbers in cells too small for them."""
    assert [type(trace).__name__ for trace in used(deep).data] == ["Heatmap"]
    assert len(used(deep).layout.yaxis.ticktext) == 12
    assert used(deep).layout.xaxis.tickvals == (1, 5, 10, 15)
    assert matrix(deep).data[0].texttemplate is None
    assert re.match(
        r"After 15 tasks between .* % \(hidden\d+\) and .* % \(hidden\d+\) of the units", title(units(deep))
    )
    assert grid(deep, 1, 1).layout.yaxis.ticktext == ("0.001", "0.002 – 0.013")


def test_the_matrix_is_triangular(made_up: Known) -> None:
    rows = matrix(made_up, replica=2).data[0].z
    for place, row in enumerate(rows):
        expected = [round(100 * score.accuracy, 4) for score in made_up.commits(1)[place].matrix]
        assert list(row[: place + 1]) == expected
        assert all(value is None for value in row[place + 1 :])


def test_the_winner_the_line_and_the_best_are_marked(made_up: Known) -> None:
    record = made_up.commits(1)[1]
    figure = pareto(made_up, 2, 2)
    star = named(figure, "where it was pruned")
    assert (star.x[0], star.y[0]) == (sum(record.point.claimed), record.point.correct / 10)
    assert [shape.y0 for shape in figure.layout.shapes] == [record.best / 10, record.needed / 10]
    assert [note.text for note in figure.layout.annotations] == [
        f"best {record.best / 10:.2f} %",
        f"cut line {record.needed / 10:.2f} %",
    ]
    assert f"cell {record.winner.index} wins with {sum(record.claimed)} new unit" in title(figure)
    assert ", 1 diverged; " in title(figure)


def test_every_trial_is_a_stepped_line(made_up: Known) -> None:
    figure = pareto(made_up, 1, 1, below=100)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert {trace.line.shape for trace in lines} == {"hv"}
    drawn = sorted(tuple(zip(trace.x, trace.y, strict=True)) for trace in lines)
    assert drawn == sorted(
        tuple((sum(point.claimed), point.correct / 10) for point in reversed(record.staircase))
        for record in made_up.cells(0, 0).values()
        if record.score
    )
    assert all(
        len(trace.x) < len(line.x) for trace, line in zip(pareto(made_up, 1, 1, below=-9).data, lines, strict=False)
    )


def test_fine_tuning_is_shown_beside_what_was_picked(made_up: Known) -> None:
    record = made_up.commits(0)[0]
    assert record.rounds
    trace = named(pareto(made_up), "fine-tuning, to what was committed")
    assert (trace.x[0], trace.y[0]) == (sum(record.point.claimed), record.point.correct / 10)
    assert (trace.x[-1], trace.y[-1]) == (sum(record.claimed), record.validation.correct / 10)
    assert "of fine-tuning (picked at" in title(pareto(made_up))


def test_the_line_of_a_budget_is_its_floor(simulate: Simulate) -> None:
    known = simulate(rule={"kind": "budget", "tasks": 3, "floor": 2.5})
    figure = pareto(known, 1, 2)
    assert figure.layout.annotations[1].text.startswith("floor ")
    assert "the line is the budget rule's floor, 2.5 points under the best" in title(figure)
    over = changed(known, (0, 1), over_budget=("hidden2",))
    assert title(pareto(over, 1, 2)).endswith("no point above it fits the budget of hidden2")


def test_the_grid_tells_its_cells_apart(made_up: Known) -> None:
    """Of each cell either a number or a sign; the diverged one has no accuracy, and every hover says which it is."""
    trials = task_trials(made_up, 1, 1)
    figure = grid(made_up, 1, 1)
    maps = figure.data[:4]
    for cell in trials.cells:
        row, column = divmod(cell.index, 2)
        units_of, sign, share, other = (trace.z[row][column] for trace in maps)
        point, record = trials.points.get(cell.index), trials.records[cell.index]
        assert units_of == (None if point is None else sum(point.claimed))
        assert (sign is None) == (point is not None)
        assert share == (None if record.score is None else record.score.correct / 10)
        assert (other is None) == (record.score is not None)
        assert maps[0].hovertext[row][column].startswith(f"cell {cell.index}: α ")
    assert "diverged: not finite after epoch 1" in maps[0].hovertext[1][1]
    assert "1 diverged" in title(figure)
    assert figure.layout.yaxis.ticktext == ("0.001", "hidden1 0.01<br>hidden2 0.02<br>output 0.03")
    row, column = divmod(trials.winner or 0, 2)
    assert {(shape.x0, shape.y0) for shape in figure.layout.shapes} == {(column - 0.5, row - 0.5)}


def test_a_row_is_named_by_what_differs(simulate: Simulate) -> None:
    alpha = [[1e-4, 5e-4, 1e-3], [3e-4, 5e-4, 1e-3]]
    figure = grid(simulate(stop_after=1, grid={"alpha": alpha, "learning_rate": [0.001]}))
    assert figure.layout.yaxis.ticktext == ("hidden1 1e-4", "hidden1 3e-4")
    assert "not finished" in title(figure)


def test_a_run_without_a_commit_says_so(opened: Known) -> None:
    for figure in (accuracy, units, used, matrix):
        assert "no task is committed" in title(figure(opened)).lower()
    assert re.match(r"Task 1, replica 1: still open, \d of 4 cells finished; \d reach", title(pareto(opened)))
    assert "so far" in title(grid(opened))


def test_only_diverged_trials(simulate: Simulate) -> None:
    known = simulate(world=World(diverges=lambda *_: True), stop_after=4)
    assert title(pareto(known)) == "Task 1, replica 1: no trial with finite numbers yet, 4 diverged"
    assert "none of 4 cells has finite numbers yet; 4 diverged" in title(grid(known))


@pytest.mark.parametrize(
    ("replica", "task", "message"),
    [
        (3, 1, r"^replica 3: run 'open' has replicas 1 to 2$"),
        (0, 1, "^replica 0"),
        (1, 4, r"^task 4: run 'open' has tasks 1 to 3$"),
        (1, 0, "^task 0"),
        (1, 2, r"^task 2 of replica 1 of run 'open' is not open yet; there is nothing to draw$"),
    ],
)
def test_what_cannot_be_drawn(opened: Known, replica: int, task: int, message: str) -> None:
    for figure in (pareto, grid):
        with pytest.raises(BadInput, match=message):
            figure(opened, replica, task)


def test_a_notebook_loads_a_run_by_its_name(trained: str) -> None:
    known = load(trained, "small")
    assert title(accuracy(known)).startswith("2 tasks end at ")
    with pytest.raises(BadInput, match="no run is called 'other'"):
        load(trained, "other")


def test_a_task_reuses_what_its_record_says(trained: str) -> None:
    """On a run that was trained: units of earlier tasks that are active on it."""
    known = load(trained, "small")
    record = known.commits(0)[1]
    bar = next(trace for trace in units(known).data if trace.name == "reused by it" and trace.yaxis == "y")
    assert bar.y[1] == pytest.approx(100 * record.usage.groups[0].reused / record.widths[0], abs=1e-3)
    assert f"{record.usage.groups[0].reused:,} reused" in bar.hovertext[1]


def test_names_are_shown_as_they_are() -> None:
    assert plain('<a href="x">%{y}$') == "&lt;a href=&quot;x&quot;&gt;%&#123;y}&#36;"


def test_figures_are_whole_numbers_of_samples(made_up: Known, tmp_path: Path) -> None:
    """No NaN and no infinity is left for a browser to choke on."""
    for figure in (accuracy(made_up), units(made_up), used(made_up), matrix(made_up), pareto(made_up), grid(made_up)):
        json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(name))
