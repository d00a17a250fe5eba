"""No step of an epoch waits for the device: nothing that a GPU would have to finish its queue for is called."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clnp import training
from clnp.models import mlp
from clnp.network import Network
from clnp.tasks.task import Split
from clnp.tasks.transform import Transform
from clnp.training import Member, Settings, open_task, train

SETTINGS = {
    "adam": Settings(2, 16),
    "adamw": Settings(2, 16, optimizer="adamw", weight_decay=0.1),
    "sgd": Settings(2, 16, optimizer="sgd"),
    "momentum": Settings(2, 16, optimizer="sgd", momentum=0.9, norm_alpha=0.01),
    "bf16": Settings(2, 16, precision="bf16"),
}

WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "item",
    "lift_fresh",  # torch.tensor: a copy from the host
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique_consecutive",
    "unique_dim",
}
"""Operators with a result, or of a size, that the host must know; or that hand its numbers to the device."""

READING = {"__bool__", "__float__", "__index__", "__int__", "cpu", "cuda", "item", "numpy", "to_sparse", "tolist"}
"""Methods that the host reads a tensor with, or moves it; on a CPU not all of them call an operator, and none says that
it moves anything."""

CREATING = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}


class Operators(TorchDispatchMode):
    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, overload = func.overloadpacket.__name__, f"{func.overloadpacket.__name__}.{func._overloadname}"
        if packet in WAITING or overload in WAITING:
            self._found.add(packet)
        masks = packet in ("index", "index_put", "index_put_", "_index_put_impl_")
        if masks and any(at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1]):
            self._found.add(f"{packet} of a mask")
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), (*args[1:], *(kwargs or {}).values())
        moves = name == "to" and any(isinstance(each, (torch.device, str, int)) for each in given)
        if func in CREATING or name in READING or name == "new_tensor" or moves:
            self._found.add(name)
        return func(*args, **(kwargs or {}))


def watch(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the steps of an epoch call from now on that waits."""
    found: set[str] = set()
    whole = training._pass

    def watched(*given: Any) -> Any:
        with ExitStack() as within:
            within.enter_context(Methods(found))
            within.enter_context(Operators(found))
            return whole(*given)

    monkeypatch.setattr(training, "_pass", watched)
    return found


def data(shape: tuple[int, ...], count: int, kind: str) -> Split:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)
    split = Split(Transform(None, 255.0, shape, inverted=True).encode(raw), torch.randint(3, (count,), generator=draw))
    return split if kind == "bytes" else split.decoded()


def convolutions() -> tuple[nn.Module, tuple[int, ...]]:
    """With what a step may do otherwise for: masks of maps and of features, statistics, pools."""
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(3)]
    dense = [nn.Linear(45, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)]
    return nn.Sequential(*layers, nn.Flatten(), *dense), (2, 6, 6)


@pytest.mark.parametrize("samples", ["bytes", "floats"])
@pytest.mark.parametrize(("head", "committed"), [("multi", 0), ("multi", 2), ("single", 2)])
@pytest.mark.parametrize("kind", ["dense", "convolutions", "flattened", "averaged", "after", "before", "flat"])
@pytest.mark.parametrize("limit", [0, 2**29], ids=["prefix computed", "prefix kept"])
def test_no_network_waits_within_an_epoch(
    make_any: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    head: Any,
    committed: int,
    samples: str,
    limit: int,
) -> None:
    monkeypatch.setattr(training, "PREFIX_BYTES", limit)
    if kind == "convolutions":
        module, shape = convolutions()
        network = Network(module, head=head)
    else:
        network, shape = make_any(kind, 3, head=head, committed=committed)
    opened = open_task(network, seed=0)
    found = watch(monkeypatch)
    train(
        opened,
        data(shape, 40, samples),
        data(shape, 20, samples),
        [Member((0.01,) * len(opened.layers), rate) for rate in (0.01, 0.02)],
        SETTINGS["momentum"] if committed else SETTINGS["adam"],
        seed=0,
    )
    assert not found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("head", ["multi", "single"])
def test_no_optimizer_waits_within_an_epoch(monkeypatch: pytest.MonkeyPatch, head: Any, settings: Settings) -> None:
    opened = open_task(Network(mlp(6, [5, 4], 3), head=head), seed=0)
    found = watch(monkeypatch)
    members = [Member((0.01, 0.0, 0.02), 0.01), Member((0.0, 0.0, 0.0), 0.03)]
    train(opened, data((6,), 40, "bytes"), data((6,), 20, "bytes"), members, settings, seed=0)
    assert not found


@pytest.mark.parametrize(
    ("wait", "found"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool((x > 0).any()), "__bool__"),
        (lambda x: float(x[0, 0]), "__float__"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.to("cpu"), "to"),
        (lambda x: x.to(device=x.device), "to"),
        (lambda x: x[x > 0], "index of a mask"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x * torch.tensor(2.0), "tensor"),
        (lambda x: x * x.new_tensor(2.0), "new_tensor"),
        (lambda x: x.to(torch.float64), None),
        (lambda x: x[torch.zeros(2, dtype=torch.int64)], None),
        (lambda x: torch.where(x > 0, x, 0.0), None),
    ],
)
def test_what_waits_is_seen(wait: Callable[[torch.Tensor], Any], found: str | None) -> None:
    seen: set[str] = set()
    x = torch.randn(3, 2)
    with Methods(seen), Operators(seen):
        wait(x)
    assert found in seen if found else not seen
