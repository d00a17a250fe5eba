"""Read a module as a graph of layers whose units can be claimed, or refuse it: its name, the reason and a remedy."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from clnp.errors import UnsupportedNetwork
from clnp.graph import INPUT, Add, Graph, Group, Layer, Node, Norm, Plain
from clnp.tracing import DROPOUT, arguments, trace

__all__ = ["read_graph"]

SUPPORTED = (
    "supported are Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU, GELU, SiLU, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d, Dropout, Flatten, Identity and additions"
)

_PLAIN: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Identity: (),
}
"""The modules without entries, and the arguments that each is made again from."""

_FUNCTIONS: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.relu: (nn.ReLU, ()),
    functional.relu: (nn.ReLU, ("inplace",)),
    functional.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    functional.gelu: (nn.GELU, ("approximate",)),
    functional.silu: (nn.SiLU, ("inplace",)),
    functional.max_pool2d: (
        nn.MaxPool2d,
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    ),
    functional.avg_pool2d: (nn.AvgPool2d, _PLAIN[nn.AvgPool2d]),
    functional.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    functional.dropout: (nn.Dropout, DROPOUT),
    torch.flatten: (nn.Flatten, ("start_dim", "end_dim")),
}
"""The functions that stand for such a module, and their arguments after the first."""

_METHODS = {"relu": torch.relu, "relu_": torch.relu, "flatten": torch.flatten}
_SUMS = (operator.add, operator.iadd, torch.add)
_SUM_METHODS = ("add", "add_")


def read_graph(module: nn.Module) -> Graph:
    """The graph of a module.

    Raises:
        UnsupportedNetwork: It cannot be traced, or something in it cannot be claimed unit by unit; see
            :class:`clnp.network.Network`.
    """
    traced, modules = trace(module), dict(module.named_modules())
    return _Reader(traced, modules).read()


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a node's output.

    Attributes:
        group: The layer that made its units, before additions tie groups; None for the network's input.
        units: How many, where known.
        maps: Whether it is a map ``[n, units, h, w]``; None where only the samples can tell.
        flattened: Whether a unit may have several features.
    """

    group: str | None
    units: int | None
    maps: bool | None
    flattened: bool = False


class _Reader:
    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
        self._graph = graph
        self._modules = modules
        self._nodes: list[Node] = []
        self._values: dict[int, _Value] = {INPUT: _Value(None, None, None)}
        self._places: dict[fx.Node, int] = {}
        self._tied: dict[str, str] = {}
        self._owners: dict[int, str] = {}
        self._first: tuple[str, torch.dtype, torch.device] | None = None
        self._memory: dict[fx.Node, fx.Node] = {}
        """Of values that may share their memory with another, the first of them."""

    def read(self) -> Graph:
        result: Any = None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if self._places:
                    raise UnsupportedNetwork(
                        f"the network has a second input, {node.name!r}; give one that maps samples to logits"
                    )
                self._places[node] = INPUT
            elif node.op == "output":
                result = node.args[0]
            else:
                self._places[node] = self._read(node)
        return self._finish(result)

    def _read(self, node: fx.Node) -> int:
        if node.op == "get_attr":
            raise UnsupportedNetwork(
                f"the network uses {node.target!r} outside of a layer; {SUPPORTED}, each as a module of its own"
            )
        where = self._where(node)
        self._refuse_overwriting(where, node)
        if node.op == "call_module":
            return self._module(where, node, self._modules[str(node.target)])
        function = _METHODS.get(str(node.target)) if node.op == "call_method" else node.target
        if function in _SUMS or (node.op == "call_method" and node.target in _SUM_METHODS):
            return self._add(where, node)
        if callable(function) and function in _FUNCTIONS:
            return self._function(where, node, *_FUNCTIONS[function])
        hint = "; torch.flatten(x, 1) makes a map flat" if node.target in ("view", "reshape", "size") else ""
        raise UnsupportedNetwork(f"{where} is no layer that can be claimed; {SUPPORTED}{hint}")

    def _where(self, node: fx.Node) -> str:
        place = len(self._nodes)
        if node.op == "call_module":
            return f"layer {str(node.target)!r} (place {place})"
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"{node.name!r}, a call of {target}() (place {place})"

    def _refuse_overwriting(self, where: str, node: fx.Node) -> None:
        """Refuse a change in place of what is read again, since the graph keeps every value as it was."""
        changed = node.args[0] if node.args and self._inplace(node) else None
        if not isinstance(changed, fx.Node):
            return
        memory = self._memory.get(changed, changed)
        same = [value for value in self._places if self._memory.get(value, value) is memory]
        later = [user for value in same for user in value.users if user is not node and user not in self._places]
        if later:
            raise UnsupportedNetwork(
                f"{where} changes in place what {later[0].name!r} reads after it; let it make a new value "
                f"(inplace=False, + instead of +=)"
            )
        self._memory[node] = memory

    def _inplace(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_")
        if callable(node.target) and node.target in _FUNCTIONS:
            return bool(arguments(node, _FUNCTIONS[node.target][1]).get("inplace", False))
        return node.target is operator.iadd

    def _inputs(self, where: str, node: fx.Node, count: int) -> tuple[int, ...]:
        given = node.args[:count]
        if len(given) != count or not all(isinstance(one, fx.Node) for one in given):
            raise UnsupportedNetwork(
                f"{where} reads {', '.join(map(str, node.args)) or 'nothing'}, not what other layers compute alone"
            )
        return tuple(self._places[one] for one in given if isinstance(one, fx.Node))

    def _append(self, name: str, op: Layer | Norm | Plain | Add, inputs: tuple[int, ...], value: _Value) -> int:
        self._nodes.append(Node(name, op, inputs, value.group))
        self._values[len(self._nodes) - 1] = value
        return len(self._nodes) - 1

    def _module(self, where: str, node: fx.Node, module: nn.Module) -> int:
        name = str(node.target)
        if type(module) in _PLAIN:
            arguments = {key: getattr(module, key) for key in _PLAIN[type(module)]}
            return self._plain(where, node, type(module), arguments)
        inputs = self._inputs(where, node, 1)
        read = self._values[inputs[0]]
        if type(module) in (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d):
            self._own(where, name, module)
        if type(module) is nn.Linear:
            return self._dense(where, name, module, inputs, read)
        if type(module) is nn.Conv2d:
            return self._conv(where, name, module, inputs, read)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            return self._norm(where, name, module, inputs, read)
        raise UnsupportedNetwork(f"{where} is a {type(module).__name__}; {SUPPORTED}")

    def _own(self, where: str, name: str, module: nn.Module) -> None:
        """Refuse entries that are tied, and dtypes that differ."""
        if "/" in name:
            raise UnsupportedNetwork(f"{where} has a / in its name; give it another")
        if any(node.name == name and isinstance(node.op, Layer | Norm) for node in self._nodes):
            raise UnsupportedNetwork(f"{where} is used twice, so its weights are tied; give each use its own layer")
        for kind, entry in (*module.named_parameters(), *module.named_buffers()):
            if kind == "num_batches_tracked":
                continue
            # Two parameters may lie in the same memory.
            place = entry.data_ptr() or id(entry)  # on the meta device, and of nothing, 0
            if place in self._owners:
                raise UnsupportedNetwork(f"{where} shares its {kind} with layer {self._owners[place]!r}; untie them")
            self._owners[place] = name
            if entry.dtype not in (torch.float32, torch.float64):
                raise UnsupportedNetwork(f"{where} is {entry.dtype}; call .float() or .double() on the network")
            first, dtype, device = self._first = self._first or (name, entry.dtype, entry.device)
            if entry.dtype != dtype:
                raise UnsupportedNetwork(
                    f"{where} is {entry.dtype}, but {first!r} is {dtype}; call .float() or .double() on the network"
                )
            if entry.device != device:
                raise UnsupportedNetwork(
                    f"{where} is on {entry.device}, but {first!r} on {device}; move the network to one of them"
                )

    def _dense(self, where: str, name: str, module: nn.Linear, inputs: tuple[int, ...], read: _Value) -> int:
        if read.maps:
            raise UnsupportedNetwork(f"{where} is a Linear that reads a map; put a Flatten before it")
        features, units = module.in_features, read.units or module.in_features
        if features % units or (features != units and not read.flattened) or min(features, module.out_features) < 1:
            raise UnsupportedNetwork(
                f"{where} reads {features} inputs and has {module.out_features} units, but {self._before(inputs)} "
                f"{read.units} units; make them fit"
            )
        layer = Layer(
            name,
            "dense",
            name,
            read.group,
            features,
            module.out_features,
            module.bias is not None,
            positions=features // units if read.group is not None else 1,
        )
        self._tied[name] = name
        return self._append(name, layer, inputs, _Value(name, layer.units, False))

    def _conv(self, where: str, name: str, module: nn.Conv2d, inputs: tuple[int, ...], read: _Value) -> int:
        if module.groups != 1 or module.padding_mode != "zeros":
            found = f"{module.groups} groups" if module.groups != 1 else f"padding_mode {module.padding_mode!r}"
            raise UnsupportedNetwork(f"{where} is a Conv2d with {found}; supported are groups=1 and padding with zeros")
        if read.maps is False:
            raise UnsupportedNetwork(f"{where} is a Conv2d that reads no map; put it before the Flatten")
        if min(module.in_channels, module.out_channels) < 1 or read.units not in (None, module.in_channels):
            raise UnsupportedNetwork(
                f"{where} reads {module.in_channels} channels and has {module.out_channels}, but "
                f"{self._before(inputs)} {read.units} units; make them fit"
            )
        layer = Layer(
            name,
            "conv",
            name,
            read.group,
            module.in_channels,
            module.out_channels,
            module.bias is not None,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=module.padding if isinstance(module.padding, str) else tuple(module.padding),
            dilation=tuple(module.dilation),
        )
        self._tied[name] = name
        return self._append(name, layer, inputs, _Value(name, layer.units, True))

    def _norm(
        self, where: str, name: str, module: nn.BatchNorm1d | nn.BatchNorm2d, inputs: tuple[int, ...], read: _Value
    ) -> int:
        dims: Literal[1, 2] = 1 if isinstance(module, nn.BatchNorm1d) else 2
        if read.group is None:
            raise UnsupportedNetwork(f"{where} normalises the network's input, which has no units; do it in the tasks")
        if read.maps is not (dims == 2):
            after = "a convolution" if dims == 2 else "a dense layer"
            raise UnsupportedNetwork(f"{where} is a {type(module).__name__}, which belongs after {after}")
        if module.num_features != read.units:
            raise UnsupportedNetwork(
                f"{where} normalises {module.num_features} features, but {self._before(inputs)} {read.units} units; "
                f"give it as many, before any Flatten"
            )
        if module.running_mean is None or module.momentum is None:
            what = "track_running_stats=False" if module.running_mean is None else "momentum=None"
            raise UnsupportedNetwork(f"{where} has {what}; a claimed channel keeps running statistics: give it them")
        norm = Norm(name, read.group, module.num_features, dims, module.eps, module.momentum, module.affine)
        return self._append(name, norm, inputs, read)

    def _function(self, where: str, node: fx.Node, kind: type[nn.Module], names: tuple[str, ...]) -> int:
        if surplus := [*map(str, node.args[1 + len(names) :]), *(key for key in node.kwargs if key not in names)]:
            raise UnsupportedNetwork(
                f"{where} is given {', '.join(surplus)}; beside its input, which comes first and without a name, it "
                f"takes {', '.join(names) or 'nothing'}"
            )
        given = arguments(node, names)
        given.pop("inplace", None)
        if kind is nn.Flatten:
            given.setdefault("start_dim", 0)  # torch.flatten's default is not the module's
        if kind is nn.Dropout:
            given.setdefault("p", 0.5)
            if not given.pop("training", True):
                kind, given = nn.Identity, {}
        for key, value in given.items():
            if isinstance(value, fx.Node):
                raise UnsupportedNetwork(f"{where} takes its {key} from the samples; give a number")
        return self._plain(where, node, kind, given)

    def _plain(self, where: str, node: fx.Node, kind: type[nn.Module], arguments: dict[str, Any]) -> int:
        inputs = self._inputs(where, node, 1)
        read = self._values[inputs[0]]
        if kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d):
            if read.maps is False:
                raise UnsupportedNetwork(f"{where} pools what is no map; put it before the Flatten")
            if arguments.pop("return_indices", False):
                raise UnsupportedNetwork(f"{where} returns indices too; leave return_indices out")
            value = replace(read, maps=True)
        elif kind is nn.Flatten:
            start, end = arguments.get("start_dim", 1), arguments.get("end_dim", -1)
            if (start, end) != (1, -1):
                raise UnsupportedNetwork(
                    f"{where} flattens from dimension {start} to {end}; give start_dim=1 and end_dim=-1"
                )
            arguments = {}
            value = read if read.maps is False else replace(read, maps=False, flattened=True)
        else:
            value = read
        name = str(node.target) if node.op == "call_module" else node.name
        if kind in (nn.Flatten, nn.Identity, nn.Dropout) and isinstance(given := node.args[0], fx.Node):
            self._memory.setdefault(node, self._memory.get(given, given))
        fixed = {key: tuple(one) if isinstance(one, list) else one for key, one in arguments.items()}
        return self._append(name, Plain(kind, tuple(sorted(fixed.items()))), inputs, value)

    def _add(self, where: str, node: fx.Node) -> int:
        if node.kwargs.get("alpha", 1) != 1:
            raise UnsupportedNetwork(f"{where} adds with a factor alpha; add without one")
        if surplus := [key for key in node.kwargs if key != "alpha"]:
            raise UnsupportedNetwork(f"{where} is given {', '.join(surplus)} by name; give both terms, and no more")
        inputs = self._inputs(where, node, 2)
        first, second = (self._values[place] for place in inputs)
        if first.group is None or second.group is None:
            raise UnsupportedNetwork(f"{where} adds the network's input, which has no owner; put a layer in between")
        if (first.units, first.maps, first.flattened) != (second.units, second.maps, second.flattened):
            raise UnsupportedNetwork(
                f"{where} adds {first.units} units of {first.group!r} and {second.units} of {second.group!r} in "
                f"another form; add as many units, maps to maps"
            )
        self._tied[self._root(second.group)] = self._root(first.group)
        return self._append(node.name, Add(), inputs, first)

    def _root(self, name: str) -> str:
        while self._tied[name] != name:
            name = self._tied[name]
        return name

    def _before(self, inputs: tuple[int, ...]) -> str:
        place = inputs[0]
        return "the input has" if place == INPUT else f"{self._nodes[place].name!r} before it has"

    def _finish(self, result: Any) -> Graph:
        if not isinstance(result, fx.Node):
            raise UnsupportedNetwork(f"the network returns {type(result).__name__}; give one that returns the logits")
        nodes = self._named()
        last = self._places[result]
        head = self._head(nodes, last)
        used = {place for node in nodes for place in node.inputs} | {last}
        for place, node in enumerate(nodes):
            if place not in used:
                raise UnsupportedNetwork(
                    f"layer {node.name!r} (place {place}) has no consumer: nothing reads it; remove it, or use it"
                )
        hidden = {
            node.op.group: Group(node.op.group, node.op.units)
            for node in nodes
            if isinstance(node.op, Layer) and node.op.group != head.group
        }
        if not hidden:
            raise UnsupportedNetwork("the network has no hidden layer; at least one is needed to claim units in")
        read = {node.op.name for node in nodes if isinstance(node.op, Layer | Norm)}
        for name, module in self._modules.items():
            if name not in read and (spare := [kind for kind, _ in module.named_parameters(recurse=False)]):
                what = f"layer {name!r}" if name else f"the network's {spare[0]}"
                raise UnsupportedNetwork(
                    f"{what} has no consumer: nothing that forward() does reads it; remove it, or use it"
                )
        return Graph(nodes[: last + 1], tuple(hidden.values()))

    def _named(self) -> list[Node]:
        """The nodes, each group under the name of its first layer."""
        names: dict[str, str] = {}
        for node in self._nodes:
            if isinstance(node.op, Layer):
                names.setdefault(self._root(node.op.group), node.op.name)

        def final(group: str | None) -> str | None:
            return None if group is None else names[self._root(group)]

        nodes = []
        for node in self._nodes:
            op = node.op
            if isinstance(op, Layer):
                op = replace(op, group=names[self._root(op.group)], source=final(op.source))
            elif isinstance(op, Norm):
                op = replace(op, group=names[self._root(op.group)])
            nodes.append(replace(node, op=op, group=final(node.group)))
        return nodes

    def _head(self, nodes: list[Node], last: int) -> Layer:
        """The output layer, behind nothing but pooling and flattening."""
        place = last
        while place != INPUT and isinstance(op := nodes[place].op, Plain) and op.kind in _AFTER_HEAD:
            place = nodes[place].inputs[0]
        if place == INPUT:
            raise UnsupportedNetwork("the network has no layer; give one with at least one hidden layer and a head")
        node = nodes[place]
        if not isinstance(node.op, Layer):
            what = "an addition" if isinstance(node.op, Add) else f"a {_kind(node.op)}"
            raise UnsupportedNetwork(
                f"the network ends with {node.name!r} (place {place}), {what}, which is no head; end it with the "
                f"Linear or Conv2d of the logits, then at most pooling and Flatten"
            )
        if self._values[last].maps:
            raise UnsupportedNetwork(
                f"the network ends with a map of {node.name!r}; average it and flatten it to [n, classes]"
            )
        if any(isinstance(other.op, Layer) and other.op.source == node.op.group for other in nodes):
            raise UnsupportedNetwork(
                f"the logits of {node.name!r} are read by a layer of the network too; give the head no other reader"
            )
        return node.op


_AFTER_HEAD = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)


def _kind(op: Norm | Plain) -> str:
    return op.kind.__name__ if isinstance(op, Plain) else f"BatchNorm{op.dims}d"
