"""What a round of fine-tuning came to: pure data, read without torch."""

from dataclasses import dataclass

__all__ = ["Round"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of pruning and fine-tuning (Sec. 3.2), right answers counted on the validation split.

    Attributes:
        theta: The threshold at which the round pruned.
        claimed: New units that were left, one number a hidden group.
        pruned: Right answers of what was left, before it was trained again.
        tuned: After that; None where it ended without finite numbers.
    """

    theta: float | None
    claimed: tuple[int, ...]
    pruned: int
    tuned: int | None

    @property
    def better(self) -> bool:
        """Whether what was trained again is kept."""
        return self.tuned is not None and self.tuned > self.pruned

    @property
    def correct(self) -> int:
        """Right answers of what is kept."""
        return self.tuned if self.tuned is not None and self.better else self.pruned
