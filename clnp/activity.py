"""The mean activity of every unit over a data set, and the order in which units go by it (Sec. 2.2)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from clnp.errors import Diverged
from clnp.network import Network
from clnp.ownership import active
from clnp.tasks.encoded import Encoded, decoded

__all__ = ["by_layer", "mean_activity"]

_BATCH = 1000


def mean_activity(network: Network, x: Tensor | Encoded) -> dict[str, Tensor]:
    """E_S|N| of every unit of every hidden group, Sec. 2.2 and Algorithm 1: the mean of its absolute output after the
    activation, dropout off; for a convolution over positions too, before pooling.

    Units that additions tie have the largest of their means wherever a layer reads them. In the order of ``x``, in
    batches of a fixed size and summed in float64, so that the same network and samples give the same bits on the same
    device and number of threads.

    Args:
        network: With its open task trained. The whole width is computed.
        x: The samples of the training split, ``[n, *shape]``; bytes are decoded a batch at a time.

    Returns:
        By hidden group's name: float64 ``[units]`` on the CPU.

    Raises:
        ValueError: There is no sample.
        Diverged: A unit's mean is not finite.
    """
    if len(x) == 0:
        raise ValueError("the mean activity over no samples is undefined; give at least one")
    taps = network.graph.taps
    groups = {place: name for name, places in taps.items() for place in places}
    totals: dict[int, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(x), _BATCH):
            piece = decoded(x[start : start + _BATCH].to(network.device, network.dtype))
            for place, _, value in network.values(piece):
                if place in groups:
                    mean = _sum(value, network.group(groups[place]).units)
                    totals[place] = totals[place] + mean if place in totals else mean
    activity = {
        name: (torch.stack([totals[place] for place in places]).amax(0) / len(x)).cpu().clone()
        for name, places in taps.items()
    }
    for name, mean in activity.items():
        if not mean.isfinite().all():
            unit = int((~mean.isfinite()).nonzero()[0])
            raise Diverged(f"unit {unit} of {name} has a mean activity of {mean[unit].item()}: the network diverged")
    return activity


def by_layer(network: Network, activity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activities divided by their layer's scale: under one θ over these each layer has its own, "θ can take different
    values for the different layers" (Sec. 2.2).

    A group's scale is the mean activity of its free units that are not silent, 1 where there is none. So the order in
    which units go is fixed before anything is scored, and the curve stays one chain of nested networks. Of the mean,
    the root mean square, the median and the largest activity, the mean freed most at equal margin most often:
    784-400-400-10 on MNIST, one task, 5 epochs, units kept at a margin of 0.5 points with it and with the shared θ: 230
    and 282 at α = 1e-5/1e-4/1e-5, 607 and 639 at 1e-7/1e-5/1e-6, 122 and 123 at 1e-5/1e-3/1e-4.

    Args:
        network: With its open task trained.
        activity: By hidden group's name: float64 ``[units]`` on the CPU, see :func:`mean_activity`.

    Returns:
        As ``activity``, for :mod:`clnp.thresholds` in its place.
    """
    scaled = {}
    for group in network.groups:
        means = activity[group.name]
        living = means[~active(network, group).cpu() & (means > 0)].tolist()
        # Exactly rounded: θ is one unit's number to the bit, and a sum's order depends on the processor.
        scale = math.fsum(living) / len(living) if living else 1.0
        scaled[group.name] = means / scale
    return scaled


def _sum(value: Tensor, units: int) -> Tensor:
    """The absolute outputs ``[batch, units, …]`` summed over the batch, and averaged over positions: float64."""
    # A flattened map has the features of a unit in a row.
    value = value.abs().reshape(len(value), units, -1)
    return value.sum((0, 2), dtype=torch.float64) / value.shape[2]
