"""How often halving gives another winner, and what it saves.

    python tests/benchmarks/halving.py [NAME …] [--seeds N] [--data-dir DIR]

One process, one thread. Every task is searched without halving and with it, from the same network: the one that the
winner without halving left. All cells are one stack. Seconds are of the process's CPU time.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.forgetting import Choice, Trial, choose
from clnp.halving import Halving
from clnp.models import mlp
from clnp.network import Network
from clnp.ownership import with_free
from clnp.tasks import Sequence as Tasks
from clnp.tasks import permuted
from clnp.tasks.task import Task
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train

ALPHA = ((1e-4, 5e-4, 1e-3), (3e-4, 5e-4, 1e-3), (3e-4, 1e-3, 1e-3))
MILD = ((1e-5, 1e-4, 1e-5), (1e-5, 5e-4, 1e-4), (1e-5, 1e-3, 1e-4))
# Of a first look, where nobody knows yet what is sensible.
WIDE = ((1e-5, 1e-4, 1e-4), (1e-4, 5e-4, 1e-3), (3e-4, 1e-3, 1e-3), (1e-3, 3e-3, 3e-3), (3e-3, 1e-2, 1e-2))


@dataclass(frozen=True)
class Grid:
    """What is searched, and how it is halved, in turn."""

    dataset: str
    hidden: tuple[int, ...]
    members: tuple[Member, ...]
    settings: Settings
    margin: str
    halvings: tuple[Halving, ...]
    tasks: int = 3
    samples: int | None = None


def halvings(margins: Sequence[str], *epochs: tuple[int, ...]) -> tuple[Halving, ...]:
    return tuple(Halving(each, Fraction(margin)) for margin in margins for each in epochs)


def grid(alphas: Sequence[tuple[float, ...]], rates: Sequence[float]) -> tuple[Member, ...]:
    return tuple(Member(alpha, rate) for alpha in alphas for rate in rates)


THIRTY = Settings(epochs=30, batch_size=32)
GRIDS = {
    "digits-6": Grid(
        "digits", (128, 128), grid(ALPHA, (0.005, 0.01)), THIRTY, "1", halvings(("1", "5"), (5,), (10,), (5, 10))
    ),
    "digits-30": Grid(
        "digits",
        (128, 128),
        grid(WIDE, (0.0003, 0.001, 0.003, 0.005, 0.01, 0.03)),
        THIRTY,
        "1",
        halvings(("1", "5", "20"), (5,), (10,), (3, 6, 12)),
    ),
    "mnist-6": Grid(
        "mnist",
        (400, 400),
        grid(MILD, (0.002, 0.004)),
        Settings(epochs=5, batch_size=256),
        "0.5",
        halvings(("0.5", "5"), (1,), (2,), (1, 2, 3)),
        tasks=1,
        samples=10_000,
    ),
}


@dataclass
class Found:
    """What a search came to."""

    choice: Choice
    dropped: frozenset[int]
    networks: dict[int, Network]
    training: float
    scanning: float


def search(opened: Network, task: Task, asked: Grid, halving: Halving | None, seed: int) -> Found:
    """Train the grid as one stack, scan who was not dropped, and pick."""
    settings = replace(asked.settings, halving=halving)
    began = time.process_time()
    trained = train(opened, task.train, task.validation, asked.members, settings, seed=seed)
    middle = time.process_time()
    trials, networks = [], {}
    for index, member in enumerate(trained):
        if member.dropped is None and member.diverged is None:
            networks[index] = with_free(opened, member.free)
            found = staircase(networks[index], mean_activity(networks[index], task.train.x), task.validation)
            trials.append(Trial(index, found.unpruned, found.points))
    ended = time.process_time()
    majority = int(task.validation.y.bincount().max())
    choice = choose(trials, total=len(task.validation), majority=majority, margin=Fraction(asked.margin))
    dropped = frozenset(index for index, member in enumerate(trained) if member.dropped)
    return Found(choice, dropped, networks, middle - began, ended - middle)


def searches(tasks: Tasks, asked: Grid, seed: int) -> Iterator[list[Found]]:
    """Of every task the search without halving, then one with each."""
    network = Network(mlp(tasks.shape, asked.hidden, tasks.classes))
    for index in range(asked.tasks):
        task, opened = tasks.task(index), open_task(network, seed=seed)
        found = [search(opened, task, asked, halving, seed) for halving in (None, *asked.halvings)]
        yield found
        winner = found[0].choice.winner
        network = found[0].networks[winner.index]
        commit(network, claims_at(network, mean_activity(network, task.train.x), winner.point.theta))


def row(name: str, halving: Halving, epochs: int, pairs: Sequence[tuple[Found, Found]]) -> list[str]:
    """A line of the table: searches without halving, and the same with it."""

    def units(found: Found) -> int:
        return sum(found.choice.winner.point.claimed)

    plain, halved = ([pair[place] for pair in pairs] for place in (0, 1))
    count, cells = len(pairs), len(pairs[0][0].networks) + len(pairs[0][0].dropped)
    gone = sum(before.choice.winner.index in after.dropped for before, after in pairs)
    other = sum(before.choice.winner.index != after.choice.winner.index for before, after in pairs)
    lost = sum(bool(set(before.choice.candidates) & after.dropped) for before, after in pairs)
    train_time, all_time = (
        sum(each.training + part * each.scanning for each in plain)
        / sum(each.training + part * each.scanning for each in halved)
        for part in (0, 1)
    )
    mean = [sum(map(units, found)) / count for found in (plain, halved)]
    return [
        name,
        f"{' and '.join(map(str, halving.epochs))} of {epochs}",
        f"{float(halving.margin):g}",
        f"{sum(len(found.dropped) for found in halved) / count:.1f} of {cells}",
        f"{lost} of {count}",
        f"{gone} of {count}",
        f"{other} of {count}",
        f"{mean[0]:.1f}",
        f"{mean[1]:.1f}",
        f"{train_time:.2f}",
        f"{all_time:.2f}",
    ]


HEAD = (
    "grid",
    "dropped after epochs",
    "more than so many points behind",
    "cells dropped",
    "a candidate among them",
    "the winner among them",
    "another winner",
    "its units without halving",
    "with it",
    "training, times shorter",
    "training and scan, times shorter",
)


def rows(name: str, asked: Grid, seeds: int, data_dir: str | None = None) -> Iterator[list[str]]:
    """The lines of a grid."""
    found = []
    for seed in range(seeds):
        tasks = permuted(
            asked.dataset, count=asked.tasks, seed=seed, validation=0.1, data_dir=data_dir, samples=asked.samples
        )
        found += list(searches(tasks, asked, seed))
    for place, halving in enumerate(asked.halvings, start=1):
        yield row(name, halving, asked.settings.epochs, [(each[0], each[place]) for each in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(GRIDS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU, 1 thread")
    print(f"| {' | '.join(HEAD)} |")
    print(f"|{' --- |' * len(HEAD)}")
    for name in given.names:
        for cells in rows(name, GRIDS[name], given.seeds, given.data_dir):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
