"""Trace a module as a graph of torch.fx, whatever wraps it refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from clnp.errors import UnsupportedNetwork

__all__ = ["trace"]


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
                f"evaluation mode; what was scored would not be what was trained: let both do the same"
            )
    return graph


def _step(node: fx.Node) -> tuple[str, str, tuple[str, ...]]:
    return node.op, str(node.target), tuple(read.name for read in node.all_input_nodes)


def _trace(module: nn.Module, *, training: bool) -> fx.Graph:
    with _mode(module, training=training):
        try:
            return fx.Tracer().trace(module)
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
