"""The sections of an experiment file, each with its keys, their defaults and what they are for."""

from search.sections.base import Section
from search.sections.grid import AfterFirst, Grid, spread
from search.sections.model import Model
from search.sections.rule import Rule
from search.sections.size import Grow, Worker
from search.sections.tasks import Tasks
from search.sections.training import FineTuning, Training

__all__ = [
    "AfterFirst",
    "FineTuning",
    "Grid",
    "Grow",
    "Model",
    "Rule",
    "Section",
    "Tasks",
    "Training",
    "Worker",
    "spread",
]
