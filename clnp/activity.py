"""The mean activity of every unit over a data set (Sec. 2.2)."""

import torch
from torch import Tensor

from clnp.errors import Diverged
from clnp.network import Network

__all__ = ["mean_activity"]

_BATCH = 1000


def mean_activity(network: Network, x: Tensor) -> dict[str, Tensor]:
    """E_S|N| of every unit of every hidden layer, Sec. 2.2 and Algorithm 1: the mean of its output after the ReLU.

    In the order of ``x``, in batches of a fixed size and summed in float64, so that the same network and samples give
    the same bits on the same device and number of threads.

    Args:
        network: With its open task trained. The whole width is computed.
        x: The samples of the training split, ``[n, inputs]``.

    Returns:
        By hidden layer's name: float64 ``[units]`` on the CPU.

    Raises:
        ValueError: There is no sample.
        Diverged: A unit's mean is not finite.
    """
    if len(x) == 0:
        raise ValueError("the mean activity over no samples is undefined; give at least one")
    with torch.inference_mode():
        total = [torch.zeros(layer.units, dtype=torch.float64, device=network.device) for layer in network.hidden]
        for piece in torch.split(x, _BATCH):
            for place, output in enumerate(network.activations(piece.to(network.device, network.dtype))):
                total[place] += output.sum(0, dtype=torch.float64)
    activity = {layer.name: (t / len(x)).cpu().clone() for layer, t in zip(network.hidden, total, strict=True)}
    for name, mean in activity.items():
        if not mean.isfinite().all():
            unit = int((~mean.isfinite()).nonzero()[0])
            raise Diverged(f"unit {unit} of {name} has a mean activity of {mean[unit].item()}: the network diverged")
    return activity
