"""Train a stack of members on one task: the free entries move, by Alg. 1 "updating only W_free"."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from clnp.courses import Course, drop_hopeless
from clnp.graph import Norm
from clnp.halving import Dropped, Halving
from clnp.network import Network
from clnp.optimizers import Adam, AdamW, Optimizer, Sgd
from clnp.ownership import check_room, entries, take_free, trainable
from clnp.precision import PRECISIONS, Precision, products
from clnp.seeding import generator
from clnp.stack import Stack
from clnp.tasks.encoded import decoded, some
from clnp.tasks.task import Split

__all__ = ["PREFIX_BYTES", "SCORED", "Member", "Settings", "Trained", "check_batches", "open_task", "train"]

SCORED = 1024
"""Validation samples scored at once; enough to keep a GPU busy, few enough to stay in a CPU's cache."""

PREFIX_BYTES = 2**29
"""The most that the old features of a split take that are kept; where they take more, every step computes its own.
Enough for the last layer of 784-2000-2000 on MNIST, 432 MB, so that a depleted network costs its head; bits depend on
it."""


@dataclass(frozen=True, slots=True)
class Member:
    """What one cell of the grid trains with.

    Attributes:
        alpha: The L1 coefficient of each layer's weights, from the first hidden layer to the output layer (Sec. 2.2).
        learning_rate: Above 0.

    Raises:
        ValueError: A coefficient is negative, the learning rate is not above 0, or one of them is not finite.
    """

    alpha: tuple[float, ...]
    learning_rate: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value >= 0 for value in self.alpha):
            raise ValueError(f"alpha is {self.alpha}; every coefficient must be finite and at least 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be finite and above 0")


@dataclass(frozen=True, slots=True)
class Settings:
    """How every member of a stack is trained.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples a step; the last batch of an epoch may be shorter.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        momentum: Of SGD.
        weight_decay: Of AdamW: decoupled, and on free weights only.
        norm_alpha: The L1 coefficient of free BatchNorm channels' scales and shifts. A BatchNorm undoes the scale of
            the weights before it, so that L1 on these alone hardly lets a channel fall silent.
        early_stopping: Keep a member's first best validation epoch, whole, instead of its last.
        patience: With early stopping, how many epochs a member may go without a better one before it ends.
        precision: Of the products of a step, see :data:`clnp.precision.PRECISIONS`; what is scored is float32.
        halving: After which epochs the hopeless members are dropped, all before the last; None: no member is.

    Raises:
        ValueError: A value out of range, or one that this optimizer or way of stopping does not use.
    """

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    norm_alpha: float = 0.0
    early_stopping: bool = False
    patience: int | None = None
    precision: Precision = "float32"
    halving: Halving | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("patience", self.patience)):
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} is {value}; it must be a whole number, at least 1")
        if self.optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f'optimizer is {self.optimizer!r}; it can be "adam", "adamw" or "sgd"')
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it can be {', '.join(map(repr, PRECISIONS))}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f'momentum is {self.momentum}, but {self.optimizer} has none; use optimizer "sgd" or drop it'
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be finite and at least 0")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f'weight_decay is {self.weight_decay}, but {self.optimizer} has none; use optimizer "adamw" or drop it'
            )
        if not (math.isfinite(self.norm_alpha) and self.norm_alpha >= 0):
            raise ValueError(f"norm_alpha is {self.norm_alpha}; it must be finite and at least 0")
        if self.patience is not None and not self.early_stopping:
            raise ValueError(f"patience is {self.patience} without early_stopping; turn early_stopping on or drop it")
        if self.halving is not None and self.halving.epochs[-1] >= self.epochs:
            raise ValueError(
                f"halving is after epoch {self.halving.epochs[-1]} of {self.epochs}; whom it drops must have some left"
            )


@dataclass(frozen=True, slots=True)
class Trained:
    """What became of a member.

    Attributes:
        diverged: Why it has no finite numbers, or None. Where given, ``free`` is empty and ``epoch`` is 0.
        dropped: Why it did not train to its end, or None. Where given, ``free`` is empty and ``epoch`` is 0.
        free: What the task may have changed, compact, see :func:`clnp.ownership.take_free`.
        epochs: Right answers on the validation split after each epoch that it was trained, as far as it stayed finite.
        epoch: The epoch kept, from 1.
    """

    diverged: str | None
    free: dict[str, Tensor]
    epochs: tuple[int, ...]
    epoch: int
    dropped: Dropped | None = None


def open_task(network: Network, *, seed: int) -> Network:
    """A copy with the next task's head placed and every free entry drawn anew (Alg. 1, "Re-initialize W_free").

    Entries are drawn as :class:`torch.nn.Linear` and :class:`torch.nn.Conv2d` draw them, U(−1/√n, 1/√n) with n the full
    number of inputs of a unit, a whole layer at a time: what a free entry becomes depends on seed, task and layer, not
    on what else is free. A free channel's BatchNorm begins anew: scale and variance 1, shift and mean 0.

    Raises:
        NothingToCommit: The output layer is shared and the last hidden layer has no free unit left.
    """
    check_room(network)
    task = network.task
    opened = network.copy()
    opened.place_head(task)
    masks, values = trainable(opened), entries(opened)
    for layer in opened.layers:
        source = generator(seed, "init", task, layer.name)
        bound = 1 / math.sqrt(layer.fan_in)
        for name in (f"{layer.name}.weight", f"{layer.name}.bias"):
            if name in values:
                value = values[name]
                drawn = torch.empty(value.shape, dtype=torch.float32, device="cpu")
                drawn.uniform_(-bound, bound, generator=source)
                value.copy_(torch.where(masks[name], drawn.to(value), value))
    for norm in opened.norms:
        for kind, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            if (name := f"{norm.name}.{kind}") in values:
                values[name].masked_fill_(masks[name], start)
    return opened


def check_batches(network: Network, shape: Sequence[int], samples: int, batch_size: int) -> None:
    """Refuse an epoch that ends with a batch of one sample, where a BatchNorm would find no variance.

    Args:
        network: To train.
        shape: Of one sample.
        samples: In the training split.
        batch_size: Samples a step.

    Raises:
        ValueError: It would: a channel has but one number of a sample.
        UnsupportedNetwork: The network cannot answer samples of this shape.
    """
    shapes = network.check_shape(shape)
    if not (samples % batch_size == 1 or batch_size == 1):
        return
    for node, found in zip(network.graph.nodes, shapes, strict=True):
        if isinstance(node.op, Norm) and math.prod(found[1:]) == 1:
            raise ValueError(
                f"of {samples} training samples in batches of {batch_size} the last batch holds 1, of which the "
                f"BatchNorm {node.op.name!r} has no variance; give another batch_size"
            )


def train(
    network: Network,
    train: Split,
    validation: Split,
    members: Sequence[Member],
    settings: Settings,
    *,
    seed: int,
    stage: int = 0,
    on_epoch: Callable[[int, tuple[int, ...]], None] | None = None,
) -> list[Trained]:
    """Train every member on the open task. One path for any number of members; they only share their batches.

    Minimises each member's mean cross-entropy plus ``alpha · |w|₁`` over its free weights, and ``norm_alpha`` times
    that of its free BatchNorm channels' scales and shifts. The order of the samples is drawn from seed, task and stage
    alone. A member that stops being finite has diverged; it changes no other member by a bit. With ``halving`` the
    stack goes on without those that have ended, in whatever way, after each of its epochs: how many share a stack is
    in the bits of those that go on.

    Args:
        network: An opened network, see :func:`open_task`. It is not changed.
        train: The training split; ``x`` is ``[n, *shape]``.
        validation: The validation split, scored after every epoch.
        members: One a cell of the stack.
        settings: How they are trained.
        seed: Of the replica.
        stage: 0 for a task's first training; another for each later one, whose samples come in another order.
        on_epoch: Called after every epoch with its number, from 1, and each member's right answers (0 once it has
            diverged or was dropped; its last once it has ended).

    Returns:
        One result a member, in order. The tensors are on the network's device.

    Raises:
        ValueError: No member, an α for other than every layer, an empty split, one that does not fit the network or
            whose classes are not int64 ``[n]``, a multi-head network without the open task's head, or a batch of one
            sample for a BatchNorm.
        UnsupportedNetwork: The network cannot answer samples of this shape.
    """
    _check(network, members, train, validation)
    check_batches(network, train.samples.shape[1:], len(train), settings.batch_size)
    train, validation = (s.to(network.device, network.dtype) for s in (train, validation))
    stack = Stack(network, len(members))
    optimizer = _optimizer(network, stack, members, settings)
    place = (network.task, stage) if stage else (network.task,)
    order = generator(seed, "order", *place)
    noise = torch.Generator(network.device)
    noise.manual_seed(generator(seed, "dropout", *place).initial_seed())
    courses = [Course(settings.epochs, settings.early_stopping, settings.patience) for _ in members]
    samples, held_out = _Samples(stack, train), _Samples(stack, validation)
    stacked = courses
    for epoch in range(1, settings.epochs + 1):
        permutation = torch.randperm(len(train), generator=order, device="cpu").to(network.device)
        with products(settings.precision, network.device):
            loss = _pass(stack, optimizer, samples, torch.split(permutation, settings.batch_size), noise)
        correct, finite = _score(stack, held_out)
        # The one place of an epoch where the host waits for the device.
        counts, whole = torch.stack([correct, (finite & loss.isfinite() & stack.finite()).long()]).tolist()
        for index, course in enumerate(stacked):
            if course.note(epoch, counts[index], finite=bool(whole[index])):
                course.free = take_free(network, stack.member(index))
        halving = settings.halving if settings.halving and epoch in settings.halving.epochs else None
        if halving is not None:
            drop_hopeless(courses, epoch, len(validation), halving)
        if on_epoch is not None:
            on_epoch(epoch, tuple(course.correct for course in courses))
        if all(course.ended for course in courses):
            break
        if halving is not None:
            stacked = _going_on(stack, optimizer, stacked)
    return [Trained(c.diverged, c.free, tuple(c.counts), c.epoch, c.dropped) for c in courses]


class _Samples:
    """A split as a stack reads it. Whether its prefix is kept depends on sizes alone, since the bits depend on it."""

    def __init__(self, stack: Stack, split: Split) -> None:
        self.y = split.y
        self._stack, self._samples = stack, split.samples
        self._prefix = stack.whole_prefix(split.samples, PREFIX_BYTES)

    def at(self, index: Tensor | slice) -> tuple[Tensor, ...]:
        """The prefix of some samples."""
        if self._prefix is None:
            return self._stack.prefix(decoded(some(self._samples, index)))
        return tuple(decoded(some(value, index)) for value in self._prefix)


def _going_on(stack: Stack, optimizer: Optimizer, stacked: Sequence[Course]) -> list[Course]:
    """Those of the stack that still train; the stack holds them alone from now on."""
    places = [place for place, course in enumerate(stacked) if not course.ended]
    if len(places) < len(stacked):
        optimizer.keep(stack, places)
    return [stacked[place] for place in places]


def _pass(
    stack: Stack, optimizer: Optimizer, train: _Samples, batches: Sequence[Tensor], noise: torch.Generator
) -> Tensor:
    """One epoch; the sum of each member's losses, ``[members]``, which is not finite if one of them was not."""
    names, parameters = list(stack.parameters), list(stack.parameters.values())
    total = parameters[0].new_zeros(stack.members)
    ones = torch.ones_like(total)
    for batch in batches:
        with torch.enable_grad():
            logits = stack.rest(train.at(batch), noise).transpose(1, 2)
            target = train.y[batch].expand(stack.members, -1)
            loss = functional.cross_entropy(logits, target, reduction="none").mean(1)
        # A member's loss reaches its own entries alone, so one pass gives every member its own gradient. What reaches
        # no logit, such as free units whose readers are all old, has a gradient of 0 and is left to L1.
        gradients = torch.autograd.grad(loss, parameters, ones, materialize_grads=True)
        optimizer.step(dict(zip(names, gradients, strict=True)))
        total += loss.detach()
    return total


@torch.no_grad()
def _score(stack: Stack, split: _Samples) -> tuple[Tensor, Tensor]:
    """Each member's right answers, int64 ``[members]``, and whether all its logits are finite, bool ``[members]``."""
    correct = torch.zeros(stack.members, dtype=torch.int64, device=split.y.device)
    finite = torch.ones(stack.members, dtype=torch.bool, device=split.y.device)
    for start in range(0, len(split.y), SCORED):
        piece = slice(start, start + SCORED)
        logits = stack.rest(split.at(piece))
        correct += (logits.argmax(-1) == split.y[piece]).sum(1)
        finite &= logits.isfinite().flatten(1).all(1)
    return correct, finite


def _optimizer(network: Network, stack: Stack, members: Sequence[Member], settings: Settings) -> Optimizer:
    alpha = {f"{layer.name}.weight": [m.alpha[i] for m in members] for i, layer in enumerate(network.layers)}
    for norm in network.norms:
        alpha |= {f"{norm.name}.{kind}": [settings.norm_alpha] * len(members) for kind in ("weight", "bias")}
    rate = [member.learning_rate for member in members]
    if settings.optimizer == "adam":
        return Adam(stack, alpha, rate)
    if settings.optimizer == "adamw":
        return AdamW(stack, alpha, rate, weight_decay=settings.weight_decay)
    return Sgd(stack, alpha, rate, momentum=settings.momentum)


def _check(network: Network, members: Sequence[Member], train: Split, validation: Split) -> None:
    if network.head == "multi" and str(network.task) not in network.heads:
        raise ValueError(f"the network has no head for task {network.task + 1}; train what open_task gives")
    if not members:
        raise ValueError("no member to train; give at least one")
    for member in members:
        if len(member.alpha) != len(network.layers):
            names = ", ".join(layer.name for layer in network.layers)
            raise ValueError(f"alpha is {member.alpha}, but the layers are {names}; give one α for each")
    classes = network.output.units
    for name, split in (("training", train), ("validation", validation)):
        if len(split) == 0 or len(split.samples) != len(split):
            raise ValueError(
                f"the {name} split has {len(split.samples)} samples x and {len(split)} classes y; "
                "give as many, at least 1"
            )
        if split.y.dtype != torch.int64 or split.y.dim() != 1:
            raise ValueError(
                f"the {name} split has classes y {split.y.dtype} {list(split.y.shape)}; give torch.int64 [n]"
            )
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0 or high >= classes:
            raise ValueError(f"the {name} split has classes {low} to {high}; the output layer has 0 to {classes - 1}")
    if validation.samples.shape[1:] != train.samples.shape[1:]:
        network.check_shape(validation.samples.shape[1:])
