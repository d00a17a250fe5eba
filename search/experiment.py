"""The experiment file: what it may hold, what makes two of them the same run. Imports no torch and no Ray."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from clnp.tasks.sizes import Sizes, dataset_sizes, validation_count
from search import experiment_file
from search.fields import Count, Natural, OrAuto, RunName, Share, Text, choice, refusal, refuse
from search.sections import Grid, Model, Rule, Section, Tasks, Training, Worker, spread

__all__ = ["Experiment", "differences", "read_experiment", "schema", "shipped"]

_Head = Literal["single", "multi"]
_Keep = Literal["winners", "candidates", "all"]


class Experiment(Section):
    """An experiment: every key of its file, with its default."""

    name: RunName = Field(
        default="experiment", description="Names the run; left out, the file's name without its ending."
    )
    description: Text = Field(default="", description="One line for people.")
    tasks: Tasks = Field(default=Tasks(), description="The sequence of tasks.")
    model: Model = Field(default=Model(), description="The network, of fixed size.")
    head: Annotated[_Head, choice(_Head)] = Field(
        default="single", description="One output layer for all tasks (single) or one a task (multi)."
    )
    validation: Share = Field(default=0.1, description="Share of the training set that is held out for validation.")
    seed: Natural = Field(default=0, description="Replica r uses seed + r.")
    replicas: Count = Field(
        default=1, description="How often the whole is repeated, each with its own seed. May grow later."
    )
    grid: Grid = Field(default=Grid(), description="What is tried on each task: every alpha with every learning_rate.")
    training: Training = Field(default=Training(), description="How a cell is trained.")
    rule: Rule = Field(default=Rule(), description="Which trial is committed, and how far it is pruned.")
    workers: OrAuto = Field(default="auto", description="How many workers; auto fills the machine or cluster.")
    worker: Worker = Field(default=Worker(), description="What one worker gets.")
    retries: Natural = Field(
        default=2, description="How often a job that was lost with its worker is handed out again."
    )
    keep: Annotated[_Keep, choice(_Keep)] = Field(
        default="winners", description="Whose tensors stay after a commit: winners, candidates or all."
    )

    @field_validator("validation")
    @classmethod
    def _splits_hold_samples(cls, validation: float, info: ValidationInfo) -> float:
        if "tasks" in info.data:
            samples = dataset_sizes(info.data["tasks"].dataset).train
            if not 0 < validation_count(validation, samples) < samples:
                raise refusal(f"of {samples} samples it must leave some for training and some for validation")
        return validation

    @field_validator("grid")
    @classmethod
    def _grid_fits(cls, grid: Grid, info: ValidationInfo) -> Grid:
        model = info.data.get("model")
        refuse(grid.problems(model.layer_names if model else None))
        return grid

    @field_validator("rule")
    @classmethod
    def _margins_reach(cls, rule: Rule, info: ValidationInfo) -> Rule:
        margins = rule.margin
        if "tasks" in info.data and isinstance(margins, tuple) and len(margins) < info.data["tasks"].count:
            count = info.data["tasks"].count
            refuse(
                [(("margin",), margins, f"give one value, or one for each of the {count} tasks, not {len(margins)}")]
            )
        return rule

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers from the input on, the output layer last: ``("hidden1", …, "output")``."""
        return self.model.layer_names

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self.model.hidden

    @property
    def sizes(self) -> Sizes:
        """The sizes of the data set."""
        return dataset_sizes(self.tasks.dataset)

    @property
    def validation_samples(self) -> int:
        """How many samples the validation split has."""
        return validation_count(self.validation, self.sizes.train)

    @property
    def weights(self) -> int:
        """How many weights one network has, biases and all but one head left out."""
        widths = (self.sizes.inputs, *self.widths, self.sizes.classes)
        return sum(inputs * units for inputs, units in itertools.pairwise(widths))

    def margin(self, task: int) -> Fraction:
        """The margin of a task in percentage points, exactly the decimal that was written: 0.05 is 1/20.

        A decimal of up to 15 digits is the shortest that names its binary number, so ``repr`` gives it back.
        """
        margins = self.rule.margin
        return Fraction(repr(margins[task] if isinstance(margins, tuple) else margins))

    def identity(self, data: str) -> dict[str, Any]:
        """What makes a run the same, as JSON-able data; compare two with :func:`differences`.

        The keys that may grow (``tasks.count``, ``replicas``) and those that are free to change are not in it. α is
        spread over the layers and the later tasks' grid written out, so that two ways to write the same are the same.

        Args:
            data: SHA-256 of the data set.
        """
        return _identity(self, data, self.tasks.count)

    def to_json(self) -> dict[str, Any]:
        """Every key with its value, as JSON-able data; :meth:`from_json` gives an equal experiment."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Experiment":
        """The experiment that :meth:`to_json` wrote.

        Raises:
            BadInput: It is not one, or is one of another version with other keys.
        """
        return experiment_file.validated(data, "the recorded experiment", cls)


def read_experiment(source: str, sets: Sequence[str] = ()) -> Experiment:
    """An experiment from a YAML file.

    Args:
        source: The name of a shipped experiment, else the path of a file.
        sets: Changes on top, each ``path.to.key=value`` with the value written as YAML.

    Raises:
        BadInput: There is no such file; it is not YAML; a key is unknown or stands twice; a value is of the wrong
            kind, out of range or does not fit another. Everything that is wrong with the values is listed.
    """
    return experiment_file.read(source, sets, Experiment)


def shipped() -> dict[str, str]:
    """The experiments that ship with the package: name → description."""
    return {name: read_experiment(name).description for name in experiment_file.shipped_names()}


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file."""
    return Experiment.model_json_schema()


def differences(old: Experiment, new: Experiment, old_data: str, new_data: str) -> list[str]:
    """What keeps ``new`` from continuing the run of ``old``: a line each, for people; empty if it may.

    ``tasks.count`` and ``replicas`` may grow, and a list of margins with the tasks; nothing else of
    :meth:`Experiment.identity` may change.

    Args:
        old: The run's experiment; ``old_data`` is the SHA-256 of its data set.
        new: The one to continue with; ``new_data`` belongs to it.
    """
    count = min(old.tasks.count, new.tasks.count)
    before, after = (dict(_flat(_identity(one, data, count))) for one, data in ((old, old_data), (new, new_data)))
    lines = [
        f"{key}: was {json.dumps(before.get(key))}, is {json.dumps(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
        and not (key == "grid.after_first" and _repeats_grid(before) and _repeats_grid(after))
    ]
    for key, was, now in (
        ("tasks.count", old.tasks.count, new.tasks.count),
        ("replicas", old.replicas, new.replicas),
    ):
        if now < was:
            lines.append(f"{key}: was {was}, is {now}; it can only grow")
    return lines


def _identity(experiment: Experiment, data: str, count: int) -> dict[str, Any]:
    grid, layers = experiment.grid, len(experiment.layer_names)

    def axes(task: int) -> dict[str, Any]:
        alpha, learning_rate = grid.axes(task)
        return {"alpha": [list(spread(entry, layers)) for entry in alpha], "learning_rate": list(learning_rate)}

    rule = experiment.rule.model_dump(mode="json")
    if isinstance(rule["margin"], list):
        margins = rule["margin"][:count]
        rule["margin"] = margins[0] if len(set(margins)) == 1 else margins
    return {
        "data": data,
        "tasks": experiment.tasks.model_dump(mode="json", exclude={"count"}),
        **experiment.model_dump(mode="json", include={"model", "head", "validation", "seed"}),
        "grid": {**axes(0), "after_first": "winner" if grid.after_first == "winner" else axes(1)},
        "training": experiment.training.model_dump(mode="json"),
        "rule": rule,
    }


def _repeats_grid(flat: Mapping[str, Any]) -> bool:
    """Whether the later tasks have the grid of the first: then what changed there is no news here."""
    return bool(flat["grid.after_first"] == {axis: flat[f"grid.{axis}"] for axis in ("alpha", "learning_rate")})


def _flat(identity: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in identity.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value
