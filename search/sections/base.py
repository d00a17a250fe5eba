"""What all sections of an experiment file are."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo

from search.fields import given, is_own

__all__ = ["Section", "of_own", "refuse_given"]


class Section(BaseModel):
    """A part of an experiment file: fixed once read, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def of_own(options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
    """The options of a person's own function; from within a validator they are refused for any other kind."""
    if "kind" in info.data and not is_own(info.data["kind"]):
        refuse_given(options, "it belongs to a function of your own (kind: module:function)")
    return options


def refuse_given(value: object, why: str) -> None:
    """Refuse a value that is given, from within a validator."""
    if value is not None:
        raise given(why)
