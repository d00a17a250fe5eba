"""The comparison runs on a real run, and what it counts is right."""

import runpy
from pathlib import Path

import pytest
import torch

from search.cli import main
from search.reports.common import read_run
from search.store import open_store

BENCHMARK = runpy.run_path(str(Path(__file__).with_name("alone.py")))

EXPERIMENT = """
tasks: {kind: permuted, dataset: digits, count: 2, samples: 300}
model: {kind: mlp, hidden: [24, 16]}
grid: {alpha: [1.0e-3], learning_rate: [0.005, 0.01]}
training: {epochs: 4}
rule: {margin: 5}
"""


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    assert main(["run", "small.yaml", "--backend", "inline"]) == 0
    yield "sqlite:///clnp-search.db"
    torch.set_num_threads(threads)


def test_a_row_a_task(storage, capsys):
    with open_store(storage, create=False) as store:
        known = read_run(store, "small")
        head, line, *rows = BENCHMARK["rows"](known, None)
    assert head.count("|") == line.count("|") == rows[0].count("|")
    commits = known.commits(0)
    assert [row.split(" | ")[:3] for row in rows] == [
        ["1", "100%", f"{commits[0].test.accuracy:.2%}"],
        [
            "2",
            f"{min(left / units for left, units in zip(commits[0].free, (24, 16), strict=True)):.0%}",
            f"{commits[1].test.accuracy:.2%}",
        ],
    ]
    for row in rows:
        _, _, test, alone, difference, _ = row.split(" | ")
        assert float(difference) == pytest.approx(float(test[:-1]) - float(alone[:-1]), abs=0.011)
        assert float(alone[:-1]) > 50, "300 samples and 4 epochs teach the whole network some digits"
