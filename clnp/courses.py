"""The members' ways through the epochs: what each scored, which epoch it keeps, and who goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clnp.halving import Dropped, Halving, halve

__all__ = ["Course", "drop_hopeless"]


@dataclass(slots=True)
class Course:
    """One member's way.

    Attributes:
        epochs, early_stopping, patience: See :class:`clnp.training.Settings`.
        counts: Right answers after each epoch that it was trained, as far as it stayed finite.
        epoch: The one that it keeps, from 1; 0: none. ``free`` are its entries.
        diverged, dropped: Why nothing of it is kept.
        ended: Whether it trains no more.
    """

    epochs: int
    early_stopping: bool
    patience: int | None
    counts: list[int] = field(default_factory=list)
    epoch: int = 0
    free: dict[str, Tensor] = field(default_factory=dict)
    diverged: str | None = None
    dropped: Dropped | None = None
    ended: bool = False

    @property
    def correct(self) -> int:
        """Right answers after its last epoch; 0 where nothing of it is kept."""
        return 0 if self.diverged or self.dropped else self.counts[-1]

    @property
    def standing(self) -> int:
        """Right answers of what it would keep if it ended now."""
        return max(self.counts) if self.early_stopping else self.counts[-1]

    def drop(self, why: Dropped) -> None:
        """It is hopeless, and ends here."""
        self.dropped, self.ended = why, True
        self.epoch, self.free = 0, {}

    def note(self, epoch: int, correct: int, *, finite: bool) -> bool:
        """Take in an epoch; whether the member's entries are now the ones to keep."""
        if self.ended:
            return False
        if not finite:
            self.diverged, self.ended = f"not finite after epoch {epoch}", True
            self.epoch, self.free = 0, {}
            return False
        self.counts.append(correct)
        stopping = self.early_stopping
        better = (epoch == 1 or correct > self.counts[self.epoch - 1]) if stopping else epoch == self.epochs
        if better:
            self.epoch = epoch
        self.ended = self.patience is not None and epoch - self.epoch >= self.patience
        return better


def drop_hopeless(courses: Sequence[Course], epoch: int, total: int, halving: Halving) -> None:
    """Drop what is hopeless after an epoch of the members that still train, of ``total`` validation samples."""
    training = [course for course in courses if not course.ended]
    ended = [course.standing for course in courses if course.ended and not (course.diverged or course.dropped)]
    standing = [course.standing for course in training]
    for place, why in halve(standing, ended, epoch=epoch, total=total, margin=halving.margin).items():
        training[place].drop(why)
