"""Where a run's time goes: its wall time over that in which workers worked, and what a task costs by its place.

    python tests/benchmarks/overhead.py EXPERIMENT [--set KEY=VALUE …] [--data-dir DIR] [--backend tune|inline]

Runs the experiment as a process with a database of its own, and reads what it left there. Work is training, scanning
and committing; time in which several workers worked counts once.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from search.rows import History
from search.store import open_store

ROOT = Path(__file__).parents[2]


def work(history: History) -> dict[tuple[int, int], tuple[float, float]]:
    """By replica and task the seconds of its stacks and of its commit. A stack's records have its times in common."""
    stacks: dict[tuple[int, int], set[tuple[float, float]]] = defaultdict(set)
    for place, cells in history.cells.items():
        # The last of a stack's records ends with it.
        ends: dict[float, float] = {}
        for record in cells.values():
            ends[record.started] = max(record.ended, ends.get(record.started, 0.0))
        stacks[place] = set(ends.items())
    return {
        place: (sum(end - begin for begin, end in stacks[place]), commit.ended - commit.started)
        for place, commit in history.commits.items()
    }


def busy(history: History) -> float:
    """Seconds in which at least one worker worked."""
    records = [record for cells in history.cells.values() for record in cells.values()]
    total, until = 0.0, 0.0
    for begin, end in sorted((each.started, each.ended) for each in (*records, *history.commits.values())):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def overhead_rows(history: History, wall: float, workers: int, first: float) -> Iterator[str]:
    """The first table's lines.

    Args:
        history: Of the run.
        wall: Seconds of the whole command.
        workers: How many it had.
        first: Seconds until the first of them began to work.
    """
    seconds = work(history)
    stacks, commits = (sum(column) for column in zip(*seconds.values(), strict=True))
    working = busy(history)
    yield "command, s | workers | until one began, s | stacks, s | commits, s | some worker at work, s | command ÷ that"
    yield " | ".join(["---"] * 7)
    yield (
        f"{wall:.1f} | {workers} | {first:.1f} | {stacks:.1f} | {commits:.1f} | {working:.1f} | {wall / working:.2f}"
    )


def task_rows(history: History) -> Iterator[str]:
    """The second table's lines: the mean over replicas."""
    seconds = work(history)
    yield "task | free before, of the fullest layer | stacks, s | commit, s"
    yield " | ".join(["---"] * 4)
    for task in sorted({place[1] for place in seconds}):
        here = [place for place in seconds if place[1] == task]
        stacks, commit = (sum(seconds[place][part] for place in here) / len(here) for part in (0, 1))
        free = 1.0
        if task:
            before = history.commits[here[0][0], task - 1]
            free = min(left / units for left, units in zip(before.free, before.widths, strict=True))
        yield f"{task + 1} | {free:.0%} | {stacks:.2f} | {commit:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--set", nargs="+", default=[])
    parser.add_argument("--data-dir")
    parser.add_argument("--backend", default="tune")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/runs.db"
        words = ["run", given.experiment, "--name", "timed", "--storage", url, "--backend", given.backend]
        words += ["--data-dir", given.data_dir] if given.data_dir else []
        words += ["--set", *given.set] if given.set else []
        began = time.time()
        subprocess.run(
            [sys.executable, "-m", "search", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,  # a sequence that fills the network ends with 5
            stdout=subprocess.DEVNULL,
        )
        wall = time.time() - began
        with open_store(url, None) as store:
            history, workers = store.history("timed"), int(store.attempts("timed")[-1].versions["workers"])
    first = min(record.started for cells in history.cells.values() for record in cells.values()) - began
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU")
    for lines in (overhead_rows(history, wall, workers, first), task_rows(history)):
        print("\n".join(f"| {line} |" for line in lines), end="\n\n")


if __name__ == "__main__":
    main()
