"""What the units that a first task claims depend on: epochs, and one θ for all layers or one a layer.

    python tests/benchmarks/sparsity.py --data-dir DIR [--epochs 1 2 5 10 20] [--hidden 400 400]

Each row trains 784-…-10 on MNIST anew, Adam in batches of 256; pruned at each margin below its own unpruned accuracy.
An entry is the units of all hidden layers, and of each.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from clnp.activity import by_layer, mean_activity
from clnp.evaluation import count_correct
from clnp.forgetting import Point, needed
from clnp.models import mlp
from clnp.network import Network
from clnp.ownership import with_free
from clnp.subnetwork import cut
from clnp.tasks import Sequence as Tasks
from clnp.tasks import permuted
from clnp.tasks.task import Task
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train


def pruned(network: Network, order: Mapping[str, Tensor], task: Task, margin: str) -> Point:
    """The point of the largest θ within a margin of the network's own unpruned accuracy."""
    found = staircase(network, order, task.validation)
    line = needed(found.unpruned, len(task.validation), Fraction(margin))
    return max((point for point in found.points if point.correct >= line), key=lambda point: point.theta or 0.0)


def rows(
    tasks: Tasks,
    hidden: Sequence[int],
    alphas: Sequence[tuple[float, ...]],
    epochs: Sequence[int],
    margins: Sequence[str],
) -> Iterator[str]:
    """The table's lines, of the first task."""
    head = ["α", "epochs", "θ", *(f"units at margin {margin}" for margin in margins), f"test at margin {margins[0]}"]
    yield " | ".join(head)
    yield " | ".join(["---"] * len(head))
    task = tasks.task(0)
    opened = open_task(Network(mlp(tasks.shape, hidden, tasks.classes)), seed=0)
    test = task.open_test()
    for alpha in alphas:
        for count in epochs:
            settings = Settings(epochs=count, batch_size=256)
            (member,) = train(opened, task.train, task.validation, [Member(alpha, 0.002)], settings, seed=0)
            network = with_free(opened, member.free)
            activity = mean_activity(network, task.train.x)
            for name, order in (("shared", activity), ("layers", by_layer(network, activity))):
                points = [pruned(network, order, task, margin) for margin in margins]
                units = [f"{sum(point.claimed)} ({' + '.join(map(str, point.claimed))})" for point in points]
                narrow = cut(network, 0, claims_at(network, order, points[0].theta))
                accuracy = count_correct(narrow, test) / len(test)
                what = "/".join(f"{value:g}" for value in alpha)
                yield " | ".join([what, str(count), name, *units, f"{accuracy:.2%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    parser.add_argument("--alpha", nargs="+", default=["1e-5/1e-4/1e-5", "1e-5/1e-3/1e-4"])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--margins", nargs="+", default=["0.05", "0.5", "1"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tasks = permuted("mnist", count=1, seed=0, validation=0.1, data_dir=arguments.data_dir)
    alphas = [tuple(map(float, alpha.split("/"))) for alpha in arguments.alpha]
    for row in rows(tasks, arguments.hidden, alphas, arguments.epochs, arguments.margins):
        print(f"| {row} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
