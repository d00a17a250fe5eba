"""The figures say what the records say, and their titles say it in numbers."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import plotly.graph_objects as go
import pytest

from search.backends.simulated import World
from search.decisions import budget_of
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
    assert title(figure).startswith("Task 2, replica 2: 4 trials, 1 of them diverged; cell ")


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
    records = made_up.history.commits.values()
    record = next(record for record in records if any(entry.better for entry in record.rounds))
    figure = pareto(made_up, record.replica + 1, record.task + 1)
    trace = named(figure, "fine-tuning, to what was committed")
    assert (trace.x[0], trace.y[0]) == (sum(record.point.claimed), record.point.correct / 10)
    assert (trace.x[-1], trace.y[-1]) == (sum(record.claimed), record.validation.correct / 10)
    assert "of fine-tuning (picked at" in title(figure)
    assert trace.hovertext[-1].startswith("committed after fine-tuning, ")


def test_the_line_of_a_budget_is_its_floor(simulate: Simulate) -> None:
    known = simulate(rule={"kind": "budget", "tasks": 3, "floor": 2.5})
    figure = pareto(known, 1, 2)
    assert figure.layout.annotations[1].text.startswith("floor ")
    assert figure.layout.shapes[1].y0 == pytest.approx(figure.layout.shapes[0].y0 - 2.5)
    commits = known.commits(0)
    most = budget_of(known.experiment, commits[:1], commits[1].widths)
    assert most
    said = f"; budget: at most {most[0]} of hidden1, {most[1]} of hidden2; the line is the floor"
    assert title(figure).endswith(said)
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
    assert title(figure) == "Task 1, replica 1: none of 2 cells is finished yet"


def test_a_run_without_a_commit_says_so(opened: Known) -> None:
    for figure in (accuracy, units, used, matrix):
        assert "no task is committed" in title(figure(opened)).lower()
    records = dict(list(opened.cells(0, 0).items())[:3])
    half = replace(opened, history=replace(opened.history, cells={(0, 0): records}))
    assert re.match(r"Task 1, replica 1: still open, 3 of 4 cells finished; \d reach.* so far", title(pareto(half)))
    assert "so far" in title(grid(half))
    assert re.match(r"Task 1, replica 1: not committed yet, all 4 cells finished; \d reach", title(pareto(opened)))
    for figure in (pareto(opened), grid(opened)):
        assert "so far" not in figure.to_json()


def test_a_task_that_the_rule_refuses_says_why(simulate: Simulate) -> None:
    """No better than naming one class: a trial at the line is not "below" it, nothing is still open, and the reason is
    in both titles."""
    known = simulate(world=World(classes=1), replicas=1)
    assert not known.history.commits
    trials = task_trials(known, 1, 1)
    best = max(record.score.correct for record in trials.records.values() if record.score)
    reach = sum(trials.reaches(index) for index in trials.records)
    reason = f"nothing worth committing: the best trial has {best} of 1000 validation samples right, no more than"
    for figure in (pareto(known), grid(known)):
        assert title(figure).startswith(f"Task 1, replica 1: {reason}")
        assert "so far" not in figure.to_json()
        assert "still open" not in title(figure)
    assert 0 < reach < 4
    assert f"; {reach} of 4 cells reach" in title(grid(known))
    below = [line for line in pareto(known, below=100).data if line.legendgroup == "below"]
    assert len(below) == 4 - reach
    assert {trace.name for trace in grid(known).data if trace.showlegend} == {"– not pruned", "↓ below the cut line"}


def test_a_dropped_cell_is_marked_and_has_no_line(simulate: Simulate) -> None:
    world = World(diverges=lambda _, cell: cell.index == 3)
    halved = {
        "training": {"epochs": 30, "halving": [20], "halving_margin": 1},
        "rule": {"margin": 1},
        "worker": {"cells": 4},
    }
    known = simulate(world=world, replicas=1, tasks={"count": 1}, **halved)
    trials = task_trials(known, 1, 1)
    (gone,) = [index for index, record in trials.records.items() if record.dropped]
    figure, drawn = grid(known), pareto(known, below=100)
    assert "4 trials, 1 of them diverged, 1 dropped; cell " in title(drawn)
    assert len([trace for trace in drawn.data if trace.mode == "lines"]) == 2
    row, column = divmod(gone, 2)
    assert [trace.z[row][column] is None for trace in figure.data[:4]] == [True, False, True, False]
    assert [figure.data[place].text[row][column] for place in (1, 3)] == ["½", "½"]
    assert f"dropped {trials.records[gone].dropped}" in figure.data[1].hovertext[row][column]
    assert title(figure).endswith("1 diverged, 1 dropped")
    assert "½ dropped" in {trace.name for trace in figure.data if trace.showlegend}
    only = {(0, 0): {gone: trials.records[gone]}}
    known = replace(known, history=replace(known.history, cells=only, commits={}))
    assert title(pareto(known)) == "Task 1, replica 1: no trial with a score yet, 1 dropped"
    assert title(grid(known)).endswith("none of 4 cells has a score yet; 1 dropped, 3 not finished")


def test_only_diverged_trials(simulate: Simulate) -> None:
    known = simulate(world=World(diverges=lambda *_: True), stop_after=4)
    assert title(pareto(known)) == (
        "Task 1, replica 1: nothing worth committing: every trial of the task diverged; lower the learning rates or α"
    )
    assert title(grid(known)).endswith("none of 4 cells has a score; 4 diverged")
    cells = {(0, 0): {0: known.cells(0, 0)[0]}}
    known = replace(known, history=replace(known.history, cells=cells))
    assert title(pareto(known)) == "Task 1, replica 1: no trial with a score yet, 1 diverged"
    assert title(grid(known)).endswith("none of 4 cells has a score yet; 1 diverged, 3 not finished")


def test_a_trial_too_low_to_show_is_counted(made_up: Known) -> None:
    """It has neither a line nor a name in the legend, so that the title owns up to it."""
    cells = made_up.cells(0, 0)
    index = next(index for index in cells if cells[index].score and index != made_up.commits(0)[0].winner.index)
    score = cells[index].score
    assert score
    low = replace(
        cells[index],
        score=replace(score, correct=score.correct - 400),
        staircase=tuple(replace(point, correct=point.correct - 400) for point in cells[index].staircase),
    )
    history = replace(made_up.history, cells={**made_up.history.cells, (0, 0): {**cells, index: low}})
    figure = pareto(replace(made_up, history=history))
    assert title(figure).endswith("; 1 too low to show")
    assert "too low" not in title(pareto(made_up))
    assert all(trace.x for trace in figure.data)
    assert "too low" not in title(pareto(replace(made_up, history=history), below=100))


def test_a_trial_of_one_point_is_seen(made_up: Known) -> None:
    """A line of one point is none."""
    cells = {index: replace(cell, staircase=cell.staircase[:1]) for index, cell in made_up.cells(0, 0).items()}
    known = replace(made_up, history=replace(made_up.history, cells={(0, 0): cells}))
    lines = [trace for trace in pareto(known, below=100).data if trace.legendgroup]
    assert [len(trace.x) for trace in lines] == [1, 1, 1]
    assert {trace.mode for trace in lines} == {"lines+markers"}


@pytest.mark.parametrize(("tuned", "said"), [(None, "diverged"), (-1, "gained nothing")])
def test_fine_tuning_that_was_thrown_away_is_said_so(made_up: Known, tuned: int | None, said: str) -> None:
    record = made_up.commits(0)[0]
    pruned = record.point.correct
    entry = replace(record.rounds[0], pruned=pruned, tuned=None if tuned is None else pruned + tuned)
    score = replace(record.validation, correct=pruned)
    known = changed(made_up, (0, 0), rounds=(entry,), validation=score, claimed=record.point.claimed)
    assert title(pareto(known)).endswith(f"; fine-tuning {said}, committed as it was pruned")
    trace = named(pareto(known), "fine-tuning, to what was committed")
    assert trace.hovertext[-1].startswith(f"committed as it was pruned: fine-tuning {said}, ")


def test_a_threshold_by_layer_has_its_unit(simulate: Simulate) -> None:
    known = simulate(rule={"margin": 3.0, "theta": "layers"}, replicas=1)
    shared = simulate(replicas=1)
    for figure in (pareto, grid):
        assert "layer's mean activity" in figure(known).to_json()
        assert "layer's mean activity" not in figure(shared).to_json()


# Replicas at different tasks


@pytest.fixture
def uneven(made_up: Known) -> Known:
    """Of three tasks that replica 1 has, replica 2 has two."""
    commits = {place: record for place, record in made_up.history.commits.items() if place != (1, 2)}
    return replace(made_up, history=replace(made_up.history, commits=commits))


def test_the_mean_over_other_replicas_is_marked(uneven: Known) -> None:
    """Task 3 is of replica 1 alone: pale, open, hatched or under a line, and every title says so."""
    assert [named(accuracy(uneven), "now").marker.opacity[task] for task in range(3)] == [1, 1, 0.4]
    assert used(uneven).data[1].marker.symbol == ("square", "square", "square-open")
    bars = [trace for trace in units(uneven).data if trace.x != (None,)]
    assert {bar.marker.pattern.shape for bar in bars} == {("", "", "/")}
    figure = matrix(uneven)
    assert figure.layout.yaxis.ticktext == ("1", "2", "3 (1 of 2)")
    assert [shape.y0 for shape in figure.layout.shapes] == [2.5]
    for drawn, mark in ((accuracy, "pale"), (used, "open"), (units, "hatched"), (matrix, "under the line")):
        assert title(drawn(uneven)).endswith(f"; task 3 ({mark}): 1 of 2 replicas")
    assert not matrix(uneven, 1).layout.shapes


def test_titles_compare_what_all_replicas_have(uneven: Known) -> None:
    """The mean and its deviation are over the same tasks, and the share in use is one of the points drawn."""
    means = [mean(score.accuracy for score in uneven.commits(replica)[-1].matrix[:2]) for replica in range(2)]
    said = f"{100 * mean(means):.2f} % ± {100 * stdev(means):.2f} %"
    assert title(accuracy(uneven)).startswith(
        f"2 to 3 of 3 tasks are committed; the first 2 stand at {said} test accuracy; "
    )
    first, second = (used(uneven).data[place].y[1] for place in range(2))
    start = f"After task 2 {first:.1f} % of hidden1 and {second:.1f} % of hidden2 are in use"
    assert title(used(uneven)).startswith(start)
    assert title(units(uneven)).startswith(start)


def test_a_replica_without_a_commit_is_counted(made_up: Known) -> None:
    commits = {place: record for place, record in made_up.history.commits.items() if place[0] == 0}
    known = replace(made_up, history=replace(made_up.history, commits=commits))
    for drawn in (accuracy, used, units, matrix):
        assert title(drawn(known)).endswith("; 1 of 2 replicas")
    assert title(matrix(known, 2)) == "Replica 2 has committed no task yet"


def test_one_repeated_measurement(made_up: Known) -> None:
    commits = {place: record for place, record in made_up.history.commits.items() if place[1] < 2}
    known = replace(made_up, history=replace(made_up.history, commits=commits))
    said = "The one repeated measurement counts the same right answers as right after the commit"
    assert title(matrix(known, 1)) == said
    second = known.commits(0)[1]
    worse = (replace(second.matrix[0], correct=0), second.matrix[1])
    said = "The one repeated measurement counts other right answers than right after the commit"
    assert title(matrix(changed(known, (0, 1), matrix=worse), 1)) == said


def test_growth_is_in_the_titles(simulate: Simulate) -> None:
    """A share of a width that changes says little without the width."""
    known = simulate(replicas=1, grow={"by": 4, "below": 32})
    last = known.commits(0)[-1].widths
    assert last == (36, 32)
    for figure in (used(known), units(known)):
        assert "in use; hidden1 grew from 32 to 36, hidden2 from 24 to 32 units" in title(figure)


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
    if task == 1:
        with pytest.raises(BadInput, match=message):
            matrix(opened, replica)


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
