"""The sections of an experiment file, each with its keys, their defaults and what they are for."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from search.fields import (
    Count,
    Flag,
    Gpus,
    LayerAlpha,
    LearningRate,
    Margin,
    Momentum,
    OrAuto,
    choice,
    listed,
    refusal,
)
from search.yaml_file import Path

__all__ = ["AfterFirst", "Grid", "Model", "Rule", "Section", "Tasks", "Training", "Worker", "spread"]

_TasksKind = Literal["permuted"]
_Dataset = Literal["digits", "mnist", "fashion-mnist"]
_ModelKind = Literal["mlp"]
_Optimizer = Literal["adam", "sgd"]
_RuleKind = Literal["margin"]
_Sparsity = Literal["units", "weights"]
_Theta = Literal["shared"]

_Alphas = Annotated[tuple[LayerAlpha, ...], listed("α values (each one number, or a list with one a layer)")]
_LearningRates = Annotated[tuple[LearningRate, ...], listed("learning rates")]


class Section(BaseModel):
    """A part of an experiment file: fixed once read, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tasks(Section):
    """The sequence of tasks."""

    kind: Annotated[_TasksKind, choice(_TasksKind)] = Field(
        default="permuted",
        description="How tasks come from the data set: permuted gives each its own order of the pixels.",
    )
    dataset: Annotated[_Dataset, choice(_Dataset)] = Field(
        default="digits", description="The data set: digits (ships with scikit-learn), mnist or fashion-mnist."
    )
    count: Count = Field(default=5, description="How many tasks are learnt, one after another. May grow later.")


class Model(Section):
    """The network, of fixed size."""

    kind: Annotated[_ModelKind, choice(_ModelKind)] = Field(default="mlp", description="mlp: dense layers with ReLU.")
    hidden: Annotated[tuple[Count, ...], listed("widths, one a hidden layer")] = Field(
        default=(128, 128), description="Units of each hidden layer, from the input on."
    )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers from the input on, the output layer last: ``("hidden1", …, "output")``."""
        return (*(f"hidden{place}" for place in range(1, len(self.hidden) + 1)), "output")


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


def _axis_problems(
    path: Path, axis: tuple[Any, ...], layers: tuple[str, ...] | None
) -> Iterator[tuple[Path, object, str]]:
    first: dict[Any, int] = {}
    for place, entry in enumerate(axis):
        if layers and isinstance(entry, tuple) and len(entry) != len(layers):
            yield (*path, place), entry, f"give one value, or {len(layers)}: one for each of {', '.join(layers)}"
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
    optimizer: Annotated[_Optimizer, choice(_Optimizer)] = Field(default="adam", description="adam or sgd.")
    momentum: Momentum = Field(default=0.0, description="Momentum of sgd.")
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
        if momentum and info.data.get("optimizer") == "adam":
            raise refusal("adam has no momentum: leave it out, or give optimizer: sgd")
        return momentum

    @field_validator("patience")
    @classmethod
    def _early_stopping_only(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("early_stopping") is False:
            raise refusal("it does nothing without early_stopping: leave it out, or give early_stopping: true")
        return patience


class Rule(Section):
    """Graceful forgetting (Sec. 2.2): which trial is committed, and how far it is pruned."""

    kind: Annotated[_RuleKind, choice(_RuleKind)] = Field(
        default="margin", description="margin: the rule of the paper."
    )
    margin: Margin = Field(
        default=1.0,
        description="Percentage points of validation accuracy given up on purpose: one value, or one a task.",
    )
    sparsity: Annotated[_Sparsity, choice(_Sparsity)] = Field(
        default="units", description="The sparsest has the fewest new units, or leaves the most free weights."
    )
    theta: Annotated[_Theta, choice(_Theta)] = Field(
        default="shared", description="shared: one threshold for all layers."
    )


class Worker(Section):
    """What one worker gets."""

    cpu: Count = Field(default=1, description="CPU cores, and threads, of a worker.")
    gpu: Gpus = Field(
        default="auto", description="GPUs of a worker; auto takes one where there is one. A share such as 0.5 too."
    )
    cells: OrAuto = Field(
        default="auto", description="At most so many cells train as one stack; auto goes by size and device."
    )
