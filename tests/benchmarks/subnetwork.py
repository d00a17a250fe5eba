"""How much faster a task's sub-network answers than the full network, and how many bytes of a trial are kept.

    python tests/benchmarks/subnetwork.py

One run, one process: full and narrow take turns, and the table gives the ratio of their median times. Units are claimed
at random; how many samples are answered a second depends on how many there are alone.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clnp.commit import added, commit
from clnp.evaluation import logits
from clnp.models import mlp, split_cifar_narrow, split_cifar_wide
from clnp.network import Network
from clnp.ownership import entries, take_free
from clnp.subnetwork import cut, subnetwork
from clnp.tensors import encode
from clnp.training import open_task

SHARES = (0.05, 0.10, 0.25, 0.50)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-2000-2000-10": (lambda: mlp(784, (2000, 2000), 10), (784,), 2000),
    "Table 2 (narrow)": (lambda: split_cifar_narrow(), (3, 32, 32), 100),
    "Table 3 (wide) at width 1/4": (lambda: split_cifar_wide(width=0.25), (3, 32, 32), 20),
}
"""By name: the module, the shape of a sample, and how many samples are answered at once."""


def committed(module: nn.Module, share: float) -> Network:
    """The network with a share of every group's units claimed by its first task."""
    network = open_task(Network(module), seed=0)
    source = torch.Generator().manual_seed(0)
    claims = {}
    for group in network.groups:
        picked = torch.randperm(group.units, generator=source)[: max(1, round(share * group.units))]
        claims[group.name] = torch.zeros(group.units, dtype=torch.bool).index_fill_(0, picked, True)
    commit(network, claims)
    return network


def ratio(slow: Callable[[], object], fast: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median seconds of both, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * rounds + 2):
        call = (slow, fast)[turn % 2]
        start = time.perf_counter()
        call()
        if turn >= 2:  # the first calls warm up
            times[turn % 2].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def size(tensors: dict[str, Tensor]) -> int:
    return len(encode(tensors))


def rows(names: Sequence[str], shares: Sequence[float], threads: Sequence[int], rounds: int) -> list[str]:
    """The table's lines."""
    head = ["network", "units", *(f"times faster, {count} thread{'s' * (count > 1)}" for count in threads)]
    head += ["bytes of the full network's: its commit", "its sub-network", "the next trial"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name in names:
        make, shape, batch = NETWORKS[name]
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1))
        for share in shares:
            network = committed(make(), share)
            narrow, full = subnetwork(network, 0), cut(open_task(Network(make()), seed=0), 0)
            cells = [name, f"{share:.0%}"]
            for count in threads:
                torch.set_num_threads(count)
                slow, fast = ratio(lambda: logits(full, x), lambda: logits(narrow, x), rounds)  # noqa: B023
                cells.append(f"{slow / fast:.1f} ({1000 * slow:.1f} → {1000 * fast:.1f} ms)")
            whole = size(entries(network))
            opened = open_task(network, seed=0)
            cells.append(f"{size(added(network, 0)) / whole:.1%}")
            cells.append(f"{size(narrow.state_dict()) / whole:.1%}")
            cells.append(f"{size(take_free(opened, entries(opened))) / whole:.1%}")
            lines.append(" | ".join(cells))
    return [f"| {line} |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, CPU")
    print("\n".join(rows(arguments.networks, SHARES, arguments.threads, arguments.rounds)))


if __name__ == "__main__":
    main()
