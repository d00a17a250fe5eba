"""Trace a module as a graph of torch.fx, whatever wraps it refused."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from clnp.errors import UnsupportedNetwork

__all__ = ["DROPOUT", "arguments", "trace"]


def trace(module: nn.Module) -> fx.Graph:
    """What a module computes in training mode, so that a dropout() of its forward() is seen.

    Raises:
        UnsupportedNetwork: It is no module, it or a part of it is wrapped, compiled, scripted, hooked or without sizes;
            it cannot be traced; or it computes something else in evaluation mode.
    """
    _refuse_wrappers(module)
    graph, other = (_trace(module, training=training) for training in (True, False))
    for node, again in zip(graph.nodes, other.nodes, strict=False):
        if _step(node) != _step(again):
            raise UnsupportedNetwork(
                f"{type(module).__name__} goes on with {node.name!r} in training mode and with {again.name!r} in "
                f"evaluation mode, or with other numbers; what was scored would not be what was trained: let both do "
                f"the same"
            )
        if again.target is functional.dropout and arguments(again, DROPOUT).get("training", True):
            raise UnsupportedNetwork(
                f"{again.name!r}, a call of dropout(), drops features in evaluation mode too; give it "
                f"training=self.training"
            )
    return graph


DROPOUT = ("p", "training", "inplace")
"""What functional.dropout takes beside its input."""


def arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """By name what a function is called with, its input left out."""
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _step(node: fx.Node) -> tuple[object, ...]:
    """What a node does; but for a dropout, whose mode is what differs."""
    if node.target is functional.dropout:
        given = {name: value for name, value in arguments(node, DROPOUT).items() if name != "training"}
        return node.op, node.target, repr(node.args[:1]), repr(sorted(given.items()))
    return node.op, node.target, repr(node.args), repr(node.kwargs)


class _Proxy(fx.Proxy):
    """A value that remembers to have been changed in place: torch.fx takes ``x += y`` for ``x = x + y``."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _trace(module: nn.Module, *, training: bool) -> fx.Graph:
    with _mode(module, training=training):
        try:
            return _Tracer().trace(module)
        except Exception as error:
            # Whatever a person's forward() does with a value that stands for any sample.
            raise UnsupportedNetwork(
                f"{type(module).__name__} cannot be traced ({type(error).__name__}: {error}); its forward() must not "
                f"depend on the samples, in Python's if, for or len()"
            ) from error


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    modes = [(child, child.training) for child in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def _refuse_wrappers(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise UnsupportedNetwork(f"the network is a {type(module).__name__}; give a torch.nn.Module")
    for name, child in module.named_modules():
        _refuse_wrapper(f"layer {name!r}" if name else "the network", child)


def _refuse_wrapper(where: str, module: nn.Module) -> None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UnsupportedNetwork(
            f"{where} is wrapped in {type(module).__name__}; give what it wraps, its .module: the search itself "
            f"spreads over devices"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedNetwork(f"{where} is a ScriptModule; give the module that it was scripted from")
    if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        raise UnsupportedNetwork(f"{where} is compiled; give the {type(inner).__name__} before torch.compile")
    if any(is_lazy(entry) for entry in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        raise UnsupportedNetwork(f"{where} has no sizes yet; run one batch of samples through the network")
    # Only sizes are taken over, so what a hook does to an answer would be lost without a word.
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedNetwork(
            f"{where} has a forward hook; remove it (one of torch.nn.utils.prune or weight_norm with their own remove "
            f"functions)"
        )
