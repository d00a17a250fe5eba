"""How long a step takes: the real training path by the clock, whose time is made up where numbers count."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch

import clnp.pace
import clnp.training
from clnp.halving import Halving
from clnp.models import mlp
from clnp.network import Network
from clnp.pace import Pace, measure
from clnp.tasks.task import Split
from clnp.training import Member, Settings, open_task, train

MEMBER = Member((1e-4,) * 3, 1e-3)


@pytest.fixture
def network() -> Network:
    return open_task(Network(mlp(6, [8, 5], 3), head="single"), seed=0)


def split(samples: int) -> Split:
    draw = torch.Generator().manual_seed(samples)
    return Split(torch.rand(samples, 6, generator=draw), torch.randint(3, (samples,), generator=draw))


@dataclass
class Clock:
    """Training that takes made-up time: seconds of a step by members, and what else a turn takes."""

    seconds: dict[int, float]
    noise: Iterator[float]
    now: float = 0.0
    epochs: int = 0
    trained: list[tuple[int, int]] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now

    def train(self, *arguments: Any, **options: Any) -> Any:
        (samples, _, members, settings), after = arguments[1:], options.pop("on_epoch")
        self.trained.append((len(members), len(samples)))
        self.now += 5.0  # to build it
        steps = len(samples) // settings.batch_size

        def epoch(*told: Any) -> None:
            self.epochs += 1
            self.now += steps * self.seconds[len(members)] + next(self.noise)
            after(*told)

        return train(*arguments, **options, on_epoch=epoch)


def timed(
    monkeypatch: pytest.MonkeyPatch, network: Network, seconds: dict[int, float], noise: Any = None, samples: int = 103
) -> Any:
    clock = Clock(seconds, iter(noise or [0.0] * 99))
    monkeypatch.setattr(clnp.training, "train", clock.train)
    monkeypatch.setattr(clnp.pace.time, "perf_counter", clock.perf_counter)
    settings = Settings(30, 10, early_stopping=True, patience=1, halving=Halving((5,), Fraction(1)))
    found = measure(network, split(samples), split(20), MEMBER, settings, 4, seed=0)
    assert clock.epochs == 3 * len(clock.trained), "nothing ends training before its time"
    return clock, found


def test_what_else_the_machine_does_is_not_counted(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    """Neither what it takes to begin, nor what lengthens some of the epochs; each turn has an epoch without."""
    noise = [9.0, 0.0, 9.0] * 33
    clock, found = timed(monkeypatch, network, {1: 0.004, 4: 0.008}, noise)
    assert found == Pace(pytest.approx(0.004), pytest.approx(0.008), 4)
    assert found.gain == pytest.approx(2)
    assert [members for members, _ in clock.trained] == [1, 1, 4], "a busy machine is not kept busy for longer"


def test_one_member_and_the_stack_take_turns(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    monkeypatch.setattr(clnp.pace, "_ENOUGH", 1e6)
    clock, _ = timed(monkeypatch, network, {1: 0.004, 4: 0.008})
    # An epoch is of 0.02 s where it can be, of full batches alone.
    assert clock.trained == [(1, 10), *[(1, 50), (4, 50)] * 3]
    quick, _ = timed(monkeypatch, network, {1: 1e-6, 4: 2e-6})
    assert quick.trained == [(1, 10), *[(1, 80), (4, 80)] * 3]


def test_only_full_batches_count(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    clock, found = timed(monkeypatch, network, {1: 0.001, 4: 0.002}, samples=29)
    assert clock.trained[1] == (1, 20)
    assert (found.alone, found.together) == (pytest.approx(0.001), pytest.approx(0.002))


def test_a_slow_network_makes_no_stack_on_a_cpu(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    clock, found = timed(monkeypatch, network, {1: 0.11})
    assert found == Pace(pytest.approx(0.11), pytest.approx(0.11), 1)
    assert found.gain == 1
    assert clock.trained == [(1, 10)] * 2


def test_a_slow_moment_of_the_machine_is_no_slow_network(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    _, found = timed(monkeypatch, network, {1: 0.004, 4: 0.008}, [9.0] * 3 + [0.0] * 99)
    assert found.members == 4


@pytest.mark.parametrize("samples", [1, 7, 10, 11])
@pytest.mark.parametrize("rate", [1e-3, 1e30])
def test_it_measures_what_is_there_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, network: Network, samples: int, rate: float
) -> None:
    """Whatever the settings, a split smaller than a batch, members that diverge at once."""
    monkeypatch.setattr(clnp.pace, "_SLOW", math.inf)  # however busy this machine is
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settings = Settings(9, 10, early_stopping=True, patience=1, halving=Halving((1, 2), Fraction(1)))
    found = measure(network, split(samples), split(5), Member((0.0,) * 3, rate), settings, 3, seed=0)
    assert found.members == 3
    assert min(found.alone, found.together) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
