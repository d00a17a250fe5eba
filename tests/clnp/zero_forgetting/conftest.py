"""Sequences of tasks, really trained, on every kind of network, and the check of promise 1 after each commit."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from clnp import models
from clnp.activity import mean_activity
from clnp.commit import added, commit, fingerprint, restore
from clnp.evaluation import count_correct, full_width_agrees, logits
from clnp.forgetting import Trial, choose
from clnp.growth import grow, widths
from clnp.network import FREE, Head, Network
from clnp.ownership import active, with_free
from clnp.subnetwork import cut, subnetwork
from clnp.tasks.task import Split
from clnp.tasks.vision import load_torchvision
from clnp.tensors import decode, encode
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train

CLASSES = 3

Activity = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of network: how it is made, and the shape of the samples that it answers."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def residual(blocks: Sequence[int], channels: Sequence[int], *, kernel: int = 3) -> nn.Module:
    """torchvision's ResNet on its own basic blocks, which reuse one ReLU, with other widths than 64 to 512."""
    load_torchvision()
    from torchvision.models import resnet

    class Small(resnet.ResNet):
        def __init__(self) -> None:
            super().__init__(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
            self.inplanes = channels[0]
            self.conv1 = nn.Conv2d(2, channels[0], kernel, padding=kernel // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(channels[0])
            for place, (count, units) in enumerate(zip(blocks, channels, strict=True)):
                layer = self._make_layer(resnet.BasicBlock, units, count, stride=2 if place else 1)
                setattr(self, f"layer{place + 1}", layer)
            self.fc = nn.Linear(channels[-1], CLASSES)

    return Small()


def resnet18() -> nn.Module:
    load_torchvision()
    from torchvision.models import resnet

    return resnet.resnet18(num_classes=CLASSES)


class Residual(nn.Module):
    """The smallest residual network: one block whose sum a further convolution reads beside the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 9, 3, padding=1)
        self.first, self.norm = nn.Conv2d(9, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.second = nn.Conv2d(7, 9, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(9, 6, 1), nn.Conv2d(6, 9, 1)
        self.relu, self.flatten = nn.ReLU(), nn.Flatten()
        self.pool = nn.MaxPool2d(2)
        self.output = nn.Linear(9 * 2 * 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.second(self.relu(self.norm(self.first(x)))) + x)
        x = self.relu(self.fourth(self.relu(self.third(x))) + x)
        return self.output(self.flatten(self.pool(x)))


class DenseResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Linear(7, 12), nn.Linear(12, 10), nn.Linear(10, 12)
        self.norm, self.output = nn.BatchNorm1d(10), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.output(torch.relu(self.back(torch.relu(self.norm(self.inner(x)))) + x))


def chain(*modules: nn.Module) -> nn.Sequential:
    """Named by kind and number, as messages and failures name them."""
    count = itertools.count(1)
    return nn.Sequential(OrderedDict((f"{type(m).__name__.lower()}{next(count)}", m) for m in modules))


def conv_norm(*, bias: bool = True, activation: type[nn.Module] = nn.ReLU, affine: bool = True) -> nn.Sequential:
    """Convolutions and BatchNorms, a Flatten of maps that are not square, a dense BatchNorm."""
    return chain(
        nn.Conv2d(2, 9, 3, padding=1, bias=bias),
        nn.BatchNorm2d(9, affine=affine),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(9, 10, (3, 2), padding=(1, 0), bias=bias),
        nn.BatchNorm2d(10, affine=affine),
        activation(),
        nn.Flatten(),
        nn.Linear(10 * 2 * 2, 12, bias=bias),
        nn.BatchNorm1d(12, affine=affine),
        activation(),
        nn.Linear(12, CLASSES, bias=bias),
    )


IMAGE = (2, 4, 6)  # of no two sizes alike

KINDS = {
    # The four of the paper and of the person's own: 11 tasks, growth in the middle.
    "mlp": Kind(lambda: models.mlp(8, (14, 18), CLASSES), (8,)),
    "table 2": Kind(lambda: models.split_cifar_narrow(shape=(2, 7, 5), classes=CLASSES, width=0.25), (2, 7, 5)),
    "table 3": Kind(lambda: models.split_cifar_wide(shape=(2, 23, 24), classes=CLASSES, width=1 / 32), (2, 23, 24)),
    "resnet": Kind(lambda: residual((2, 2, 2, 2), (8, 8, 12, 16)), (2, 8, 6)),
    "resnet-18": Kind(resnet18, (3, 32, 32)),
    # Those on which one safeguard at a time is removed.
    "conv + norm": Kind(conv_norm, IMAGE),
    "conv head": Kind(
        lambda: chain(
            nn.Conv2d(2, 9, 3, padding=1),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.Conv2d(9, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, CLASSES, (3, 1)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        IMAGE,
    ),
    "flat head": Kind(
        lambda: chain(
            nn.Conv2d(2, 9, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(9, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12 * 2 * 3, CLASSES),
        ),
        IMAGE,
    ),
    "residual": Kind(Residual, IMAGE),
    # Shapes at the edge.
    "dense residual": Kind(DenseResidual, (7,)),
    "no bias": Kind(lambda: conv_norm(bias=False), IMAGE),
    "no bias, no norm": Kind(
        lambda: chain(
            nn.Conv2d(2, 9, 3, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9 * 2 * 4, 12, bias=False),
            nn.ReLU(),
            nn.Linear(12, CLASSES, bias=False),
        ),
        IMAGE,
    ),
    "norm without affine": Kind(lambda: conv_norm(affine=False), IMAGE),
    "leaky relu": Kind(lambda: conv_norm(activation=nn.LeakyReLU), IMAGE),
    "gelu": Kind(lambda: conv_norm(activation=nn.GELU), IMAGE),
    "silu": Kind(lambda: conv_norm(activation=nn.SiLU), IMAGE),
    "kernels, strides, pools": Kind(
        lambda: chain(
            nn.Conv2d(2, 8, (2, 3), stride=(1, 2), padding=(1, 0)),
            nn.ReLU(),
            nn.AvgPool2d((2, 1)),
            nn.Conv2d(8, 9, (1, 2), padding="same", dilation=(1, 2)),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 1)),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(27, 12),
            nn.ReLU(),
            nn.Linear(12, CLASSES),
        ),
        (2, 5, 8),
    ),
    "one unit first": Kind(
        lambda: chain(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 9), nn.ReLU(), nn.Linear(9, 3)), (8,)
    ),
    "one channel between": Kind(
        lambda: chain(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 1, 3, padding=1),
            nn.BatchNorm2d(1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 9),
            nn.ReLU(),
            nn.Linear(9, CLASSES),
        ),
        IMAGE,
    ),
    "one unit last": Kind(lambda: chain(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 1), nn.ReLU(), nn.Linear(1, 3)), (8,)),
}

OPTIMIZERS = {
    "adam": ({"optimizer": "adam"}, 0.02),
    "momentum": ({"optimizer": "sgd", "momentum": 0.9}, 0.05),
    "adamw": ({"optimizer": "adamw", "weight_decay": 0.5}, 0.02),
}


@cache
def data(kind: str, task: int) -> tuple[Split, Split]:
    """Noisy samples around one centre a class, other centres for every task: training and validation split."""
    shape = KINDS[kind].shape
    source = torch.Generator().manual_seed(100 + task)
    centres = 1.5 * torch.randn(CLASSES, *shape, generator=source)
    splits = []
    for count in (96, 60):
        y = torch.randint(CLASSES, (count,), generator=source)
        splits.append(Split(centres[y] + torch.randn(count, *shape, generator=source), y))
    return splits[0], splits[1]


@dataclass
class Done:
    """What the driver would have recorded of a committed task."""

    fingerprint: str
    logits: Tensor
    tensors: bytes
    widths: tuple[int, ...]
    correct: int
    unpruned: int


@dataclass
class Course:
    """A sequence of tasks on one network, and what promise 1 says of it after every commit.

    Attributes:
        changes: What was no longer as it was recorded, by commit and task; empty unless the promise is broken.
    """

    kind: str
    head: Head
    optimizer: str = "adam"
    epochs: int = 3
    tasks: int = 11
    alpha: float = 1e-3
    members: int = 2
    device: str = "cpu"
    network: Network = field(init=False)
    done: list[Done] = field(default_factory=list)
    changes: list[tuple[int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.blank()

    @property
    def red(self) -> set[str]:
        """Which of the three checks failed."""
        return {what for _, _, what in self.changes}

    def blank(self) -> Network:
        return Network(KINDS[self.kind].make(), head=self.head).to(self.device)

    def data(self, task: int | None = None) -> tuple[Split, Split]:
        """Training and validation split of a task, by default the next one."""
        return data(self.kind, self.network.task if task is None else task)

    def opened(self) -> Network:
        return open_task(self.network, seed=0)

    def train(self, opened: Network, rates: Sequence[float] | None = None) -> list[Network | None]:
        """The members of one stack, trained; None where one diverged."""
        choices, rate = OPTIMIZERS[self.optimizer]
        rates = rates or [rate / 2**index for index in range(self.members)]
        alpha = (self.alpha,) * len(opened.layers)
        settings = Settings(epochs=self.epochs, batch_size=32, **choices)
        splits = data(self.kind, opened.task)
        results = train(opened, *splits, [Member(alpha, rate) for rate in rates], settings, seed=0)
        return [None if result.diverged else with_free(opened, result.free) for result in results]

    def learn(self, claim: "Callable[[Network, Activity, Course], dict[str, Tensor]] | None" = None) -> None:
        """One task trained and committed: by default the grid's sparsest within a margin, at its largest threshold."""
        members = [member for member in self.train(self.opened()) if member is not None]
        training, validation = data(self.kind, self.network.task)
        activities = [mean_activity(member, training.x) for member in members]
        if claim is None:
            index, claims = scored(members, activities, validation)
        else:
            index, claims = 0, claim(members[0], activities[0], self)
        self.commit(members[index], claims)

    def commit(self, network: Network, claims: Mapping[str, Tensor]) -> None:
        task = network.task
        validation = data(self.kind, task)[1]
        unpruned = count_correct(cut(network, task), validation)
        commit(network, {name: claimed.to(network.device) for name, claimed in claims.items()})
        self.network = network
        narrow = subnetwork(network, task)
        record = Done(
            fingerprint(network, task),
            logits(narrow, validation.x),
            encode(added(network, task)),
            widths(network),
            count_correct(narrow, validation),
            unpruned,
        )
        self.done.append(record)
        self.check()

    def check(self) -> None:
        """Measure every committed task again."""
        for task, record in enumerate(self.done):
            x = data(self.kind, task)[1].x
            at = self.network.task - 1, task
            if fingerprint(self.network, task) != record.fingerprint:
                self.changes.append((*at, "fingerprint"))
            narrow = logits(subnetwork(self.network, task), x)
            if not torch.equal(narrow, record.logits):
                self.changes.append((*at, "logits"))
            if not full_width_agrees(self.network, x, task, narrow=narrow):
                self.changes.append((*at, "full width"))

    def grow(self, extra: Mapping[str, int]) -> None:
        self.network = grow(self.network, extra)
        self.check()

    def reload(self) -> None:
        """Go on with what the commits alone give back, as bytes."""
        fresh = self.blank()
        for record in self.done:
            groups = zip(fresh.groups, record.widths, strict=True)
            fresh = grow(fresh, {group.name: units - group.units for group, units in groups})
            restore(fresh, decode(record.tensors))
        groups = zip(fresh.groups, self.network.groups, strict=True)
        self.network = grow(fresh, {group.name: now.units - group.units for group, now in groups})
        self.check()

    def short(self) -> dict[str, int]:
        """By group that has no two units left for each task to come how many to add; the last one gets all it lacks."""
        left = self.tasks - self.network.task
        extra = {}
        for group in self.network.groups:
            free = int((~active(self.network, group)).sum())
            if free < 2 * left:
                extra[group.name] = 2 * left - free if group == self.network.last else max(1, left - free)
        return extra


def scored(
    members: Sequence[Network], activities: Sequence[Activity], validation: Split
) -> tuple[int, dict[str, Tensor]]:
    """The whole rule: a staircase a member, and the sparsest within ten points."""
    steps = [staircase(member, a, validation) for member, a in zip(members, activities, strict=True)]
    trials = [Trial(index, step.unpruned, step.points) for index, step in enumerate(steps)]
    # Few steps may learn nothing yet: what is measured here is that nothing changes.
    winner = choose(trials, total=len(validation), majority=-1, margin=Fraction(10)).winner
    network = members[winner.index]
    claims = claims_at(network, activities[winner.index], winner.point.theta)
    assert count_correct(cut(network, network.task, claims), validation) == winner.point.correct
    return winner.index, claims


def share(network: Network, activity: Activity, course: Course) -> dict[str, Tensor]:
    """The most active free units of each group, as many as leave the last one enough for all tasks to come."""
    claims = {}
    for group in network.groups:
        free = (network.owner(group) == FREE).cpu()
        count = math.ceil(int(free.sum()) / (course.tasks - network.task + 1))
        order = activity[group.name].masked_fill(~free, -1.0).argsort(descending=True, stable=True)
        claims[group.name] = torch.zeros_like(free).index_fill(0, order[:count], True)
    return claims


def everything(network: Network, *_: object) -> dict[str, Tensor]:
    """Every free unit."""
    return {group.name: network.owner(group) == FREE for group in network.groups}


def but(rule: Callable[..., dict[str, Tensor]], **chosen: bool) -> Callable[..., dict[str, Tensor]]:
    """A rule, but for some groups, by number such as ``_0=True``: all free units of them, or none."""

    def claims(network: Network, activity: Activity, course: Course) -> dict[str, Tensor]:
        found = rule(network, activity, course)
        for number, whole in chosen.items():
            group = network.groups[int(number[1:])]
            found[group.name] = (network.owner(group) == FREE) & whole
        return found

    return claims


@pytest.fixture(scope="session")
def course() -> Callable[..., Course]:
    """A factory of :class:`Course`."""
    return Course


@pytest.fixture(scope="session")
def claim() -> SimpleNamespace:
    """Ways to claim."""
    return SimpleNamespace(share=share, everything=everything, but=but)
