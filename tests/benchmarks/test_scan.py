"""What the benchmark times is the exact scan, and its bound counts what is there; how long it takes is no test."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clnp.models import mlp
from clnp.network import Network
from clnp.tasks import permuted

SCAN = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("scan.py"))))


def test_a_row_a_network():
    task = permuted("digits", count=1, seed=0, validation=0.1).task(0)
    network = SCAN.trained(mlp(64, (30, 20), 10), task, (1e-4, 1e-3, 1e-3), 0.002, 3, 256)
    assert len(SCAN.row("64-30-20-10", network, task, 1)) == 11


def test_the_bound_counts_every_unit_that_goes():
    """Of 64-3-3-10: a silent unit of each layer is out at θ = 0, where the pass begins."""
    network = Network(mlp(64, (4, 3), 10))
    means = {"hidden1": [0.0, 0.1, 0.2, 0.9], "hidden2": [0.0, 0.5, 0.8]}
    found = SCAN.bound(network, {name: torch.tensor(values).double() for name, values in means.items()})
    # θ = 0: 3 and 2 units; twice a unit of the first layer, its 2 readers and 2 · 10 of the output; a unit and its 10.
    assert found * (64 * 4 + 4 * 3 + 3 * 10) == pytest.approx(64 * 3 + 3 * 2 + 2 * 10 + 2 * (2 + 20) + 10)


def test_convolutions_have_no_bound():
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    assert SCAN.bound(network, {"0": torch.tensor([0.5, 1.0]).double()}) is None
