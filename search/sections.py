"""The sections of an experiment file, each with its keys, their defaults and what they are for."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from clnp.tasks.sizes import (
    DATASETS,
    SPLIT_CIFAR,
    VIEWED,
    Sizes,
    at_most,
    class_counts,
    dataset_sizes,
    split_cifar_sizes,
    split_sizes,
    views_sizes,
)
from search.fields import (
    CLASSES,
    Classes,
    Count,
    Flag,
    Gpus,
    LayerAlpha,
    LearningRate,
    Margin,
    Momentum,
    Options,
    OrAuto,
    Penalty,
    Percent,
    Units,
    Width,
    choice,
    is_own,
    listed,
    or_own,
    refusal,
)
from search.yaml_file import Path

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

_NARROW, _WIDE = "split-cifar-narrow", "split-cifar-wide"

_MADE_FROM = {"split-cifar": SPLIT_CIFAR, "views": VIEWED}
_SIZES_OF = {"split-cifar": split_cifar_sizes, "views": views_sizes}

_ClassOrder = Literal["label", "shuffled"]
_Optimizer = Literal["adam", "adamw", "sgd"]
_RuleKind = Literal["margin", "budget"]
_Sparsity = Literal["units", "weights"]
_Theta = Literal["shared", "layers"]

_Alphas = Annotated[tuple[LayerAlpha, ...], listed("α values (each one number, or a list with one a layer)")]
_LearningRates = Annotated[tuple[LearningRate, ...], listed("learning rates")]


class Section(BaseModel):
    """A part of an experiment file: fixed once read, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tasks(Section):
    """The sequence of tasks."""

    kind: Annotated[str, or_own("permuted", "split", *_MADE_FROM)] = Field(
        default="permuted",
        description="How tasks come about: permuted gives each its own order of a data set's pixels, split gives each "
        "its own classes; split-cifar is CIFAR-10, then CIFAR-100 by ten classes a task; views is MNIST and "
        "Fashion-MNIST in turns, upright, turned and inverted; module:function is a function of your own that returns "
        "them.",
    )
    dataset: Annotated[str, choice(DATASETS)] | None = Field(
        default=None,
        validate_default=True,
        description=f"The data set of permuted and split: {', '.join(DATASETS)}. Left out: digits.",
    )
    classes: Classes | None = Field(
        default=None, validate_default=True, description="Of split: classes a task, from 2."
    )
    order: Annotated[_ClassOrder, choice(_ClassOrder)] | None = Field(
        default=None,
        validate_default=True,
        description="Of split and split-cifar: classes come in the order of their labels (label), or each replica's "
        "seed draws it (shuffled; CIFAR-10 keeps its labels). Left out: label.",
    )
    samples: Count | None = Field(
        default=None,
        description="At most so many training samples of a task, drawn by the seed, its validation split among them. "
        "Left out: all.",
    )
    count: Count = Field(
        default=5,
        validate_default=True,
        description="How many tasks are learnt, one after another. May grow later.",
    )
    options: Options | None = Field(default=None, description="What a function of your own is called with.")

    @property
    def own(self) -> bool:
        """Whether a person's own function makes them."""
        return is_own(self.kind)

    @property
    def title(self) -> str:
        """What they are made from, for people: the data sets, or the function."""
        return " and ".join(self.datasets) or self.kind

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that they are made from, however many tasks there are; none of a person's own."""
        return _MADE_FROM.get(self.kind, () if self.dataset is None else (self.dataset,))

    def sizes(self, seed: int) -> tuple[Sizes, ...]:
        """The sizes of every task of the replica with this seed, or of the first where all are alike; not of own ones.

        Before a validation split is carved from a training split.
        """
        return tuple(at_most(sizes, self.samples) for sizes in self._sizes(seed))

    def _sizes(self, seed: int) -> tuple[Sizes, ...]:
        """Of all their samples."""
        if self.kind in _SIZES_OF:
            return _SIZES_OF[self.kind](self.count)
        dataset = str(self.dataset)
        if self.classes is not None:
            return split_sizes(dataset, classes=self.classes, count=self.count, order=self.order or "label", seed=seed)
        whole = dataset_sizes(dataset)
        return (whole._replace(shape=(whole.inputs,)),)

    def train_sizes(self) -> set[int]:
        """Training samples that a task has; where the seed draws its classes, the least that it can have."""
        if self.classes is not None and self.order == "shuffled":
            least = sum(sorted(class_counts(str(self.dataset), test=False))[: self.classes])
            return {least if self.samples is None else min(least, self.samples)}
        return {sizes.train for sizes in self.sizes(0)}

    @field_validator("dataset")
    @classmethod
    def _dataset_of_ours(cls, dataset: str | None, info: ValidationInfo) -> str | None:
        if "kind" not in info.data:
            return dataset
        if is_own(info.data["kind"]):
            _refuse_given(dataset, "your function brings its own data")
            return None
        if info.data["kind"] in _MADE_FROM:
            made_from = " and ".join(_MADE_FROM[info.data["kind"]])
            _refuse_given(dataset, f"{info.data['kind']} is made from {made_from}")
            return None
        return dataset or "digits"

    @field_validator("classes")
    @classmethod
    def _classes_of_split(cls, classes: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("kind") == "split":
            if classes is None:
                raise refusal(CLASSES)
        elif "kind" in info.data:
            _refuse_given(classes, "it belongs to kind: split")
        return classes

    @field_validator("order")
    @classmethod
    def _order_of_classes(cls, order: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("kind") in ("split", "split-cifar"):
            return order or "label"
        if "kind" in info.data:
            _refuse_given(order, "it belongs to kind: split and kind: split-cifar")
        return order

    @field_validator("samples")
    @classmethod
    def _samples_of_ours(cls, samples: int | None, info: ValidationInfo) -> int | None:
        if is_own(info.data.get("kind", "")):
            _refuse_given(samples, "your function brings its own data")
        return samples

    @field_validator("count")
    @classmethod
    def _enough_classes(cls, count: int, info: ValidationInfo) -> int:
        kind = info.data.get("kind")
        try:
            if kind in _SIZES_OF:
                _SIZES_OF[kind](count)
            elif kind == "split" and {"dataset", "classes"} <= info.data.keys():
                split_sizes(info.data["dataset"], classes=info.data["classes"], count=count)
        except ValueError as error:
            raise refusal(str(error)) from None
        return count

    @field_validator("options")
    @classmethod
    def _options_of_own(cls, options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return _of_own(options, info)


class Model(Section):
    """The network."""

    kind: Annotated[str, or_own("mlp", _NARROW, _WIDE)] = Field(
        default="mlp",
        description=f"mlp: dense layers with ReLU. {_NARROW} and {_WIDE}: the networks of Tables 2 and 3. "
        "module:function: a function of your own that returns a torch module.",
    )
    hidden: Annotated[tuple[Count, ...], listed("widths, one a hidden layer")] | None = Field(
        default=None,
        validate_default=True,
        description="Of mlp: units of each hidden layer, from the input on. Left out: 128 and 128.",
    )
    width: Width | None = Field(
        default=None,
        validate_default=True,
        description=f"Of {_NARROW} and {_WIDE}: every layer's units are multiplied by it. Left out: 1.",
    )
    options: Options | None = Field(default=None, description="What a function of your own is called with.")

    @property
    def own(self) -> bool:
        """Whether a person's own function makes it."""
        return is_own(self.kind)

    @property
    def without_norms(self) -> bool:
        """Whether it is known to have no BatchNorm."""
        return self.kind in ("mlp", _NARROW)

    @property
    def layer_names(self) -> tuple[str, ...] | None:
        """The layers of an mlp, the output layer last: ``("hidden1", …, "output")``; None where only torch knows."""
        if self.hidden is None:
            return None
        return (*(f"hidden{place}" for place in range(1, len(self.hidden) + 1)), "output")

    @field_validator("hidden")
    @classmethod
    def _hidden_of_mlp(cls, hidden: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if info.data.get("kind", "mlp") == "mlp":
            return hidden or (128, 128)
        _refuse_given(hidden, "it belongs to kind: mlp")
        return None

    @field_validator("width")
    @classmethod
    def _width_of_the_paper_s(cls, width: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("kind") in (_NARROW, _WIDE):
            return width or 1.0
        if "kind" in info.data:
            _refuse_given(width, f"it belongs to {_NARROW} and {_WIDE}")
        return width

    @field_validator("options")
    @classmethod
    def _options_of_own(cls, options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return _of_own(options, info)


def _of_own(options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
    if "kind" in info.data and not is_own(info.data["kind"]):
        _refuse_given(options, "it belongs to a function of your own (kind: module:function)")
    return options


def _refuse_given(value: object, why: str) -> None:
    if value is not None:
        raise refusal(f"{why}: leave it out")


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


class AfterFirst(Section):
    """The grid of the second task and those after it."""

    alpha: _Alphas | None = Field(default=None, description="As grid.alpha; left out, the same as there.")
    learning_rate: _LearningRates | None = Field(
        default=None, description="As grid.learning_rate; left out, the same as there."
    )


def _after_first(value: object) -> object:
    if isinstance(value, Mapping):
        return AfterFirst.model_validate(value)
    if value is None or value == "winner" or isinstance(value, AfterFirst):
        return value
    raise refusal("give winner, or a section with alpha, learning_rate or both; leave it out for the same grid")


class Grid(Section):
    """What is tried on each task: every α with every learning rate."""

    alpha: _Alphas = Field(
        default=(5e-4, 1e-3, 2e-3),
        description="Coefficients of the L1 term on free weights. Each entry: one value, or one a layer, output last.",
    )
    learning_rate: _LearningRates = Field(default=(5e-3, 1e-2), description="Learning rates of the optimizer.")
    after_first: Annotated[AfterFirst | Literal["winner"] | None, BeforeValidator(_after_first)] = Field(
        default=None, description="Another grid from the second task on, or winner: the first task's choice alone."
    )

    def axes(self, task: int) -> tuple[tuple[float | tuple[float, ...], ...], tuple[float, ...]]:
        """The α entries and the learning rates of a task.

        A later task under ``winner`` has but one cell, which is known when the first is committed: the axes that it is
        chosen from are given.
        """
        later = self.after_first
        if task == 0 or not isinstance(later, AfterFirst):
            return self.alpha, self.learning_rate
        return later.alpha or self.alpha, later.learning_rate or self.learning_rate

    def problems(self, layers: tuple[str, ...] | None) -> Iterator[tuple[Path, object, str]]:
        """What does not fit the layers (where these are known), and what stands twice: path, value, how to mend it."""
        yield from _axis_problems(("alpha",), self.alpha, layers)
        yield from _axis_problems(("learning_rate",), self.learning_rate, layers)
        if isinstance(self.after_first, AfterFirst):
            yield from _axis_problems(("after_first", "alpha"), self.after_first.alpha or (), layers)
            yield from _axis_problems(("after_first", "learning_rate"), self.after_first.learning_rate or (), layers)


def spread(alpha: float | tuple[float, ...], layers: int) -> tuple[float, ...]:
    """One α a layer, of an entry of a grid."""
    return alpha if isinstance(alpha, tuple) else (alpha,) * layers


def _one_a_layer(layers: tuple[str, ...]) -> str:
    return f"give one value, or {len(layers)}: one for each of {', '.join(layers)}"


def _axis_problems(
    path: Path, axis: tuple[Any, ...], layers: tuple[str, ...] | None
) -> Iterator[tuple[Path, object, str]]:
    first: dict[Any, int] = {}
    for place, entry in enumerate(axis):
        if layers and isinstance(entry, tuple) and len(entry) != len(layers):
            yield (*path, place), entry, _one_a_layer(layers)
            continue
        same = spread(entry, len(layers)) if layers and path[-1] == "alpha" else entry
        if same in first:
            yield (*path, place), entry, f"it makes the same cells as entry [{first[same]}]; keep one of them"
        first.setdefault(same, place)


class Training(Section):
    """How a cell is trained."""

    epochs: Count = Field(
        default=30, description="Epochs a task. Sparsity grows with them, long after accuracy has settled."
    )
    batch_size: Count = Field(default=32, description="Samples a step.")
    optimizer: Annotated[_Optimizer, choice(_Optimizer)] = Field(default="adam", description="adam, adamw or sgd.")
    momentum: Momentum = Field(default=0.0, description="Momentum of sgd.")
    weight_decay: Penalty = Field(
        default=0.0, description="Decoupled weight decay of adamw, on free weights alone: not on biases or BatchNorm."
    )
    norm_alpha: Penalty = Field(
        default=0.0,
        description="L1 coefficient of free BatchNorm channels' scales and shifts, where channels hardly fall silent.",
    )
    early_stopping: Flag = Field(
        default=False,
        description="Keep the first epoch of best validation accuracy. It undoes sparsity that comes later.",
    )
    patience: Count | None = Field(
        default=None,
        description="With early_stopping: end after so many epochs without a better one. Left out: train them all.",
    )

    @field_validator("momentum")
    @classmethod
    def _sgd_only(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("optimizer", "sgd") != "sgd":
            raise refusal(f"{info.data['optimizer']} has no momentum: leave it out, or give optimizer: sgd")
        return momentum

    @field_validator("weight_decay")
    @classmethod
    def _adamw_only(cls, decay: float, info: ValidationInfo) -> float:
        if decay and info.data.get("optimizer", "adamw") != "adamw":
            raise refusal(f"{info.data['optimizer']} has no decoupled decay: leave it out, or give optimizer: adamw")
        return decay

    @field_validator("patience")
    @classmethod
    def _early_stopping_only(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("early_stopping") is False:
            raise refusal("it does nothing without early_stopping: leave it out, or give early_stopping: true")
        return patience


class Rule(Section):
    """Graceful forgetting (Sec. 2.2): which trial is committed, and how far it is pruned."""

    kind: Annotated[_RuleKind, choice(_RuleKind)] = Field(
        default="margin",
        description="margin: the rule of the paper, the sparsest within a margin. budget: the most accurate whose new "
        "units fit an equal share of what is left for the tasks to come.",
    )
    margin: Margin | None = Field(
        default=None,
        validate_default=True,
        description="Of margin: percentage points of validation accuracy given up on purpose, one value or one a task. "
        "Left out: 1.",
    )
    tasks: Count | None = Field(
        default=None, validate_default=True, description="Of budget: for how many tasks the units are to last."
    )
    floor: Percent | None = Field(
        default=None,
        validate_default=True,
        description="Of budget: percentage points of validation accuracy that are given up at most. Left out: 2.",
    )
    sparsity: Annotated[_Sparsity, choice(_Sparsity)] = Field(
        default="units", description="The sparsest has the fewest new units, or leaves the most free weights."
    )
    theta: Annotated[_Theta, choice(_Theta)] = Field(
        default="shared",
        description="shared: one threshold for all layers. layers: units go in the order of their activity divided by "
        "their layer's scale, so that a layer of small activities is not cut first.",
    )

    @field_validator("margin")
    @classmethod
    def _margin_of_margin(
        cls, margin: float | tuple[float, ...] | None, info: ValidationInfo
    ) -> float | tuple[float, ...] | None:
        if info.data.get("kind") == "budget":
            _refuse_given(margin, "the budget rule has floor instead")
            return None
        return 1.0 if margin is None else margin

    @field_validator("tasks")
    @classmethod
    def _tasks_of_budget(cls, tasks: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("kind") == "budget":
            if tasks is None:
                raise refusal("give for how many tasks the units are to last, such as 25")
        elif "kind" in info.data:
            _refuse_given(tasks, "it belongs to kind: budget")
        return tasks

    @field_validator("floor")
    @classmethod
    def _floor_of_budget(cls, floor: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("kind") == "budget":
            return 2.0 if floor is None else floor
        if "kind" in info.data:
            _refuse_given(floor, "it belongs to kind: budget")
        return floor


class FineTuning(Section):
    """Fine-tuning (Sec. 3.2): the winner is pruned, and what is left of it is trained again on the same task."""

    epochs: Count = Field(default=20, description="Epochs of a round.")
    learning_rate: LearningRate = Field(default=1e-4, description="Learning rate of a round.")
    alpha: LayerAlpha = Field(default=5e-5, description="L1 coefficient of a round: one value, or one a layer.")
    rounds: Count = Field(
        default=1,
        description="How often it is pruned and trained again; it ends early once nothing more can be pruned.",
    )
    margin: Margin | None = Field(
        default=None,
        description="Percentage points of validation accuracy given up by pruning, which fine-tuning may win back. "
        "Left out: rule.margin.",
    )

    def problems(self, layers: tuple[str, ...] | None) -> Iterator[tuple[Path, object, str]]:
        """What does not fit the layers (where these are known): path, value, how to mend it."""
        if layers and isinstance(self.alpha, tuple) and len(self.alpha) != len(layers):
            yield ("alpha",), self.alpha, _one_a_layer(layers)


class Worker(Section):
    """What one worker gets."""

    cpu: Count = Field(default=1, description="CPU cores, and threads, of a worker.")
    gpu: Gpus = Field(
        default="auto", description="GPUs of a worker; auto takes one where there is one. A share such as 0.5 too."
    )
    cells: OrAuto = Field(
        default="auto", description="At most so many cells train as one stack; auto goes by size and device."
    )
