"""Where a run's time goes: its wall time over that in which workers worked, and what a task costs by its place.

    python tests/benchmarks/overhead.py EXPERIMENT [--set KEY=VALUE …] [--data-dir DIR] [--backend tune|inline]

Runs the experiment as a process with a database of its own, and reads what it left there. Work is training, scanning
and committing; time in which several workers worked counts once. A replica changes tasks from the end of its last stack
over the commit to the next task's first stacks; ``--set workers=4 replicas=1 worker.cells=1`` leaves three of four
workers idle meanwhile.
"""

import argparse
import contextlib
import os
import platform
import sqlite3
import statistics
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


def stacks(history: History) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """By replica and task when its stacks began and ended. A stack's records have its times in common."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for place, cells in history.cells.items():
        # The last of a stack's records ends with it.
        ends: dict[float, float] = {}
        for record in cells.values():
            ends[record.started] = max(record.ended, ends.get(record.started, 0.0))
        found[place] = sorted(ends.items())
    return found


def work(history: History) -> dict[tuple[int, int], tuple[float, float]]:
    """By replica and task the seconds of its stacks and of its commit."""
    found = stacks(history)
    return {
        place: (sum(end - begin for begin, end in found[place]), commit.ended - commit.started)
        for place, commit in history.commits.items()
    }


def changes(history: History, workers: int) -> list[tuple[float, float, float]]:
    """Of every change of a replica's tasks the seconds from the end of its last stack to the beginning of the commit,
    and from the commit's end until the next task's first stack began, and until as many as there are workers had."""
    found, result = stacks(history), []
    for (replica, task), commit in sorted(history.commits.items()):
        if after := found.get((replica, task + 1)):
            last = max(end for _, end in found[replica, task])
            begun = [begin - commit.ended for begin, _ in after]
            result.append((commit.started - last, begun[0], begun[:workers][-1]))
    return result


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
    training, commits = (sum(column) for column in zip(*work(history).values(), strict=True))
    working = busy(history)
    yield "command, s | workers | until one began, s | stacks, s | commits, s | some worker at work, s | command ÷ that"
    yield " | ".join(["---"] * 7)
    yield (
        f"{wall:.1f} | {workers} | {first:.1f} | {training:.1f} | {commits:.1f} | {working:.1f} | {wall / working:.2f}"
    )


def change_rows(history: History, workers: int, processes: int) -> Iterator[str]:
    """The third table's lines: the median, and the largest in brackets.

    Args:
        workers: How many there are at a time.
        processes: How many there ever were.
    """
    yield "workers | their processes | changes | to the commit, s | to the first stack, s | until all work, s"
    yield " | ".join(["---"] * 6)
    found = changes(history, workers)
    columns = [f"{statistics.median(column):.2f} ({max(column):.2f})" for column in zip(*found, strict=True)]
    yield f"{workers} | {processes} | {len(found)} | {' | '.join(columns)}"


def task_rows(history: History) -> Iterator[str]:
    """The second table's lines: the mean over replicas."""
    seconds = work(history)
    yield "task | free before, of the fullest layer | stacks, s | commit, s"
    yield " | ".join(["---"] * 4)
    for task in sorted({place[1] for place in seconds}):
        here = [place for place in seconds if place[1] == task]
        training, commit = (sum(seconds[place][part] for place in here) / len(here) for part in (0, 1))
        free = 1.0
        if task:
            before = history.commits[here[0][0], task - 1]
            free = min(left / units for left, units in zip(before.free, before.widths, strict=True))
        yield f"{task + 1} | {free:.0%} | {training:.2f} | {commit:.2f}"


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
        with contextlib.closing(sqlite3.connect(Path(folder) / "runs.db")) as database:
            # Every stack says after its first epoch where it is.
            said = "SELECT count(DISTINCT worker) FROM clnp_jobs WHERE kind = 'stack'"
            (processes,) = database.execute(said).fetchone()
    first = min(record.started for cells in history.cells.values() for record in cells.values()) - began
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU")
    tables = [overhead_rows(history, wall, workers, first), task_rows(history)]
    if changes(history, workers):
        tables.append(change_rows(history, workers, processes))
    for lines in tables:
        print("\n".join(f"| {line} |" for line in lines), end="\n\n")


if __name__ == "__main__":
    main()
