"""What an exact scan over all thresholds costs, against scoring each threshold on the narrowed network.

    python tests/benchmarks/scan.py [--data-dir DIR] [--hidden N …] [--samples N]

One process, one thread, its CPU time. A pass is one canonical scoring of the full network on the validation split. The
bound of a network of dense layers is what a forward pass at the width of θ = 0 and, from there, a rank-one update of
every sample for every unit that goes multiply and add, in passes. The floor is the canonical scoring of the recorded
points and of the full network, which no scan can do without.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clnp.activity import mean_activity
from clnp.evaluation import Scorer, count_correct
from clnp.models import mlp, split_cifar_narrow
from clnp.network import Network
from clnp.ownership import with_free
from clnp.scan import scan
from clnp.subnetwork import cut
from clnp.tasks import permuted, views
from clnp.tasks.task import Task
from clnp.thresholds import claims_at, curve, staircase, thresholds
from clnp.training import Member, Settings, open_task, train

DENSE = (
    ((1e-5, 1e-4, 1e-5), 0.002, 5),
    ((1e-5, 5e-4, 1e-4), 0.002, 5),
    ((1e-4, 1e-3, 1e-4), 0.002, 5),
    ((1e-5, 1e-3, 1e-4), 0.002, 10),
    ((1e-4, 1e-3, 1e-4), 0.002, 20),
    ((1e-4, 1e-3, 1e-4), 0.006, 10),
    ((1e-4, 1e-3, 1e-4), 0.01, 10),
)
"""α of the three layers, learning rate and epochs; each leaves fewer units alive."""

CONVOLUTIONAL = ((1e-4, 1e-4, 2e-4, 2e-4, 2e-4, 2e-4), 6)
"""α and epochs of Table 2 at 3/8 of the width, as ``split-cifar-narrow-small`` has them."""


def trained(module: nn.Module, task: Task, alpha: tuple[float, ...], rate: float, epochs: int, batch: int) -> Network:
    """The first task's network."""
    opened = open_task(Network(module), seed=0)
    settings = Settings(epochs=epochs, batch_size=batch)
    (member,) = train(opened, task.train, task.validation, [Member(alpha, rate)], settings, seed=0)
    return with_free(opened, member.free)


def bound(network: Network, activity: Mapping[str, Tensor]) -> float | None:
    """Multiply-adds of one forward pass at θ = 0 and of the updates from there on, in those of a forward pass of the
    full network; None where a layer is no dense one."""
    layers = network.layers
    if any(layer.kind != "dense" for layer in layers):
        return None
    whole, total = sum(layer.units * layer.fan_in for layer in layers), 0
    before: dict[str, int] = {}
    for theta in thresholds(network, activity)[1:]:
        left = {name: int(units.sum()) for name, units in claims_at(network, activity, theta).items()}
        for layer in layers:
            units = left.get(layer.group, layer.units)
            if not before:
                total += (layer.inputs if layer.source is None else left[layer.source]) * units
            elif layer.source is not None:
                total += (before[layer.source] - left[layer.source]) * units
        # Behind a layer that changed, what is deeper is computed again at the width that is left.
        if before and left[layers[0].group] != before[layers[0].group]:
            total += left[str(layers[-1].source)] * layers[-1].units
        before = left
    return total / whole


def median(call: Callable[[], object], turns: int) -> float:
    """CPU seconds of a call, warmed up by one before."""
    times = []
    for _ in range(turns + 1):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def row(name: str, network: Network, task: Task, turns: int) -> list[str]:
    """One network's cells."""
    activity, split = mean_activity(network, task.train.x), task.validation
    alive = sum(int((means > 0).sum()) for means in activity.values()) / sum(group.units for group in network.groups)
    thetas = thresholds(network, activity)
    found, every = staircase(network, activity, split), curve(network, activity, split)
    best: dict[int, float | None] = {point.correct: point.theta for point in every}  # the last, so the largest θ
    if any(best[point.correct] != point.theta for point in found.points):
        raise RuntimeError("the staircase is not the curve's")
    recorded = [point.theta for point in reversed(found.points)]
    narrow = [cut(network, 0, claims_at(network, activity, theta)) for theta in dict.fromkeys([*recorded, None])]
    one = median(lambda: count_correct(narrow[-1], split), 2 * turns)
    fast = median(lambda: scan(network, activity, thetas, split, tolerance=1e-5), turns)
    floor = median(lambda: list(map(Scorer(split).count_correct, narrow)), turns)
    exact = median(lambda: staircase(network, activity, split), turns)
    brute = median(lambda: curve(network, activity, split), 1)
    least = bound(network, activity)
    return [
        name,
        f"{alive:.0%}",
        f"{len(thetas)}",
        f"{len(found.points)}",
        f"{exact:.2f} s ({exact / one:.1f})",
        f"{fast / one:.1f}",
        "" if least is None else f"{least:.1f}",
        f"{floor / one:.1f}",
        f"{brute:.1f} s ({brute / one:.0f})",
        f"{brute / exact:.1f}",
        f"{brute / floor:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU, 1 thread")
    head = ["network", "units alive", "thresholds", "points", "exact scan (passes)", "of it proposing", "its bound"]
    head += ["scoring the points", "each threshold scored (passes)", "times faster", "at most, for the points alone"]
    print(f"| {' | '.join(head)} |")
    print(f"|{' --- |' * len(head)}")
    task = permuted("mnist", count=1, seed=0, validation=0.1, data_dir=given.data_dir, samples=given.samples).task(0)
    for alpha, rate, epochs in DENSE:
        network = trained(mlp(784, given.hidden, 10), task, alpha, rate, epochs, 256)
        name = f"784-{'-'.join(map(str, given.hidden))}-10"
        print(f"| {' | '.join(row(name, network, task, given.turns))} |", flush=True)
    task = views(count=1, seed=0, validation=0.3, data_dir=given.data_dir, samples=given.samples // 10).task(0)
    module = split_cifar_narrow(shape=task.train.x.shape[1:], width=0.375)
    network = trained(module, task, CONVOLUTIONAL[0], 0.001, CONVOLUTIONAL[1], 32)
    print(f"| {' | '.join(row('Table 2 at width 3/8', network, task, given.turns))} |")


if __name__ == "__main__":
    main()
