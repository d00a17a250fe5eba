"""The benchmark runs, and what it counts is right; what it times is no test."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARK = runpy.run_path(str(Path(__file__).with_name("subnetwork.py")))


@pytest.fixture
def small(monkeypatch):
    threads = torch.get_num_threads()
    chain = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
    monkeypatch.setitem(BENCHMARK["NETWORKS"], "small", (lambda: chain, (5,), 4))
    yield "small"
    torch.set_num_threads(threads)


def test_a_row_a_share(small):
    head, line, *rows = BENCHMARK["rows"]([small], (0.1, 0.5), (1, 2), 1)
    assert head.count("|") == line.count("|") == rows[0].count("|")
    assert [row.split(" | ")[:2] for row in rows] == [["| small", "10%"], ["| small", "50%"]]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_of_every_group_is_claimed(small, share):
    network = BENCHMARK["committed"](BENCHMARK["NETWORKS"][small][0](), share)
    assert [int((network.owner(group) == 0).sum()) for group in network.groups] == [share * 40, share * 20]
