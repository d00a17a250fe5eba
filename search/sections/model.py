"""The section of the network."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from search.fields import Count, Options, Width, is_own, listed, or_own
from search.sections.base import Section, of_own, refuse_given

__all__ = ["Model"]

_NARROW, _WIDE = "split-cifar-narrow", "split-cifar-wide"


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
        refuse_given(hidden, "it belongs to kind: mlp")
        return None

    @field_validator("width")
    @classmethod
    def _width_of_the_paper_s(cls, width: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("kind") in (_NARROW, _WIDE):
            return width or 1.0
        if "kind" in info.data:
            refuse_given(width, f"it belongs to {_NARROW} and {_WIDE}")
        return width

    @field_validator("options")
    @classmethod
    def _options_of_own(cls, options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return of_own(options, info)
