"""A :class:`Network` made from a plain :class:`torch.nn.Sequential`: its unit layers and how they connect."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clnp.errors import UnsupportedNetwork

__all__ = ["FREE", "Head", "Layer", "Network"]

FREE = -1
"""The owner of a unit that no task has claimed."""

Head = Literal["single", "multi"]

_SUPPORTED = "a network is Linear and ReLU in turn and ends with a Linear"

_RESERVED = frozenset(dir(nn.ModuleDict))


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer: ``units`` outputs, each reading ``inputs`` inputs."""

    name: str
    inputs: int
    units: int
    bias: bool


class Network(nn.Module):
    """A network of fixed width whose units are claimed by task after task.

    ::

        x [batch, inputs] → hidden 1 → ReLU → … → hidden n → ReLU → mask of the task → output layer → logits

    The output layer is shared by all tasks (``head="single"``: the last hidden layer is masked, task t reads only the
    units that t itself claimed there) or there is one a task (``head="multi"``), Sec. 2.1 and Fig. 2 of the paper.

    Every hidden layer has an owner a unit, a buffer of shape ``[units]`` that holds the task's index or :data:`FREE`.
    The three weight classes are derived from the owners (:mod:`clnp.ownership`), never stored.

    Args:
        module: Linear and ReLU in turn, ending with the Linear that gives the logits. Names, sizes, dtype and device
            are taken from it, its weights are not: every task begins from weights that its seed draws.
        head: ``"single"`` or ``"multi"``.

    Raises:
        UnsupportedNetwork: A layer of another kind, widths that do not fit, no hidden layer, tied weights, a forward
            hook, another dtype than float32 or float64, or more than one.
    """

    committed: Tensor

    def __init__(self, module: nn.Sequential, *, head: Head = "single") -> None:
        super().__init__()
        if head not in ("single", "multi"):
            raise UnsupportedNetwork(f'head is {head!r}; it can be "single" or "multi"')
        self.head: Head = head
        self.layers = _read_layers(module)
        like = next(module.parameters())
        kept = self.layers if head == "single" else self.layers[:-1]
        self.dense = nn.ModuleDict({layer.name: _blank(layer, like.device, like.dtype) for layer in kept})
        self.heads = nn.ModuleDict()
        for layer in self.hidden:
            owners = torch.full((layer.units,), FREE, dtype=torch.int64, device=like.device)
            self.register_buffer(_buffer(layer.name), owners)
        self.register_buffer("committed", torch.zeros((), dtype=torch.int64, device=like.device))
        self.eval()

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """The layers whose units are claimed, from the input on."""
        return self.layers[:-1]

    @property
    def last(self) -> Layer:
        """The last hidden layer, which the output layer reads."""
        return self.layers[-2]

    @property
    def output(self) -> Layer:
        """The output layer: ``units`` is the number of classes."""
        return self.layers[-1]

    @property
    def task(self) -> int:
        """The number of tasks committed, so also the index of the task that is open or opens next."""
        return int(self.committed)

    @property
    def device(self) -> torch.device:
        return self.committed.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every weight: float32, or float64 where a test wants more digits."""
        return next(self.dense.parameters()).dtype

    def owner(self, layer: Layer) -> Tensor:
        """The owner of each unit of a hidden layer: int64 ``[units]``, a task's index or :data:`FREE`."""
        return self.get_buffer(_buffer(layer.name))

    def linear(self, layer: Layer, task: int | None = None) -> nn.Linear:
        """The layer's weight ``[units, inputs]`` and bias ``[units]``; for a multi-head output layer, ``task``'s."""
        if layer == self.output and self.head == "multi":
            found = self.heads[str(self.task if task is None else task)]
        else:
            found = self.dense[layer.name]
        if not isinstance(found, nn.Linear):
            raise TypeError(f"layer {layer.name} holds a {type(found).__name__}")
        return found

    def place_head(self, task: int) -> None:
        """Place task ``task``'s own output layer, zero until it is drawn or restored; a shared one stays as it is."""
        if self.head == "multi" and str(task) not in self.heads:
            self.heads[str(task)] = _blank(self.output, self.device, self.dtype)

    def copy(self) -> "Network":
        """The same network in memory of its own."""
        return copy.deepcopy(self)

    def activations(self, x: Tensor) -> list[Tensor]:
        """The output of every hidden layer after its ReLU, at full width: ``[batch, units]`` each."""
        outputs = []
        for layer in self.hidden:
            x = torch.relu(self.linear(layer)(x))
            outputs.append(x)
        return outputs


def _buffer(name: str) -> str:
    return f"owner_{name}"


def _blank(layer: Layer, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """The layer with every entry 0."""
    # Made without memory, so that no global random state is spent on weights that nobody uses.
    empty = nn.Linear(layer.inputs, layer.units, bias=layer.bias, device="meta", dtype=dtype)
    blank = empty.to_empty(device=device).requires_grad_(False)
    for parameter in blank.parameters():
        parameter.zero_()
    return blank


def _read_layers(module: nn.Sequential) -> tuple[Layer, ...]:
    if not isinstance(module, nn.Sequential):
        raise UnsupportedNetwork(f"the network is a {type(module).__name__}; give a torch.nn.Sequential")
    if type(module).forward is not nn.Sequential.forward:
        raise UnsupportedNetwork(
            f"{type(module).__name__} has a forward() of its own; give a plain torch.nn.Sequential"
        )
    _refuse_hooks("the network", module)
    layers: list[Layer] = []
    seen: dict[int, str] = {}
    dtype: torch.dtype | None = None
    # Duplicates are kept: one ReLU module may stand in many places.
    children = [
        (name, child) for name, child in module.named_modules(remove_duplicate=False) if name and "." not in name
    ]
    for place, (name, child) in enumerate(children):
        where = f"layer {name!r} (place {place})"
        if place % 2 == 0:
            if type(child) is not nn.Linear:
                raise UnsupportedNetwork(f"{where} is a {type(child).__name__} where a Linear belongs; {_SUPPORTED}")
            layer = Layer(name, child.in_features, child.out_features, child.bias is not None)
            _check_sizes(where, layer, layers[-1] if layers else None)
            dtype = dtype or child.weight.dtype
            for parameter in child.parameters():
                if id(parameter) in seen:
                    raise UnsupportedNetwork(f"{where} shares a weight with layer {seen[id(parameter)]!r}; untie them")
                seen[id(parameter)] = name
                _check_dtype(where, parameter.dtype, dtype)
            layers.append(layer)
        elif type(child) is not nn.ReLU:
            raise UnsupportedNetwork(f"{where} is a {type(child).__name__} where a ReLU belongs; {_SUPPORTED}")
        _refuse_hooks(where, child)
    if len(layers) < 2:
        raise UnsupportedNetwork(f"the network has {len(layers)} Linear layers; at least one hidden layer is needed")
    if len(children) % 2 == 0:
        raise UnsupportedNetwork(
            f"the network ends with {children[-1][0]!r}, a ReLU; end it with the Linear of the logits"
        )
    return tuple(layers)


def _check_sizes(where: str, layer: Layer, before: Layer | None) -> None:
    if before is not None and layer.inputs != before.units:
        raise UnsupportedNetwork(
            f"{where} reads {layer.inputs} inputs, but {before.name!r} before it has {before.units} units; "
            f"make them equal"
        )
    if layer.name in _RESERVED:
        raise UnsupportedNetwork(f"{where} has a name that torch keeps for itself; give it another")
    if layer.units < 1 or layer.inputs < 1:
        raise UnsupportedNetwork(f"{where} has {layer.inputs} inputs and {layer.units} units")


def _check_dtype(where: str, found: torch.dtype, first: torch.dtype) -> None:
    if found not in (torch.float32, torch.float64):
        raise UnsupportedNetwork(f"{where} is {found}; call .float() or .double() on the network")
    if found != first:
        raise UnsupportedNetwork(
            f"{where} is {found}, but the first layer is {first}; call .float() or .double() on the network"
        )


def _refuse_hooks(where: str, module: nn.Module) -> None:
    # Only sizes are taken over, so what a hook does to an answer would be lost without a word.
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedNetwork(
            f"{where} has a forward hook; remove it (one of torch.nn.utils.prune or weight_norm with their own remove "
            f"functions)"
        )
