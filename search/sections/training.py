"""The sections of training, and of training again."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from search.fields import (
    Count,
    Epochs,
    Flag,
    LayerAlpha,
    LearningRate,
    Margin,
    Momentum,
    Penalty,
    Percent,
    choice,
    refusal,
)
from search.sections.base import Section
from search.sections.grid import one_a_layer
from search.yaml_file import Path

__all__ = ["FineTuning", "Training"]

_BEHIND = 5.0
"""Points: of 33 winners on the digits one was further behind after epoch 10 of 30. More than the margin of the task,
one point, 11 of them were (tests/benchmarks/halving.py)."""

_Optimizer = Literal["adam", "adamw", "sgd"]
_Precision = Literal["float32", "tf32", "bf16"]


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
    halving: Epochs = Field(
        default=(),
        description="Epochs after which those of the worse half of a stack that are too far behind its best are "
        "dropped. Left out: every cell trains to its end.",
    )
    halving_margin: Percent | None = Field(
        default=None,
        validate_default=True,
        description="With halving: by more than so many percentage points of validation accuracy is too far behind, "
        "and never within the margin of the task. Left out: 5.",
    )
    precision: Annotated[_Precision, choice(_Precision)] = Field(
        default="float32",
        description="float32, tf32 (GPUs alone) or bf16: of products in training steps. What is scored is float32.",
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

    @field_validator("halving")
    @classmethod
    def _before_the_end(cls, halving: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        epochs = info.data.get("epochs")
        if epochs is not None and halving and halving[-1] >= epochs:
            raise refusal(f"of {epochs} epochs (training.epochs) some must be left after the last of them")
        return halving

    @field_validator("halving_margin")
    @classmethod
    def _halving_only(cls, margin: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("halving"):
            return _BEHIND if margin is None else margin
        if margin is not None and "halving" in info.data:
            raise refusal("it does nothing without halving: leave it out, or give halving: [5, 10], say")
        return margin


class FineTuning(Section):
    """Fine-tuning (Sec. 3.2): the winner is pruned, and what is left of it is trained again on the same task.

    Optimizer, batches, weight decay and L1 on BatchNorms are those of the training.
    """

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
            yield ("alpha",), self.alpha, one_a_layer(layers)
