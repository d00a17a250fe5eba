"""Seconds of work are those that the records have; how many they are is no test."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from search.experiment import Experiment

OVERHEAD = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("overhead.py"))))


def record(started, ended):
    return SimpleNamespace(started=started, ended=ended)


@pytest.fixture
def history():
    """A task of two stacks of two cells, and one of one."""
    cells = {(0, 0): {0: record(1.0, 4.0), 1: record(1.0, 5.0), 2: record(2.0, 4.0), 3: record(2.0, 5.0)}}
    cells[0, 1] = {0: record(6.0, 7.0)}
    commits = {
        (0, 0): SimpleNamespace(started=5.0, ended=5.5, free=(6, 8), widths=(10, 10)),
        (0, 1): SimpleNamespace(started=7.0, ended=7.25, free=(1, 1), widths=(10, 10)),
    }
    return SimpleNamespace(cells=cells, commits=commits)


def test_a_stack_counts_once(history):
    assert OVERHEAD.work(history) == {(0, 0): (4.0 + 3.0, 0.5), (0, 1): (1.0, 0.25)}


def test_the_tables_say_what_was_found(history):
    head, line, row = OVERHEAD.overhead_rows(history, 10.0, 2, 1.5)
    assert head.count("|") == line.count("|") == row.count("|")
    assert row == "10.0 | 2 | 1.5 | 8.0 | 0.8 | 5.8 | 1.74"  # from 1 to 5.5 and from 6 to 7.25
    assert list(OVERHEAD.task_rows(history))[2:] == ["1 | 100% | 7.00 | 0.50", "2 | 60% | 1.00 | 0.25"]


def test_a_change_is_from_the_last_stack_over_the_commit_to_the_next_ones():
    cells = {
        (1, 0): {0: record(1.0, 3.0), 1: record(1.0, 4.0)},
        (1, 1): {2: record(5.75, 6.0), 0: record(5.25, 6.0), 1: record(5.5, 7.0)},
    }
    history = SimpleNamespace(cells=cells, commits={(1, 0): record(4.125, 5.0), (1, 1): record(7.0, 8.0)})
    assert OVERHEAD.changes(history, 2) == [(0.125, 0.25, 0.5)]
    assert OVERHEAD.changes(history, 4) == [(0.125, 0.25, 0.75)]
    assert list(OVERHEAD.change_rows(history, 2, 3))[2] == "2 | 3 | 1 | 0.12 (0.12) | 0.25 (0.25) | 0.50 (0.50)"


def test_the_experiment_of_25_tasks_is_one():
    text = Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8")
    assert Experiment.model_validate(yaml.safe_load(text)).tasks.count == 25
