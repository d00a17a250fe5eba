"""What is left of the open task when it is pruned, as a network of its own that trains like any other, and back."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from clnp.growth import resized
from clnp.network import Network
from clnp.ownership import Claims, active, entries, norm_entries, trainable

__all__ = ["narrow", "put_back", "within"]


def narrow(network: Network, claims: Claims) -> Network:
    """The same network with the units that are owned or claimed, and no other; the claimed ones are its free ones.

    Units keep their order, so that the open task has the same sub-network here as under these claims in the wide one,
    and the same canonical score, bit for bit. :func:`clnp.training.train` then changes "the weights which survive
    sparsification" alone (Sec. 2.2), and nothing reaches them from a unit that was pruned.

    Args:
        network: Opened and trained. It is not changed. Of heads a task, the open one's alone is taken along.
        claims: By hidden group's name, the free units that are left: bool ``[units]``, on the network's device.

    Raises:
        ValueError: Nothing is left of a group.
    """
    kept = _kept(network, claims)
    for name, units in kept.items():
        if not units.any():
            raise ValueError(f"nothing is left of {name}; claim at least one of its {len(units)} units")
    result = network.copy()
    for task in list(result.heads):
        if task != str(network.task):
            del result.heads[task]
    result.widen(resized(network.graph, {name: int(units.sum()) - len(units) for name, units in kept.items()}))
    values = entries(result)
    for name, wide, rows, columns in _blocks(network, kept):
        values[name].copy_(_select(wide, rows, columns))
    for group in result.groups:
        result.owner(group).copy_(network.owner(group)[kept[group.name]])
    return result


def put_back(network: Network, left: Network, claims: Claims) -> Network:
    """A copy of the wide network with what the open task may change of the narrow one: the inverse of :func:`narrow`.

    Entries of earlier tasks keep every bit, whatever the narrow network holds for them, and so do those of units that
    were pruned: the weights from these into claimed ones, which are not in it, are severed by the commit.

    Args:
        network: The one that was narrowed.
        left: The narrow one, trained.
        claims: Those that it was narrowed to.
    """
    result = network.copy()
    masks, values = trainable(network), entries(left)
    for name, wide, rows, columns in _blocks(result, _kept(network, claims)):
        free = _select(masks[name].expand_as(wide), rows, columns)
        block = torch.where(free, values[name], _select(wide, rows, columns))
        at = [slice(None) if places is None else places for places in (rows, columns)]
        if rows is not None and columns is not None:
            at[0] = rows.unsqueeze(1)
        wide[tuple(at[: wide.dim()])] = block
    return result


def within(network: Network, claims: Claims, inner: Claims) -> dict[str, Tensor]:
    """Claims of the narrow network (``inner``) as claims of the wide one: some of those that it was narrowed to."""
    found = {}
    for name, units in _kept(network, claims).items():
        found[name] = torch.zeros_like(units)
        found[name][units] = inner[name]
    return found


def _kept(network: Network, claims: Claims) -> dict[str, Tensor]:
    return {group.name: active(network, group) | claims[group.name] for group in network.groups}


def _blocks(network: Network, kept: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor | None, Tensor | None]]:
    """Every entry of a wide network, and which of its rows and columns are kept: indices, None for all."""
    values = entries(network)
    for layer in network.layers:
        rows = None if layer == network.output else _indices(kept[layer.group])
        columns = None if layer.source is None else _indices(layer.columns(kept[layer.source]))
        yield f"{layer.name}.weight", values[f"{layer.name}.weight"], rows, columns
        if layer.bias:
            yield f"{layer.name}.bias", values[f"{layer.name}.bias"], rows, None
    for norm in network.norms:
        for name, value in norm_entries(network, norm).items():
            yield name, value, _indices(kept[norm.group]), None


def _indices(units: Tensor) -> Tensor:
    return units.nonzero().squeeze(1)


def _select(value: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    value = value if rows is None else value.index_select(0, rows)
    return value if columns is None else value.index_select(1, columns)
