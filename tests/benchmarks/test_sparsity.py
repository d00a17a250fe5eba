"""The study runs, and what it counts is right."""

import runpy
from pathlib import Path

import torch

from clnp.activity import by_layer, mean_activity
from clnp.models import mlp
from clnp.network import Network
from clnp.tasks import permuted
from clnp.training import open_task

BENCHMARK = runpy.run_path(str(Path(__file__).with_name("sparsity.py")))


def test_a_row_for_each_order_and_number_of_epochs():
    tasks = permuted("digits", count=1, seed=0, validation=0.2, samples=300)
    head, line, *rows = BENCHMARK["rows"](tasks, [16, 12], [(1e-3, 1e-3, 1e-3)], [1, 3], ["0", "5"])
    assert head.count("|") == line.count("|") == rows[0].count("|")
    assert [row.split(" | ")[:3] for row in rows] == [
        ["0.001/0.001/0.001", count, order] for count in ("1", "3") for order in ("shared", "layers")
    ]


def test_the_point_is_the_last_within_the_margin():
    tasks = permuted("digits", count=1, seed=0, validation=0.2, samples=300)
    task = tasks.task(0)
    network = open_task(Network(mlp(tasks.shape, [16, 12], tasks.classes)), seed=0)
    order = by_layer(network, mean_activity(network, task.train.x))
    strict, loose = (BENCHMARK["pruned"](network, order, task, margin) for margin in ("0", "100"))
    assert sum(loose.claimed) <= sum(strict.claimed)
    assert strict.correct >= loose.correct
    assert torch.isfinite(torch.tensor(loose.theta))
