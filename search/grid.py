"""The cells of a task, and the stacks that they form."""

import itertools
import math
from collections.abc import Sequence

from clnp.pace import Pace
from search.experiment import Experiment
from search.records import Cell, Measured, Memory
from search.sections import spread

__all__ = [
    "LARGE",
    "cells",
    "gains",
    "measured_for",
    "members_that_fit",
    "on_gpu",
    "stacks",
    "to_measure",
]

LARGE = 200_000
"""Weights from which a network alone keeps a CPU core busy, by the gains at :data:`_UNKNOWN`."""

_UNKNOWN = (100_000, 400_000)
"""Weights of an MLP from which, and up to which, it is measured whether a stack gains on a CPU; below it does, above it
does not, and a measured answer could be another one the next time.

What 6 members took one after another over what their stack took, twice on one thread of an x86_64 with AVX-512, torch
2.13: 2.3 for 64-128-128-10 (26 thousand weights), 1.7 for 64-200-200-10 (55) and 1.2 to 1.3 for 64-300-300-10 (112) in
batches of 64; 1.3 to 1.5 for 784-100-100-10 (89), 1.2 for 784-200-200-10 (199), 1.0 to 1.2 for 784-400-400-10 (478) and
0.8 to 1.0 for 784-1000-1000-10 (1,794) in batches of 256."""

_HUGE = 2_000_000
"""Weights above which no network's stack gains on a CPU: 784-2000-2000-10 and Table 2 take 0.1 s a step and more."""

_GAIN = 1.2
"""How many times as long as their stack members must take one after another for a stack to be formed: it has to make up
for what it costs, since a lost worker loses all of it, and fewer jobs are shared out less evenly."""

_MOST = 32
"""Members of a stack that auto forms: a lost worker loses no more, and a GPU's memory holds them."""

_TIMED = 8
"""Members of the largest stack that is timed: more of them gain as much or more, and take longer to time."""

_USED = 0.9
"""Of a worker's share of a GPU's memory."""


def cells(experiment: Experiment, task: int, first_winner: Cell | None = None) -> tuple[Cell, ...]:
    """The grid of a task: every α with every learning rate, in the order of the file, α first (Sec. 2.2).

    Args:
        experiment: A single α of it goes for all layers.
        task: From 0.
        first_winner: The cell that won task 0 of this replica. Needed for a later task under ``after_first: winner``.

    Raises:
        ValueError: ``first_winner`` is needed and not given.
    """
    if task > 0 and experiment.grid.after_first == "winner":
        if first_winner is None:
            raise ValueError(f"task {task} has the first task's winner for its grid; give it as first_winner")
        return (Cell(0, first_winner.alpha, first_winner.learning_rate),)
    layers = len(experiment.outline.layers)
    axes = itertools.product(*experiment.grid.axes(task))
    return tuple(Cell(index, spread(alpha, layers), rate) for index, (alpha, rate) in enumerate(axes))


def stacks(
    experiment: Experiment,
    cells: Sequence[Cell],
    *,
    workers: int,
    most: int | None = None,
    pace: Pace | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Which cells, by index, train as one: neighbours in the grid, in stacks whose sizes differ by one at most.

    ``worker.cells`` is the size of the largest. Under auto each cell trains alone where a stack does not gain enough by
    its ``pace``, or, where that is not known, where the network has 200,000 weights or more on a CPU; else there are as
    many stacks as workers for each replica, more where a stack would exceed 32 cells.

    Args:
        experiment: Gives ``worker``, its ``gpu`` what auto became (:meth:`~search.experiment.Experiment.with_gpu`), the
            size of the network and the replicas.
        cells: Those of one task.
        workers: How many workers the run has.
        most: Cells that a worker's memory is known to hold, if it is known: no stack is larger.
        pace: Of a stack's steps, if it is known.
    """
    wanted = experiment.worker.cells
    busy = experiment.outline.weights >= LARGE and not on_gpu(experiment)
    alone = busy if pace is None else not gains(pace)
    if wanted != "auto":
        count = math.ceil(len(cells) / wanted)
    else:
        count = len(cells) if alone else _fewest(experiment, len(cells), workers)
    if most is not None:
        count = max(count, math.ceil(len(cells) / most))
    count = min(count, len(cells))
    bounds = [len(cells) * place // count for place in range(count + 1)]
    return tuple(tuple(cell.index for cell in cells[start:end]) for start, end in itertools.pairwise(bounds))


def _fewest(experiment: Experiment, cells: int, workers: int) -> int:
    """The stacks that auto forms where they gain: each replica has its share of the workers."""
    return max(math.ceil(workers / experiment.replicas), math.ceil(cells / _MOST))


def on_gpu(experiment: Experiment) -> bool:
    """Whether workers train on a GPU; not as long as nobody said what ``worker.gpu: auto`` became."""
    return experiment.worker.gpu not in ("auto", 0)


def gains(pace: Pace) -> bool:
    """Whether a stack gains enough by its pace: 1.2 times over its members one after another."""
    return pace.gain >= _GAIN


def to_measure(experiment: Experiment, cells: Sequence[Cell], *, workers: int) -> int:
    """Members of the stack that is measured before a task opens, where none was yet; 0: nothing need be known.

    Something need be under ``worker.cells: auto`` for a grid of several cells: on a GPU always, of which the memory
    counts too; on a CPU if stacks of several would form of an MLP of 100,000 to 400,000 weights, or of another network
    of 2,000,000 at most.
    """
    if experiment.worker.cells != "auto" or len(cells) == 1:
        return 0
    size = min(_TIMED, math.ceil(len(cells) / _fewest(experiment, len(cells), workers)))
    least, most = _UNKNOWN if experiment.model.kind == "mlp" else (0, _HUGE)
    if on_gpu(experiment):
        return size
    return size if size > 1 and least <= experiment.outline.weights <= most else 0


def measured_for(experiment: Experiment, measured: Measured | None) -> Measured | None:
    """What was measured, where stacks go by it: under ``worker.cells: auto``, on the kind of device that it is of."""
    if measured is None or experiment.worker.cells != "auto":
        return None
    return measured if (measured.memory is not None) == on_gpu(experiment) else None


def members_that_fit(memory: Memory, share: float) -> int:
    """How many cells train as one stack in a worker's share of a GPU, at least one; a worker uses one GPU at most.

    A tenth stays free: a commit, other tasks' heads and what the allocator cannot use.
    """
    room = int(_USED * min(share, 1.0) * memory.total)
    return max(1, (room - memory.fixed) // memory.member)
