"""The experiment file: what it may hold, what makes two of them the same run. Imports no torch and no Ray."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from clnp.halving import Halving
from clnp.tasks.sizes import Sizes, validation_count
from search import experiment_file
from search.errors import BadInput
from search.fields import Count, Natural, OrAuto, RunName, Share, Text, choice, refusal, refuse
from search.outline import Outline, of_mlp
from search.sections import FineTuning, Grid, Grow, Model, Rule, Section, Tasks, Training, Worker, spread
from search.text import plural
from search.yaml_file import show_path

__all__ = ["Experiment", "Origin", "differences", "fork_differences", "read_experiment", "schema", "shipped"]

_Head = Literal["single", "multi"]
_Keep = Literal["winners", "candidates", "all"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run was forked: ``run`` is another run's name, and its first ``tasks`` commits this one begins with.

    ``experiment`` is what that run was run with: the rule that decided those tasks is known without it.
    """

    run: str
    tasks: int
    experiment: "Experiment"

    def __str__(self) -> str:
        return f"{plural(self.tasks, 'task')} of {self.run}"

    @property
    def text(self) -> str:
        """For people who look at a run."""
        return f"forked from {self.run} after task {self.tasks}"

    def to_json(self) -> dict[str, Any]:
        """JSON-able data."""
        return {"run": self.run, "tasks": self.tasks, "experiment": self.experiment.to_json()}


class Experiment(Section):
    """An experiment: every key of its file, with its default."""

    name: RunName = Field(
        default="experiment", description="Names the run; left out, the file's name without its ending."
    )
    description: Text = Field(default="", description="One line for people.")
    tasks: Tasks = Field(default=Tasks(), description="The sequence of tasks.")
    model: Model = Field(default=Model(), description="The network.")
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
    fine_tuning: FineTuning | None = Field(
        default=None, description="Trains what is left of a pruned winner again; left out, nothing is trained again."
    )
    grow: Grow | None = Field(
        default=None, description="Adds units to the layers that ran out of free ones; left out, the size is fixed."
    )
    workers: OrAuto = Field(default="auto", description="How many workers; auto fills the machine or cluster.")
    worker: Worker = Field(default=Worker(), description="What one worker gets.")
    retries: Natural = Field(
        default=2, description="How often a job that was lost with its worker is handed out again."
    )
    keep: Annotated[_Keep, choice(_Keep)] = Field(
        default="winners", description="Whose tensors stay after a commit: winners, candidates or all."
    )

    # What a file that names functions of one's own does not say, and does not hold: see with_outline and with_code.
    _outline: Outline | None = PrivateAttr(default=None)
    _code: str | None = PrivateAttr(default=None)
    _origin: Origin | None = PrivateAttr(default=None)

    @field_validator("validation")
    @classmethod
    def _splits_hold_samples(cls, validation: float, info: ValidationInfo) -> float:
        if "tasks" in info.data and not info.data["tasks"].own:
            for samples in sorted(info.data["tasks"].train_sizes()):
                if not 0 < validation_count(validation, samples) < samples:
                    raise refusal(f"of {samples} samples it must leave some for training and some for validation")
        return validation

    @field_validator("grid")
    @classmethod
    def _grid_fits(cls, grid: Grid, info: ValidationInfo) -> Grid:
        model = info.data.get("model")
        refuse(grid.problems(model.layer_names if model else None))
        return grid

    @field_validator("training")
    @classmethod
    def _norms_are_there(cls, training: Training, info: ValidationInfo) -> Training:
        model = info.data.get("model")
        if training.norm_alpha and model is not None and model.without_norms:
            refuse([(("norm_alpha",), training.norm_alpha, f"{model.kind} has no BatchNorm: leave it out")])
        return training

    @field_validator("rule")
    @classmethod
    def _margins_reach(cls, rule: Rule, info: ValidationInfo) -> Rule:
        refuse(_too_few_margins(rule.margin, info))
        return rule

    @field_validator("fine_tuning")
    @classmethod
    def _fine_tuning_fits(cls, fine_tuning: FineTuning | None, info: ValidationInfo) -> FineTuning | None:
        if fine_tuning is None:
            return None
        refuse(_too_few_margins(fine_tuning.margin, info))
        if "rule" in info.data and info.data["rule"].kind == "budget":
            refuse(_against_budget(fine_tuning))
        if "model" in info.data:
            refuse(fine_tuning.problems(info.data["model"].layer_names))
        return fine_tuning

    @property
    def plain(self) -> bool:
        """Whether the file alone says the outline: then it is known without torch."""
        return self.model.kind == "mlp" and not self.tasks.own

    @property
    def outline(self) -> Outline:
        """What is known of network and tasks before anything is trained.

        Raises:
            RuntimeError: Only torch knows it, and :meth:`with_outline` gave none.
        """
        if self._outline is not None:
            return self._outline
        if not self.plain:
            raise RuntimeError(f"the outline of {self.model.kind} is not known yet: search.building.resolve finds it")
        first, hidden = self.task_sizes(0)[0], self.model.hidden or ()
        held_out = validation_count(self.validation, first.train)
        return of_mlp(first.shape, hidden, first.classes, train=first.train - held_out, validation=held_out)

    @property
    def code(self) -> str | None:
        """The folder in which functions of one's own are looked for first, or None. No part of the identity."""
        return self._code

    @property
    def origin(self) -> Origin | None:
        """The run whose first commits this one begins with, or None."""
        return self._origin

    @property
    def copied(self) -> int:
        """How many tasks a fork is given; 0 of a run that is none."""
        return 0 if self._origin is None else self._origin.tasks

    def task_sizes(self, replica: int) -> tuple[Sizes, ...]:
        """The sizes of every task of a replica (from 0), none a person's own; of the first alone where all are alike.

        Replicas differ where each draws the order of classes that are not equally large.
        """
        return self.tasks.sizes(self.seed + replica)

    def with_outline(self, outline: Outline) -> "Experiment":
        """The same experiment, its outline known.

        Raises:
            BadInput: The grid does not fit the layers.
        """
        for section in ("grid", "fine_tuning"):
            checked = getattr(self, section)
            for path, value, mend in checked.problems(outline.layer_names) if checked else ():
                raise BadInput(f"{show_path((section, *path))} is {json.dumps(value)}; {mend}")
        other = self.model_copy()
        other._outline = outline
        return other

    def with_code(self, folder: str | None) -> "Experiment":
        """The same experiment, its own functions looked for in ``folder`` (absolute) first."""
        other = self.model_copy()
        other._code = folder
        return other

    def with_gpu(self, gpu: float) -> "Experiment":
        """The same experiment, with what ``worker.gpu: auto`` became: the stacks go by it."""
        return self.model_copy(update={"worker": self.worker.model_copy(update={"gpu": gpu})})

    def with_origin(self, origin: Origin | None) -> "Experiment":
        """The same experiment, begun with the first commits of another run."""
        other = self.model_copy()
        other._origin = origin
        return other

    def of(self, task: int) -> "Experiment":
        """The experiment whose rule decides a task: this one, or for a task that a fork was given its origin's."""
        origin = self._origin
        return self if origin is None or task >= origin.tasks else origin.experiment.of(task)

    def margin(self, task: int) -> Fraction:
        """The percentage points that a task gives up at most, exactly the decimal that was written: 0.05 is 1/20.

        The margin, fine-tuning's own where it has one, or the floor of the budget rule. A decimal of up to 15 digits is
        the shortest that names its binary number, so ``repr`` gives it back.
        """
        rule, fine_tuning = self.of(task).rule, self.of(task).fine_tuning
        given = rule.margin if fine_tuning is None or fine_tuning.margin is None else fine_tuning.margin
        if given is None:
            given = rule.floor
        return Fraction(repr(given[task] if isinstance(given, tuple) else given))

    def halving(self, task: int) -> Halving | None:
        """How the stacks of a task are halved, or None. Who is within the task's own margin is never dropped."""
        training = self.of(task).training
        if training.halving_margin is None:
            return None
        return Halving(training.halving, max(Fraction(repr(training.halving_margin)), self.margin(task)))

    def to_json(self) -> dict[str, Any]:
        """Every key with its value, as JSON-able data, and what no file holds; :meth:`from_json` gives an equal one."""
        beside = {
            "outline": None if self._outline is None else self._outline.to_json(),
            "code": self._code,
            "origin": None if self._origin is None else self._origin.to_json(),
        }
        return {**self.to_file(), **{key: value for key, value in beside.items() if value is not None}}

    def to_file(self) -> dict[str, Any]:
        """Every key with its value, as an experiment file holds them."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Experiment":
        """The experiment that :meth:`to_json` wrote.

        Raises:
            BadInput: It is not one, or is one of another version with other keys.
        """
        keys = {key: value for key, value in data.items() if key not in ("outline", "code", "origin")}
        found = experiment_file.validated(keys, "the recorded experiment", cls)
        try:
            found._outline = Outline.from_json(data["outline"]) if "outline" in data else None
        except ValueError as error:
            raise BadInput(f"the recorded experiment: {error}") from None
        found._code = data.get("code")
        if "origin" in data:
            origin = data["origin"]
            found._origin = Origin(origin["run"], origin["tasks"], cls.from_json(origin["experiment"]))
        return found


def _too_few_margins(
    margin: float | tuple[float, ...] | None, info: ValidationInfo
) -> Iterator[tuple[tuple[str], object, str]]:
    if "tasks" in info.data and isinstance(margin, tuple) and len(margin) < (count := info.data["tasks"].count):
        yield ("margin",), margin, f"give one value, or one for each of the {count} tasks, not {len(margin)}"


def _against_budget(fine_tuning: FineTuning) -> Iterator[tuple[tuple[str], object, str]]:
    if fine_tuning.margin is not None:
        yield ("margin",), fine_tuning.margin, "the budget rule has floor instead: leave it out"
    if fine_tuning.rounds > 1:
        # A second round would prune down to the floor what fits already.
        yield ("rounds",), fine_tuning.rounds, "the budget rule prunes once, to what fits: leave it out"


def read_experiment(source: str, sets: Sequence[str] = ()) -> Experiment:
    """An experiment from a YAML file.

    Args:
        source: The name of a shipped experiment, else the path of a file.
        sets: Changes on top, each ``path.to.key=value`` with the value written as YAML.

    Raises:
        BadInput: There is no such file; it is not YAML; a key is unknown or stands twice; a value is of the wrong
            kind, out of range or does not fit another. Everything that is wrong with the values is listed.
    """
    found = experiment_file.read(source, sets, Experiment)
    if source in experiment_file.shipped_names() or not (found.model.own or found.tasks.own):
        return found
    return found.with_code(str(Path(source).absolute().parent))


def shipped() -> dict[str, str]:
    """The experiments that ship with the package: name → description."""
    return {name: read_experiment(name).description for name in experiment_file.shipped_names()}


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file."""
    return Experiment.model_json_schema()


def differences(old: Experiment, new: Experiment, old_data: str, new_data: str) -> list[str]:
    """What keeps ``new`` from continuing the run of ``old``: a line each, for people; empty if it may.

    ``tasks.count`` and ``replicas`` may grow, and a list of margins with the tasks. ``name``, ``description``,
    ``workers``, ``worker``, ``retries``, ``keep`` and ``grow`` are free to change, and nothing else. Two ways to write
    the same are the same.

    Args:
        old: The run's experiment; ``old_data`` is the SHA-256 of its data set.
        new: The one to continue with; ``new_data`` belongs to it.
    """
    lines = list(_changes(old, new, old_data, new_data).values())
    for key, was, now in (
        ("tasks.count", old.tasks.count, new.tasks.count),
        ("replicas", old.replicas, new.replicas),
    ):
        if now < was:
            lines.append(f"{key}: was {was}, is {now}; it can only grow")
    return lines


def fork_differences(old: Experiment, new: Experiment, old_data: str, new_data: str) -> list[str]:
    """What keeps ``new`` from beginning with the commits of ``old``: a line each, for people; empty if it may.

    As :func:`differences`, but how tasks are trained, searched and pruned may change too; how many tasks and replicas
    there are is not compared.
    """
    own = ("grid", "training", "rule", "fine_tuning", "from")
    found = _changes(old, new, old_data, new_data)
    return [line for key, line in found.items() if key.partition(".")[0] not in own]


def _changes(old: Experiment, new: Experiment, old_data: str, new_data: str) -> dict[str, str]:
    """What of the identity is another now: key → a line for people."""
    count = min(old.tasks.count, new.tasks.count)
    # Over other layers the same α is spread to another list: there what was written is compared.
    same_layers = len(old.outline.layers) == len(new.outline.layers)
    before, after = (
        dict(_flat(_identity(one, data, count, spread_out=same_layers)))
        for one, data in ((old, old_data), (new, new_data))
    )
    if any(before.get(key) != after.get(key) for key in [*before, *after] if key.startswith(("model.", "tasks."))):
        # Said already, in words that a person wrote.
        before["architecture"] = after["architecture"]
    lines = {
        key: f"{key}: was {json.dumps(before.get(key))}, is {json.dumps(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
        and not (key == "grid.after_first" and _repeats_grid(before) and _repeats_grid(after))
    }
    if "architecture" in lines:
        lines["architecture"] = _another_network(new.model.kind, before["architecture"], after["architecture"])
    if "from" in lines and old.origin is not None:
        lines["from"] += f"; give --from {old.origin.run} --task {old.origin.tasks}, or resume, which needs neither"
    return lines


def _another_network(kind: str, was: str, now: str) -> str:
    return (
        f"architecture: was {was[:12]}, is {now[:12]}: the network that model.kind ({kind}) gives is another one now; "
        "bring the old code back, or give the new run another --name"
    )


def _identity(experiment: Experiment, data: str, count: int, *, spread_out: bool) -> dict[str, Any]:
    """What makes a run the same in its first ``count`` tasks, as JSON-able data.

    The later tasks' grid is written out; ``spread_out``: so is α over the layers.
    """
    grid, layers = experiment.grid, len(experiment.outline.layers)

    def alphas(entry: float | tuple[float, ...]) -> object:
        return list(spread(entry, layers)) if spread_out or isinstance(entry, tuple) else entry

    def axes(task: int) -> dict[str, Any]:
        alpha, learning_rate = grid.axes(task)
        return {"alpha": list(map(alphas, alpha)), "learning_rate": list(learning_rate)}

    rule = experiment.rule.model_dump(mode="json")
    rule["margin"] = _first_margins(rule["margin"], count)
    tuning, fine_tuning = experiment.fine_tuning, None
    if tuning is not None:
        margin = _first_margins(tuning.model_dump(mode="json")["margin"], count)
        fine_tuning = {**tuning.model_dump(mode="json"), "alpha": alphas(tuning.alpha), "margin": margin}
    return {
        "data": data,
        "tasks": experiment.tasks.model_dump(mode="json", exclude={"count"}),
        **experiment.model_dump(mode="json", include={"model", "head", "validation", "seed"}),
        "architecture": experiment.outline.architecture,
        "grid": {**axes(0), "after_first": "winner" if grid.after_first == "winner" else axes(1)},
        "training": experiment.training.model_dump(mode="json"),
        "rule": rule,
        "fine_tuning": fine_tuning,
        "from": None if experiment.origin is None else str(experiment.origin),
    }


def _first_margins(margin: Any, count: int) -> Any:
    """Of a list those of the first tasks; one where they are all the same."""
    if not isinstance(margin, list):
        return margin
    return margin[0] if len(set(margin[:count])) == 1 else margin[:count]


def _repeats_grid(flat: Mapping[str, Any]) -> bool:
    """Whether the later tasks have the grid of the first: then what changed there is no news here."""
    return bool(flat["grid.after_first"] == {axis: flat[f"grid.{axis}"] for axis in ("alpha", "learning_rate")})


def _flat(identity: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in identity.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            yield key, value
