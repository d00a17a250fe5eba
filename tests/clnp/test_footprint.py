"""What a stack takes, by a count of every tensor that lives: torch has no such count of a CPU's memory."""

import weakref
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clnp import footprint
from clnp.footprint import cuda_peak, measure
from clnp.halving import Halving
from clnp.models import mlp
from clnp.network import Network
from clnp.stack import Stack
from clnp.tasks.task import Split
from clnp.tasks.transform import Transform
from clnp.training import Member, Settings, open_task, train


class Living(TorchDispatchMode):
    """Bytes of the tensors that were made within it and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._note(each.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def cpu_peak(work: Callable[[], object], _: torch.device | None = None) -> int:
    with Living() as living:
        work()
    return living.most


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 5)
    )


CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = {
    "dense": (lambda: mlp(30, [200, 100], 5), (30,), 3),
    "bytes": (lambda: mlp(400, [50, 40], 5), (400,), 3),
    "convolution": (conv, (3, 8, 8), 2),
}


def case(name: str, samples: int = 300) -> tuple[Network, Split, Split, Member]:
    make, shape, layers = CASES[name]
    network = open_task(Network(make(), head="single"), seed=0)
    draw = torch.Generator().manual_seed(0)
    both = [
        Split(torch.rand(n, *shape, generator=draw), torch.randint(5, (n,), generator=draw)) for n in (samples, 100)
    ]
    if name == "bytes":  # Ten times as many: floats in their place would be most of what is foretold.
        encode = Transform(None, 255.0, shape).encode
        both = [Split(encode(split.x.repeat(10, 1).mul(255).to(torch.uint8)), split.y.repeat(10)) for split in both]
    return network, both[0], both[1], Member((1e-4,) * layers, 1e-3)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("settings", [Settings(1, 64), Settings(1, 64, optimizer="sgd")], ids=["adam", "sgd"])
def test_a_larger_stack_takes_what_was_foretold(name: str, settings: Settings) -> None:
    network, training, validation, member = case(name)
    found = measure(network, training, validation, member, settings, seed=0, peak=cpu_peak)
    assert found.member > 0
    for members in (4, 9):
        stack = [member] * members
        taken = cpu_peak(partial(train, network, training, validation, stack, settings, seed=0))
        # On a CPU the splits are not copied to the device: they are foretold, and not among what was made.
        data = sum(part.samples.nbytes + part.y.nbytes for part in (training, validation))
        foretold = found.fixed + members * found.member
        assert taken <= foretold
        assert foretold - data <= 1.1 * taken


def test_old_features_of_later_tasks_are_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    """All units old, as little of them is shared by members as there is: what is kept is within what was foretold."""
    network, training, validation, member = case("dense")
    found = measure(network, training, validation, member, Settings(1, 64), seed=0, peak=cpu_peak)
    assert found.kept == (300 + 100) * (200 + 100) * 4
    stack = Stack(full(network), 1)
    kept = [value for split in (training, validation) for value in stack.whole_prefix(split.x, 2**20) or ()]
    assert 0 < sum(value.nbytes for value in kept) <= found.kept
    monkeypatch.setattr(footprint, "PREFIX_BYTES", 1000)
    assert measure(network, training, validation, member, Settings(1, 64), seed=0, peak=cpu_peak).kept == 2000


def full(network: Network) -> Network:
    """The same with a head for its next task and every unit owned."""
    wide = Network(CASES["dense"][0](), head="multi")
    for group in wide.groups:
        wide.owner(group).fill_(0)
    wide.committed += 1
    wide.place_head(1)
    return wide


def test_what_is_measured_changes_nothing() -> None:
    network, training, validation, member = case("convolution")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settings = Settings(3, 64, halving=Halving((1, 2), Fraction(1)))
    measure(network, training, validation, member, settings, seed=0, peak=cpu_peak)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_larger_stack_takes_what_was_foretold_on_a_gpu(name: str) -> None:
    network, training, validation, member = case(name, 5000)
    network, settings = network.to("cuda"), Settings(2, 256)
    found = measure(network, training, validation, member, settings, seed=0)
    taken = cuda_peak(lambda: train(network, training, validation, [member] * 9, settings, seed=0), network.device)
    assert 0.8 * taken <= found.fixed + 9 * found.member <= 1.3 * taken


def test_flattened_samples_are_no_old_features() -> None:
    """A network that begins with a Flatten reads its samples where they lie."""

    def kept(shape: tuple[int, ...]) -> int:
        splits = [Split(torch.zeros(count, *shape), torch.zeros(count, dtype=torch.int64)) for count in (9, 4)]
        opened = open_task(Network(mlp(shape, [6, 5], 3)), seed=0)
        return measure(opened, *splits, Member((0.0,) * 3, 0.01), Settings(1, 4), seed=0, peak=lambda *_: 0).kept

    assert kept((1, 5, 8)) == kept((40,)) == (9 + 4) * (6 + 5) * 4
