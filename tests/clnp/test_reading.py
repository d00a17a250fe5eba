"""What a module is read as, and what is refused: by name, with the reason and a remedy."""

import operator
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm

from clnp.activity import mean_activity
from clnp.errors import UnsupportedNetwork
from clnp.evaluation import logits
from clnp.graph import Add, Group, Layer, Norm, Plain
from clnp.models import mlp
from clnp.network import Network
from clnp.reading import read_graph
from clnp.subnetwork import cut
from clnp.tasks.vision import load_torchvision


class Made(nn.Module):
    """A module with a forward() written where it is used: ``Made(lambda m, x: m.a(x), a=nn.Linear(…))``."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


def kinds(graph):
    return [type(node.op) if not isinstance(node.op, Plain) else node.op.kind for node in graph.nodes]


# What is read


def test_every_setting_of_a_chain_is_taken_over():
    graph = read_graph(
        nn.Sequential(
            nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
            nn.BatchNorm2d(8, eps=1e-3, momentum=0.2, affine=False),
            nn.LeakyReLU(0.3),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            nn.Dropout(0.25),
            nn.Conv2d(8, 4, 3, padding="same"),
            nn.GELU(approximate="tanh"),
            nn.AvgPool2d(2, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(4 * 6, 7),
            nn.BatchNorm1d(7),
            nn.SiLU(),
            nn.Linear(7, 5),
        )
    )
    assert graph.chain
    assert graph.groups == (Group("0", 8), Group("5", 4), Group("9", 7))
    assert graph.layers == (
        Layer("0", "conv", "0", None, 3, 8, False, 1, (3, 2), (2, 1), (1, 0), (1, 2)),
        Layer("5", "conv", "5", "0", 8, 4, True, 1, (3, 3), (1, 1), "same", (1, 1)),
        Layer("9", "dense", "9", "5", 24, 7, True, positions=6),
        Layer("12", "dense", "12", "9", 7, 5, True),
    )
    assert graph.norms == (Norm("1", "0", 8, 2, 1e-3, 0.2, False), Norm("10", "9", 7, 1, 1e-5, 0.1, True))
    plain = {node.name: node.op.module() for node in graph.nodes if isinstance(node.op, Plain)}
    assert plain["2"].negative_slope == 0.3
    assert (plain["3"].kernel_size, plain["3"].stride, plain["3"].padding, plain["3"].ceil_mode) == (3, 2, 1, True)
    assert plain["4"].p == 0.25
    assert plain["6"].approximate == "tanh"
    assert plain["7"].count_include_pad is False


def _modules(m, x):
    x = m.pool(m.relu(m.norm(m.a(x))))
    x = m.silu(m.b(x))
    x = m.drop(m.gelu(m.leaky(x + m.c(x))))
    return m.head(m.flat(m.average(m.adapt(x))))


def _functions(m, x):
    x = functional.max_pool2d(functional.relu(m.norm(m.a(x))), (2, 1), padding=(1, 0))
    x = functional.silu(m.b(x))
    y = m.c(x)
    y += x
    x = functional.gelu(functional.leaky_relu(y, 0.2), approximate="tanh")
    x = functional.dropout(x, 0.3, m.training)
    return m.head(torch.flatten(functional.avg_pool2d(functional.adaptive_avg_pool2d(x, (4, 4)), 2, 1), 1))


def _methods(m, x):
    x = functional.max_pool2d(m.norm(m.a(x)).relu(), (2, 1), None, (1, 0))
    x = functional.silu(m.b(x), inplace=True)
    x = torch.add(x, m.c(x))
    x = functional.gelu(functional.leaky_relu(x, negative_slope=0.2, inplace=True), approximate="tanh")
    x = functional.dropout(x, p=0.3, training=m.training)
    return m.head(functional.avg_pool2d(functional.adaptive_avg_pool2d(x, (4, 4)), kernel_size=2, stride=1).flatten(1))


def _written(function):
    layers = {"a": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(4, 4, 1)}
    plain = {"relu": nn.ReLU(), "pool": nn.MaxPool2d((2, 1), padding=(1, 0)), "silu": nn.SiLU()}
    plain |= {"leaky": nn.LeakyReLU(0.2), "gelu": nn.GELU("tanh"), "drop": nn.Dropout(0.3)}
    plain |= {"adapt": nn.AdaptiveAvgPool2d((4, 4)), "average": nn.AvgPool2d(2, 1), "flat": nn.Flatten()}
    return Made(function, **layers, **plain, head=nn.Linear(4 * 9, 5))


@pytest.mark.parametrize("function", [_functions, _methods])
def test_functions_and_operators_read_like_the_modules(function):
    one, other = Network(_written(_modules)), Network(_written(function))
    assert (one.groups, one.layers, one.norms) == (other.groups, other.layers, other.norms)
    pooled = kinds(one.graph)
    assert pooled.count(Add) == pooled.count(nn.Dropout) == pooled.count(nn.MaxPool2d) == 1
    assert sorted(map(str, pooled)) == sorted(map(str, kinds(other.graph)))
    x = torch.randn(3, 2, 9, 8)
    module = _written(function).eval()
    for network in (one, other):
        network.check_shape((2, 9, 8))
        for entry in (*network.layers, *network.norms):
            holder = network.weights(entry) if isinstance(entry, Layer) else network.norm(entry)
            holder.load_state_dict(module.get_submodule(entry.name).state_dict())
    answers = [[value for _, _, value in network.values(x, 0)][-1] for network in (one, other)]
    assert torch.equal(*answers)
    torch.testing.assert_close(answers[0], module(x).detach())


def test_a_dropout_of_a_module_in_evaluation_mode_is_seen_and_the_mode_kept():
    def forward(m, x):
        return m.b(functional.dropout(functional.relu(m.a(x)), 0.3, m.training))

    module = Made(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 3)).eval()
    module.a.train()
    (dropout,) = (node.op for node in read_graph(module).nodes if getattr(node.op, "kind", None) is nn.Dropout)
    assert dropout.module().p == 0.3
    assert (module.training, module.a.training, module.b.training) == (False, True, False)


def test_a_dropout_that_is_always_off_is_none():
    def forward(m, x):
        return m.b(functional.dropout(m.a(x), 0.3, training=False))

    graph = read_graph(Made(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 3)))
    assert kinds(graph)[1] is nn.Identity


def test_a_flatten_after_a_dense_layer_changes_nothing():
    graph = read_graph(nn.Sequential(nn.Linear(6, 5), nn.Flatten(), nn.ReLU(), nn.Linear(5, 3)))
    assert graph.layers[-1].positions == 1


def test_the_groups_of_resnet18():
    """Facts: channels that additions tie have one owner; torchvision's blocks reuse one ReLU module: taps are nodes."""
    load_torchvision()
    from torchvision.models import resnet18

    with torch.device("meta"):
        module = resnet18(num_classes=10)
    graph = read_graph(module)
    assert len(graph.groups) == 12
    assert [group.units for group in graph.groups] == [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
    members = {
        group.name: [layer.name for layer in graph.layers if layer.group == group.name] for group in graph.groups
    }
    assert members["conv1"] == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert members["layer1.0.conv1"] == ["layer1.0.conv1"]
    assert members["layer2.0.conv2"] == ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    assert graph.output.name == "fc"
    assert graph.output.source == "layer4.0.conv2"
    assert graph.layers[-1] is graph.output
    assert len(graph.layers) == 21
    assert len(graph.norms) == 20
    assert {norm.group for norm in graph.norms} == set(members)
    for group in graph.groups:
        taps = [graph.nodes[place] for place in graph.taps[group.name]]
        assert taps
        assert all(isinstance(tap.op, Plain) and tap.op.kind is nn.ReLU for tap in taps)
        assert all(tap.group == group.name for tap in taps)
    # Once behind the stem's norm, before the pooling, and behind each of the two additions.
    assert len(graph.taps["conv1"]) == 3
    assert len(graph.taps["layer4.0.conv2"]) == 2


def test_a_small_resnet_answers_as_torchvision_does():
    load_torchvision()
    from torchvision.models.resnet import BasicBlock

    down = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        BasicBlock(4, 4),
        BasicBlock(4, 6, 2, down),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()
    network = Network(module)
    assert [group.units for group in network.groups] == [4, 4, 6, 6]
    for layer in network.layers:
        network.weights(layer).load_state_dict(module.get_submodule(layer.name).state_dict())
    for norm in network.norms:
        found = module.get_submodule(norm.name)
        found.running_mean.normal_()
        network.norm(norm).load_state_dict(found.state_dict())
    x = torch.randn(5, 3, 8, 7)
    *_, (_, _, found) = network.values(x, 0)
    torch.testing.assert_close(found, module(x).detach(), rtol=1e-5, atol=1e-6)
    assert {len(mean) for mean in mean_activity(network, x).values()} == {4, 6}


# What is refused


def changed(change, *where):
    module = mlp(6, [5], 3)
    for name in where:
        change(module.get_submodule(name))
    return module


def hooked(child):
    child.register_forward_hook(lambda *_: None)


def hooked_before(child):
    child.register_forward_pre_hook(lambda *_: None)


def tied():
    square = [nn.Linear(5, 5), nn.Linear(5, 5)]
    square[1].weight = square[0].weight
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), square[0], nn.ReLU(), square[1], nn.ReLU(), nn.Linear(5, 3))


def tied_norms():
    norms = [nn.BatchNorm1d(5), nn.BatchNorm1d(5)]
    norms[1].running_mean = norms[0].running_mean
    return nn.Sequential(nn.Linear(6, 5), norms[0], nn.Linear(5, 5), norms[1], nn.ReLU(), nn.Linear(5, 3))


def repeated():
    square = nn.Linear(5, 5)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), square, nn.ReLU(), square, nn.ReLU(), nn.Linear(5, 3))


def after(*modules, head=True):
    """A convolution of 4 channels, then the given modules and a head."""
    return nn.Sequential(nn.Conv2d(2, 4, 3), *modules, *([nn.Flatten(), nn.Linear(4, 3)] if head else []))


def flat(function, **children):
    children = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 5), "c": nn.Linear(5, 3), **children}
    return Made(function, **children)


class Two(nn.Module):
    def forward(self, x, mask):
        return x + mask


class Depends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


HOOK = "has a forward hook; remove it (one of torch.nn.utils.prune or weight_norm with their own remove functions)"
CAST = "call .float() or .double() on the network"
SUPPORTED = (
    "supported are Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU, GELU, SiLU, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d, Dropout, Flatten, Identity and additions"
)
INPLACE = "let it make a new value (inplace=False, + instead of +=)"
REFUSED = {
    # Wrappers, and what is no module of layers.
    "data parallel": (
        lambda: nn.DataParallel(mlp(6, [5], 3)),
        "the network is wrapped in DataParallel; give what it wraps, its .module: the search itself spreads over",
    ),
    "data parallel inside": (
        lambda: nn.Sequential(nn.DataParallel(nn.Linear(6, 5)), nn.Linear(5, 3)),
        "layer '0' is wrapped in DataParallel; give what it wraps, its .module",
    ),
    "compiled": (lambda: torch.compile(mlp(6, [5], 3)), "the network is compiled; give the Sequential before"),
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(nn.Linear(6, 5)), nn.Linear(5, 3)),
        "layer '0' is compiled; give the Linear before torch.compile",
    ),
    "scripted": (
        lambda: torch.jit.script(mlp(6, [5], 3)),
        "the network is a ScriptModule; give the module that it was scripted from",
    ),
    "scripted inside": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 5)), nn.Linear(5, 3)),
        "layer '0' is a ScriptModule; give the module that it was scripted from",
    ),
    "hook": (lambda: changed(hooked, "output"), f"layer 'output' {HOOK}"),
    "hook of an activation": (lambda: changed(hooked, "relu1"), f"layer 'relu1' {HOOK}"),
    "hook before": (lambda: changed(hooked_before, "hidden1"), f"layer 'hidden1' {HOOK}"),
    "hook of the whole": (lambda: changed(hooked, ""), f"the network {HOOK}"),
    "pruned": (
        lambda: changed(lambda child: prune.l1_unstructured(child, "weight", 0.5), "hidden1"),
        f"layer 'hidden1' {HOOK}",
    ),
    "spectral norm": (lambda: changed(spectral_norm, "hidden1"), f"layer 'hidden1' {HOOK}"),
    "parametrized": (
        lambda: changed(parametrizations.weight_norm, "hidden1"),
        f"layer 'hidden1' (place 0) is a ParametrizedLinear; {SUPPORTED}",
    ),
    # What cannot be traced, and inputs and outputs.
    "depends on the samples": (Depends, "Depends cannot be traced (TraceError: symbolically traced variables cannot"),
    "a remedy": (Depends, "its forward() must not depend on the samples, in Python's if, for or len()"),
    "second input": (
        Two,
        "the network has a second input, 'mask'; give one that maps samples to logits",
    ),
    "two results": (
        lambda: flat(lambda m, x: (m.c(m.a(x)), x)),
        "the network returns tuple; give one that returns the logits",
    ),
    # Kinds of layers and functions.
    "linear alone": (lambda: nn.Linear(6, 3), f"the network uses 'weight' outside of a layer; {SUPPORTED}, each as"),
    "parameter of its own": (
        lambda: flat(lambda m, x: m.c(m.a(x) + m.scale), scale=nn.Parameter(torch.ones(5))),
        "the network uses 'scale' outside of a layer",
    ),
    "tanh": (
        lambda: nn.Sequential(OrderedDict(first=nn.Linear(6, 5), squash=nn.Tanh(), last=nn.Linear(5, 3))),
        f"layer 'squash' (place 1) is a Tanh; {SUPPORTED}",
    ),
    "transposed": (lambda: after(nn.ConvTranspose2d(4, 4, 3)), "layer '1' (place 1) is a ConvTranspose2d; supported"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)),
        "layer '0' has no sizes yet; run one batch",
    ),
    "function": (
        lambda: flat(lambda m, x: m.c(torch.sigmoid(m.a(x)))),
        f"'sigmoid', a call of sigmoid() (place 1) is no layer that can be claimed; {SUPPORTED}",
    ),
    "method": (
        lambda: flat(lambda m, x: m.c(m.a(x).view(-1, 5))),
        "'view', a call of view() (place 1) is no layer that can be claimed; supported",
    ),
    "product": (
        lambda: flat(lambda m, x: m.c(m.a(x) * m.a(x))),
        "'a' (place 1) is used twice, so its weights are tied; give each use its own layer",
    ),
    "number": (
        lambda: flat(lambda m, x: m.c(m.a(x) + 1)),
        "'add', a call of add() (place 1) reads a, 1, not what other layers compute alone",
    ),
    "setting from the samples": (
        lambda: flat(lambda m, x: m.c(functional.leaky_relu(m.a(x), negative_slope=x))),
        "'leaky_relu', a call of leaky_relu() (place 1) takes its negative_slope from the samples; give a number",
    ),
    # Layers.
    "groups": (
        lambda: after(nn.Conv2d(4, 4, 3, groups=2)),
        "layer '1' (place 1) is a Conv2d with 2 groups; supported are groups=1 and padding with zeros",
    ),
    "padding mode": (
        lambda: after(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        "layer '1' (place 1) is a Conv2d with padding_mode 'reflect'; supported are groups=1 and padding with zeros",
    ),
    "channels": (
        lambda: after(nn.Conv2d(5, 4, 3)),
        "layer '1' (place 1) reads 5 channels and has 4, but '0' before it has 4 units; make them fit",
    ),
    "convolution of what is flat": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Conv2d(4, 3, 1)),
        "layer '1' (place 1) is a Conv2d that reads no map; put it before the Flatten",
    ),
    "linear of a map": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 3)),
        "layer '1' (place 1) is a Linear that reads a map; put a Flatten before it",
    ),
    "widths": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(4, 3)),
        "layer '2' (place 2) reads 4 inputs and has 3 units, but '1' before it has 5 units; make them fit",
    ),
    "widths of a flattened map": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(10, 3)),
        "layer '2' (place 2) reads 10 inputs and has 3 units, but '1' before it has 4 units; make them fit",
    ),
    "tied": (tied, "layer '4' (place 4) shares its weight with layer '2'; untie them"),
    "tied statistics": (tied_norms, "layer '3' (place 3) shares its running_mean with layer '1'; untie them"),
    "repeated": (repeated, "layer '2' (place 4) is used twice, so its weights are tied; give each use its own layer"),
    "half": (
        lambda: changed(nn.Module.half, "hidden1", "output"),
        f"layer 'hidden1' (place 0) is torch.float16; {CAST}",
    ),
    "bfloat16": (lambda: changed(nn.Module.bfloat16, "output"), f"layer 'output' (place 2) is torch.bfloat16; {CAST}"),
    "two dtypes": (
        lambda: changed(nn.Module.double, "output"),
        f"layer 'output' (place 2) is torch.float64, but 'hidden1' is torch.float32; {CAST}",
    ),
    "slash": (
        lambda: nn.Sequential(OrderedDict([("a/b", nn.Linear(6, 5)), ("c", nn.Linear(5, 3))])),
        "layer 'a/b' (place 0) has a / in its name; give it another",
    ),
    # BatchNorm.
    "no statistics": (
        lambda: after(nn.BatchNorm2d(4, track_running_stats=False)),
        "layer '1' (place 1) has track_running_stats=False; a claimed channel keeps running statistics: give it them",
    ),
    "no momentum": (
        lambda: after(nn.BatchNorm2d(4, momentum=None)),
        "layer '1' (place 1) has momentum=None; a claimed",
    ),
    "norm of the input": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 3)),
        "layer '0' (place 0) normalises the network's input, which has no units; do it in the tasks",
    ),
    "norm of another dimension": (
        lambda: after(nn.BatchNorm1d(4)),
        "layer '1' (place 1) is a BatchNorm1d, which belongs after a dense layer",
    ),
    "map norm of what is flat": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm2d(5), nn.Linear(5, 3)),
        "layer '1' (place 1) is a BatchNorm2d, which belongs after a convolution",
    ),
    "norm of a flattened map": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.BatchNorm1d(24), nn.Linear(24, 3)),
        "layer '2' (place 2) normalises 24 features, but '1' before it has 4 units; give it as many, before any "
        "Flatten",
    ),
    # Pools and flattens.
    "pool of what is flat": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.AvgPool2d(2), nn.Linear(5, 3)),
        "layer '1' (place 1) pools what is no map; put it before the Flatten",
    ),
    "indices": (
        lambda: after(nn.MaxPool2d(2, return_indices=True)),
        "layer '1' (place 1) returns indices too; leave return_indices out",
    ),
    "flatten of the batch": (
        lambda: flat(lambda m, x: m.c(torch.flatten(m.a(x)))),
        "'flatten', a call of flatten() (place 1) flattens from dimension 0 to -1; give start_dim=1 and end_dim=-1",
    ),
    "flatten of some": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(4, 3)),
        "layer '1' (place 1) flattens from dimension 2 to -1; give start_dim=1 and end_dim=-1",
    ),
    # Additions.
    "sum with the input": (
        lambda: flat(lambda m, x: m.c(m.a(x) + x), a=nn.Linear(5, 5)),
        "'add', a call of add() (place 1) adds the network's input, which has no owner; put a layer in between",
    ),
    "sum of other widths": (
        lambda: flat(lambda m, x: m.c(m.a(x) + m.b(x)), a=nn.Linear(6, 1), b=nn.Linear(6, 5)),
        "'add', a call of add() (place 2) adds 1 units of 'a' and 5 of 'b' in another form; add as many units",
    ),
    "sum of a map and its features": (
        lambda: Made(
            lambda m, x: m.c(m.a(x) + m.b(x.flatten(1)).relu()), a=nn.Conv2d(2, 4, 3), b=nn.Linear(8, 4), c=nn.ReLU()
        ),
        "adds 4 units of 'a' and 4 of 'b' in another form; add as many units, maps to maps",
    ),
    "sum with a factor": (
        lambda: flat(lambda m, x: m.c(torch.add(m.a(x), m.b(m.a(x)), alpha=2))),
        "is used twice",
    ),
    "sum with alpha": (
        lambda: flat(lambda m, x: m.c(torch.add(m.a(x), m.b(x), alpha=2)), b=nn.Linear(6, 5)),
        "'add', a call of add() (place 2) adds with a factor alpha; add without one",
    ),
    # What is changed in place and read again.
    "activation in place": (
        lambda: flat(lambda m, x: (lambda h: m.c(h + m.b(m.relu(h))))(m.a(x)), relu=nn.ReLU(inplace=True)),
        f"layer 'relu' (place 1) changes in place what 'add' reads after it; {INPLACE}",
    ),
    "method in place": (
        lambda: flat(lambda m, x: (lambda h: m.c(m.b(h.relu_()) + h))(m.a(x))),
        f"'relu_', a call of relu_() (place 1) changes in place what 'add' reads after it; {INPLACE}",
    ),
    "function in place, of the same memory": (
        lambda: flat(
            lambda m, x: (lambda h: m.c(m.b(functional.relu(m.same(h), inplace=True)) + h))(m.a(x)), same=nn.Identity()
        ),
        f"'relu', a call of relu() (place 2) changes in place what 'add' reads after it; {INPLACE}",
    ),
    # Ends.
    "nothing": (nn.Sequential, "the network has no layer; give one with at least one hidden layer and a head"),
    "one layer": (
        lambda: nn.Sequential(nn.Linear(6, 3)),
        "the network has no hidden layer; at least one is needed to claim units in",
    ),
    "activation at the end": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()),
        "the network ends with '3' (place 3), a ReLU, which is no head; end it with the Linear or Conv2d of the logits",
    ),
    "norm at the end": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3)),
        "the network ends with '3' (place 3), a BatchNorm1d, which is no head",
    ),
    "dropout at the end": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Dropout()),
        "the network ends with '3' (place 3), a Dropout, which is no head",
    ),
    "addition at the end": (
        lambda: flat(lambda m, x: m.c(m.a(x)) + m.d(x), d=nn.Linear(6, 3)),
        "the network ends with 'add' (place 3), an addition, which is no head",
    ),
    "map at the end": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)),
        "the network ends with a map of '2'; average it and flatten it to [n, classes]",
    ),
    "head that is read": (
        lambda: flat(lambda m, x: (lambda y: (m.b(m.a(y)), y)[1])(m.c(m.d(x))), a=nn.Linear(3, 5), d=nn.Linear(6, 5)),
        "the logits of 'c' are read by a layer of the network too; give the head no other reader",
    ),
    "unread layer": (
        lambda: flat(lambda m, x: (m.d(x), m.c(m.a(x)))[1], d=nn.Linear(6, 4)),
        "layer 'd' (place 0) has no consumer: nothing reads it; remove it, or use it",
    ),
    "unread end": (
        lambda: flat(lambda m, x: (lambda h: (m.b(h).relu(), m.c(h))[1])(m.a(x))),
        "layer 'relu' (place 2) has no consumer: nothing reads it; remove it, or use it",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_pruned_is_refused(kind):
    """Promise 8: refused with what was wrong, what was found and how to mend it."""
    make, message = REFUSED[kind]
    with pytest.raises(UnsupportedNetwork) as refusal:
        read_graph(make())
    assert message in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(6, [1], 3), None),
        (lambda: nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 3)), r"layer '0' .* reads 6 inputs and has 0 units"),
        (lambda: after(nn.Conv2d(4, 0, 1)), r"layer '1' \(place 1\) reads 4 channels and has 0"),
    ],
)
def test_a_layer_has_at_least_one_unit(make, message):
    if message is None:
        assert Network(make()).last.units == 1
        return
    with pytest.raises(UnsupportedNetwork, match=message):
        Network(make())


def test_values_that_are_read_before_they_are_changed_in_place_are_no_trouble():
    """As torchvision's blocks do: the shortcut is taken first, or what is overwritten has one reader."""

    def forward(m, x):
        h = m.a(x)
        y = m.b(h)
        h = m.relu(h)
        y += h
        return m.c(m.relu(y))

    module = flat(forward, relu=nn.ReLU(inplace=True)).eval()
    network = Network(module)
    for layer in network.layers:
        network.weights(layer).load_state_dict(module.get_submodule(layer.name).state_dict())
    x = torch.randn(4, 6)
    *_, (_, _, found) = network.values(x, 0)
    with torch.no_grad():
        assert torch.equal(found, module(x))


def test_distributed_data_parallel_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(mlp(6, [5], 3))
        with pytest.raises(UnsupportedNetwork, match="wrapped in DistributedDataParallel; give what it wraps"):
            Network(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_a_refusal_leaves_the_module_in_its_mode():
    module = Depends().train()
    module.layer.eval()
    with pytest.raises(UnsupportedNetwork):
        Network(module)
    assert (module.training, module.layer.training) == (True, False)


def test_a_module_that_does_other_things_in_training_mode_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.wider, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self.hidden(x))
            return self.head(torch.relu(self.wider(x)) if self.training else x)

    module = Noisy().eval()
    with pytest.raises(
        UnsupportedNetwork, match=r"'wider' in training mode and with 'head' in evaluation mode, .* same"
    ):
        read_graph(module)
    assert not any(child.training for child in module.modules()), "its mode is given back"


class Written(nn.Module):
    """A network whose forward() is given, on maps of one size."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Identity()
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4 * 6 * 5, 2)
        self.given = forward

    def forward(self, x):
        return self.head(self.given(self, x).flatten(1))


def added_to(self, x):
    x = self.a(x).relu()
    y = x
    x += self.b(x)
    return x + y


def by_operator(self, x):
    x = self.a(x).relu()
    y = operator.iadd(x, self.b(x))
    return y + x


def skipped(self, x):
    x = self.a(x)
    skip = self.c(x)
    return self.b(self.relu(x)) + skip


def positional(self, x):
    x = self.a(x)
    return self.b(functional.relu(x, True)) + x


@pytest.mark.parametrize("forward", [added_to, by_operator, skipped, positional])
def test_a_value_that_is_read_after_it_was_changed_in_place_is_refused(forward):
    """Through whichever name or view: the graph would keep the value as it was."""
    with pytest.raises(UnsupportedNetwork, match=r"changes in place what '.*' reads after it; let it make a new value"):
        read_graph(Written(forward))


def test_what_is_added_in_place_and_read_no_more_is_read():
    def forward(self, x):
        x = self.a(x).relu()
        y = self.b(x)
        y += self.c(x)
        return self.relu(y)

    module = Written(forward).eval()
    network = Network(module, head="multi")
    network.place_head(0)
    for layer in network.layers:
        network.weights(layer).load_state_dict(module.get_submodule(layer.name).state_dict())
    x = torch.randn(7, 3, 6, 5)
    torch.testing.assert_close(logits(cut(network, 0), x), module(x).detach())


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.b(functional.dropout(self.a(x), 0.5)), "drops features in evaluation mode too; give it"),
        (
            lambda self, x: self.b(functional.leaky_relu(self.a(x), 0.1 if self.training else 0.2)),
            "or with other numbers; what was scored",
        ),
        (
            lambda self, x: torch.flatten(input=self.b(self.a(x)), start_dim=1),
            "is given input; beside its input, which comes first",
        ),
        (lambda self, x: torch.add(self.b(x := self.a(x)), x, out=x), "is given out by name; give both terms"),
        (lambda self, x: self.b(self.a(x)).view(x.size(0), -1), "torch.flatten(x, 1) makes a map flat"),
        (lambda self, x: self.a(x), "layer 'b' has no consumer: nothing that forward() does reads it"),
    ],
)
def test_what_forward_does_otherwise_is_refused(forward, message):
    with pytest.raises(UnsupportedNetwork, match=re.escape(message)):
        read_graph(Written(forward))


def test_weights_in_one_memory_are_tied():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    module[2].weight.data = module[0].weight.data
    with pytest.raises(UnsupportedNetwork, match="shares its weight with layer '0'; untie them"):
        read_graph(module)


def test_layers_on_two_devices_are_refused():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, device="meta"))
    with pytest.raises(UnsupportedNetwork, match=r"layer '2' .* is on meta, but '0' on cpu; move the network to one"):
        read_graph(module)
