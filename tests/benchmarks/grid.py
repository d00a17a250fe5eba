"""How long a person waits for one task's grid: with this search, with Ray Tune as its guide shows it, with bare loops.

    python tests/benchmarks/grid.py [NAME …] [--data-dir DIR] [--turns N]

Each is a process of its own, from its start to its end, and all take turns. The search does more than the others: it
scans every member, keeps it, commits the winner and measures it. Bare loops need no pool, so they are compared with
what of the search is left once its workers have begun.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from search.building import build_sequence
from search.experiment import Experiment
from search.store import open_store

HERE = Path(__file__).parent

FIXED = {"name": "grid", "head": "single", "validation": 0.1, "rule": {"margin": 1}, "worker": {"gpu": 0}}

DIGITS: dict[str, Any] = {
    "tasks": {"kind": "permuted", "dataset": "digits", "count": 1},
    "model": {"kind": "mlp", "hidden": [128, 128]},
    "training": {"epochs": 30, "batch_size": 32},
}
MNIST: dict[str, Any] = {"tasks": {"kind": "permuted", "dataset": "mnist", "count": 1}}
ALPHA = [[1e-4, 5e-4, 1e-3], [3e-4, 5e-4, 1e-3], [3e-4, 1e-3, 1e-3]]
MILD = [[1e-5, 1e-4, 1e-5], [1e-5, 5e-4, 1e-4], [1e-5, 1e-3, 1e-4]]

GRIDS: dict[str, dict[str, Any]] = {
    "digits-6": {**DIGITS, "grid": {"alpha": ALPHA, "learning_rate": [0.005, 0.01]}},
    "digits-24": {
        **DIGITS,
        "grid": {"alpha": ALPHA, "learning_rate": [0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.012]},
    },
    "mnist-400": {
        **MNIST,
        "model": {"kind": "mlp", "hidden": [400, 400]},
        "training": {"epochs": 5, "batch_size": 256},
        "grid": {"alpha": MILD, "learning_rate": [0.001, 0.002]},
    },
    "mnist-2000": {
        **MNIST,
        "model": {"kind": "mlp", "hidden": [2000, 2000]},
        "training": {"epochs": 1, "batch_size": 256},
        "grid": {"alpha": MILD, "learning_rate": [0.001, 0.002]},
    },
}
"""By name what differs from the defaults of an experiment file."""


class Times(NamedTuple):
    """Seconds of one turn; ``start``: until the search's first worker began to work."""

    search: float
    start: float
    guide: float
    bare: float


def make_experiment(name: str) -> Experiment:
    return Experiment.model_validate({**FIXED, **GRIDS[name]})


def write_task(experiment: Experiment, folder: Path, data_dir: str | None) -> Path:
    """The task and its cells, for who knows nothing of this project."""
    task = build_sequence(experiment, 0, data_dir).task(0)
    tensors = {"x": task.train.x, "y": task.train.y}
    tensors |= {"validation_x": task.validation.x, "validation_y": task.validation.y}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "task.safetensors")
    cells = itertools.product(experiment.grid.alpha, experiment.grid.learning_rate)
    given = {
        "data": str(folder / "task.safetensors"),
        "hidden": list(experiment.model.hidden),
        "epochs": experiment.training.epochs,
        "batch_size": experiment.training.batch_size,
        "cells": [{"alpha": list(alpha), "learning_rate": rate} for alpha, rate in cells],
    }
    (folder / "task.json").write_text(json.dumps(given))
    return folder / "task.json"


def timed(*command: str) -> float:
    """Seconds that a Python process takes."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
    }
    began = time.time()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.time() - began


def turn(name: str, data_dir: str | None, backend: str = "tune") -> Times:
    """All three, one after another."""
    experiment = make_experiment(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        task = write_task(experiment, folder, data_dir)
        (folder / "grid.yaml").write_text(json.dumps({**FIXED, **GRIDS[name]}))
        words = ["run", str(folder / "grid.yaml"), "--backend", backend]
        words += [
            "--storage",
            f"sqlite:///{folder / 'grid.db'}",
            "--set",
            "head=single",
            "rule.margin=1",
            "worker.gpu=0",
        ]
        words += ["--data-dir", data_dir] if data_dir else []
        began = time.time()
        search = timed("-m", "search", *words)
        with open_store(f"sqlite:///{folder / 'grid.db'}", None) as store:
            cells = store.history("grid").cells[0, 0]
        start = min(record.started for record in cells.values()) - began
        return Times(search, start, timed(str(HERE / "guide.py"), str(task)), timed(str(HERE / "bare.py"), str(task)))


def rows(names: list[str], data_dir: str | None, turns: int) -> list[str]:
    """The table's lines."""
    lines = [
        "grid | this search, s | of it until a worker began | Ray Tune's guide, s | times longer | bare loops, s | "
        "the search from then on, of 1.1 times that",
        " | ".join(["---"] * 7),
    ]
    for name in names:
        found = [turn(name, data_dir) for _ in range(turns)]
        search, start, guide, bare = (statistics.median(column) for column in zip(*found, strict=True))
        share = (search - start) / (1.1 * bare)
        lines.append(
            f"{name} | {search:.1f} | {start:.1f} | {guide:.1f} | {guide / search:.1f} | {bare:.1f} | {share:.2f}"
        )
    return [f"| {line} |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *GRIDS], default=[])
    parser.add_argument("--data-dir")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray"))
    print(f"{versions}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, CPU")
    print("\n".join(rows(arguments.names or list(GRIDS), arguments.data_dir, arguments.turns)))


if __name__ == "__main__":
    main()
