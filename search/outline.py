"""The outline of an experiment: of its network and its tasks what the orchestration needs, in plain data, no torch."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

__all__ = ["GroupSize", "LayerSize", "Outline", "architecture_of", "of_mlp"]


@dataclass(frozen=True, slots=True)
class GroupSize:
    """A hidden group of units before the first task; in a chain of layers it has its layer's name."""

    name: str
    units: int


@dataclass(frozen=True, slots=True)
class LayerSize:
    """A layer with weights.

    Attributes:
        weights: How many it multiplies with: no biases.
        source: The hidden group that it reads; None where it reads the samples.
        group: The hidden group that it computes, which several layers may; None for the output layer.
    """

    name: str
    weights: int
    source: str | None
    group: str | None


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of network and tasks before anything is trained.

    Attributes:
        shape: Of one sample, without the batch: ``(64,)`` or ``(3, 32, 32)``.
        classes: Of a task.
        layers: The layers with weights in α's order, the output layer last.
        groups: The hidden groups, in the order of their first layer.
        entries, head: Numbers that a network with one head has, and that a head has: biases and BatchNorm included.
        train, validation: Samples of the first task's splits.
        architecture: SHA-256 of what the network computes, its names included: two networks that have the same one
            train to the same bits.
    """

    shape: tuple[int, ...]
    classes: int
    layers: tuple[LayerSize, ...]
    groups: tuple[GroupSize, ...]
    entries: int
    head: int
    train: int
    validation: int
    architecture: str

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers in α's order, the output layer last: ``("hidden1", …, "output")``."""
        return tuple(layer.name for layer in self.layers)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The hidden groups in the order of claims."""
        return tuple(group.name for group in self.groups)

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each hidden group before the first task."""
        return tuple(group.units for group in self.groups)

    @property
    def weights(self) -> int:
        """How many weights one network has, biases and all but one head left out."""
        return sum(layer.weights for layer in self.layers)

    @property
    def last(self) -> int:
        """The place of the hidden group that the output layer reads."""
        return self.group_names.index(str(self.layers[-1].source))

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; :meth:`from_json` gives an equal one."""
        found: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return found

    @classmethod
    def from_json(cls, data: object) -> "Outline":
        """The outline that :meth:`to_json` wrote.

        Raises:
            ValueError: It is none.
        """
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"the recorded outline cannot be read ({place}: {first['msg']})") from None


_ADAPTER = TypeAdapter(Outline)


def of_mlp(shape: Sequence[int], hidden: Sequence[int], classes: int, *, train: int, validation: int) -> Outline:
    """The outline of :func:`clnp.models.mlp`, computed from its widths alone.

    Args:
        train, validation: Samples of the first task's splits.
    """
    names = (*(f"hidden{place}" for place in range(1, len(hidden) + 1)), "output")
    widths = (math.prod(shape), *hidden, classes)
    sources = (None, *names[:-1])
    layers = tuple(
        LayerSize(name, inputs * units, source, None if name == "output" else name)
        for name, source, (inputs, units) in zip(names, sources, itertools.pairwise(widths), strict=True)
    )
    weights = sum(layer.weights for layer in layers)
    return Outline(
        shape=tuple(shape),
        classes=classes,
        layers=layers,
        groups=tuple(GroupSize(name, units) for name, units in zip(names[:-1], hidden, strict=True)),
        entries=weights + sum(widths[1:]),
        head=classes * (widths[-2] + 1),
        train=train,
        validation=validation,
        architecture=architecture_of(["mlp", list(shape), list(hidden), classes]),
    )


def architecture_of(description: object) -> str:
    """SHA-256 of a network's description in JSON-able data."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
