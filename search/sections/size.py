"""The sections of growth and of workers."""

import math
from fractions import Fraction

from pydantic import Field

from search.fields import Count, Gpus, OrAuto, Units
from search.sections.base import Section

__all__ = ["Grow", "Worker"]


class Grow(Section):
    """Growth (Sec. 4): units that are added, before a task opens, to hidden groups that have run out of free ones."""

    by: Units = Field(
        default=0.25,
        description="How many: a share of the group's first width, rounded up, or units, 100,000 at most.",
    )
    below: Count = Field(default=1, description="A group with fewer free units than this has run out.")

    def units(self, width: int) -> int:
        """How many units are added to a group whose first width is ``width``."""
        # Decimals, so that a tenth of 20 is 2: 0.1 is a little more than a tenth.
        return int(self.by) if self.by >= 1 else math.ceil(Fraction(repr(float(self.by))) * width)


class Worker(Section):
    """What one worker gets."""

    cpu: OrAuto = Field(
        default="auto",
        description="CPU cores, and threads, of a worker; auto is 1, more where a large network leaves cores idle.",
    )
    gpu: Gpus = Field(
        default="auto", description="GPUs of a worker; auto takes one where there is one. A share such as 0.5 too."
    )
    cells: OrAuto = Field(
        default="auto",
        description="At most so many cells train as one stack; auto goes by size, or measures what is faster.",
    )
