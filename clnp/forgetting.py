"""The graceful-forgetting rule (Sec. 2.2): records in, winner out. Pure Python and whole numbers."""

from dataclasses import dataclass

__all__ = ["Point", "Trial", "Pick", "Choice", "choose", "needed"]


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a staircase: a trial pruned at ``theta``.

    Attributes:
        theta: The activity threshold; units with a mean activity at or below it go. ``None`` keeps every unit.
        correct: Right answers on the validation split, scored by the canonical evaluator.
        claimed: New units, one number a hidden layer.
        free_weights: Weights into units that would still be free after this commit.
    """

    theta: float | None
    correct: int
    claimed: tuple[int, ...]
    free_weights: int
