"""What to think twice about before an experiment is trained."""

import itertools
import math

from search.experiment import Experiment
from search.sections import spread
from search.text import number, points_text

__all__ = ["expected_share", "warnings"]


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
