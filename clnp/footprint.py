"""How much memory a stack takes, measured once: what does not depend on its members, and what each of them adds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from clnp.graph import Layer
from clnp.network import Network
from clnp.tasks.task import Split
from clnp.training import PREFIX_BYTES, SCORED, Member, Settings, train

__all__ = ["Footprint", "cuda_peak", "measure"]

Peak = Callable[[Callable[[], object], torch.device], int]
"""Runs something, and says how many bytes of a device were in use at most meanwhile."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that training a stack takes: ``fixed + members · member``.

    Attributes:
        fixed: Data and network.
        member: What each member adds: its parameters, gradients and optimizer state, and its share of a step.
        kept: What the old features of later tasks may take beside it, see :data:`clnp.training.PREFIX_BYTES`.
    """

    fixed: int
    member: int
    kept: int


def cuda_peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors of this process held on a CUDA device while ``work`` ran."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def measure(
    network: Network,
    train_split: Split,
    validation: Split,
    member: Member,
    settings: Settings,
    *,
    seed: int,
    peak: Peak = cuda_peak,
) -> Footprint:
    """Train one member, then two, for two steps on full batches and a scoring on one; the difference is a member's.

    The rest of both splits, which lies on the device while a stack trains, is added by its size.

    Args:
        network: An opened network on the device, see :func:`clnp.training.open_task`. It is not changed.
        train_split: The task's training split; ``x`` is ``[n, *shape]``.
        validation: Its validation split.
        member: Any cell of the grid.
        settings: How the stack will be trained; one epoch is.
        seed: Of the replica.
        peak: Measures; of CUDA's memory.

    Raises:
        RuntimeError: Not even two members fit (``torch.OutOfMemoryError`` on a GPU).
    """
    # Two: the first step's gradients live while the second begins.
    batch, scored = train_split.part(slice(2 * settings.batch_size)), validation.part(slice(SCORED))
    once = replace(settings, epochs=1, halving=None)

    def run(members: int) -> int:
        return peak(lambda: train(network, batch, scored, [member] * members, once, seed=seed), network.device)

    run(1)  # what libraries load and keep with their first kernels counts for no member
    one, two = run(1), run(2)
    rest = _bytes(network, train_split) + _bytes(network, validation) - _bytes(network, batch) - _bytes(network, scored)
    features = _features(network, train_split.samples.shape[1:]) * network.dtype.itemsize
    kept = sum(min(PREFIX_BYTES, len(split) * features) for split in (train_split, validation))
    return Footprint(2 * one - two + rest, two - one, kept)


def _features(network: Network, shape: Sequence[int]) -> int:
    """Numbers of a sample that may be kept beside it: what layers read, but for the sample itself."""
    shapes = network.check_shape(shape)
    read = {node.inputs[0] for node in network.graph.nodes if isinstance(node.op, Layer)}
    return sum(math.prod(shapes[place]) for place in read if not network.graph.given(place))


def _bytes(network: Network, split: Split) -> int:
    """As it lies on the device."""
    moved = split.to("meta", network.dtype)
    return moved.samples.nbytes + moved.y.nbytes
