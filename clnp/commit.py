"""Commit a task: sever, claim, freeze (Sec. 2.1, Algorithm 1); its fingerprint; what it added, and back."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from clnp.errors import Damaged, NothingToCommit
from clnp.graph import Group, Layer
from clnp.network import FREE, Network
from clnp.ownership import Claims, active, lives, norm_entries, reads, weight_classes
from clnp.subnetwork import check_committed

__all__ = ["added", "commit", "fingerprint", "restore", "sever"]


def commit(network: Network, claims: Claims) -> None:
    """Commit the open task, in place: cut what interferes with it, and give it the units it claims.

    Algorithm 1 severs W^int at the top of the next task; here it is done at the end of this one, before anything is
    measured. The weights from units that stay free into newly claimed ones become 0, and, with a head of its own, those
    from inactive units of the last hidden group into it. A shared output layer is masked instead (Fig. 2). The first
    layer has nothing to sever: the network's inputs always count as active. From now on the claimed units' rows, what
    their BatchNorms keep of them and the task's output weights are frozen, because :func:`clnp.ownership.trainable` no
    longer names them.

    Args:
        network: Opened and trained; its owners change.
        claims: By hidden group's name, the free units to claim: bool ``[units]``, on the network's device.

    Raises:
        NothingToCommit: The task would be left without an active unit in some hidden layer or, under a shared output
            layer, without a new one in the last. Nothing has changed.
        ValueError: The claims do not fit the network. Nothing has changed.
    """
    _check_claims(network, claims)
    for group in network.groups:
        network.owner(group)[claims[group.name]] = network.task
    sever(network, claims)
    network.committed += 1


def sever(network: Network, claims: Claims) -> None:
    """Zero the interference weights into units that the open task has just claimed, in place: W^int (Fig. 1).

    The owners are set, and ``network.task`` is still the open one.
    """
    for layer in network.layers[:-1]:
        # The rows of earlier tasks are frozen; their interference weights are 0 since their own commit.
        mask = claims[layer.group].unsqueeze(1) & weight_classes(network, layer).interference
        network.weights(layer).weight.masked_fill_(_over_kernel(mask, layer), 0.0)
    if network.head == "multi":
        inactive = ~network.output.columns(active(network, network.last)).unsqueeze(0)
        network.weights(network.output, network.task).weight.masked_fill_(_over_kernel(inactive, network.output), 0.0)


def fingerprint(network: Network, task: int) -> str:
    """SHA-256 over every tensor entry that a committed task's answer depends on, as 64 hex digits.

    These are, for each group: which units the task is computed from and who owns them; their rows in every layer that
    computes the group, restricted to the inputs that the task reads; their biases; what each BatchNorm keeps of them;
    for the output layer the columns of the units it reads. Further every severed entry,
    from units that are free or came later into those that the task reads, that is not 0: there should be none, so units
    that are added with zero columns change nothing. Bits count where the task reads (-0.0 is not 0.0 there), values
    where it is severed. It depends neither on the device nor on anything that later tasks may change.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    digest = hashlib.sha256()
    _feed(digest, "task", network.head, task)
    for group in network.groups:
        rows = lives(network, group, task).nonzero().squeeze(1)
        _feed(digest, "units", group.name, rows, network.owner(group)[rows])
        for layer in network.layers[:-1]:
            if layer.group == group.name:
                _feed_layer(digest, network, layer, rows, task)
        for norm in network.norms:
            if norm.group == group.name:
                for name, value in norm_entries(network, norm).items():
                    _feed(digest, "norm", name, value[rows])
    _feed_layer(digest, network, network.output, torch.arange(network.output.units, device=network.device), task)
    return digest.hexdigest()


def added(network: Network, task: int) -> dict[str, Tensor]:
    """What the commit of ``task`` added to the network, on the CPU; the same after any later commit.

    By name: ``task`` (its index); for each hidden group ``<group>.units`` (the units claimed, int64, rising); of each
    layer and BatchNorm that computes it their rows, ``<layer>.weight`` ``[claimed, inputs, *kernel]``,
    ``<layer>.bias`` ``[claimed]``, ``<norm>.running_mean`` ``[claimed]`` …; of the output layer its own head whole, or
    of a shared one the columns ``<output>.weight`` ``[classes, claimed]`` and, for task 0, the bias. In a network that
    has grown since, the inputs count those of the new units, which are 0.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    tensors = {"task": torch.tensor(task, device="cpu")}
    for group in network.groups:
        tensors[f"{group.name}.units"] = _owned(network, group, task)
    for layer in network.layers[:-1]:
        weights, units = network.weights(layer), tensors[f"{layer.group}.units"]
        tensors[f"{layer.name}.weight"] = weights.weight[units]
        if weights.bias is not None:
            tensors[f"{layer.name}.bias"] = weights.bias[units]
    for norm in network.norms:
        units = tensors[f"{norm.group}.units"]
        tensors |= {name: value[units] for name, value in norm_entries(network, norm).items()}
    output = network.output
    head = network.weights(output, task)
    own = output.columns(network.owner(network.last) == task).nonzero().squeeze(1)
    tensors[f"{output.name}.weight"] = head.weight if network.head == "multi" else head.weight[:, own]
    if head.bias is not None and (network.head == "multi" or task == 0):
        tensors[f"{output.name}.bias"] = head.bias
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def restore(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Put a commit's tensors back, in place: the inverse of :func:`added`, onto a network with the commits before it.

    The network is as wide as it was at that commit, see :func:`clnp.growth.grow`.

    Raises:
        Damaged: The tensors do not fit this network or its next task; the message names the entry. Nothing has changed.
    """
    task = network.task
    units = _check_tensors(network, tensors)
    network.place_head(task)
    with torch.no_grad():
        for layer in network.layers[:-1]:
            weights, rows = network.weights(layer), units[layer.group]
            weights.weight[rows] = tensors[f"{layer.name}.weight"].to(network.device)
            if weights.bias is not None:
                weights.bias[rows] = tensors[f"{layer.name}.bias"].to(network.device)
        for norm in network.norms:
            for name, value in norm_entries(network, norm).items():
                value[units[norm.group]] = tensors[name].to(network.device)
        for group in network.groups:
            network.owner(group)[units[group.name]] = task
        output = network.output
        head, weight = network.weights(output, task), tensors[f"{output.name}.weight"].to(network.device)
        if network.head == "multi":
            head.weight.copy_(weight)
        else:
            own = output.columns(network.owner(network.last) == task).nonzero().squeeze(1)
            head.weight[:, own] = weight
        if f"{output.name}.bias" in tensors:
            head.bias.copy_(tensors[f"{output.name}.bias"])  # type: ignore[union-attr]
        network.committed += 1


def _owned(network: Network, group: Group, task: int) -> Tensor:
    return (network.owner(group) == task).nonzero().squeeze(1)


def _over_kernel(mask: Tensor, layer: Layer) -> Tensor:
    """A mask ``[units, inputs]`` over every weight of the kernel."""
    return mask.view(*mask.shape, *[1] * len(layer.kernel))


def _check_claims(network: Network, claims: Claims) -> None:
    if network.head == "multi" and str(network.task) not in network.heads:
        raise ValueError(f"task {network.task} has no head yet; open the task and train it before its commit")
    names = [group.name for group in network.groups]
    if sorted(claims) != sorted(names):
        raise ValueError(f"the claims name the layers {sorted(claims)}; the hidden layers are {names}")
    for group in network.groups:
        claimed = claims[group.name]
        if claimed.dtype != torch.bool or claimed.shape != (group.units,):
            raise ValueError(
                f"the claims of {group.name} are {claimed.dtype} {list(claimed.shape)}; give bool [{group.units}]"
            )
        taken = claimed & (network.owner(group) != FREE)
        if taken.any():
            unit = int(taken.nonzero()[0])
            owner = int(network.owner(group)[unit])
            raise ValueError(f"the claims of {group.name} name unit {unit}, which task {owner} owns; claim free units")
    for layer in network.layers:
        if not reads(network, layer, network.task, claims).any():
            raise NothingToCommit(f"task {network.task + 1} would read no unit of {layer.source}; lower θ or α")


def _feed(digest: "hashlib._Hash", *parts: str | int | Tensor) -> None:
    """Add names, numbers and tensors; each with what it is and how long, so that no two lists give the same bytes."""
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(json.dumps([str(part.dtype), list(part.shape)]).encode() + b"\n")
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps(part).encode() + b"\n")


def _feed_layer(digest: "hashlib._Hash", network: Network, layer: Layer, rows: Tensor, task: int) -> None:
    columns = layer.columns(reads(network, layer, task))
    weights = network.weights(layer, task)
    weight = weights.weight[rows]
    _feed(digest, "weight", layer.name, weight[:, columns])
    if weights.bias is not None:
        _feed(digest, "bias", layer.name, weights.bias[rows])
    # Other columns of a shared output layer are other tasks', kept out by the mask and not by zeros.
    if layer != network.output or network.head == "multi":
        row, column, *kernel = ((weight != 0) & ~_over_kernel(columns.unsqueeze(0), layer)).nonzero(as_tuple=True)
        _feed(digest, "severed", layer.name, rows[row], column, *kernel, weight[(row, column, *kernel)])


def _check_tensors(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units that each group's entries are for, on the network's device, after everything was checked."""
    task = network.task
    _check_entry(tensors, "task", torch.int64, ())
    if int(tensors["task"]) != task:
        raise Damaged(
            f"entry 'task' is of task {int(tensors['task']) + 1}; the next commit of this network is of task {task + 1}"
        )
    units = {group.name: _check_units(network, group, tensors) for group in network.groups}
    dtype = network.dtype
    expected: dict[str, tuple[int, ...]] = {}
    for layer in network.layers[:-1]:
        count = len(units[layer.group])
        expected[f"{layer.name}.weight"] = (count, *layer.shape[1:])
        if layer.bias:
            expected[f"{layer.name}.bias"] = (count,)
    for norm in network.norms:
        expected |= {name: (len(units[norm.group]),) for name in norm_entries(network, norm)}
    output, own = network.output, network.head == "multi"
    inputs = output.inputs if own else len(units[network.last.name]) * output.positions
    expected[f"{output.name}.weight"] = (output.units, inputs, *output.kernel)
    if output.bias and (own or task == 0):
        expected[f"{output.name}.bias"] = (output.units,)
    for name, shape in expected.items():
        _check_entry(tensors, name, dtype, shape)
    known = {"task", *(f"{group.name}.units" for group in network.groups), *expected}
    if surplus := sorted(set(tensors) - known):
        raise Damaged(f"entry {surplus[0]!r} has no place in this network's task {task + 1}")
    return units


def _check_units(network: Network, group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    name = f"{group.name}.units"
    found = tensors.get(name)
    _check_entry(tensors, name, torch.int64, (0 if found is None else found.numel(),))
    units = tensors[name].to(network.device)
    if len(units) and (bool((units.diff() <= 0).any()) or int(units[0]) < 0 or int(units[-1]) >= group.units):
        raise Damaged(f"entry {name!r} does not name units from 0 to {group.units - 1} in rising order, each once")
    if (network.owner(group)[units] != FREE).any():
        raise Damaged(f"entry {name!r} names units that an earlier task owns")
    return units


def _check_entry(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise Damaged(f"entry {name!r} is missing")
    if tensor.dtype != dtype or tensor.shape != shape:
        raise Damaged(
            f"entry {name!r} is {tensor.dtype} {list(tensor.shape)}; this network needs {dtype} {list(shape)}"
        )
