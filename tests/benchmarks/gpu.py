"""How fast a stack trains: against its members one after another, and against what the device can do.

    python tests/benchmarks/gpu.py [--device cuda] [--networks mlp narrow wide] [--members 1 2 4 8 15 32]
                                   [--precisions float32 tf32] [--steps 60]
    python tests/benchmarks/gpu.py --paper --data-dir DIR

Needs ``clnp`` alone. The first prints samples a second, each counted once for every member that learns from it; the
eager network is a plain ``torch.nn.Module`` with ``torch.optim.Adam`` and L1 added to its gradients. The roofline is
the larger of the time for the arithmetic, at the rate of a large product measured here, and of the time for the least
memory traffic, at the rate of a copy measured here. The second trains the paper's permuted MNIST, whole.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from clnp.activity import mean_activity
from clnp.commit import commit
from clnp.evaluation import count_correct
from clnp.forgetting import Trial, choose
from clnp.models import mlp, split_cifar_narrow, split_cifar_wide
from clnp.network import Network
from clnp.ownership import with_free
from clnp.subnetwork import subnetwork
from clnp.tasks import permuted
from clnp.tasks.task import Split
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(784, (2000, 2000), 10), (784,)),
    "narrow": (lambda: split_cifar_narrow(), (3, 32, 32)),
    "wide": (lambda: split_cifar_wide(), (3, 32, 32)),
    "small": (lambda: mlp(20, (16, 16), 10), (20,)),
}
"""2 × 2000, Table 2, Table 3; and one for the test of this file."""

BATCH = 256
ALPHA, RATE = 1e-6, 0.001

PASSES = 10
"""Of the parameters through memory in a step: read forward and backward, the gradient written and read, and Adam's
reading of parameters and two moments and writing of all three."""


@dataclass(frozen=True)
class Device:
    """What it can do: floating-point operations and bytes a second."""

    name: str
    flops: float
    bytes: float


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, turns: int = 5) -> float:
    """The least of several turns, after one that is not timed."""
    work()
    found = []
    for _ in range(turns):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found)


def capability(device: str) -> Device:
    side, copied = (8192, 2**30) if device == "cuda" else (1024, 2**26)
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    flops = 2 * side**3 / seconds(lambda: a @ b, device)
    source = torch.zeros(copied // 4, device=device)
    target = torch.empty_like(source)
    rate = 2 * copied / seconds(lambda: target.copy_(source), device)
    return Device(torch.cuda.get_device_name() if device == "cuda" else "CPU", flops, rate)


def samples(shape: tuple[int, ...], count: int, device: str) -> Split:
    draw = torch.Generator().manual_seed(0)
    split = Split(torch.rand(count, *shape, generator=draw), torch.randint(10, (count,), generator=draw))
    return split.to(device)


def stack_rate(name: str, members: int, steps: int, device: str) -> float:
    """Samples a second of a stack, in every epoch but the first."""
    make, shape = NETWORKS[name]
    network = open_task(Network(make()), seed=0).to(device)
    times: list[float] = []
    train(
        network,
        samples(shape, BATCH * steps, device),
        samples(shape, BATCH, device),
        [Member((ALPHA,) * len(network.layers), RATE)] * members,
        Settings(epochs=3, batch_size=BATCH),
        seed=0,
        on_epoch=lambda *_: times.append(time.perf_counter()),
    )
    return 2 * BATCH * steps * members / (times[-1] - times[0])


def eager_rate(name: str, steps: int, device: str) -> float:
    """Samples a second of one plain network, which is that of several one after another."""
    make, shape = NETWORKS[name]
    module = make().to(device)
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    data = samples(shape, BATCH * steps, device)

    def epoch() -> None:
        for batch in torch.randperm(len(data), device=device).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(module(data.x[batch]), data.y[batch]).backward()
            with torch.no_grad():
                for weight in weights:
                    weight.grad.add_(weight.sign(), alpha=ALPHA)
            optimizer.step()

    return BATCH * steps / seconds(epoch, device, turns=2)


def bound_rate(name: str, device: Device) -> float:
    """Samples a second that the arithmetic and the memory of the device allow."""
    make, shape = NETWORKS[name]
    module = make()
    x = torch.rand(2, *shape)
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(module(x), torch.zeros(2, dtype=torch.long)).backward()
    arithmetic = counter.get_total_flops() / 2 * BATCH / device.flops
    memory = 4 * PASSES * sum(value.numel() for value in module.parameters()) / device.bytes
    return BATCH / max(arithmetic, memory)


def rows(names: Sequence[str], members: Sequence[int], steps: int, device: str, precision: str) -> Iterator[str]:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    able = capability(device)
    yield f"{able.name}, {precision}: {able.flops / 1e12:.1f} TFLOP/s, {able.bytes / 1e12:.2f} TB/s"
    yield "network | members | samples/s | one after another, eager | times faster | of the roofline"
    for name in names:
        eager, bound = eager_rate(name, steps, device), bound_rate(name, able)
        for count in members:
            try:
                rate = stack_rate(name, count, steps, device)
            except torch.OutOfMemoryError:
                yield f"{name} | {count} | out of memory"
                continue
            yield f"{name} | {count} | {rate:,.0f} | {eager:,.0f} | {rate / eager:.1f} | {rate / bound:.0%}"


def paper(
    device: str,
    data_dir: str | None,
    *,
    dataset: str = "mnist",
    width: int = 2000,
    replicas: int = 5,
    tasks: int = 10,
    epochs: int = 40,
) -> Iterator[str]:
    """The experiment ``permuted-mnist``, with a grid of 6 in every task: seconds, and mean test accuracy so far."""
    grid = [
        Member(alpha, rate)
        for alpha in ((1e-7, 1e-5, 1e-6), (1e-6, 1e-5, 1e-6), (1e-7, 1e-6, 1e-7))
        for rate in (0.001, 0.002)
    ]
    began, scores = time.perf_counter(), []
    for seed in range(replicas):
        sequence = permuted(dataset, count=tasks, seed=seed, validation=0.1, data_dir=data_dir)
        network = Network(mlp(sequence.shape, (width, width), 10)).to(device)
        for number in range(tasks):
            task = sequence.task(number)
            training, validation = task.train.to(device), task.validation.to(device)
            opened = open_task(network, seed=seed)
            trials, states = [], {}
            trained = train(opened, training, validation, grid, Settings(epochs, BATCH), seed=seed)
            for index, found in enumerate(trained):
                if found.diverged is None:
                    candidate = with_free(opened, found.free)
                    activity = mean_activity(candidate, training.x)
                    stairs = staircase(candidate, activity, validation)
                    trials.append(Trial(index, stairs.unpruned, stairs.points))
                    states[index] = candidate, activity
            majority = int(validation.y.bincount().max())
            chosen = choose(trials, total=len(validation), majority=majority, margin=Fraction("0.05")).winner
            network, activity = states[chosen.index]
            commit(network, claims_at(network, activity, chosen.point.theta))
        for number in range(tasks):
            test = sequence.task(number).open_test().to(device)
            scores.append(count_correct(subnetwork(network, number), test) / len(test))
        mean = sum(scores) / len(scores)
        yield f"{seed + 1} of {replicas} replicas: {time.perf_counter() - began:.0f} s, mean test accuracy {mean:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=["mlp", "narrow", "wide"])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 2, 4, 8, 15, 32])
    parser.add_argument("--precisions", nargs="+", default=["float32", "tf32"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    print(f"torch {torch.__version__}")
    if given.paper:
        for line in paper(given.device, given.data_dir):
            print(line, flush=True)
        return
    for precision in given.precisions:
        for line in rows(given.networks, given.members, given.steps, given.device, precision):
            print(f"| {line} |", flush=True)


if __name__ == "__main__":
    main()
