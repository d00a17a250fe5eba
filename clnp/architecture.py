"""An exported network as tensors with its architecture in JSON beside them, and back; no code is kept or run."""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn

from clnp.errors import Damaged
from clnp.exported import DTYPES, Exported, UnsupportedExport
from clnp.kinds import KINDS, Add, Check, argument, build, flag, literal, whole
from clnp.subnetwork import Select
from clnp.tasks.transform import Transform

__all__ = ["as_safetensors", "read_safetensors"]

_VERSION = 1
_WITH_INVERSION = 2  # what has inverted features is another version: a program that knows the first alone refuses it

_METADATA = "architecture"
_FIRST_FIELDS = ("version", "shape", "classes", "dtype", "nodes", "output")
_FIELDS = {_VERSION: _FIRST_FIELDS, _WITH_INVERSION: (*_FIRST_FIELDS, "inverted")}
_FIELD_CHECKS: dict[str, Check] = {
    "shape": lambda value: isinstance(value, list) and len(value) > 0 and all(map(whole(1), value)),
    "classes": whole(1),
    "dtype": literal(*DTYPES),
    "nodes": lambda value: isinstance(value, list) and len(value) > 0,
    "output": lambda value: isinstance(value, str),
    "inverted": flag,
}
_NODE = ("name", "kind", "arguments", "inputs")

_INPUT = "x"
"""What the first nodes read: the samples."""


class _Node(NamedTuple):
    """One step: ``inputs`` are names of earlier nodes, or ``x``, what the network reads."""

    name: str
    kind: str
    arguments: dict[str, Any]
    inputs: list[str]
    module: nn.Module


class _Steps(nn.Module):
    """The nodes, run in their order. No code is generated from their names, as :class:`torch.fx.GraphModule` would."""

    def __init__(self, nodes: Sequence[_Node], output: str) -> None:
        super().__init__()
        self.steps = nn.ModuleList(node.module for node in nodes)
        last = {name: node.name for node in nodes for name in node.inputs}
        self._names = [node.name for node in nodes]
        self._inputs = [tuple(node.inputs) for node in nodes]
        # Kept no longer than they are read: a residual network's maps are large.
        self._spent = [
            [name for name in set(node.inputs) if last[name] == node.name and name != output] for node in nodes
        ]
        self._output = output

    def forward(self, x: Tensor) -> Tensor:
        values = {_INPUT: x}
        for name, step, inputs, spent in zip(self._names, self.steps, self._inputs, self._spent, strict=True):
            values[name] = step(*(values[source] for source in inputs))
            for source in spent:
                del values[source]
        return values[self._output]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = [*m.parameters(recurse=False), *m.buffers(recurse=False)]
        return bool(own) or super().is_leaf_module(m, module_qualified_name)


def _nodes(subnetwork: nn.Module) -> tuple[list[_Node], str]:
    """The sub-network's nodes, named like its modules, and the name of the one that gives the logits."""
    names: dict[fx.Node, str] = {}
    nodes: list[_Node] = []
    *steps, output = _Tracer().trace(subnetwork).nodes
    for node in steps:
        if node.op == "placeholder" and not names:
            names[node] = _INPUT
        else:
            found = _node(subnetwork, node, names)
            names[node] = found.name
            nodes.append(found)
    return nodes, names[output.all_input_nodes[0]]


def _node(subnetwork: nn.Module, node: fx.Node, names: Mapping[fx.Node, str]) -> _Node:
    module: nn.Module
    if node.op == "call_module":
        module = subnetwork.get_submodule(str(node.target))
    elif node.op == "call_function" and node.target is operator.add:
        module = Add()
    else:
        raise UnsupportedExport(f"the sub-network's node {node.name} is {node.op} of {node.target}; {_supported()}")
    label = next((label for label, kind in KINDS.items() if kind.type is type(module)), None)
    if label is None:
        raise UnsupportedExport(
            f"the sub-network's module {node.target} is a {type(module).__qualname__}; {_supported()}"
        )
    kind = KINDS[label]
    arguments = {name: argument(module, name) for name in kind.arguments}
    for name, value in kind.fixed.items():
        if getattr(module, name) != value:
            raise UnsupportedExport(
                f"the sub-network's module {node.target} has {name}={getattr(module, name)!r}; "
                f"only {value!r} can be exported"
            )
    for name, holds in kind.arguments.items():
        if not holds(arguments[name]):
            raise UnsupportedExport(
                f"the sub-network's module {node.target} has {name}={arguments[name]!r}, "
                "which an architecture file cannot hold"
            )
    sources = [source for source in node.args if isinstance(source, fx.Node)]
    if len(sources) != kind.inputs or len(node.args) != kind.inputs or node.kwargs:
        raise UnsupportedExport(
            f"the sub-network's node {node.name} is called with {node.args} and {node.kwargs}; "
            f"a {label} reads {kind.inputs} of the nodes before it"
        )
    # A module may be called twice: then its second node cannot have its name too.
    path = str(node.target) if node.op == "call_module" else node.name
    name = node.name if path in names.values() else path
    while name in names.values():
        name += "_"
    return _Node(name, label, arguments, [names[source] for source in sources], module)


def _supported() -> str:
    return f"an exported network has {', '.join(KINDS)} and nothing else"


def as_safetensors(exported: Exported, classes: int) -> bytes:
    """Tensors and architecture as the bytes of a file.

    Raises:
        UnsupportedExport: The sub-network has modules that an architecture cannot name.
    """
    nodes, output = _nodes(exported.subnetwork)
    state = _state(exported.transform, nodes)
    architecture = {
        "version": _VERSION,
        "shape": exported.transform.shape,
        "classes": classes,
        "dtype": str(exported.dtype).removeprefix("torch."),
        "nodes": [{name: getattr(node, name) for name in _NODE} for node in nodes],
        "output": output,
    }
    if exported.transform.inverted:
        architecture |= {"version": _WITH_INVERSION, "inverted": True}
    # Cloned, since the format refuses tensors that share memory: a module that is called twice is written twice.
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    data: bytes = safetensors.torch.save(tensors, metadata={_METADATA: json.dumps(architecture, allow_nan=False)})
    return data


def _state(transform: nn.Module, nodes: Sequence[_Node]) -> dict[str, Tensor]:
    """Every tensor under the name that it has in a file: that of its node and, in it, of the module's parameter."""
    state = {f"transform.{name}": value for name, value in transform.state_dict().items()}
    for node in nodes:
        state |= {f"subnetwork.{node.name}.{name}": value for name, value in node.module.state_dict().items()}
    return state


def read_safetensors(path: Path) -> Exported:
    """What :func:`as_safetensors` made, from a file.

    Raises:
        Damaged: The file is something else; the message says what is wrong with it.
        FileNotFoundError: There is no such file.
    """
    metadata, tensors = _read(path)
    try:
        return _rebuild(metadata, tensors)
    except _Wrong as error:
        raise Damaged(f"{path} is not a whole exported network: {error}") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Cloned, since they are views of the file, which may change, and do not lie where an allocator puts them.
            return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(f"{path} is not a whole safetensors file: {error}") from error


class _Wrong(Exception):
    """What is wrong with a file, without its name."""


def _rebuild(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Exported:
    found = _architecture(metadata)
    shape, dtype = tuple(found["shape"]), DTYPES[found["dtype"]]
    nodes: dict[str, _Node] = {}
    for number, entry in enumerate(found["nodes"]):
        node = _parse_node(number, entry, {_INPUT, *nodes})
        node.module.to(dtype)
        nodes[node.name] = node
    if found["output"] not in nodes:
        raise _Wrong(f"its output is {found['output']!r}, which none of its nodes is called")
    _check_tensors(tensors, list(nodes.values()), shape)
    _check_flow(tensors, list(nodes.values()), shape, dtype, found)
    for node in nodes.values():
        prefix = f"subnetwork.{node.name}."
        node.module.load_state_dict({name: tensors[prefix + name] for name in node.module.state_dict()}, assign=True)
    subnetwork = _Steps(list(nodes.values()), found["output"]).requires_grad_(False)
    try:
        permutation, scale = tensors.get("transform.permutation"), float(tensors["transform.scale"])
        transform = Transform(permutation, scale, shape, found.get("inverted", False))
    except ValueError as error:
        raise _Wrong(f"its transform cannot be: {error}") from error
    return Exported(transform, subnetwork)


def _architecture(metadata: Mapping[str, str]) -> dict[str, Any]:
    if _METADATA not in metadata:
        raise _Wrong(f"its metadata has no {_METADATA!r}; it holds tensors that something else wrote")
    try:
        found = json.loads(metadata[_METADATA])
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"its architecture is not JSON: {error}") from error
    if not isinstance(found, dict) or "version" not in found:
        raise _Wrong("its architecture has no version")
    if type(found["version"]) is not int or found["version"] not in _FIELDS:
        raise _Wrong(
            f"its architecture has version {found['version']!r} and this program reads "
            f"{' and '.join(map(str, _FIELDS))}; read it with the version of clnp-search that wrote it"
        )
    fields = _FIELDS[found["version"]]
    if set(found) != set(fields):
        raise _Wrong(f"its architecture has the fields {sorted(found)}, not {sorted(fields)}")
    for name, holds in _FIELD_CHECKS.items():
        if name in fields and not holds(found[name]):
            raise _Wrong(f"its architecture has {name} {found[name]!r}")
    return found


def _parse_node(number: int, entry: Any, known: set[str]) -> _Node:
    if not isinstance(entry, dict) or set(entry) != set(_NODE):
        raise _Wrong(f"its node {number} is {entry!r}, not one with {', '.join(_NODE)}")
    name, label, sources = entry["name"], entry["kind"], entry["inputs"]
    if not isinstance(name, str) or name in known:
        raise _Wrong(f"its node {number} is called {name!r}; it needs a name of its own")
    kind = KINDS.get(label) if isinstance(label, str) else None
    if kind is None:
        raise _Wrong(f"its node {name!r} is of the unknown kind {label!r}; {_supported()}")
    if (
        not isinstance(sources, list)
        or len(sources) != kind.inputs
        or not all(isinstance(source, str) and source in known for source in sources)
    ):
        raise _Wrong(f"its node {name!r} reads {sources!r}; a {label} reads {kind.inputs} of the nodes before it")
    if not isinstance(entry["arguments"], dict) or set(entry["arguments"]) != set(kind.arguments):
        raise _Wrong(f"its node {name!r} has the arguments {entry['arguments']!r}, not {', '.join(kind.arguments)}")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["arguments"].items()}
    for key, holds in kind.arguments.items():
        if not holds(arguments[key]):
            raise _Wrong(f"its node {name!r} has {key}={entry['arguments'][key]!r}")
    try:
        module = build(kind, arguments)
    except (RuntimeError, ValueError) as error:
        raise _Wrong(f"its node {name!r} cannot be a {label} with {entry['arguments']!r}: {error}") from error
    return _Node(name, label, arguments, sources, module)


def _check_tensors(tensors: Mapping[str, Tensor], nodes: Sequence[_Node], shape: tuple[int, ...]) -> None:
    """That every node has its tensors, of the right shape and type, and that there are no others."""
    expected: dict[str, tuple[torch.dtype, list[int]]] = {"transform.scale": (torch.float32, [])}
    for name, value in _state(nn.Module(), nodes).items():
        expected[name] = (value.dtype, list(value.shape))
    if "transform.permutation" in tensors:
        expected["transform.permutation"] = (torch.int64, [math.prod(shape)])
    if missing := sorted(expected.keys() - tensors.keys()):
        raise _Wrong(f"it lacks {', '.join(missing)}")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise _Wrong(f"it holds {', '.join(surplus)}, which no node has")
    for name, (kind, sizes) in expected.items():
        value = tensors[name]
        if value.dtype != kind or list(value.shape) != sizes:
            raise _Wrong(f"its {name} is {value.dtype} {list(value.shape)}, not {kind} {sizes}")


def _check_flow(
    tensors: Mapping[str, Tensor],
    nodes: Sequence[_Node],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    found: Mapping[str, Any],
) -> None:
    """That every node can read what those before it give, and that logits come out: without numbers, on meta."""
    where = "the input"
    try:
        values = {_INPUT: torch.empty(2, *shape, dtype=dtype, device="meta")}
        for node in nodes:
            where = f"its node {node.name!r}"
            inputs = [values[source] for source in node.inputs]
            if isinstance(node.module, Select):
                _check_index(tensors[f"subnetwork.{node.name}.index"], inputs[0], where)
            values[node.name] = node.module(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _Wrong(f"{where} cannot read what it is given: {error}") from error
    answer = list(values[found["output"]].shape)
    if answer != [2, found["classes"]]:
        raise _Wrong(f"it answers 2 samples with {answer}, not [2, {found['classes']}]")


def _check_index(index: Tensor, source: Tensor, where: str) -> None:
    if not (int(index.min()) >= 0 and int(index.max()) < source.shape[1]):
        raise _Wrong(f"{where} selects units {int(index.min())} to {int(index.max())} of {source.shape[1]}")
