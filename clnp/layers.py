"""The forward pass of each layer kind of a stack: members side by side, and what all of them share computed once."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from clnp.graph import Layer, Norm

__all__ = ["Reading", "adaptive_average", "conv", "dense", "dropout", "norm", "noise_mask"]

Reading = tuple[Tensor, Tensor]
"""What a layer reads, and the weights that it reads it with."""


def dense(shared: Reading | None, own: Reading | None, bias: Tensor | None) -> Tensor:
    """A dense layer of all members, samples last.

    Args:
        shared: Features ``[inputs, batch]`` that all members read, and weights ``[members, units, inputs]``.
        own: Features ``[members, inputs, batch]`` that each member has of its own, and weights likewise. One of the two
            may be None, or is added to the other.
        bias: ``[members, units]``, or ``[units]`` for all members, or None.

    Returns:
        ``[members, units, batch]``.
    """
    weight = _weight(shared, own)
    bias = weight.new_zeros(()) if bias is None else bias
    if shared is None:
        result = bias.unsqueeze(-1)
    else:
        x, weight = shared
        column = bias.expand(weight.shape[:-1]).reshape(-1, 1)
        result = torch.addmm(column, weight.flatten(0, 1), x).view(*weight.shape[:-1], -1)
    return result if own is None else torch.baddbmm(result, own[1], own[0])


def conv(layer: Layer, shared: Reading | None, own: Reading | None, bias: Tensor | None) -> Tensor:
    """A convolution of all members.

    Args:
        layer: Which.
        shared: Maps ``[batch, inputs, h, w]`` that all members read, and weights ``[members, units, inputs, *kernel]``.
        own: Maps ``[batch, members, inputs, h, w]`` that each member has of its own, and weights likewise.
        bias: ``[members, units]``, or ``[units]`` for all members, or None.

    Returns:
        ``[batch, members, units, h', w']``.
    """
    weight = _weight(shared, own)
    members, units = weight.shape[:2]
    bias = None if bias is None else bias.expand(members, units).flatten()
    found = []
    if shared is not None:
        found.append(_convolve(layer, *shared, bias, 1))
    if own is not None:
        found.append(_convolve(layer, own[0].flatten(1, 2), own[1], bias if shared is None else None, members))
    result = found[0] if len(found) == 1 else torch.add(*found)
    return result.view(len(result), members, units, *result.shape[2:])


def _weight(shared: Reading | None, own: Reading | None) -> Tensor:
    for reading in (shared, own):
        if reading is not None:
            return reading[1]
    raise TypeError("a layer reads something")


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    return functional.conv2d(x, weight.flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, groups)


def norm(layer: Norm, x: Tensor, kept: Mapping[str, Tensor], *, training: bool) -> Tensor:
    """BatchNorm by channel: in training with the batch's statistics, of which it keeps a running mean, in place; else
    with those that are stored.

    Args:
        layer: Which.
        x: ``[batch, …, units, h, w]`` of maps, ``[…, units, batch]`` of features.
        kept: Running mean and running variance, and with affine scale and shift: ``[…, units]`` each.
        training: Whether the channels are free in training.
    """
    mean, var = kept["running_mean"], kept["running_var"]
    maps = layer.dims == 2
    if training:
        mean, var = _of_batch(layer, x, mean, var)
    scale = torch.rsqrt(var + layer.eps)
    if layer.affine:
        scale = scale * kept["weight"]
    shift = -mean * scale
    if layer.affine:
        shift = shift + kept["bias"]
    ending = (1, 1) if maps else (1,)
    return torch.addcmul(shift.view(*shift.shape, *ending), x, scale.view(*scale.shape, *ending))


def _of_batch(layer: Norm, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of the batch; those that are stored move on."""
    over = (0, -2, -1) if layer.dims == 2 else (-1,)
    found, average = torch.var_mean(x.to(mean.dtype), over, correction=0)
    count = x.numel() // average.numel()
    with torch.no_grad():
        mean.lerp_(average, layer.momentum)
        var.lerp_(found * (count / (count - 1)), layer.momentum)
    return average, found


def noise_mask(shape: tuple[int, ...], p: float, noise: torch.Generator) -> Tensor:
    """What a Dropout keeps, bool; every feature with the chance 1 − ``p``."""
    return torch.rand(shape, generator=noise, device=noise.device, dtype=torch.float32) >= p


def dropout(x: Tensor, kept: Tensor, p: float) -> Tensor:
    """Zero the features that are not kept and scale the others by 1/(1 − p)."""
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
