"""A :class:`Network` made from a plain torch module: its layers, the groups of units they compute, and their owners."""

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from clnp.errors import UnsupportedNetwork
from clnp.graph import Add, Graph, Group, Layer, Node, Norm
from clnp.reading import read_graph

__all__ = ["FREE", "Head", "Network"]

FREE = -1
"""The owner of a unit that no task has claimed."""

Head = Literal["single", "multi"]

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Network(nn.Module):
    """A network of fixed width whose units are claimed by task after task.

    ::

        x [batch, *shape] → layer → (BatchNorm) → activation → (pool) → … → mask of the task → output layer → logits

    The output layer is shared by all tasks (``head="single"``: what it reads is masked, task t reads only the units
    that t itself claimed there) or there is one a task (``head="multi"``), Sec. 2.1 and Fig. 2 of the paper.

    Units are the outputs of a dense layer or the channels of a convolution. Every layer but the output layer computes
    a group of them; layers whose outputs are added, as in a residual network, compute one group together. A group has
    an owner a unit, a buffer of shape ``[units]`` that holds the task's index or :data:`FREE`. The three weight classes
    are derived from the owners (:mod:`clnp.ownership`), never stored.

    Args:
        module: A ``torch.nn.Sequential``, or any module that :mod:`torch.fx` can trace: Linear and Conv2d (groups 1)
            with or without a bias, BatchNorm, ReLU, LeakyReLU, GELU, SiLU, pooling, Dropout, Flatten and additions,
            ending with the Linear or Conv2d of the logits and then at most pooling and Flatten. Names, sizes, dtype and
            device are taken from it, its weights are not: every task begins from weights that its seed draws.
        head: ``"single"`` or ``"multi"``.

    Raises:
        UnsupportedNetwork: A layer of another kind, a module that cannot be traced, widths that do not fit, no hidden
            layer, a layer that nothing reads, an end that is no head, tied weights, a forward hook, a wrapper such as
            DataParallel, another dtype than float32 or float64, or more than one.
    """

    committed: Tensor

    def __init__(self, module: nn.Module, *, head: Head = "single") -> None:
        super().__init__()
        if head not in ("single", "multi"):
            raise UnsupportedNetwork(f'head is {head!r}; it can be "single" or "multi"')
        self.head: Head = head
        graph = read_graph(module)
        like = module.get_parameter(f"{graph.layers[0].name}.weight")
        self.register_buffer("committed", torch.zeros((), dtype=torch.int64, device=like.device))
        self.heads = nn.ModuleDict()
        self._build(graph, like.dtype)
        self.eval()

    def _build(self, graph: Graph, dtype: torch.dtype) -> None:
        """Take a graph on, everything 0 and free."""
        self.graph = graph
        self.parts = nn.ModuleDict()
        for layer in self.layers if self.head == "single" else self.layers[:-1]:
            self.parts[_key(layer.name)] = layer.blank(self.device, dtype)
        for norm in self.norms:
            self.parts[_key(norm.name)] = norm.blank(norm.units, self.device, dtype)
        for task in self.heads:
            self.heads[task] = self.output.blank(self.device, dtype)
        for group in self.groups:
            owners = torch.full((group.units,), FREE, dtype=torch.int64, device=self.device)
            self.register_buffer(_buffer(group.name), owners)

    def widen(self, graph: Graph) -> None:
        """Take on the same graph with other widths, everything 0 and free; see :func:`clnp.growth.grow`."""
        self._build(graph, self.dtype)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of units that tasks claim, from the input on."""
        return self.graph.groups

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with weights, from the input on, the output layer last."""
        return self.graph.layers

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The BatchNorms, from the input on."""
        return self.graph.norms

    @property
    def last(self) -> Group:
        """The group that the output layer reads."""
        return self.group(self.output.source)

    @property
    def output(self) -> Layer:
        """The output layer: ``units`` is the number of classes."""
        return self.graph.output

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
        return next(self.parts.parameters()).dtype

    def group(self, name: str | None) -> Group:
        """The hidden group of that name.

        Raises:
            KeyError: There is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def owner(self, group: Group | str) -> Tensor:
        """The owner of each unit of a group: int64 ``[units]``, a task's index or :data:`FREE`."""
        return self.get_buffer(_buffer(group if isinstance(group, str) else group.name))

    def weights(self, layer: Layer, task: int | None = None) -> nn.Linear | nn.Conv2d:
        """The layer with its weight ``[units, inputs, *kernel]`` and bias ``[units]``; for a multi-head output layer
        ``task``'s, by default the open one's."""
        if layer == self.output and self.head == "multi":
            found = self.heads[str(self.task if task is None else task)]
        else:
            found = self.parts[_key(layer.name)]
        if not isinstance(found, nn.Linear | nn.Conv2d):
            raise TypeError(f"layer {layer.name} holds a {type(found).__name__}")
        return found

    def norm(self, norm: Norm) -> _BatchNorm:
        """A BatchNorm with its scale, shift, running mean and running variance, ``[units]`` each."""
        found = self.parts[_key(norm.name)]
        if not isinstance(found, _BatchNorm):
            raise TypeError(f"{norm.name} holds a {type(found).__name__}")
        return found

    def place_head(self, task: int) -> None:
        """Place task ``task``'s own output layer, zero until it is drawn or restored; a shared one stays as it is."""
        if self.head == "multi" and str(task) not in self.heads:
            self.heads[str(task)] = self.output.blank(self.device, self.dtype)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode, whatever ``mode`` is: in the other, to measure a network would move what its
        BatchNorms keep of old units. Members are trained by :func:`clnp.training.train`."""
        return super().train(False)

    def copy(self) -> "Network":
        """The same network in memory of its own."""
        return copy.deepcopy(self)

    def values(
        self, x: Tensor, task: int | None = None, *, mask: Tensor | None = None
    ) -> Iterator[tuple[int, Node, Tensor]]:
        """Every node's place, itself and its output at full width, in evaluation mode: ``[batch, units, …]``.

        Args:
            x: ``[batch, *shape]``.
            task: Whose output layer ends it; without one, the walk ends before the output layer.
            mask: The features that the output layer reads, bool, all without. Selected, since 0 · NaN is NaN.
        """

        def apply(node: Node, inputs: Sequence[Tensor]) -> Tensor:
            if node.op is not self.output:
                return self._compute(node, inputs)
            (h,) = inputs
            if mask is not None:
                h = torch.where(mask.view(-1, *[1] * (h.dim() - 2)), h, torch.zeros_like(h))
            return self._head(h, task)

        for place, node, value in self.graph.walk(x, apply):
            yield place, node, value
            if task is None and place + 1 == self._before_head:
                return

    def _head(self, h: Tensor, task: int | None) -> Tensor:
        result: Tensor = self.weights(self.output, task)(h)
        return result

    def _compute(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        result: Tensor
        if isinstance(node.op, Add):
            return inputs[0] + inputs[1]
        if isinstance(node.op, Layer):
            result = self.weights(node.op)(inputs[0])
        elif isinstance(node.op, Norm):
            result = self.norm(node.op)(inputs[0])
        else:
            result = node.op.module()(inputs[0])
        return result

    @property
    def _before_head(self) -> int:
        return next(place for place, node in enumerate(self.graph.nodes) if node.op is self.output)

    def check_shape(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Refuse samples that the network cannot answer.

        Args:
            shape: Of one sample, such as ``(784,)`` or ``(3, 32, 32)``.

        Returns:
            The shape of every node's output for one sample.

        Raises:
            UnsupportedNetwork: A layer cannot read what comes to it, or the result is not one logit a class.
        """
        # Not on the meta device, for whose sake torch imports its compiler: a second in every process.
        place = torch.device("cpu")
        x = torch.zeros(2, *shape, dtype=self.dtype, device=place)

        def apply(node: Node, inputs: Sequence[Tensor]) -> Tensor:
            try:
                # torch would take a map of three dimensions for one sample without a batch.
                maps = (node.op.kind == "conv") if isinstance(node.op, Layer) else getattr(node.op, "dims", 0) == 2
                if isinstance(node.op, Layer | Norm) and inputs[0].dim() != (4 if maps else 2):
                    raise RuntimeError(
                        f"it reads {'maps [channels, h, w]' if maps else 'features, so put a Flatten before it'}"
                    )
                if isinstance(node.op, Layer):
                    result: Tensor = node.op.blank(place, self.dtype)(inputs[0])
                elif isinstance(node.op, Norm):
                    result = node.op.blank(node.op.units, place, self.dtype)(inputs[0])
                else:
                    result = self._compute(node, inputs)
                return result
            except (RuntimeError, ValueError, IndexError) as error:
                found = " and ".join(str(list(value.shape[1:])) for value in inputs)
                raise UnsupportedNetwork(
                    f"layer {node.name!r} cannot read {found}, which samples of shape {list(shape)} become: {error}; "
                    f"make the network fit the samples"
                ) from error

        shapes = [tuple(value.shape[1:]) for _, _, value in self.graph.walk(x, apply)]
        if shapes[-1] != (self.output.units,):
            raise UnsupportedNetwork(
                f"the network ends with {self.graph.nodes[-1].name!r} of shape {list(shapes[-1])} for samples of shape "
                f"{list(shape)}; its {self.output.units} logits must be all that is left: average the maps"
            )
        return shapes


def _key(name: str) -> str:
    # torch keeps dots for the path between modules, and bare names such as "keys" for itself.
    return f"/{name.replace('.', '/')}"


def _buffer(name: str) -> str:
    return f"owner_{name.replace('.', '/')}"
