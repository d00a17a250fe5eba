"""What a commit says of a network's use: pure data, read without torch."""

from dataclasses import dataclass

__all__ = ["GroupUse", "LayerUse", "Usage"]


@dataclass(frozen=True, slots=True)
class GroupUse:
    """How a task uses a group of units.

    Attributes:
        name: The group's.
        claimed: Units that the task claimed.
        reused: Units of earlier tasks that its answer is computed from and that are not silent on it: mean activity
            above 0.
        free: Units that nobody owns after its commit.
    """

    name: str
    claimed: int
    reused: int
    free: int


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer's weights by class after a task's commit (Sec. 2.1), biases left out.

    Attributes:
        name: The layer's. The output layer's are the task's own: under a shared one, those that read its units.
        active: Weights from active units, or the network's input, into active ones.
        free: Weights into units that are free.
        interference: Weights from free units into active ones, all 0.
        old_share: Of the L1 norm of the active weights into the units that the task claimed, the share that comes from
            units of earlier tasks: how much of what is new builds on what is old. None where it claimed none, and in a
            layer that reads the network's input.
    """

    name: str
    active: int
    free: int
    interference: int
    old_share: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of a whole network, as it was right after a task's commit."""

    groups: tuple[GroupUse, ...]
    layers: tuple[LayerUse, ...]
