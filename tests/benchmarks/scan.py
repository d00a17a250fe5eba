"""What an exact scan over all thresholds costs, against scoring each threshold on the narrowed network.

    python tests/benchmarks/scan.py [--data-dir DIR] [--hidden N …] [--samples N]

One process, one thread. A pass is one canonical scoring of the full network on the validation split. The bound is what
the rank-one updates multiply and add, in passes: for every unit that goes, the units that are left behind it.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clnp.activity import mean_activity
from clnp.evaluation import count_correct
from clnp.models import mlp
from clnp.network import Network
from clnp.ownership import with_free
from clnp.scan import scan
from clnp.subnetwork import cut
from clnp.tasks import permuted
from clnp.tasks.task import Task
from clnp.thresholds import claims_at, curve, staircase, thresholds
from clnp.training import Member, Settings, open_task, train

ALPHAS = ((1e-5, 1e-4, 1e-5), (1e-5, 5e-4, 1e-4), (1e-4, 1e-3, 1e-4))
"""Of the three layers; each leaves fewer units alive."""


def trained(task: Task, hidden: tuple[int, ...], alpha: tuple[float, ...], epochs: int) -> Network:
    """The first task's network."""
    opened = open_task(Network(mlp(task.train.x.shape[1], hidden, 10)), seed=0)
    settings = Settings(epochs=epochs, batch_size=256)
    (member,) = train(opened, task.train, task.validation, [Member(alpha, 0.002)], settings, seed=0)
    return with_free(opened, member.free)


def bound(network: Network, activity: Mapping[str, Tensor], samples: int) -> float:
    """Multiply-adds of the updates, in those of a forward pass of the full network: the units go one by one."""
    layers = network.layers
    whole = sum(layer.units * layer.fan_in for layer in layers) * samples
    total, before = 0, {group.name: group.units for group in network.groups}
    for theta in thresholds(network, activity):
        left = {name: int(units.sum()) for name, units in claims_at(network, activity, theta).items()}
        for layer in layers[1:]:
            reads = str(layer.source)
            total += samples * (before[reads] - left[reads]) * left.get(str(layer.group), layer.units)
        # Behind a layer that changed, what is deeper is computed again at the width that is left.
        if left[str(layers[-1].source)] and left[str(layers[0].group)] != before[str(layers[0].group)]:
            total += samples * left[str(layers[-1].source)] * layers[-1].units
        before = left
    return total / whole


def median(call: Callable[[], object], turns: int) -> float:
    """Seconds of a call, warmed up by one before."""
    times = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def row(task: Task, hidden: tuple[int, ...], alpha: tuple[float, ...], epochs: int, turns: int) -> list[str]:
    """One network's cells."""
    network = trained(task, hidden, alpha, epochs)
    activity, split = mean_activity(network, task.train.x), task.validation
    alive = sum(int((means > 0).sum()) for means in activity.values()) / sum(hidden)
    thetas = thresholds(network, activity)
    found, every = staircase(network, activity, split), curve(network, activity, split)
    best: dict[int, float | None] = {point.correct: point.theta for point in every}  # the last, so the largest θ
    if any(best[point.correct] != point.theta for point in found.points):
        raise RuntimeError("the staircase is not the curve's")
    claims = claims_at(network, activity, None)
    one = median(lambda: count_correct(cut(network, 0, claims), split), 2 * turns)
    fast = median(lambda: scan(network, activity, thetas, split, tolerance=1e-4), turns)
    exact = median(lambda: staircase(network, activity, split), turns)
    brute = median(lambda: curve(network, activity, split), 1)
    return [
        f"784-{'-'.join(map(str, hidden))}-10",
        f"{alive:.0%}",
        f"{len(thetas)}",
        f"{len(found.points)}",
        f"{exact:.2f} s ({exact / one:.0f})",
        f"{fast:.2f} s ({fast / one:.1f})",
        f"{bound(network, activity, len(split)):.1f}",
        f"{brute:.1f} s ({brute / one:.0f})",
        f"{brute / exact:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = permuted("mnist", count=1, seed=0, validation=0.1, data_dir=given.data_dir, samples=given.samples).task(0)
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU, 1 thread")
    head = ["network", "units alive", "thresholds", "points", "exact scan (passes)", "of it proposing (passes)"]
    head += ["its bound, passes", "each threshold scored (passes)", "times faster"]
    print(f"| {' | '.join(head)} |")
    print(f"|{' --- |' * len(head)}")
    for alpha in ALPHAS:
        print(f"| {' | '.join(row(task, tuple(given.hidden), alpha, given.epochs, given.turns))} |", flush=True)


if __name__ == "__main__":
    main()
