"""What the benchmark times is the exact scan, and its bound counts what is there; how long it takes is no test."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clnp.activity import mean_activity
from clnp.tasks import permuted

SCAN = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scan.py"))))


@pytest.fixture
def task():
    return permuted("digits", count=1, seed=0, validation=0.1).task(0)


def test_a_row_a_network(task):
    assert len(SCAN.row(task, (30, 20), (1e-4, 1e-3, 1e-3), 3, 1)) == 9


def test_the_bound_counts_every_unit_that_goes(task):
    """Of 784 … 10 with a unit each for which θ differs: unit by unit, what is left behind it."""
    network = SCAN.trained(task, (3, 2), (0.0, 0.0, 0.0), 1)
    activity = {"hidden1": torch.tensor([0.1, 0.2, 0.9]).double(), "hidden2": torch.tensor([0.5, 0.8]).double()}
    names = [group.name for group in network.groups]
    assert mean_activity(network, task.train.x[:10]).keys() == set(names)
    found = SCAN.bound(network, dict(zip(names, activity.values(), strict=True)), 1)
    # θ = 0.1, 0.2: a unit of the first layer and its 2 readers, then 2 · 10 of the output; θ = 0.5: a unit, its 10.
    assert found * (64 * 3 + 3 * 2 + 2 * 10) == pytest.approx(2 * (2 + 20) + 10)
