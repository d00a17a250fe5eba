"""All contestants train the same task and cells; how long they take is no test."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
GRID = SimpleNamespace(**runpy.run_path(str(HERE / "grid.py")))
SMALL = {
    **GRID.DIGITS,
    "training": {"epochs": 3, "batch_size": 64},
    "grid": {"alpha": [[1e-4] * 3], "learning_rate": [0.01]},
}


def test_the_others_are_given_the_task_and_its_cells(tmp_path):
    file = GRID.write_task(GRID.make_experiment("digits-24"), tmp_path, None)
    given = json.loads(file.read_text())
    assert len(given["cells"]) == 24
    assert given["cells"][0] == {"alpha": [1e-4, 5e-4, 1e-3], "learning_rate": 0.002}
    given |= {"epochs": 3}
    bare = SimpleNamespace(**runpy.run_path(str(HERE / "bare.py")))
    assert bare.train_cell(given, given["cells"][0]) > 0.5


@pytest.mark.slow
def test_a_row_a_grid(monkeypatch):
    monkeypatch.setitem(GRID.GRIDS, "small", SMALL)
    head, line, row = GRID.rows(["small"], None, 1)
    assert head.count("|") == line.count("|") == row.count("|")
    search, start, guide, _, bare, _ = map(float, row.strip("| ").split(" | ")[1:])
    assert min(search - start, guide, bare) > 0
