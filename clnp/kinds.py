"""The modules that an exported network may have: what each is built with, and what the values may be."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clnp.subnetwork import Select

__all__ = ["KINDS", "Add", "Check", "Kind", "argument", "build", "flag", "literal", "whole"]

_LARGEST = 2**31 - 1

Check = Callable[[Any], bool]
"""Whether a value may be one."""


class Add(nn.Module):
    """What an addition of two values becomes."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


def whole(least: int) -> Check:
    """A whole number of at least so much."""
    return lambda value: type(value) is int and least <= value <= _LARGEST


def _number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or whole(-_LARGEST)(value)


def flag(value: Any) -> bool:
    """True or false."""
    return type(value) is bool


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def literal(*values: str | None) -> Check:
    """One of these words."""
    return lambda value: (value is None or type(value) is str) and value in values


def _pair(check: Check) -> Check:
    return lambda value: type(value) is tuple and len(value) == 2 and all(map(check, value))


def _sides(check: Check) -> Check:
    """One number for both sides of a map, or one for each."""
    return _either(check, _pair(check))


@dataclass(frozen=True, slots=True)
class Kind:
    """A module that may occur.

    Attributes:
        type: Its class, exactly: a subclass may compute anything.
        arguments: What it is built with, each an attribute of the module, and what its value may be.
        fixed: Attributes that must have this value, the one a module is built with when nothing is said.
        inputs: How many tensors it reads.
    """

    type: type[nn.Module]
    arguments: Mapping[str, Check] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    inputs: int = 1


_some, _any, _none = whole(1), whole(0), literal(None)
_norm = Kind(
    nn.BatchNorm1d,
    {"num_features": _some, "eps": _number, "momentum": _either(_number, _none), "affine": flag},
    {"track_running_stats": True},
)
KINDS = {
    "Linear": Kind(nn.Linear, {"in_features": _some, "out_features": _some, "bias": flag}),
    "Conv2d": Kind(
        nn.Conv2d,
        {
            "in_channels": _some,
            "out_channels": _some,
            "kernel_size": _sides(_some),
            "stride": _sides(_some),
            "padding": _either(_sides(_any), literal("same", "valid")),
            "dilation": _sides(_some),
            "bias": flag,
        },
        {"groups": 1, "padding_mode": "zeros"},
    ),
    "BatchNorm1d": _norm,
    "BatchNorm2d": Kind(nn.BatchNorm2d, _norm.arguments, _norm.fixed),
    "ReLU": Kind(nn.ReLU, {"inplace": flag}),
    "LeakyReLU": Kind(nn.LeakyReLU, {"negative_slope": _number, "inplace": flag}),
    "GELU": Kind(nn.GELU, {"approximate": literal("none", "tanh")}),
    "SiLU": Kind(nn.SiLU, {"inplace": flag}),
    "MaxPool2d": Kind(
        nn.MaxPool2d,
        {
            "kernel_size": _sides(_some),
            "stride": _sides(_some),
            "padding": _sides(_any),
            "dilation": _sides(_some),
            "ceil_mode": flag,
        },
        {"return_indices": False},
    ),
    "AvgPool2d": Kind(
        nn.AvgPool2d,
        {
            "kernel_size": _sides(_some),
            "stride": _sides(_some),
            "padding": _sides(_any),
            "ceil_mode": flag,
            "count_include_pad": flag,
            "divisor_override": _either(_some, _none),
        },
    ),
    "AdaptiveAvgPool2d": Kind(nn.AdaptiveAvgPool2d, {"output_size": _either(_some, _pair(_either(_some, _none)))}),
    "Dropout": Kind(nn.Dropout, {"p": _number, "inplace": flag}),
    "Identity": Kind(nn.Identity),
    "Flatten": Kind(nn.Flatten, {"start_dim": whole(-_LARGEST), "end_dim": whole(-_LARGEST)}),
    "Select": Kind(Select, {"units": _some}),
    "Add": Kind(Add, inputs=2),
}
"""By the names that files have for them."""


def argument(module: nn.Module, name: str) -> Any:
    """What a module was built with."""
    if isinstance(module, Select):
        return len(module.index)
    value = getattr(module, name)
    return value is not None if name == "bias" else value


def build(kind: Kind, arguments: Mapping[str, Any]) -> nn.Module:
    """The module without numbers, on the meta device."""
    if kind.type is Select:
        return Select(torch.empty(arguments["units"], dtype=torch.int64, device="meta"))
    with torch.device("meta"):
        return kind.type(**arguments).eval()
