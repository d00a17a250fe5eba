"""The cells of a task, the stacks that they form, and what to think twice about before they are trained."""

import itertools
import math
from collections.abc import Sequence

from clnp.pace import Pace
from search.experiment import Experiment
from search.records import Cell, Measured, Memory
from search.sections import spread
from search.text import number, points_text

__all__ = [
    "LARGE",
    "cells",
    "expected_share",
    "gains",
    "measured_for",
    "members_that_fit",
    "on_gpu",
    "stacks",
    "to_measure",
    "warnings",
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


def expected_share(experiment: Experiment, task: int) -> float:
    """A rule of thumb: the share of the last hidden layer that a task claims at the strongest cell of its grid.

    ::

        share = 1 / (1 + α · width² · epochs · learning rate / 0.16)

    with the largest α of that layer and the largest learning rate, and ``epochs`` of 211 steps (MNIST in batches of
    256). Measured on a CPU with Adam, shares claimed by a first task and, in brackets, this rule:

    - 784-2000-2000-10 on MNIST, α = 1e-5, learning rate 0.002: 56 % (50) after 2 epochs, 39 (33) after 4, 29 (25) after
      6, 20 (20) after 8, 18 (17) after 10; another seed 15 (17) after 10, 7 (9) after 20, 4 (6) after 30.
    - 784-400-400-10 on MNIST, learning rate 0.001, 5 epochs: 92 % (95) at α = 1e-5, 60 (67) at 1e-4, 23 (17) at 1e-3.
    - 64-128-128-10 on the digits, 660 steps: 58 % (61) at α = 1e-3 and 0.002, 35 (38) at 0.005, 26 (24) at 0.01;
      1720 steps: 20 (19) at 1e-3 and 0.005, 12 (7) at 3e-3 and 0.005, 10 (4) at 3e-3 and 0.01.

    Raises:
        IndexError: The experiment has no task ``task``.
    """
    if not 0 <= task < experiment.tasks.count:
        raise IndexError(f"there is no task {task}: the experiment has {experiment.tasks.count}, and the first is 0")
    return 1 / (1 + _strongest_alpha(experiment, task) * _strength(experiment, task))


def _strongest_alpha(experiment: Experiment, task: int) -> float:
    outline = experiment.outline
    places = [place for place, layer in enumerate(outline.layers) if layer.group == outline.layers[-1].source]
    entries = [spread(entry, len(outline.layers)) for entry in experiment.grid.axes(task)[0]]
    return max(entry[place] for entry in entries for place in places)


def _last_width(experiment: Experiment) -> int:
    return experiment.outline.widths[experiment.outline.last]


def _strength(experiment: Experiment, task: int) -> float:
    training = experiment.training
    batches = math.ceil(experiment.outline.train / training.batch_size)
    epochs = training.epochs * batches / 211
    return float(_last_width(experiment)) ** 2 * epochs * max(experiment.grid.axes(task)[1]) / 0.16


def warnings(experiment: Experiment) -> list[str]:
    """What to think twice about: a margin below one sample, early stopping, an α too weak to leave room for the tasks,
    a budget that can hardly be met, halving. Of a fork only what it trains counts.

    A line each, for people; none of them keeps a run from starting.
    """
    room = _room_warnings if experiment.rule.kind == "margin" else _budget_warnings
    found = [*_margin_warnings(experiment), *room(experiment)]
    if experiment.training.early_stopping:
        found.append(
            "training.early_stopping is on: units go on falling silent long after the best epoch, and restoring an "
            "early one undoes that"
        )
    if halving := experiment.training.halving:
        found.append(
            f"training.halving is on: who is more than {points_text(experiment.training.halving_margin or 0)} behind "
            f"after epoch {' and '.join(map(str, halving))} is dropped, whatever it might have come to, and replay "
            f"refuses a larger margin"
        )
    return found


def _trained(experiment: Experiment) -> range:
    return range(experiment.copied, experiment.tasks.count)


def _rough(share: float) -> str:
    return f"{number(100 * share, digits=3)} %"


def _margin_warnings(experiment: Experiment) -> list[str]:
    samples = experiment.outline.validation
    margins = {experiment.margin(task): task for task in reversed(_trained(experiment))}
    key = "rule.floor" if experiment.rule.kind == "budget" else "rule.margin"
    if experiment.fine_tuning is not None and experiment.fine_tuning.margin is not None:
        key = "fine_tuning.margin"
    return [
        f"{key} is {number(float(margin))} in task {task + 1}: {number(float(margin * samples / 100))} of a "
        f"validation sample (there are {samples}, one is {number(100 / samples, digits=2)} points), so that no "
        f"accuracy is given up"
        for margin, task in sorted(margins.items())
        if margin * samples < 100
    ]


def _room_warnings(experiment: Experiment) -> list[str]:
    """Single-head alone: there each task needs units of its own in the last hidden layer; a full one ends the run.

    Of dense networks of fixed size alone: the rule of thumb was measured on no other.
    """
    if experiment.head != "single" or experiment.model.kind != "mlp" or experiment.grow is not None:
        return []
    shares = [expected_share(experiment, task) for task in _trained(experiment)]
    if sum(shares) <= 1:
        return []
    outline, last = experiment.outline, experiment.tasks.count - 1
    enough = (len(shares) - 1) / _strength(experiment, last)  # the tasks share the layer evenly
    return [
        f"α looks too weak to leave room for {len(shares)} tasks: the largest for {outline.layer_names[-2]} is "
        f"{number(_strongest_alpha(experiment, last))}, and by a rule of thumb a task then claims {_rough(shares[-1])} "
        f"of its {_last_width(experiment)} units; try an α of {number(enough, digits=2)}, more epochs or a larger "
        f"learning rate"
    ]


def _budget_warnings(experiment: Experiment) -> list[str]:
    """A budget for fewer tasks than there are, below one unit, or below what the strongest cell looks able to prune to.

    The last of single-head dense networks alone, as for :func:`_room_warnings`.
    """
    count, tasks = experiment.tasks.count, experiment.rule.tasks or 1
    layer, width = experiment.outline.group_names[experiment.outline.last], _last_width(experiment)
    found = []
    if count > tasks:
        found.append(
            f"rule.tasks is {tasks}, but the run has {count} tasks: the units are shared among the first {tasks}, and "
            f"the tasks after them find what is left; give rule.tasks {count} or more"
        )
    if tasks > width:
        found.append(
            f"the budget cannot be met: an equal share of the {width} units of {layer} among {tasks} tasks "
            f"(rule.tasks) is below one unit, so that every commit that claims one there is over budget; widen "
            f"{layer}, or lower rule.tasks"
        )
    elif experiment.head == "single" and experiment.model.kind == "mlp":
        shares = ((task, expected_share(experiment, task)) for task in _trained(experiment))
        over = ((task, share) for task, share in shares if share * tasks > 1)
        found += [_over_share(experiment, task, share) for task, share in itertools.islice(over, 1)]
    return found


def _over_share(experiment: Experiment, task: int, share: float) -> str:
    tasks, layer = experiment.rule.tasks or 1, experiment.outline.layer_names[-2]
    enough = (tasks - 1) / _strength(experiment, task)
    return (
        f"the budget can hardly be met, even at the floor: an equal share of {layer} among {tasks} tasks (rule.tasks) "
        f"is {_rough(1 / tasks)} of its {_last_width(experiment)} units, and by a rule of thumb a task claims "
        f"{_rough(share)} at the largest α for it, {number(_strongest_alpha(experiment, task))}; try an α of "
        f"{number(enough, digits=2)}, more epochs or a larger learning rate"
    )
