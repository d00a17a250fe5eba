"""Commit a task: sever, claim, freeze (Sec. 2.1, Algorithm 1); its fingerprint; what it added, and back."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clnp.errors import Damaged, NothingToCommit
from clnp.network import FREE, Layer, Network
from clnp.ownership import Claims, active, reads, weight_classes
from clnp.subnetwork import check_committed

__all__ = ["added", "commit", "fingerprint", "restore", "sever"]


def commit(network: Network, claims: Claims) -> None:
    """Commit the open task, in place: cut what interferes with it, and give it the units it claims.

    Algorithm 1 severs W^int at the top of the next task; here it is done at the end of this one, before anything is
    measured. The weights from units that stay free into newly claimed ones become 0, and, with a head of its own, those
    from inactive units of the last hidden layer into it. A shared output layer is masked instead (Fig. 2). The first
    layer has nothing to sever: the network's inputs always count as active. From now on the claimed units' rows and the
    task's output weights are frozen, because :func:`clnp.ownership.trainable` no longer names them.

    Args:
        network: Opened and trained; its owners change.
        claims: By hidden layer's name, the free units to claim: bool ``[units]``, on the network's device.

    Raises:
        NothingToCommit: The task would be left without an active unit in some hidden layer or, under a shared output
            layer, without a new one in the last. Nothing has changed.
        ValueError: The claims do not fit the network. Nothing has changed.
    """
    _check_claims(network, claims)
    for layer in network.hidden:
        network.owner(layer)[claims[layer.name]] = network.task
    sever(network, claims)
    network.committed += 1


def sever(network: Network, claims: Claims) -> None:
    """Zero the interference weights into units that the open task has just claimed, in place: W^int (Fig. 1).

    The owners are set, and ``network.task`` is still the open one.
    """
    for layer in network.hidden:
        # The rows of earlier tasks are frozen; their interference weights are 0 since their own commit.
        mask = claims[layer.name].unsqueeze(1) & weight_classes(network, layer).interference
        network.linear(layer).weight.masked_fill_(mask, 0.0)
    if network.head == "multi":
        network.linear(network.output, network.task).weight.masked_fill_(~active(network, network.last), 0.0)


def fingerprint(network: Network, task: int) -> str:
    """SHA-256 over every tensor entry that a committed task's answer depends on, as 64 hex digits.

    These are, for each layer: which units the task reads and who owns them; their rows, restricted to the inputs that
    the task reads; their biases; for the output layer the columns of the units it reads. Further every severed entry,
    from units that are free or came later into those that the task reads, that is not 0: there should be none, so units
    that are added with zero columns change nothing. Bits count where the task reads (-0.0 is not 0.0 there), values
    where it is severed. It depends neither on the device nor on anything that later tasks may change.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    digest = hashlib.sha256()
    _feed(digest, "task", network.head, task)
    columns = torch.ones(network.hidden[0].inputs, dtype=torch.bool, device=network.device)
    for layer in network.hidden:
        units = reads(network, layer, task)
        rows = units.nonzero().squeeze(1)
        _feed(digest, "units", layer.name, rows, network.owner(layer)[rows])
        _feed_linear(digest, layer, network.linear(layer), rows, columns, severed=True)
        columns = units
    head = network.linear(network.output, task)
    rows = torch.arange(network.output.units, device=network.device)
    # Other columns of a shared output layer are other tasks', kept out by the mask and not by zeros.
    _feed_linear(digest, network.output, head, rows, columns, severed=network.head == "multi")
    return digest.hexdigest()


def added(network: Network, task: int) -> dict[str, Tensor]:
    """What the commit of ``task`` added to the network, on the CPU; the same after any later commit.

    By name: ``task`` (its index); for each hidden layer ``<layer>.units`` (the units claimed, int64, rising) and their
    rows ``<layer>.weight`` ``[claimed, inputs]`` and ``<layer>.bias`` ``[claimed]``; of the output layer its own head
    whole, or of a shared one the columns ``<output>.weight`` ``[classes, claimed]`` and, for task 0, the bias.

    Raises:
        IndexError: The task is not committed.
    """
    check_committed(network, task)
    tensors = {"task": torch.tensor(task)}
    units = torch.empty(0, dtype=torch.int64)
    for layer in network.hidden:
        linear = network.linear(layer)
        units = (network.owner(layer) == task).nonzero().squeeze(1)
        tensors[f"{layer.name}.units"] = units
        tensors[f"{layer.name}.weight"] = linear.weight[units]
        if linear.bias is not None:
            tensors[f"{layer.name}.bias"] = linear.bias[units]
    output = network.output
    head = network.linear(output, task)
    tensors[f"{output.name}.weight"] = head.weight if network.head == "multi" else head.weight[:, units]
    if head.bias is not None and (network.head == "multi" or task == 0):
        tensors[f"{output.name}.bias"] = head.bias
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def restore(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Put a commit's tensors back, in place: the inverse of :func:`added`, onto a network with the commits before it.

    Raises:
        Damaged: The tensors do not fit this network or its next task; the message names the entry. Nothing has changed.
    """
    task = network.task
    units = _check_tensors(network, tensors)
    network.place_head(task)
    with torch.no_grad():
        for layer in network.hidden:
            linear, rows = network.linear(layer), units[layer.name]
            linear.weight[rows] = tensors[f"{layer.name}.weight"].to(network.device)
            if linear.bias is not None:
                linear.bias[rows] = tensors[f"{layer.name}.bias"].to(network.device)
            network.owner(layer)[rows] = task
        output = network.output
        head, weight = network.linear(output, task), tensors[f"{output.name}.weight"].to(network.device)
        if network.head == "multi":
            head.weight.copy_(weight)
        else:
            head.weight[:, units[network.last.name]] = weight
        if f"{output.name}.bias" in tensors:
            head.bias.copy_(tensors[f"{output.name}.bias"])
        network.committed += 1


def _check_claims(network: Network, claims: Claims) -> None:
    if network.head == "multi" and str(network.task) not in network.heads:
        raise ValueError(f"task {network.task} has no head yet; open the task and train it before its commit")
    names = [layer.name for layer in network.hidden]
    if sorted(claims) != sorted(names):
        raise ValueError(f"the claims name the layers {sorted(claims)}; the hidden layers are {names}")
    for layer in network.hidden:
        claimed = claims[layer.name]
        if claimed.dtype != torch.bool or claimed.shape != (layer.units,):
            raise ValueError(
                f"the claims of {layer.name} are {claimed.dtype} {list(claimed.shape)}; give bool [{layer.units}]"
            )
        taken = claimed & (network.owner(layer) != FREE)
        if taken.any():
            unit = int(taken.nonzero()[0])
            owner = int(network.owner(layer)[unit])
            raise ValueError(f"the claims of {layer.name} name unit {unit}, which task {owner} owns; claim free units")
    for layer in network.hidden:
        if not reads(network, layer, network.task, claims).any():
            raise NothingToCommit(f"task {network.task + 1} would read no unit of {layer.name}; lower θ or α")


def _feed(digest: "hashlib._Hash", *parts: str | int | Tensor) -> None:
    """Add names, numbers and tensors; each with what it is and how long, so that no two lists give the same bytes."""
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(json.dumps([str(part.dtype), list(part.shape)]).encode() + b"\n")
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps(part).encode() + b"\n")


def _feed_linear(
    digest: "hashlib._Hash", layer: Layer, linear: nn.Linear, rows: Tensor, columns: Tensor, *, severed: bool
) -> None:
    weight = linear.weight[rows]
    _feed(digest, "weight", layer.name, weight[:, columns])
    if linear.bias is not None:
        _feed(digest, "bias", layer.name, linear.bias[rows])
    if severed:
        row, column = ((weight != 0) & ~columns).nonzero(as_tuple=True)
        _feed(digest, "severed", layer.name, rows[row], column, weight[row, column])


def _check_tensors(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units that each hidden layer's entries are for, on the network's device, after everything was checked."""
    task = network.task
    _check_entry(tensors, "task", torch.int64, ())
    if int(tensors["task"]) != task:
        raise Damaged(
            f"entry 'task' is of task {int(tensors['task']) + 1}; the next commit of this network is of task {task + 1}"
        )
    expected = {"task"}
    units: dict[str, Tensor] = {}
    count = 0
    for layer in network.hidden:
        linear = network.linear(layer)
        units[layer.name] = _check_units(network, layer, tensors)
        count = len(units[layer.name])
        expected |= {f"{layer.name}.units", f"{layer.name}.weight"}
        _check_entry(tensors, f"{layer.name}.weight", linear.weight.dtype, (count, layer.inputs))
        if layer.bias:
            expected.add(f"{layer.name}.bias")
            _check_entry(tensors, f"{layer.name}.bias", linear.weight.dtype, (count,))
    output, own = network.output, network.head == "multi"
    dtype = network.linear(network.last).weight.dtype
    expected.add(f"{output.name}.weight")
    _check_entry(tensors, f"{output.name}.weight", dtype, (output.units, output.inputs if own else count))
    if output.bias and (own or task == 0):
        expected.add(f"{output.name}.bias")
        _check_entry(tensors, f"{output.name}.bias", dtype, (output.units,))
    if surplus := sorted(set(tensors) - expected):
        raise Damaged(f"entry {surplus[0]!r} has no place in this network's task {task + 1}")
    return units


def _check_units(network: Network, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    name = f"{layer.name}.units"
    found = tensors.get(name)
    _check_entry(tensors, name, torch.int64, (0 if found is None else found.numel(),))
    units = tensors[name].to(network.device)
    if len(units) and (bool((units.diff() <= 0).any()) or int(units[0]) < 0 or int(units[-1]) >= layer.units):
        raise Damaged(f"entry {name!r} does not name units from 0 to {layer.units - 1} in rising order, each once")
    if (network.owner(layer)[units] != FREE).any():
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
