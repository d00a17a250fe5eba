"""A network as a graph: nodes in the order in which they compute, and the groups of units that they belong to."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["INPUT", "Add", "Graph", "Group", "Layer", "Node", "Norm", "Plain"]

INPUT = -1
"""The place of the network's input among the nodes."""


@dataclass(frozen=True, slots=True)
class Group:
    """Units with one owner each: what one layer computes, or several whose outputs are added.

    ``name`` is that of the first layer that computes it.
    """

    name: str
    units: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer or a convolution.

    Attributes:
        name: Its path in the module, such as ``layer1.0.conv1``.
        kind: ``"dense"`` or ``"conv"``.
        group: The name of the group that it computes.
        source: The name of the group that it reads, or None where it reads the network's input.
        inputs: Features, or channels, of a sample that it reads.
        units: Outputs, or output channels.
        bias: Whether it has one.
        positions: Features that it reads of each unit of its source: unit c of a flattened map of H × W has the
            features c·H·W to (c+1)·H·W − 1. 1 for a convolution.
        kernel, stride, dilation, padding: Of a convolution; empty for a dense layer.
    """

    name: str
    kind: Literal["dense", "conv"]
    group: str
    source: str | None
    inputs: int
    units: int
    bias: bool
    positions: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weight: ``(units, inputs, *kernel)``."""
        return (self.units, self.inputs, *self.kernel)

    @property
    def fan_in(self) -> int:
        """How many weights a unit has."""
        return self.inputs * math.prod(self.kernel)

    def columns(self, units: Tensor) -> Tensor:
        """A mask of the source's units ``[source units]`` as a mask of the features that the layer reads."""
        return units if self.positions == 1 else units.repeat_interleave(self.positions)

    def blank(self, device: torch.device, dtype: torch.dtype) -> nn.Linear | nn.Conv2d:
        """The layer as torch has it, every entry 0."""
        # Made without memory, so that no global random state is spent on weights that nobody uses.
        empty = self.module(self.inputs, self.units, dtype)
        blank = empty.to_empty(device=device).requires_grad_(False)
        for parameter in blank.parameters():
            parameter.zero_()
        return blank

    def module(self, inputs: int, units: int, dtype: torch.dtype) -> nn.Linear | nn.Conv2d:
        """A layer of the same kind and another width, on the meta device: nothing is drawn or allocated."""
        if self.kind == "dense":
            return nn.Linear(inputs, units, bias=self.bias, device="meta", dtype=dtype)
        return nn.Conv2d(
            inputs,
            units,
            self.kernel,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            bias=self.bias,
            device="meta",
            dtype=dtype,
        )


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNorm over the channels of a group; ``dims`` is 1 after a dense layer and 2 after a convolution."""

    name: str
    group: str
    units: int
    dims: Literal[1, 2]
    eps: float
    momentum: float
    affine: bool

    def blank(self, units: int, device: torch.device, dtype: torch.dtype) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """As torch has it, with ``units`` channels: scale and variance 1, shift and mean 0."""
        kind = nn.BatchNorm1d if self.dims == 1 else nn.BatchNorm2d
        norm = kind(units, self.eps, self.momentum, self.affine, device=device, dtype=dtype)
        return norm.requires_grad_(False).eval()


@dataclass(frozen=True, slots=True)
class Plain:
    """A module without entries that treats every unit alone: an activation, a pooling, a Flatten or a Dropout."""

    kind: type[nn.Module]
    arguments: tuple[tuple[str, object], ...] = ()

    def module(self) -> nn.Module:
        return self.kind(**dict(self.arguments)).eval()

    @property
    def moves(self) -> bool:
        """Whether it leaves every number as it is, or picks and averages them: no new activation."""
        return self.kind in _MOVES


_MOVES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of its inputs, which so share their units."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a network.

    Attributes:
        name: For messages.
        op: What it computes.
        inputs: The places of the nodes that it reads, :data:`INPUT` for the network's input.
        group: The group whose units its outputs are, or None for the network's input.
    """

    name: str
    op: Layer | Norm | Plain | Add
    inputs: tuple[int, ...]
    group: str | None


class Graph:
    """The nodes of a network, each after those that it reads; the last one gives the logits.

    Attributes:
        nodes: In the order in which they compute.
        groups: The hidden groups, in the order of their first layer.
        layers: Those with weights in the same order, the output layer last.
        norms: In order.
    """

    def __init__(self, nodes: Sequence[Node], groups: Sequence[Group]) -> None:
        self.nodes = tuple(nodes)
        self.groups = tuple(groups)
        found = [node.op for node in self.nodes if isinstance(node.op, Layer)]
        # The output layer is the one of the group that the logits are in.
        self.layers = tuple(sorted(found, key=lambda layer: layer.group == self.nodes[-1].group))
        self.norms = tuple(node.op for node in self.nodes if isinstance(node.op, Norm))

    @property
    def output(self) -> Layer:
        """The output layer."""
        return self.layers[-1]

    def readers(self, group: str) -> tuple[Layer, ...]:
        """The layers that read a group."""
        return tuple(layer for layer in self.layers if layer.source == group)

    @property
    def chain(self) -> bool:
        """Whether every node reads the one before it and nothing else."""
        return all(node.inputs == (place - 1,) for place, node in enumerate(self.nodes))

    def given(self, place: int) -> bool:
        """Whether a value is the network's input, as it is or flattened."""
        while place != INPUT and isinstance(op := self.nodes[place].op, Plain) and op.kind in (nn.Flatten, nn.Identity):
            place = self.nodes[place].inputs[0]
        return place == INPUT

    @cached_property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """By group, the places of the nodes whose outputs its readers get, before pooling: where units are active."""
        found: dict[str, dict[int, None]] = {group.name: {} for group in self.groups}
        for node in self.nodes:
            if isinstance(node.op, Layer) and node.op.source is not None:
                place = node.inputs[0]
                while isinstance(op := self.nodes[place].op, Plain) and op.moves:
                    place = self.nodes[place].inputs[0]
                found[node.op.source][place] = None
        return {name: tuple(places) for name, places in found.items()}

    def walk(self, x: Tensor, apply: Callable[[Node, Sequence[Tensor]], Tensor]) -> Iterator[tuple[int, Node, Tensor]]:
        """Every node's place, itself and its value, as ``apply`` computes it; a value goes after its last reader."""
        values = {INPUT: x}
        for place, node in enumerate(self.nodes):
            values[place] = apply(node, [values[read] for read in node.inputs])
            yield place, node, values[place]
            for read in self.done[place]:
                del values[read]

    def run(self, x: Tensor, apply: Callable[[Node, Sequence[Tensor]], Tensor]) -> Tensor:
        """The value of the last node."""
        for _, _, value in self.walk(x, apply):
            result = value
        return result

    @cached_property
    def done(self) -> list[list[int]]:
        """For each node the places of the values that nobody reads after it."""
        last = {read: place for place, node in enumerate(self.nodes) for read in node.inputs}
        return [[read for read, at in last.items() if at == place] for place in range(len(self.nodes))]
