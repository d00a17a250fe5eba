"""A committed task's answers to raw samples: its input transform and its sub-network as one module."""

import math

import torch
from torch import Tensor, nn

from clnp.tasks.transform import Transform

__all__ = ["DTYPES", "Exported", "UnsupportedExport", "classes_of"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class UnsupportedExport(ValueError):
    """A network that an exported file cannot hold, a kind of file that is not written, or packages it needs."""


class Exported(nn.Module):
    """A task's answers to raw samples: its transform and its sub-network as one module in evaluation mode.

    ::

        raw [n, *shape] or [n, features] → transform → float32 [n, *shape] → sub-network → logits [n, classes]

    The logits are bit for bit those of :func:`clnp.evaluation.logits` for the sub-network and the transformed samples,
    for raw samples in any dtype whose values float32 holds exactly, as it does those of pixels.

    Args:
        transform: The task's, from its sequence.
        subnetwork: From :func:`clnp.subnetwork.subnetwork`; it is kept, not copied.

    Raises:
        UnsupportedExport: The sub-network's numbers are not all of one float type.
    """

    def __init__(self, transform: Transform, subnetwork: nn.Module) -> None:
        super().__init__()
        self.dtype = _float_dtype(subnetwork)
        self.transform = _Transform(transform).to(next(subnetwork.parameters()).device)
        self.subnetwork = subnetwork
        self.eval()

    def forward(self, raw: Tensor) -> Tensor:
        logits: Tensor = self.subnetwork(self.transform(raw).to(self.dtype))
        return logits


class _Transform(nn.Module):
    """:class:`clnp.tasks.transform.Transform` as a module, whose tensors go where the network goes."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.shape = tuple(transform.shape)
        self.inverted = transform.inverted
        self.permutation: Tensor | None
        self.scale: Tensor
        self.register_buffer("permutation", None if transform.permutation is None else transform.permutation.clone())
        # A tensor for the reason that Transform has: a GPU multiplies by the reciprocal of a Python number.
        self.register_buffer("scale", torch.tensor(transform.scale, dtype=torch.float32, device="cpu"))

    def forward(self, raw: Tensor) -> Tensor:
        features = math.prod(self.shape)
        if raw.dim() < 2 or math.prod(raw.shape[1:]) != features:
            sizes = ", ".join(map(str, self.shape))
            raise ValueError(f"raw samples are {list(raw.shape)}; give [n, {features}] or [n, {sizes}]")
        x = raw.to(self.scale)
        if self.permutation is not None:
            x = x.flatten(1).index_select(1, self.permutation)
        if self.inverted:
            x = self.scale - x
        return (x / self.scale).reshape(raw.shape[0], *self.shape)


def _float_dtype(subnetwork: nn.Module) -> torch.dtype:
    values = [value for value in subnetwork.state_dict().values() if value.is_floating_point()]
    found = {str(value.dtype).removeprefix("torch.") for value in values}
    if len(found) != 1 or not found <= DTYPES.keys():
        raise UnsupportedExport(
            f"the sub-network's numbers are of {', '.join(sorted(found)) or 'no type'}; "
            f"they must all be of one of {', '.join(DTYPES)}"
        )
    return DTYPES[found.pop()]


def classes_of(exported: Exported) -> int:
    """How many logits it gives a sample.

    Raises:
        UnsupportedExport: It gives no ``[n, classes]`` for samples of its transform's shape.
    """
    shape = exported.transform.shape
    try:
        with torch.no_grad():
            answer: object = exported(torch.zeros(2, *shape, device="cpu"))
    except RuntimeError as error:
        raise UnsupportedExport(f"the sub-network cannot read samples of shape {list(shape)}: {error}") from error
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != 2:
        found = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UnsupportedExport(
            f"the sub-network answers [2, {', '.join(map(str, shape))}] with {found}; logits must be [2, classes]"
        )
    return int(answer.shape[1])
