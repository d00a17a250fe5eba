"""Whether torch's compiler pays: the step of a stack as it is, and with its forward and backward pass compiled.

    python tests/benchmarks/compiled.py [--device cuda] [--networks 784-400-400-10 …] [--turns 15]

Needs ``clnp`` alone, and a compiler of C++ on a CPU. The two steps take turns on the same batch; the table gives the
least of all turns. On a GPU ``reduce-overhead`` is compiled too, which replays CUDA graphs.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clnp.models import mlp, split_cifar_narrow
from clnp.network import Network
from clnp.optimizers import Adam
from clnp.stack import Stack
from clnp.training import open_task

ALPHA, RATE = 1e-4, 0.001


def table_2() -> nn.Module:
    """At 3/8 of the width, without its Dropouts: the compiler does not take the generator of their masks."""
    kept = split_cifar_narrow(width=0.375).named_children()
    return nn.Sequential(*(module for _, module in kept if not isinstance(module, nn.Dropout)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, tuple[int, ...]]] = {
    "64-128-128-10": (lambda: mlp(64, (128, 128), 10), (64,), 32, (6, 24)),
    "784-100-100-10": (lambda: mlp(784, (100, 100), 10), (784,), 256, (6,)),
    "784-400-400-10": (lambda: mlp(784, (400, 400), 10), (784,), 256, (1, 6)),
    "784-2000-2000-10": (lambda: mlp(784, (2000, 2000), 10), (784,), 256, (1, 15)),
    "Table 2 at width 3/8": (table_2, (3, 32, 32), 32, (2,)),
}
"""By name: the module, the shape of a sample, the batch, and how many members there are."""


class Step:
    """A training step of a fresh stack on one batch, compiled or not."""

    def __init__(self, network: Network, members: int, batch: int, shape: tuple[int, ...], mode: str | None) -> None:
        source = torch.Generator().manual_seed(0)
        device = network.device
        self._stack = Stack(network, members)
        alpha = {f"{layer.name}.weight": [ALPHA] * members for layer in network.layers}
        self._optimizer = Adam(self._stack, alpha, [RATE] * members)
        self._x = torch.rand(batch, *shape, generator=source).to(device)
        self._y = torch.randint(10, (batch,), generator=source).to(device)
        self._noise = torch.Generator(device)
        self._ones = torch.ones(members, device=device)
        self._loss: Callable[[tuple[Tensor, ...]], Tensor] = self._losses
        if mode is not None:
            self._loss = torch.compile(self._losses, mode=mode, dynamic=False)
            for parameter in self._stack.parameters.values():  # else a graph's replay begins with copies of them
                torch._dynamo.mark_static_address(parameter)

    def __call__(self) -> Tensor:
        names, parameters = list(self._stack.parameters), list(self._stack.parameters.values())
        loss = self._loss(self._stack.prefix(self._x))
        gradients = torch.autograd.grad(loss, parameters, self._ones, materialize_grads=True)
        self._optimizer.step(dict(zip(names, gradients, strict=True)))
        return loss.detach()

    def _losses(self, prefix: tuple[Tensor, ...]) -> Tensor:
        logits = self._stack.rest(prefix, self._noise).transpose(1, 2)
        return functional.cross_entropy(logits, self._y.expand(len(logits), -1), reduction="none").mean(1)


def seconds(step: Step, device: torch.device, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def rows(names: Sequence[str], device: str, turns: int) -> Iterator[str]:
    """The table's lines."""
    modes = ["default", "reduce-overhead"] if device == "cuda" else ["default"]
    yield "network | members | compiled as | step, ms | compiled, ms | times faster | the first step, s"
    yield " | ".join(["---"] * 7)
    for name in names:
        make, shape, batch, counts = NETWORKS[name]
        network = open_task(Network(make()), seed=0).to(device)
        for members in counts:
            for mode in modes:
                torch.compiler.reset()
                plain, compiled = (Step(network, members, batch, shape, how) for how in (None, mode))
                first = seconds(compiled, network.device, 1)
                steps = max(1, min(20, int(0.05 / seconds(plain, network.device, 2))))
                times = [[seconds(step, network.device, steps) for step in (plain, compiled)] for _ in range(turns)]
                before, after = (1e3 * min(found) for found in zip(*times, strict=True))
                yield f"{name} | {members} | {mode} | {before:.2f} | {after:.2f} | {before / after:.2f} | {first:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {platform.machine()}"
    print(f"{device}, torch {torch.__version__}, {given.threads} thread(s)\n")
    for line in rows(given.networks, given.device, given.turns):
        print(f"| {line} |", flush=True)


if __name__ == "__main__":
    main()
