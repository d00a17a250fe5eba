"""A task's sub-network: the narrow dense network that its answer is computed by, cut out of the wide one."""

from torch import Tensor, nn

from clnp.network import Network
from clnp.ownership import Claims, reads

__all__ = ["check_committed", "cut", "subnetwork"]


def cut(network: Network, task: int, claims: Claims | None = None) -> nn.Sequential:
    """A plain ``nn.Sequential`` of Linear and ReLU with the units that ``task`` reads, and no other.

    ::

        x [batch, inputs] → Linear(inputs, read 1) → ReLU → … → Linear(read n, classes) → logits [batch, classes]

    Its weights are copies. Nothing of other units enters it, whatever they hold (Sec. 2.1: the narrower network
    embedded in the original structure).

    Args:
        network: The wide network.
        task: A committed task, or the open one.
        claims: For the open task, the free units that it would claim; all of them without.

    Raises:
        IndexError: ``task`` is neither committed nor open.
        ValueError: The task would read no unit of some hidden layer.
    """
    if not 0 <= task <= network.task:
        raise IndexError(f"task {task} is neither committed nor open; the network has {network.task} committed tasks")
    modules: list[nn.Module] = []
    source: Tensor | None = None
    for layer in network.hidden:
        units = reads(network, layer, task, claims).nonzero().squeeze(1)
        if len(units) == 0:
            raise ValueError(f"task {task} would read no unit of {layer.name}; it needs at least one")
        modules += [_narrow(network.linear(layer), units, source), nn.ReLU()]
        source = units
    modules.append(_narrow(network.linear(network.output, task), None, source))
    return nn.Sequential(*modules).eval()


def subnetwork(network: Network, task: int) -> nn.Sequential:
    """The sub-network of a committed task, see :func:`cut`.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    return cut(network, task)


def check_committed(network: Network, task: int) -> None:
    """Refuse a task that is not committed.

    Raises:
        IndexError: It is not.
    """
    if not 0 <= task < network.task:
        raise IndexError(f"task {task} is not committed; the network has {network.task} committed tasks")


def _narrow(wide: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """A Linear of its own with some rows and columns of ``wide``; None takes all."""
    weight = wide.weight if rows is None else wide.weight.index_select(0, rows)
    weight = weight.clone() if columns is None else weight.index_select(1, columns)
    # On the meta device nothing is drawn or allocated: a scan cuts hundreds of these.
    narrow = nn.Linear(weight.shape[1], weight.shape[0], bias=wide.bias is not None, device="meta")
    narrow.weight = nn.Parameter(weight, requires_grad=False)
    if wide.bias is not None:
        bias = wide.bias.clone() if rows is None else wide.bias.index_select(0, rows)
        narrow.bias = nn.Parameter(bias, requires_grad=False)
    return narrow
