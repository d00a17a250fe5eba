"""The section of the grid."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from search.fields import LayerAlpha, LearningRate, listed, refusal
from search.sections.base import Section
from search.yaml_file import Path

__all__ = ["AfterFirst", "Grid", "one_a_layer", "spread"]

_Alphas = Annotated[tuple[LayerAlpha, ...], listed("α values (each one number, or a list with one a layer)")]
_LearningRates = Annotated[tuple[LearningRate, ...], listed("learning rates")]


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


def one_a_layer(layers: tuple[str, ...]) -> str:
    return f"give one value, or {len(layers)}: one for each of {', '.join(layers)}"


def _axis_problems(
    path: Path, axis: tuple[Any, ...], layers: tuple[str, ...] | None
) -> Iterator[tuple[Path, object, str]]:
    first: dict[Any, int] = {}
    for place, entry in enumerate(axis):
        if layers and isinstance(entry, tuple) and len(entry) != len(layers):
            yield (*path, place), entry, one_a_layer(layers)
            continue
        same = spread(entry, len(layers)) if layers and path[-1] == "alpha" else entry
        if same in first:
            yield (*path, place), entry, f"it makes the same cells as entry [{first[same]}]; keep one of them"
        first.setdefault(same, place)
