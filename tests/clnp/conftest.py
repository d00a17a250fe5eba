"""Networks in every state of a sequence, made in no time: random weights and claims instead of training."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from clnp.commit import commit
from clnp.network import FREE, Head, Network
from clnp.ownership import entries, trainable

# The first call into torch takes a second: a deadline a test case would say nothing about the code.
settings.register_profile("clnp", deadline=None)
settings.load_profile("clnp")


def fill_free(network: Network, source: torch.Generator, *, whole_numbers: bool = False, silent: float = 0.0) -> None:
    """Draw what the open task may change. Whole numbers make every sum exact and ties common; ``silent`` is the share
    of free units that no sample of moderate size can wake."""
    masks = trainable(network)
    for name, value in entries(network).items():
        if whole_numbers:
            drawn = torch.randint(-2, 3, value.shape, generator=source)
        else:
            drawn = torch.randn(value.shape, generator=source)
        value.copy_(torch.where(masks[name], drawn.to(value), value))
    for layer in network.hidden:
        if layer.bias:
            still = (torch.rand(layer.units, generator=source) < silent).to(network.device)
            value = entries(network)[f"{layer.name}.bias"]
            value.masked_fill_(still & masks[f"{layer.name}.bias"], -1e4)


def random_claims(network: Network, source: torch.Generator, share: float = 0.5) -> dict[str, Tensor]:
    """A share of each layer's units, out of the free ones as far as there are: at least one where there is one."""
    claims = {}
    for layer in network.hidden:
        free = (network.owner(layer) == FREE).nonzero().squeeze(1)
        count = min(len(free), max(1, round(share * layer.units)))
        picked = free[torch.randperm(len(free), generator=source)[:count].to(free.device)]
        claims[layer.name] = torch.zeros(layer.units, dtype=torch.bool, device=network.device)
        claims[layer.name][picked] = True
    return claims


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Network]:
    """A factory: a network with so many tasks committed and one open, drawn as if it had been trained."""

    def make(
        hidden: Sequence[int] = (7, 6),
        *,
        head: Head = "single",
        committed: int = 0,
        seed: int = 0,
        inputs: int = 5,
        classes: int = 3,
        bias: bool = True,
        share: float = 0.25,
        whole_numbers: bool = False,
        silent: float = 0.0,
    ) -> Network:
        modules: list[nn.Module] = []
        for before, width in zip((inputs, *hidden), hidden, strict=False):
            modules += [nn.Linear(before, width, bias=bias), nn.ReLU()]
        network = Network(nn.Sequential(*modules, nn.Linear(hidden[-1], classes, bias=bias)), head=head)
        source = torch.Generator().manual_seed(seed)
        for task in range(committed + 1):
            network.place_head(task)
            fill_free(network, source, whole_numbers=whole_numbers, silent=silent)
            if task < committed:
                commit(network, random_claims(network, source, share))
        return network

    return make


@pytest.fixture(scope="session")
def draw() -> Callable[..., None]:
    """:func:`fill_free`, as the training of a task on a network that stands."""
    return fill_free


@pytest.fixture(scope="session")
def claim_some() -> Callable[..., dict[str, Tensor]]:
    """:func:`random_claims`."""
    return random_claims
