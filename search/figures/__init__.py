"""Figures of a run, from its records alone: for the page of ``report``, and for notebooks.

>>> from search.figures import accuracy, load
>>> accuracy(load("sqlite:///clnp-search.db", "quickstart")).show()
"""

from search.figures.capacity import units, used
from search.figures.common import load
from search.figures.grids import grid
from search.figures.tasks import accuracy, matrix
from search.figures.trials import pareto

__all__ = ["accuracy", "grid", "load", "matrix", "pareto", "units", "used"]
