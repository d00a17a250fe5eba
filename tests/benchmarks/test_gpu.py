"""The benchmark's parts run on a CPU; what a GPU does is measured there, and no test."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

GPU = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("gpu.py"))))


def test_a_row_for_each_count_of_members():
    able, head, *rows = GPU.rows(["small"], [1, 3], 2, "cpu", "float32")
    assert "TFLOP/s" in able
    assert [row.split(" | ")[:2] for row in rows] == [["small", "1"], ["small", "3"]]
    assert all(row.count("|") == head.count("|") for row in rows)


def test_the_bound_is_the_slower_of_arithmetic_and_memory():
    weights, parameters = 20 * 16 + 16 * 16 + 16 * 10, 20 * 16 + 16 * 16 + 16 * 10 + 16 + 16 + 10
    # Forward, and backward to the weights of every layer and the inputs of all but the first.
    operations = 2 * (3 * weights - 20 * 16)
    arithmetic = GPU.bound_rate("small", GPU.Device("", flops=1e9, bytes=1e30))
    assert arithmetic == pytest.approx(1e9 / operations)
    memory = GPU.bound_rate("small", GPU.Device("", flops=1e30, bytes=1e9))
    assert memory == pytest.approx(256 * 1e9 / (4 * 10 * parameters))


def test_the_papers_experiment_runs_from_end_to_end():
    lines = list(GPU.paper("cpu", None, dataset="digits", width=60, replicas=2, tasks=2, epochs=25))
    assert lines[0].startswith("1 of 2 replicas: ")
    assert float(lines[-1].split()[-1].rstrip("%")) > 70
