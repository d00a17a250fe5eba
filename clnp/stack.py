"""Members trained as one: stacked parameters, and the forward pass of each layer kind."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clnp.graph import Add, Layer, Node, Norm, Plain
from clnp.network import Network
from clnp.ownership import NORM_ENTRIES, STATISTICS, active, entries, masked, trainable

__all__ = ["Stack", "adaptive_average", "conv", "dense", "dropout", "norm"]


class Stack:
    """``members`` copies of an opened network that see the same batches and differ in what they learn from them.

    ::

        x [batch, inputs] → one GEMM for all members → [members, units, batch] → ReLU
          → baddbmm → [members, units, batch] → … → [members, classes, batch]
        x [batch, channels, h, w] → one convolution for all members → [batch, members, units, h', w'] → ReLU
          → grouped convolution → … → Flatten → [members, units · h″ · w″, batch] → …

    What all members have alike lacks the dimension of the members. Inside, samples are the last dimension but for maps:
    no dense layer then needs a transposed copy, and forward and backward take 1.5 ms instead of 1.9 (64-128-128-10,
    batch 64, 6 members; torch 2.13, one thread of an AMD EPYC).

    An entry of which the open task may change nothing is not stacked: all members read the network's own. So a network
    whose hidden layers are full trains its head on features computed once for all members.

    Args:
        network: An opened network, see :func:`clnp.training.open_task`. It is read, never written.
        members: How many members there are, at least 1.

    Attributes:
        members: How many members there are.
        parameters: The entries of which the open task may change something, but for the statistics of BatchNorms, named
            as by :func:`clnp.ownership.entries`: ``[members, units, inputs, *kernel]`` and ``[members, units]``.
        trainable: For each of them which part that is, bool and broadcastable to it, or None where it is all of it.
    """

    def __init__(self, network: Network, members: int) -> None:
        self.members = members
        self.parameters: dict[str, Tensor] = {}
        self.trainable: dict[str, Tensor | None] = {}
        self._statistics: dict[str, Tensor] = {}
        self._entries: dict[str, Tensor] = {}
        self._graph = network.graph
        self._output = network.output
        self._plain = {node: node.op.module() for node in self._graph.nodes if isinstance(node.op, Plain)}
        free_channels = {item.name: ~active(network, item.group) for item in network.norms}
        self._free = {name: free for name, free in free_channels.items() if bool(free.any())}
        self._mask: Tensor | None = None
        free = ~active(network, network.last)
        if masked(network, network.last) and not bool(free.all()):
            self._mask = network.output.columns(free)
        statistics = {f"{item.name}.{kind}" for item in network.norms for kind in STATISTICS}
        masks = trainable(network)
        for name, value in entries(network).items():
            if bool(masks[name].any()):
                value = torch.stack([value] * members)
                if name in statistics:
                    self._statistics[name] = value
                else:
                    self.parameters[name] = value.requires_grad_()
                    self.trainable[name] = None if bool(masks[name].all()) else masks[name]
            self._entries[name] = value

    def forward(self, x: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Logits ``[members, batch, classes]`` of a batch ``[batch, *shape]``.

        Args:
            noise: Draws the masks of Dropout, on the batch's device. Given, the network is in training mode: free
                channels are normalised with the batch's statistics and update their own. Without, in evaluation mode.
        """

        def apply(node: Node, inputs: Sequence[Tensor]) -> Tensor:
            return self._apply(node, inputs, noise)

        if x.dim() not in (2, 4):  # Of another number of sizes, it is flattened before a layer reads it.
            x = x.reshape(len(x), 1, x.shape[1], -1)
        return self._graph.run(x.t() if x.dim() == 2 else x, apply).transpose(1, 2)

    def member(self, index: int) -> dict[str, Tensor]:
        """One member's entries, all of them, named and shaped as by :func:`clnp.ownership.entries`."""
        own = {name: value.detach()[index] for name, value in (self.parameters | self._statistics).items()}
        return {**self._entries, **own}

    def finite(self) -> Tensor:
        """Which members hold finite numbers only: bool ``[members]``."""
        own = (*self.parameters.values(), *self._statistics.values())
        return torch.stack([value.detach().isfinite().flatten(1).all(1) for value in own]).all(0)

    def _apply(self, node: Node, inputs: Sequence[Tensor], noise: torch.Generator | None) -> Tensor:
        op, x = node.op, inputs[0]
        if isinstance(op, Add):
            return torch.add(*_alike(x, inputs[1]))
        if isinstance(op, Layer):
            if op is self._output and self._mask is not None:  # Selected, not multiplied: 0 · inf is NaN.
                x = torch.where(self._mask.view(-1, 1, *[1] * (len(op.kernel) - 1)), x, 0.0)
            weight, bias = self._entries[f"{op.name}.weight"], self._entries.get(f"{op.name}.bias")
            return dense(x, weight, bias) if op.kind == "dense" else conv(op, x, weight, bias)
        if isinstance(op, Norm):
            kept = {kind: self._entries.get(f"{op.name}.{kind}") for kind in NORM_ENTRIES}
            return norm(op, x, kept, self._free.get(op.name) if noise is not None else None)
        module = self._plain[node]
        if isinstance(module, nn.Dropout):
            return x if noise is None else dropout(x, module.p, noise)
        if isinstance(module, nn.Flatten):
            return _flatten(x)
        # A pooling knows no members: they are further samples to it.
        maps = x.flatten(0, 1) if x.dim() == 5 else x
        if isinstance(module, nn.AdaptiveAvgPool2d) and x.is_cuda:
            result = adaptive_average(maps, module.output_size)
        else:
            result = module(maps)
        return result.reshape(*x.shape[:2], *result.shape[1:]) if x.dim() == 5 else result


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A dense layer of a stack, samples last.

    Args:
        x: ``[inputs, batch]`` where all members read the same, else ``[members, inputs, batch]``.
        weight: ``[members, units, inputs]``, or ``[units, inputs]`` where all members have the same.
        bias: As ``weight`` without its last dimension, or ``[units]`` for all members, or None.

    Returns:
        ``[members, units, batch]``, or ``[units, batch]`` where neither ``x`` nor ``weight`` differs between members.
    """
    if bias is None:
        bias = weight.new_zeros(())
    if x.dim() == 2:
        rows = weight.flatten(0, -2)
        column = bias.expand(weight.shape[:-1]).reshape(-1, 1)
        return torch.addmm(column, rows, x).view(*weight.shape[:-1], -1)
    return torch.baddbmm(bias.unsqueeze(-1), weight.expand(len(x), -1, -1), x)


def conv(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of a stack.

    Args:
        layer: Which.
        x: ``[batch, inputs, h, w]`` where all members read the same, else ``[batch, members, inputs, h, w]``.
        weight: ``[members, units, inputs, *kernel]``, or without members where all have the same.
        bias: ``[members, units]``, or ``[units]``, or None.

    Returns:
        ``[batch, members, units, h', w']``, or without members where neither ``x`` nor ``weight`` has them.
    """
    members = len(weight) if weight.dim() == 5 else 0
    if members and bias is not None:
        bias = bias.expand(members, -1).flatten()
    shared = x.dim() == 4
    groups = 1 if shared or not members else members
    if not members and not shared:
        # The same weights for all: members are further samples.
        found = _convolve(layer, x.flatten(0, 1), weight, bias, 1)
        return found.reshape(*x.shape[:2], *found.shape[1:])
    rows = weight.flatten(0, 1) if members else weight
    found = _convolve(layer, x if shared else x.flatten(1, 2), rows, bias, groups)
    return found.reshape(len(found), *weight.shape[:2], *found.shape[2:]) if members else found


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)


def norm(layer: Norm, x: Tensor, kept: Mapping[str, Tensor | None], free: Tensor | None) -> Tensor:
    """BatchNorm by channel: a free one with the batch's statistics, which it keeps a running mean of, in place; an
    active one with its stored statistics, in training mode too, so that the new task trains on the features that it is
    evaluated on.

    Args:
        layer: Which.
        x: As a convolution's or a dense layer's output.
        kept: Scale, shift, running mean and running variance, ``[members, units]`` each, or ``[units]``.
        free: Which channels are free, bool ``[units]``; None where none is, and in evaluation mode.
    """
    maps = x.dim() >= 4
    mean, var = kept["running_mean"], kept["running_var"]
    if mean is None or var is None:
        raise TypeError(f"{layer.name} has no running statistics")
    if mean.dim() == 2 and x.dim() in (2, 4):  # Features that all members share, channels that they do not.
        x = x.unsqueeze(1).expand(-1, len(mean), -1, -1, -1) if maps else x.expand(len(mean), -1, -1)
    if free is not None:
        mean, var = _of_batch(layer, x, mean, var, free)
    scale = torch.rsqrt(var + layer.eps)
    if (weight := kept["weight"]) is not None:
        scale = scale * weight
    shift = -mean * scale
    if (bias := kept["bias"]) is not None:
        shift = shift + bias
    ending = (1, 1) if maps else (1,)
    return torch.addcmul(shift.view(*shift.shape, *ending), x, scale.view(*scale.shape, *ending))


def _of_batch(layer: Norm, x: Tensor, mean: Tensor, var: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances to normalise with, ``[members, units]``; those that are stored of free channels move on."""
    over = (0, -2, -1) if x.dim() >= 4 else (-1,)
    found, average = torch.var_mean(x, over, correction=0)
    count = x.numel() // average.numel()
    with torch.no_grad():
        for stored, new in ((mean, average), (var, found * (count / (count - 1)))):
            stored.copy_(torch.where(free, stored.lerp(new.detach(), layer.momentum), stored))
    return torch.where(free, average, mean), torch.where(free, found, var)


def dropout(x: Tensor, p: float, noise: torch.Generator) -> Tensor:
    """Zero a share ``p`` of the features and scale the others by 1/(1 − p); all members have the same mask."""
    if p == 0:
        return x
    shape = x.shape[1:] if x.dim() == 3 else (x.shape[0], *x.shape[2:]) if x.dim() == 5 else x.shape
    kept = torch.rand(shape, generator=noise, device=x.device) >= p
    if x.dim() == 5:
        kept = kept.unsqueeze(1)
    return torch.where(kept, x * (1 / (1 - p)), 0.0) if p < 1 else torch.zeros_like(x)


def adaptive_average(x: Tensor, size: int | tuple[int | None, ...] | None) -> Tensor:
    """AdaptiveAvgPool2d of maps ``[batch, channels, h, w]`` as two products, whose gradient is the same on a GPU every
    time; torch's is not."""
    wanted = size if isinstance(size, tuple) else (size, size)
    rows, columns = (_averages(x, extent, out or extent) for extent, out in zip(x.shape[2:], wanted, strict=True))
    return rows @ x @ columns.t()


def _averages(x: Tensor, extent: int, out: int) -> Tensor:
    """What averages positions, ``[out, extent]``: output i those from ⌊i·extent/out⌋ up to ⌈(i+1)·extent/out⌉."""
    at = torch.arange(extent, device=x.device)
    place = torch.arange(out, device=x.device).unsqueeze(1)
    taken = (at >= place * extent // out) & (at < -(-(place + 1) * extent // out))
    return taken / taken.sum(1, keepdim=True).to(x.dtype)


def _flatten(x: Tensor) -> Tensor:
    """Maps, samples first, to features, samples last; what is flat stays."""
    if x.dim() == 4:
        return x.flatten(1).t()
    return x.flatten(2).permute(1, 2, 0) if x.dim() == 5 else x


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two terms of a sum, where one may be the same for all members."""
    if first.dim() == second.dim():
        return first, second
    fewer, more = (first, second) if first.dim() < second.dim() else (second, first)
    return (fewer.unsqueeze(1) if more.dim() == 5 else fewer.unsqueeze(0)), more
