"""Networks in every state of a sequence, made in no time: random weights and claims instead of training."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from clnp.commit import commit
from clnp.graph import Layer, Norm
from clnp.network import FREE, Head, Network
from clnp.ownership import active, entries, masked, trainable
from clnp.tasks.vision import load_torchvision

# The first call into torch takes a second: a deadline a test case would say nothing about the code.
settings.register_profile("clnp", deadline=None)
settings.load_profile("clnp")

CHAINS = ("dense", "flattened", "averaged")
RESIDUALS = ("after", "before", "flat", "torchvision")
KINDS = CHAINS + RESIDUALS


def fill_free(network: Network, source: torch.Generator, *, whole_numbers: bool = False, silent: float = 0.0) -> None:
    """Draw what the open task may change. Whole numbers make every sum exact and ties common; ``silent`` is the share
    of free units that no sample of moderate size can wake."""
    masks, found = trainable(network), entries(network)
    fan_in = {f"{layer.name}.weight": layer.fan_in for layer in network.layers}
    plain = not network.norms and all(layer.kind == "dense" for layer in network.layers)
    for name, value in found.items():
        if name.endswith("running_var") or (name.endswith("weight") and name not in fan_in):
            drawn = 0.5 + torch.rand(value.shape, generator=source)
            drawn = drawn.ceil() if whole_numbers else drawn
        elif whole_numbers:
            drawn = torch.randint(-2, 3, value.shape, generator=source)
        else:
            drawn = torch.randn(value.shape, generator=source)
            if not plain:  # Sums over a kernel and a depth that grow would bury what is small.
                drawn *= (2 / fan_in[name]) ** 0.5 if name in fan_in else 0.3
        value.copy_(torch.where(masks[name], drawn.to(value), value))
    normed = {network.graph.nodes[node.inputs[0]].op for node in network.graph.nodes if isinstance(node.op, Norm)}
    lasts: list[Layer | Norm] = [layer for layer in network.layers[:-1] if layer not in normed]
    for last in [*lasts, *network.norms]:
        if (name := f"{last.name}.bias") in found:
            still = (torch.rand(last.units, generator=source) < silent).to(network.device)
            found[name].masked_fill_(still & masks[name], -1e4)


def random_claims(
    network: Network, source: torch.Generator, share: float = 0.5, *, nothing: float = 0.0, room: bool = False
) -> dict[str, Tensor]:
    """A share of each group's units, out of the free ones as far as there are: at least one where there is one. With
    the chance ``nothing`` no unit of a group that the task can do without; with ``room``, a unit stays free where the
    next task needs one."""
    claims = {}
    for group in network.groups:
        free = (network.owner(group) == FREE).nonzero().squeeze(1)
        count = min(len(free), max(1, round(share * group.units)))
        spare = bool(active(network, group).any()) and not masked(network, group)
        if room and masked(network, group):
            count = max(1, min(count, len(free) - 1))
        if spare and float(torch.rand((), generator=source)) < nothing:
            count = 0
        picked = free[torch.randperm(len(free), generator=source)[:count].to(free.device)]
        claims[group.name] = torch.zeros(group.units, dtype=torch.bool, device=network.device)
        claims[group.name][picked] = True
    return claims


def commit_randomly(
    network: Network,
    committed: int,
    *,
    seed: int = 0,
    share: float = 0.25,
    nothing: float = 0.0,
    room: bool = False,
    whole_numbers: bool = False,
    silent: float = 0.0,
) -> Network:
    """The network with so many tasks committed and one open, drawn as if it had been trained."""
    source = torch.Generator().manual_seed(seed)
    for task in range(committed + 1):
        network.place_head(task)
        fill_free(network, source, whole_numbers=whole_numbers, silent=silent)
        if task < committed:
            commit(network, random_claims(network, source, share, nothing=nothing, room=room))
    return network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Network]:
    """A factory of multi-layer perceptrons in the middle of a sequence, see :func:`commit_randomly`."""

    def make(
        hidden: Sequence[int] = (7, 6),
        *,
        head: Head = "single",
        committed: int = 0,
        inputs: int = 5,
        classes: int = 3,
        bias: bool = True,
        **state: Any,
    ) -> Network:
        modules: list[nn.Module] = []
        for before, width in zip((inputs, *hidden), hidden, strict=False):
            modules += [nn.Linear(before, width, bias=bias), nn.ReLU()]
        network = Network(nn.Sequential(*modules, nn.Linear(hidden[-1], classes, bias=bias)), head=head)
        return commit_randomly(network, committed, **state)

    return make


class _Chain:
    """A Sequential that grows by what fits the maps that it has so far."""

    def __init__(self, shape: tuple[int, ...], choose: Random) -> None:
        self.x = torch.zeros(2, *shape)
        self.choose = choose
        self.modules: list[nn.Module] = []

    def add(self, module: nn.Module) -> bool:
        try:
            self.x = module.eval()(self.x)
        except RuntimeError:  # A map that is too small for the kernel.
            return False
        self.modules.append(module)
        return True

    def activation(self) -> None:
        makers = (nn.ReLU, nn.ReLU, partial(nn.ReLU, inplace=True), nn.SiLU, nn.GELU)
        makers += (partial(nn.GELU, approximate="tanh"), partial(nn.LeakyReLU, 0.2))
        self.add(self.choose.choice(makers)())

    def norm(self) -> None:
        kind = nn.BatchNorm1d if self.x.dim() == 2 else nn.BatchNorm2d
        given = {"affine": self.choose.random() < 0.7, "momentum": self.choose.choice([0.1, 0.3]), "eps": 1e-3}
        if self.choose.random() < 0.6:
            self.add(kind(self.x.shape[1], **given))

    def convolution(self, units: int) -> None:
        choose, channels = self.choose, self.x.shape[1]
        kernel = (choose.randint(1, 3), choose.randint(1, 3))
        bias = choose.random() < 0.7
        stride, dilation = ((choose.randint(1, 2), choose.randint(1, 2)) for _ in range(2))
        padding = choose.choice([0, 1, (0, 1), "same"])
        given = {"padding": padding, "dilation": dilation, "stride": 1 if padding == "same" else stride}
        if not self.add(nn.Conv2d(channels, units, kernel, bias=bias, **given)):
            self.add(nn.Conv2d(channels, units, 1, bias=bias))

    def pool(self) -> None:
        makers = (partial(nn.MaxPool2d, 2), partial(nn.MaxPool2d, 3, 2, 1), partial(nn.AvgPool2d, (2, 1)))
        makers += (partial(nn.AdaptiveAvgPool2d, (2, 3)), partial(nn.MaxPool2d, (1, 2), ceil_mode=True))
        self.add(self.choose.choice(makers)())

    def extras(self) -> None:
        self.norm()
        self.activation()
        if self.x.dim() == 4 and self.choose.random() < 0.5:
            self.pool()
        if self.choose.random() < 0.3:
            self.add(nn.Dropout(0.3))

    def dense(self, units: int) -> None:
        self.add(nn.Linear(self.x.shape[1], units, bias=self.choose.random() < 0.7))


def _chain(kind: str, choose: Random, classes: int, last: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Dense layers; convolutions, then dense layers; convolutions to the end."""
    if kind == "dense":
        shape: tuple[int, ...] = (choose.randint(1, 6),)
    else:
        shape = (choose.randint(1, 3), choose.randint(5, 9), choose.randint(4, 7))
    chain = _Chain(shape, choose)
    if kind == "dense":
        for _ in range(choose.randint(0, 2)):
            chain.dense(choose.randint(1, 7))
            chain.extras()
    else:
        for _ in range(choose.randint(1, 2) if kind == "flattened" else choose.randint(0, 2)):
            chain.convolution(choose.randint(1, 6))
            chain.extras()
    if kind == "flattened":
        through = choose.random() < 0.6
        if not through:  # The output layer itself reads the flattened maps.
            chain.convolution(last)
            chain.extras()
        chain.add(nn.Flatten())
        if choose.random() < 0.3:
            chain.activation()
        if through:
            chain.dense(last)
            chain.extras()
        chain.dense(classes)
    elif kind == "averaged":
        chain.convolution(last)
        chain.extras()
        chain.convolution(classes)
        chain.add(nn.AdaptiveAvgPool2d(1))
        chain.add(nn.Flatten())
    else:
        chain.dense(last)
        chain.extras()
        chain.dense(classes)
    return nn.Sequential(*chain.modules), shape


class After(nn.Module):
    """Two blocks with the activation after the addition, the second with a shortcut of its own; functions for layers
    without entries, and one ReLU module in several places."""

    def __init__(self, choose: Random, channels: int, classes: int, last: int) -> None:
        super().__init__()
        width, inner, bias = choose.randint(1, 4), choose.randint(1, 4), choose.random() < 0.5
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(width, affine=choose.random() < 0.7)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=not bias)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, inner, (3, 2), stride=2, padding=(1, 0))
        self.conv4 = nn.Conv2d(inner, last, 3, padding=1, bias=bias)
        self.down = nn.Sequential(nn.Conv2d(width, last, (1, 2), stride=2), nn.BatchNorm2d(last))
        self.flat = choose.random() < 0.5
        self.fc = nn.Linear(last * (6 if self.flat else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        x = functional.dropout(functional.relu(y), 0.2, self.training)
        y = self.conv4(functional.silu(self.conv3(x)))
        x = torch.relu(y + self.down(x))
        x = functional.adaptive_avg_pool2d(x, (3, 2) if self.flat else 1)
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class Before(nn.Module):
    """A stream that every block adds to, normalised and activated where it is read."""

    def __init__(self, choose: Random, channels: int, classes: int, last: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, last, 3, padding=1)
        blocks = choose.randint(1, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(last) for _ in range(blocks))
        inner = [choose.randint(1, 4) for _ in range(blocks)]
        self.inner = nn.ModuleList(nn.Conv2d(last, width, 3, padding=1) for width in inner)
        self.outer = nn.ModuleList(nn.Conv2d(width, last, 1, bias=False) for width in inner)
        self.end = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=True):
            x = x + outer(functional.gelu(inner(norm(x).relu())))
        x = functional.adaptive_avg_pool2d(functional.leaky_relu(self.end(x), 0.1), 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class Flat(nn.Module):
    """Dense layers with additions of one, and of the same twice."""

    def __init__(self, choose: Random, inputs: int, classes: int, last: int) -> None:
        super().__init__()
        width = choose.randint(1, 5)
        self.first = nn.Linear(inputs, last)
        self.norm = nn.BatchNorm1d(last)
        self.inner = nn.Linear(last, width)
        self.outer = nn.Linear(width, last, bias=False)
        self.output = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        y = functional.relu(self.inner(x))
        x = torch.add(x, self.outer(y))
        logits: Tensor = self.output(functional.relu(x + x))
        return logits


def _residual(kind: str, choose: Random, classes: int, last: int) -> tuple[nn.Module, tuple[int, ...]]:
    shape = (choose.randint(1, 3), choose.randint(5, 8), choose.randint(4, 7))
    if kind == "after":
        return After(choose, shape[0], classes, last), shape
    if kind == "before":
        return Before(choose, shape[0], classes, last), shape
    if kind == "flat":
        return Flat(choose, shape[0], classes, last), shape[:1]
    load_torchvision()
    from torchvision.models.resnet import BasicBlock

    width = choose.randint(1, 4)
    down = nn.Sequential(nn.Conv2d(width, last, 1, 2, bias=False), nn.BatchNorm2d(last))
    blocks = [BasicBlock(width, width), BasicBlock(width, last, 2, down)]
    stem = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *end), shape


def random_module(kind: str, seed: int, *, classes: int = 3, last: int = 8) -> tuple[nn.Module, tuple[int, ...]]:
    """A module of a kind, and the shape of a sample; its last hidden group has ``last`` units."""
    choose = Random(seed)
    with torch.random.fork_rng(devices=[]):
        return (_chain if kind in CHAINS else _residual)(kind, choose, classes, last)


@pytest.fixture(scope="session")
def make_module() -> Callable[..., tuple[nn.Module, tuple[int, ...]]]:
    """:func:`random_module`."""
    return random_module


@pytest.fixture(scope="session")
def kinds() -> tuple[str, ...]:
    """Of :func:`random_module`."""
    return KINDS


@pytest.fixture(scope="session")
def make_any() -> Callable[..., tuple[Network, tuple[int, ...]]]:
    """A factory: a network of a kind in the middle of a sequence, and the shape of a sample."""

    def make(
        kind: str,
        seed: int = 0,
        *,
        head: Head = "single",
        committed: int = 0,
        classes: int = 3,
        last: int = 8,
        dtype: torch.dtype = torch.float32,
        **state: Any,
    ) -> tuple[Network, tuple[int, ...]]:
        module, shape = random_module(kind, seed, classes=classes, last=last)
        network = Network(module.to(dtype), head=head)
        return commit_randomly(network, committed, seed=seed, room=True, **state), shape

    return make


@pytest.fixture(scope="session")
def networks(make_any: Callable[..., tuple[Network, tuple[int, ...]]]) -> Callable[..., Any]:
    """A strategy: a network of any kind and state, and samples ``[count, *shape]`` for it."""

    @st.composite
    def strategy(
        draw: st.DrawFn,
        *,
        kinds: Sequence[str] = KINDS,
        committed: st.SearchStrategy[int] | None = None,
        count: int = 8,
        heads: Sequence[Head] = ("single", "multi"),
        **given: Any,
    ) -> tuple[Network, Tensor]:
        seed = draw(st.integers(0, 10**6), label="seed")
        network, shape = make_any(
            draw(st.sampled_from(kinds), label="kind"),
            seed,
            head=draw(st.sampled_from(heads), label="head"),
            committed=draw(st.integers(0, 3) if committed is None else committed, label="committed"),
            share=draw(st.sampled_from([0.1, 0.25, 0.4]), label="share"),
            nothing=draw(st.sampled_from([0.0, 0.4]), label="nothing"),
            **given,
        )
        source = torch.Generator().manual_seed(seed)
        return network, torch.randn(count, *shape, generator=source).to(network.dtype)

    return strategy


@pytest.fixture(scope="session")
def draw() -> Callable[..., None]:
    """:func:`fill_free`, as the training of a task on a network that stands."""
    return fill_free


@pytest.fixture(scope="session")
def claim_some() -> Callable[..., dict[str, Tensor]]:
    """:func:`random_claims`."""
    return random_claims
