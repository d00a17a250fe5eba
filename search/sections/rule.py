"""The section of the rule."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from search.fields import Count, Margin, Percent, choice, refusal
from search.sections.base import Section, refuse_given

__all__ = ["Rule"]

_RuleKind = Literal["margin", "budget"]
_Sparsity = Literal["units", "weights"]
_Theta = Literal["shared", "layers"]


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
            refuse_given(margin, "the budget rule has floor instead")
            return None
        return 1.0 if margin is None else margin

    @field_validator("tasks")
    @classmethod
    def _tasks_of_budget(cls, tasks: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("kind") == "budget":
            if tasks is None:
                raise refusal("give for how many tasks the units are to last, such as 25")
        elif "kind" in info.data:
            refuse_given(tasks, "it belongs to kind: budget")
        return tasks

    @field_validator("floor")
    @classmethod
    def _floor_of_budget(cls, floor: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("kind") == "budget":
            return 2.0 if floor is None else floor
        if "kind" in info.data:
            refuse_given(floor, "it belongs to kind: budget")
        return floor
