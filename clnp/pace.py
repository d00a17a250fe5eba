"""How long a training step takes, measured once: of one member, and of several as one stack."""

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clnp.network import Network
    from clnp.tasks.task import Split
    from clnp.training import Member, Settings

__all__ = ["Pace", "measure"]

_SLOW = 0.1
"""Seconds of one member's step from which a CPU gains nothing by a stack, so that none is built. Of 784-1000-1000-10 in
batches of 256, whose step takes 0.05, a stack of 6 is slower than its members one after another already."""

_EPOCHS = 3
"""Of a turn: the first also makes the stack and the optimizer's state."""

_EPOCH = 0.02
"""Seconds that the steps of one member's epoch take together, up to 8 of them: what an epoch has beside its steps then
weighs little."""

_TURNS, _ENOUGH = 3, 1.0
"""Turns, and seconds after which no other begins."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a training step.

    Attributes:
        alone: Of one member.
        together: Of a stack.
        members: How many the stack has; 1: none was built, and ``together`` is ``alone``.
    """

    alone: float
    together: float
    members: int

    @property
    def gain(self) -> float:
        """How many times as long as the stack its members take one after another."""
        return self.members * self.alone / self.together


def measure(
    network: "Network",
    train_split: "Split",
    validation: "Split",
    member: "Member",
    settings: "Settings",
    members: int,
    *,
    seed: int,
) -> Pace:
    """Train one member and the stack in turns, for epochs of a few full batches; the shortest of each counts, since
    whatever else the machine does only makes one longer.

    Args:
        network: An opened network on the device, see :func:`clnp.training.open_task`. It is not changed.
        train_split: The task's training split; ``x`` is ``[n, *shape]``.
        validation: Its validation split, of which one sample is scored.
        member: Any cell of the grid.
        settings: How the stack will be trained.
        members: Of the stack, at least 2. On a CPU none is built where one member's step takes a tenth of a second.
        seed: Of the replica.

    Raises:
        RuntimeError: The stack finds no memory (``torch.OutOfMemoryError`` on a GPU).
    """
    from clnp.training import train  # torch, which who reads a pace does without

    short = replace(settings, epochs=_EPOCHS, early_stopping=False, patience=None, halving=None)
    scored, batch = validation.part(slice(1)), settings.batch_size

    def step(members: int, steps: int) -> float:
        steps = max(1, min(steps, len(train_split) // batch))
        samples = train_split.part(slice(steps * batch))
        marks = [time.perf_counter()]
        # An epoch ends with the counts of right answers, for which the host has waited for the device.
        train(
            network,
            samples,
            scored,
            [member] * members,
            short,
            seed=seed,
            on_epoch=lambda *_: marks.append(time.perf_counter()),
        )
        return min(after - before for before, after in pairwise(marks)) / steps

    alone = step(1, 1)
    on_cpu = network.device.type == "cpu"
    if on_cpu and alone >= _SLOW:
        alone = min(alone, step(1, 1))  # it may have been the machine
    if on_cpu and alone >= _SLOW:
        return Pace(alone, alone, 1)
    steps = max(1, min(8, int(_EPOCH / alone)))
    turns, end = list[tuple[float, float]](), time.perf_counter() + _ENOUGH
    while not turns or (len(turns) < _TURNS and time.perf_counter() < end):
        turns.append((step(1, steps), step(members, steps)))
    one, together = map(min, zip(*turns, strict=True))
    return Pace(one, together, members)
