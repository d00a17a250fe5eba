"""The disk that an experiment needs at the most."""

import math
from collections.abc import Sequence
from fractions import Fraction

from search.experiment import Experiment
from search.grid import cells
from search.outline import Outline
from search.reports.common import Report

__all__ = ["disk"]

_BYTES = 4  # of a float32
_UNIT_BYTES = 8  # of a unit's mean activity in a trial, or of its place in a commit
_HEADER_BYTES = 200  # that safetensors needs to name a tensor and say where it lies: about 100 with a short name
_ROW_BYTES = 12_000  # of a trial's rows in the database: a staircase of about 100 points, epochs and Optuna's own


def disk(experiment: Experiment, widths: Sequence[int]) -> Report:
    """Bytes at the most, with hidden groups of at most ``widths``: a trial keeps the entries that are free, the mean
    activity of every unit, and what names them."""
    outline = experiment.outline
    entries, head = _entries(outline, widths)
    # Of a layer its weights, its bias and a BatchNorm's four entries; of a group one; and which task it is.
    beside = _HEADER_BYTES * (6 * len(outline.layers) + len(outline.groups) + 1)
    units = _UNIT_BYTES * sum(widths)
    trial = _BYTES * entries + units + beside
    count, replicas = experiment.tasks.count, experiment.replicas
    heads = _BYTES * head * (count - 1) if experiment.head == "multi" else 0
    grids = [len(cells(one := experiment.of(task), task, cells(one, 0)[0])) for task in range(count)]
    trials = sum(grids)
    kept = trials if experiment.keep == "all" else count  # candidates lie in between, known only afterwards
    # A unit is claimed once, so the commits of a replica are at most one network together, and the other heads.
    commits = _BYTES * entries + units + heads + beside * count
    return {
        "trial": trial,
        "task": trial * max(grids[experiment.copied :], default=0),
        "commits": commits * replicas,
        "kept": (trial * kept + commits) * replicas,
        "database": _ROW_BYTES * trials * replicas,
        "keep": experiment.keep,
    }


def _entries(outline: Outline, widths: Sequence[int]) -> tuple[int, int]:
    """Numbers in the network and in a head at these widths, at the most: exact for the weights."""
    first, now = (dict(zip(outline.group_names, sizes, strict=True)) for sizes in (outline.widths, widths))
    weights = []
    for layer in outline.layers:
        groups = [name for name in (layer.source, layer.group) if name is not None]
        units, before = (math.prod(sizes[name] for name in groups) for sizes in (now, first))
        weights.append(math.ceil(Fraction(layer.weights * units, before)))
    # Biases and BatchNorm go with the units, of a group that is not known here.
    factor = max(Fraction(now[name], first[name]) for name in first)
    others = math.ceil((outline.entries - outline.weights) * factor)
    return sum(weights) + others, weights[-1] + outline.head - outline.layers[-1].weights
