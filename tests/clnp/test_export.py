"""An exported network answers as the canonical evaluator does, and a file that was touched is refused."""

import copy
import json
import math
import operator
import os
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import fx, nn

from clnp.errors import Damaged
from clnp.evaluation import logits
from clnp.export import Exported, UnsupportedExport, _check_answers, _Pooling, load, save
from clnp.kinds import KINDS
from clnp.reading import _PLAIN
from clnp.subnetwork import Select, subnetwork
from clnp.tasks import permuted
from clnp.tasks.transform import Transform

CLASSES = 5


def mlp():
    return (12,), nn.Sequential(
        nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1, bias=False), nn.SiLU(), nn.Linear(1, CLASSES)
    )


def flattened():
    """A convolution whose maps are not square, flattened: Table 2's kind."""
    return (3, 8, 6), nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Identity(),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12, CLASSES),
    )


def averaged():
    """A convolution as the output layer, its maps averaged: Table 3's kind."""
    return (3, 5, 7), nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.GELU(),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2d(6, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def residual():
    """An addition of channels, of which a later convolution reads some; one ReLU is called three times."""
    root = nn.ModuleDict(
        {
            "stem": nn.Conv2d(2, 4, 3, padding=1),
            "relu": nn.ReLU(),
            "block": nn.ModuleDict(
                {"conv": nn.Conv2d(3, 4, 3, padding=1, bias=False), "norm": nn.BatchNorm2d(4)},
            ),
            "read": Select(torch.tensor([0, 2, 3])),
            "last": Select(torch.tensor([3, 1])),
            "pool": nn.AdaptiveAvgPool2d((1, 1)),
            "flat": nn.Flatten(),
            "fc": nn.Linear(2, CLASSES),
        }
    )
    graph = fx.Graph()
    step = graph.placeholder("sample")
    step = stem = graph.call_module("relu", (graph.call_module("stem", (step,)),))
    for target in ("read", "block.conv", "block.norm"):
        step = graph.call_module(target, (step,))
    step = graph.call_module("relu", (graph.call_function(operator.add, (step, stem)),))
    step = graph.call_module("relu", (graph.call_function(operator.add, (stem, step)),))
    for target in ("last", "pool", "flat", "fc"):
        step = graph.call_module(target, (step,))
    graph.output(step)
    return (2, 5, 4), fx.GraphModule(root, graph)


NETWORKS = {make.__name__: make for make in (mlp, flattened, averaged, residual)}


def draw_numbers(module, source):
    """Weights, statistics and biases that no layer starts with, so that none can be left out unseen."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=source) * 0.5
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module.eval()


def draw_transform(shape, source, *, permute=True, scale=255.0, inverted=False):
    return Transform(torch.randperm(math.prod(shape), generator=source) if permute else None, scale, shape, inverted)


def pixels(count, shape, source, largest=255):
    return torch.randint(0, largest + 1, (count, *shape), generator=source)


def drawn(name, seed=0, **transform):
    """An exported network, its transform and the samples of 700 pixels that it is asked about: two batches."""
    source = torch.Generator().manual_seed(seed)
    shape, module = NETWORKS[name]()
    draw_numbers(module, source)
    transform = draw_transform(shape, source, **transform)
    return Exported(transform, module), transform, pixels(700, shape, source)


@st.composite
def architectures(draw):
    """A Sequential such as a cut gives, with its sample's shape, and the seed of its numbers."""
    side = st.integers(1, 3)
    activation = st.sampled_from(
        [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), lambda: nn.LeakyReLU(0.3, inplace=True)]
    )
    modules: list[nn.Module] = []
    if draw(st.booleans()):
        shape = (draw(side), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
        sample = torch.zeros(1, *shape)
        for _ in range(draw(st.integers(1, 3))):
            dilated = draw(st.booleans())
            modules.append(
                nn.Conv2d(
                    sample.shape[1],
                    draw(st.integers(1, 5)),
                    (draw(side), draw(side)),
                    stride=draw(st.integers(1, 2)),
                    padding=2 if dilated else 1,  # enough for a map of one pixel
                    dilation=(1, 2) if dilated else 1,
                    bias=draw(st.booleans()),
                )
            )
            if draw(st.booleans()):
                modules.append(nn.BatchNorm2d(modules[-1].out_channels, affine=draw(st.booleans())))
            modules.append(draw(activation)())
            pools = [nn.Dropout(0.1), nn.MaxPool2d(2, 1, 1), nn.AvgPool2d((1, 2), 1, (0, 1), count_include_pad=False)]
            modules.append(draw(st.sampled_from(pools)))
            sample = nn.Sequential(*modules).eval()(torch.zeros(1, *shape))
        modules += [nn.AdaptiveAvgPool2d(draw(st.sampled_from([1, (2, 1), (None, 2)]))), nn.Flatten()]
    else:
        shape = (draw(st.integers(1, 9)),)
    width = nn.Sequential(*modules).eval()(torch.zeros(1, *shape)).shape[1]
    for _ in range(draw(st.integers(0, 2))):
        units = draw(st.integers(1, 8))
        modules += [nn.Linear(width, units, bias=draw(st.booleans())), draw(activation)()]
        if draw(st.booleans()):
            modules.insert(-1, nn.BatchNorm1d(units, momentum=draw(st.sampled_from([None, 0.1, 0.03]))))
        width = units
    seed = draw(st.integers(0, 10**6))
    module = nn.Sequential(*modules, nn.Linear(width, draw(st.integers(1, 4))))
    return shape, draw_numbers(module, torch.Generator().manual_seed(seed)), seed


@settings(max_examples=60)
@given(
    architecture=architectures(),
    permute=st.booleans(),
    scale=st.sampled_from([255.0, 16.0, 1.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8]),
    flat=st.booleans(),
    inverted=st.booleans(),
)
def test_it_answers_raw_pixels_as_the_evaluator_answers_the_tasks_samples(
    architecture, permute, scale, dtype, flat, inverted
):
    shape, module, seed = architecture
    source = torch.Generator().manual_seed(seed)
    transform = draw_transform(shape, source, permute=permute, scale=scale, inverted=inverted)
    raw = pixels(9, shape, source)
    expected = logits(module, transform(raw.to(torch.uint8)))
    raw = raw.to(dtype)
    found = Exported(transform, module)(raw.flatten(1) if flat else raw)
    assert torch.equal(found, expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), head=st.sampled_from(["single", "multi"]))
def test_every_committed_task_is_answered_as_by_the_evaluator(make_network, tmp_path_factory, seed, head):
    network = make_network((7, 6), head=head, committed=3, seed=seed)
    source = torch.Generator().manual_seed(seed)
    raw = pixels(11, (5,), source)
    path = tmp_path_factory.mktemp("committed") / "task.safetensors"
    for task in range(3):
        transform = draw_transform((5,), source)
        save(Exported(transform, subnetwork(network, task)), path)
        assert torch.equal(logits(load(path), raw), logits(subnetwork(network, task), transform(raw)))


@pytest.mark.parametrize("index", [0, 2])
def test_raw_digits_are_answered_as_the_sequences_own_samples(index):
    from clnp.tasks.digits import read_digits

    sequence = permuted("digits", count=3, seed=4, validation=0.2)
    module = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    draw_numbers(module, torch.Generator().manual_seed(1))
    raw = read_digits()[0][1500:].float()
    found = logits(Exported(sequence.transform(index), module), raw)
    assert torch.equal(found, logits(module, sequence.task(index).open_test().x))


def test_all_digits_of_a_quotient_are_those_of_the_tasks():
    """Every pixel there is, against the tasks' arithmetic: one linear unit passes them on."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(module[0].weight)
    raw = torch.arange(256.0).unsqueeze(1)
    for scale in (255.0, 16.0):
        found = Exported(Transform(None, scale, (1,)), module)(raw)
        assert torch.equal(found, torch.arange(256, dtype=torch.uint8).unsqueeze(1).float().div_(scale))
    inverted = Exported(Transform(None, 255.0, (1,), inverted=True), module)
    assert torch.equal(inverted(raw), Exported(Transform(None, 255.0, (1,)), module)(raw.flip(0)))


def test_a_float64_network_is_given_the_tasks_float32_samples():
    exported, transform, raw = drawn("mlp")
    module = exported.subnetwork.double()
    found = Exported(transform, module)(raw.float())
    assert found.dtype == torch.float64
    assert torch.equal(found, module(transform(raw).double()))


def test_it_is_in_evaluation_mode():
    _, transform, raw = drawn("flattened")
    _, module = flattened()
    exported = Exported(transform, draw_numbers(module, torch.Generator()).train())
    assert torch.equal(exported(raw), exported(raw))


@pytest.mark.parametrize("sizes", [(3, 8, 5), (143,), (144, 1, 2), ()])
def test_samples_of_another_size_are_refused(sizes):
    exported, _, _ = drawn("flattened")
    with pytest.raises(ValueError, match=r"raw samples are \[4.*\]; give \[n, 144\] or \[n, 3, 8, 6\]"):
        exported(torch.zeros(4, *sizes))


def test_numbers_of_two_types_are_refused():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2).double())
    with pytest.raises(
        UnsupportedExport, match=r"are of float32, float64; they must all be of one of float64, float32"
    ):
        Exported(Transform(None, 1.0, (2,)), module)
    with pytest.raises(UnsupportedExport, match="are of no type"):
        Exported(Transform(None, 1.0, (2,)), nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("permute", [True, False])
def test_a_loaded_network_gives_the_evaluators_bits(tmp_path, name, permute):
    exported, transform, raw = drawn(name, permute=permute)
    save(exported, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert torch.equal(logits(loaded, raw), logits(exported.subnetwork, transform(raw)))
    assert not any(module.training for module in loaded.modules())
    assert not any(value.requires_grad for value in loaded.parameters())
    # What was read can be written again, and is the same file but for the names of the modules.
    save(loaded, tmp_path / "again.safetensors")
    assert torch.equal(logits(load(tmp_path / "again.safetensors"), raw), logits(exported, raw))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(architecture=architectures(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_network_comes_back_bit_for_bit(tmp_path, architecture, dtype):
    shape, module, seed = architecture
    source = torch.Generator().manual_seed(seed)
    exported = Exported(draw_transform(shape, source), module.to(dtype))
    raw = pixels(6, shape, source).float()
    save(exported, tmp_path / "any.safetensors")
    found = load(tmp_path / "any.safetensors")(raw)
    assert found.dtype == dtype
    assert torch.equal(found, exported(raw))


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_inversion_of_a_tasks_samples_goes_with_the_network(tmp_path, name):
    exported, transform, raw = drawn(name, inverted=True)
    expected = logits(exported.subnetwork, transform(raw))
    assert torch.equal(logits(exported, raw), expected)
    path = tmp_path / "network.safetensors"
    for _ in range(2):  # what was read can be written again
        save(exported, path)
        exported = load(path)
        assert torch.equal(logits(exported, raw), expected)
    with safe_open(path, framework="np") as file:
        architecture = json.loads(file.metadata()["architecture"])
    # A version of its own: a program that knows the first alone must not answer as if nothing were inverted.
    assert (architecture["version"], architecture["inverted"]) == (2, True)


def test_a_file_that_knows_no_inversion_is_as_it_always_was(tmp_path):
    """What was written before inversion was known still loads, and what knows none reads what is written now."""
    architecture = (
        '{"version": 1, "shape": [2], "classes": 2, "dtype": "float32", "nodes": [{"name": "0", "kind": "Linear", '
        '"arguments": {"in_features": 2, "out_features": 2, "bias": true}, "inputs": ["x"]}], "output": "0"}'
    )
    before = {
        "transform.permutation": torch.tensor([1, 0]),
        "transform.scale": torch.tensor(16.0),
        "subnetwork.0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "subnetwork.0.bias": torch.zeros(2),
    }
    safetensors.torch.save_file(before, tmp_path / "before.safetensors", metadata={"architecture": architecture})
    loaded = load(tmp_path / "before.safetensors")
    assert torch.equal(loaded(torch.tensor([[16.0, 32.0]])), torch.tensor([[4.0, 10.0]]))
    module = nn.Sequential(nn.Linear(2, 2))
    module.load_state_dict({f"0.{name}": before[f"subnetwork.0.{name}"] for name in ("weight", "bias")})
    save(Exported(Transform(before["transform.permutation"], 16.0, (2,)), module), tmp_path / "now.safetensors")
    assert (tmp_path / "now.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        save(drawn("residual")[0], tmp_path / f"{name}.safetensors")
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


def test_the_architecture_can_be_read_without_this_project(tmp_path):
    save(drawn("residual")[0], tmp_path / "network.safetensors")
    with safe_open(tmp_path / "network.safetensors", framework="np") as file:
        architecture = json.loads(file.metadata()["architecture"])
        names = set(file.keys())
    assert architecture["version"] == 1
    assert (architecture["shape"], architecture["classes"], architecture["dtype"]) == ([2, 5, 4], CLASSES, "float32")
    nodes = {node["name"]: node for node in architecture["nodes"]}
    assert nodes["block.conv"] == {
        "name": "block.conv",
        "kind": "Conv2d",
        "arguments": {
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": [3, 3],
            "stride": [1, 1],
            "padding": [1, 1],
            "dilation": [1, 1],
            "bias": False,
        },
        "inputs": ["read"],
    }
    assert nodes["add"] == {"name": "add", "kind": "Add", "arguments": {}, "inputs": ["block.norm", "relu"]}
    assert nodes["stem"]["inputs"] == ["x"]
    assert [name for name in nodes if nodes[name]["kind"] == "ReLU"] == ["relu", "relu_1", "relu_2"]
    assert architecture["output"] == "fc"
    assert {
        "transform.scale",
        "transform.permutation",
        "subnetwork.read.index",
        "subnetwork.block.conv.weight",
    } <= names


def test_a_layer_that_is_called_twice_is_written_twice(tmp_path):
    layer = nn.Linear(5, 5)
    exported = Exported(Transform(None, 16.0, (5,)), nn.Sequential(layer, nn.ReLU(), layer))
    save(exported, tmp_path / "network.safetensors")
    raw = torch.rand(6, 5)
    assert torch.equal(load(tmp_path / "network.safetensors")(raw), exported(raw))


def test_every_module_that_a_network_may_have_can_be_written():
    assert {kind.__name__ for kind in _PLAIN} <= KINDS.keys()
    assert all(KINDS[kind.__name__].type is kind for kind in _PLAIN)


def test_a_loaded_network_does_not_change_with_its_file(tmp_path):
    exported, _, raw = drawn("mlp")
    path = tmp_path / "network.safetensors"
    save(exported, path)
    loaded = load(path)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(loaded(raw), exported(raw))


class Own(nn.Linear):
    pass


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x):
        return self.first(x) * self.second(x)


class Two(Gated):
    def forward(self, x):
        return self.first(x), self.second(x)


class Optional(Gated):
    def forward(self, x, extra=None):
        return self.first(x if extra is None else extra)


class Plus(Gated):
    def forward(self, x):
        return self.first(x) + 1


UNSUPPORTED = {
    "a subclass": (nn.Sequential(Own(12, 5)), r"module 0 is a Own; an exported network has Linear,"),
    "two answers": (Two(), r"answers \[2, 12\] with a tuple; logits must be \[2, classes\]"),
    "two inputs": (Optional(), r"node extra is placeholder of extra; an exported network has Linear,"),
    "Softmax": (
        nn.Sequential(nn.Linear(12, 5), nn.Softmax(1)),
        r"module 1 is a Softmax; an exported network has Linear,",
    ),
    "mul": (Gated(), r"node mul is call_function of .*mul.*; an exported network has Linear"),
    "a number added": (Plus(), r"node add is called with \(first, 1\).*; a Add reads 2 of the nodes before it"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_an_architecture_cannot_name_is_refused_before_anything_is_written(tmp_path, name):
    module, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedExport, match=message):
        save(Exported(Transform(None, 1.0, (12,)), module), tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(2, 4, 3, groups=2), r"module 0 has groups=2; only 1 can be exported"),
        (
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
            r"module 0 has padding_mode='reflect'; only 'zeros' can",
        ),
        (nn.BatchNorm2d(2, track_running_stats=False), r"module 0 has track_running_stats=False; only True can be"),
        (nn.Dropout(torch.tensor(0.5)), r"module 0 has p=tensor\(0.5000\), which an architecture file cannot hold"),
    ],
)
def test_arguments_that_an_architecture_cannot_hold_are_refused(tmp_path, module, message):
    module = nn.Sequential(module, nn.Conv2d(4 if isinstance(module, nn.Conv2d) else 2, 3, 1), nn.Flatten())
    with pytest.raises(UnsupportedExport, match=message):
        save(Exported(Transform(None, 1.0, (2, 3, 3)), module), tmp_path / "network.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an exported residual network, its tensors and its architecture as text."""
    path = tmp_path_factory.mktemp("whole") / "network.safetensors"
    save(drawn("residual")[0], path)
    with safe_open(path, framework="pt") as file:
        return path.read_bytes(), safetensors.torch.load_file(path), file.metadata()["architecture"]


def write(path, tensors, architecture):
    text = architecture if isinstance(architecture, str) else json.dumps(architecture)
    safetensors.torch.save_file(tensors, path, metadata={"architecture": text})
    return path


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_short_is_refused(tmp_path, whole, data):
    path = tmp_path / "short.safetensors"
    path.write_bytes(whole[0][: data.draw(st.integers(0, len(whole[0]) - 1))])
    with pytest.raises(Damaged, match=r"short.safetensors is not a whole safetensors file: "):
        load(path)


def test_tensors_that_something_else_wrote_are_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(Damaged, match=r"metadata has no 'architecture'; it holds tensors that something else wrote"):
        load(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")


def at(found, *path):
    for key in path:
        found = found[key]
    return found


def put(*path):
    """Change one entry of an architecture: the last of ``path`` is its new value."""

    def change(found):
        at(found, *path[:-2])[path[-2]] = path[-1]

    return change


def drop(*path):
    return lambda found: at(found, *path[:-1]).pop(path[-1])


CONV, FC = 0, -1  # nodes of the residual network: its stem, its output layer
CODE = "__import__('os').system('true')"
TOUCHED = {
    "no version": (drop("version"), "its architecture has no version"),
    "later version": (put("version", 3), r"has version 3 and this program reads 1 and 2; read it with the version of"),
    "true version": (put("version", True), "has version True and this program reads 1 and 2"),
    "version without its field": (put("version", 2), r"has the fields .*, not \[.*'inverted'"),
    "field of another version": (put("inverted", True), r"has the fields .*'inverted'.*, not"),
    "inversion of text": (lambda found: found.update(version=2, inverted="no"), "its architecture has inverted 'no'"),
    "missing field": (drop("classes"), r"has the fields \['dtype', 'nodes', 'output', 'shape', 'version'\], not"),
    "surplus field": (put("code", CODE), "has the fields .*'code'"),
    "shape of text": (put("shape", "25"), "its architecture has shape '25'"),
    "shape of nothing": (put("shape", []), r"its architecture has shape \[\]"),
    "shape of zero": (put("shape", [2, 0, 4]), r"its architecture has shape \[2, 0, 4\]"),
    "shape beyond bounds": (
        put("shape", [2, 2**31 - 1, 2**31 - 1]),
        r"transform.permutation is torch.int64 \[40\], not",
    ),
    "another shape": (put("shape", [2, 4, 5]), None),
    "shape of others": (put("shape", [40]), r"its node 'stem' cannot read what it is given: "),
    "classes": (put("classes", 4), r"it answers 2 samples with \[2, 5\], not \[2, 4\]"),
    "dtype": (put("dtype", "int64"), "its architecture has dtype 'int64'"),
    "dtype list": (put("dtype", ["float32"]), r"its architecture has dtype \['float32'\]"),
    "another dtype": (put("dtype", "float64"), r"is torch.float32 \[\d.*\], not torch.float64 \[\d"),
    "nodes": (put("nodes", {}), r"its architecture has nodes \{\}"),
    "node of text": (
        put("nodes", CONV, "Linear"),
        "its node 0 is 'Linear', not one with name, kind, arguments, inputs",
    ),
    "node with code": (put("nodes", CONV, "forward", CODE), "its node 0 is .*not one with name, kind, arguments"),
    "name twice": (put("nodes", 1, "name", "stem"), "its node 1 is called 'stem'; it needs a name of its own"),
    "name of the input": (put("nodes", 0, "name", "x"), "its node 0 is called 'x'"),
    "name of a number": (put("nodes", 0, "name", 3), "its node 0 is called 3"),
    "kind": (put("nodes", CONV, "kind", "Softmax"), "its node 'stem' is of the unknown kind 'Softmax'; an exported"),
    "kind list": (put("nodes", CONV, "kind", ["Conv2d"]), r"is of the unknown kind \['Conv2d'\]"),
    "kind of code": (put("nodes", CONV, "kind", CODE), "is of the unknown kind"),
    "later input": (put("nodes", 1, "inputs", ["fc"]), r"its node 'relu' reads \['fc'\]; a ReLU reads 1 of the nodes"),
    "own input": (put("nodes", 1, "inputs", ["relu"]), r"its node 'relu' reads \['relu'\]"),
    "no input": (put("nodes", 1, "inputs", []), r"its node 'relu' reads \[\]"),
    "two inputs": (put("nodes", 1, "inputs", ["stem", "x"]), r"its node 'relu' reads \['stem', 'x'\]; a ReLU reads 1"),
    "input of lists": (put("nodes", 1, "inputs", [["stem"]]), r"its node 'relu' reads \[\['stem'\]\]"),
    "inputs of text": (put("nodes", 1, "inputs", "x"), "its node 'relu' reads 'x'"),
    "missing argument": (
        drop("nodes", CONV, "arguments", "bias"),
        r"its node 'stem' has the arguments .*, not in_chan",
    ),
    "surplus argument": (put("nodes", CONV, "arguments", "device", "cuda"), "its node 'stem' has the arguments"),
    "arguments": (put("nodes", CONV, "arguments", None), "its node 'stem' has the arguments None"),
    "argument of text": (put("nodes", FC, "arguments", "in_features", "2"), "its node 'fc' has in_features='2'"),
    "argument of zero": (put("nodes", FC, "arguments", "out_features", 0), "its node 'fc' has out_features=0"),
    "argument of true": (put("nodes", FC, "arguments", "in_features", True), "its node 'fc' has in_features=True"),
    "huge argument": (put("nodes", FC, "arguments", "in_features", 2**31), "its node 'fc' has in_features=2147483648"),
    "three sides": (put("nodes", CONV, "arguments", "kernel_size", [3, 3, 3]), r"has kernel_size=\[3, 3, 3\]"),
    "no side": (put("nodes", CONV, "arguments", "stride", [1, None]), r"its node 'stem' has stride=\[1, None\]"),
    "flag": (put("nodes", FC, "arguments", "bias", 1), "its node 'fc' has bias=1"),
    "overflow": (
        put("nodes", CONV, "arguments", "kernel_size", [2**31 - 1, 2**31 - 1]),
        "its node 'stem' cannot be a Conv2d with",
    ),
    "a wider layer": (put("nodes", FC, "arguments", "in_features", 3), r"fc.weight is torch.float32 \[5, 2\], not"),
    "bias gone": (put("nodes", FC, "arguments", "bias", False), "it holds subnetwork.fc.bias, which no node has"),
    "bias new": (put("nodes", 3, "arguments", "bias", True), "it lacks subnetwork.block.conv.bias"),
    "another norm": (put("nodes", 4, "kind", "BatchNorm1d"), "its node 'block.norm' cannot read what it is given: "),
    "stride": (put("nodes", CONV, "arguments", "stride", 3), None),
    "node gone": (drop("nodes", FC), "its output is 'fc', which none of its nodes is called"),
    "output of the input": (put("output", "x"), "its output is 'x', which none of its nodes is called"),
    "early output": (put("output", "flat"), r"it answers 2 samples with \[2, 2\], not \[2, 5\]"),
    "output list": (put("output", ["fc"]), r"its architecture has output \['fc'\]"),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_a_touched_architecture_is_refused_with_what_is_wrong(tmp_path, whole, name):
    """Or, where all still fits, it is another network, as one that was trained otherwise."""
    change, message = TOUCHED[name]
    architecture = json.loads(whole[2])
    change(architecture)
    path = write(tmp_path / "touched.safetensors", whole[1], architecture)
    if message is None:
        assert load(path)(torch.zeros(3, *architecture["shape"])).shape == (3, CLASSES)
        return
    with pytest.raises(Damaged, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path} is not a whole exported network: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"version": ' + "9" * 5000 + "}"])
def test_an_architecture_that_is_no_json_object_is_refused(tmp_path, whole, text):
    with pytest.raises(Damaged, match=r"its architecture (is not JSON|has no version)"):
        load(write(tmp_path / "touched.safetensors", whole[1], text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_are_not_finite_are_refused(tmp_path, whole, number):
    architecture = json.loads(whole[2])
    next(node for node in architecture["nodes"] if node["kind"] == "BatchNorm2d")["arguments"]["eps"] = "EPS"
    with pytest.raises(Damaged, match=r"its node 'block.norm' has eps="):
        load(write(tmp_path / "touched.safetensors", whole[1], json.dumps(architecture).replace('"EPS"', number)))


def places(found, path=()):
    """Every path into a JSON value."""
    yield path
    inside = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([2**31, -(2**63), 10**30, 0.5, "x", "fc", "relu", "Linear", "Add", "same", [], {}, [1, 2]]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=VALUES)
def test_no_change_of_an_architecture_ends_in_any_other_error(tmp_path, whole, data, value):
    architecture = json.loads(whole[2])
    path = data.draw(st.sampled_from(list(places(architecture))[1:]))
    put(*path, value)(architecture)
    file = write(tmp_path / "touched.safetensors", whole[1], architecture)
    try:
        loaded = load(file)
    except Damaged:
        return
    assert loaded(torch.zeros(2, *architecture["shape"])).shape == (2, CLASSES)


TENSORS = {
    "missing": ("subnetwork.fc.bias", None, "it lacks subnetwork.fc.bias"),
    "surplus": ("subnetwork.fc.code", torch.zeros(1), "it holds subnetwork.fc.code, which no node has"),
    "shape": (
        "subnetwork.fc.bias",
        torch.zeros(6),
        r"its subnetwork.fc.bias is torch.float32 \[6\], not .*float32 \[5\]",
    ),
    "dtype": ("subnetwork.fc.bias", torch.zeros(5).half(), r"its subnetwork.fc.bias is torch.float16 \[5\], not"),
    "index dtype": (
        "subnetwork.read.index",
        torch.zeros(3),
        r"read.index is torch.float32 \[3\], not torch.int64 \[3\]",
    ),
    "index": ("subnetwork.read.index", torch.tensor([0, 4, 1]), r"node 'read' selects units 0 to 4 of 4"),
    "negative index": ("subnetwork.read.index", torch.tensor([0, -1, 1]), r"node 'read' selects units -1 to 1 of 4"),
    "no scale": ("transform.scale", None, "it lacks transform.scale"),
    "scale": ("transform.scale", torch.tensor(0.0), "its transform cannot be: scale is 0.0"),
    "scale NaN": ("transform.scale", torch.tensor(math.nan), "its transform cannot be: scale is nan"),
    "scale dtype": (
        "transform.scale",
        torch.tensor(255),
        r"its transform.scale is torch.int64 \[\], not torch.float32",
    ),
    "permutation": (
        "transform.permutation",
        torch.zeros(40).long(),
        "transform cannot be: permutation does not hold each",
    ),
    "short permutation": (
        "transform.permutation",
        torch.arange(39),
        r"transform.permutation is torch.int64 \[39\], not",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_touched_tensors_are_refused_with_what_is_wrong(tmp_path, whole, name):
    key, value, message = TENSORS[name]
    tensors = {other: tensor for other, tensor in whole[1].items() if other != key}
    tensors |= {} if value is None else {key: value}
    with pytest.raises(Damaged, match=message):
        load(write(tmp_path / "touched.safetensors", tensors, whole[2]))


BATCHES = (1, 2, 37, 500)


def check_close(found, expected):
    """Within 1e-5 of the largest logit, and the same predictions wherever the two largest are further apart."""
    assert not found.requires_grad
    largest = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-5 * largest
    first, second = expected.topk(2).values.unbind(1)
    clear = first - second > 2e-5 * largest
    assert clear.float().mean() > 0.9
    assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_other_runtimes_answer_as_the_evaluator_for_batches_of_any_size(tmp_path, name, ending, capfd, recwarn):
    exported, transform, raw = drawn(name, permute=name != "averaged", inverted=name in ("mlp", "residual"))
    path = tmp_path / f"network.{ending}"
    save(exported, path)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert os.listdir(tmp_path) == [path.name]  # no weights in a file of their own
    data = path.read_bytes()
    assert not [name for name in (b"export.py", os.fsencode(Path.cwd()), os.fsencode(sys.prefix)) if name in data]
    if ending == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [(x.name, x.type, x.shape[1:]) for x in session.get_inputs()] == [
            ("x", "tensor(float)", list(raw.shape[1:]))
        ]
        assert [x.name for x in session.get_outputs()] == ["logits"]

        def answer(x):
            return torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            answer = torch.export.load(path).module()
    for count in BATCHES:
        check_close(answer(raw[:count].float()), logits(exported.subnetwork, transform(raw[:count])))
    assert answer(raw[:0].float()).shape == (0, CLASSES)


def test_a_loaded_network_is_exported_as_the_first_was(tmp_path):
    exported, transform, raw = drawn("residual")
    save(exported, tmp_path / "network.safetensors")
    save(load(tmp_path / "network.safetensors"), tmp_path / "network.pt2")
    answer = torch.export.load(tmp_path / "network.pt2").module()
    check_close(answer(raw.float()), logits(exported.subnetwork, transform(raw)))


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("onnxruntime")


def both_onnx(runtime, path, raw):
    """The answers of onnxruntime and of ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for answer in (session, ReferenceEvaluator(str(path))):
        yield torch.from_numpy(answer.run(None, {"x": raw.numpy()})[0])


def pooled(pool, shape, seed=0):
    """An exported network that shows every value of the pooled maps in its logits."""
    source = torch.Generator().manual_seed(seed)
    features = math.prod(pool(torch.zeros(1, 2, *shape[1:])).shape)
    module = nn.Sequential(nn.Conv2d(shape[0], 2, 1), pool, nn.Flatten(), nn.Linear(features, CLASSES))
    transform = draw_transform(shape, source)
    return Exported(transform, draw_numbers(module, source)), transform, pixels(20, shape, source)


def check_onnx(runtime, exported, transform, raw, path):
    save(exported, path)
    for found in both_onnx(runtime, path, raw.float()):
        check_close(found, logits(exported.subnetwork, transform(raw)))


POOLS = {
    "a divisor": nn.AvgPool2d(2, divisor_override=3),
    "a divisor of one": nn.AvgPool2d(3, 2, 1, divisor_override=1),
    "a divisor without the border": nn.AvgPool2d((3, 2), 2, 1, count_include_pad=False, divisor_override=5),
    "a divisor and no window over the edge": nn.AvgPool2d(2, 2, ceil_mode=True, divisor_override=3),
    "a largest behind the map": nn.MaxPool2d(2, 3, ceil_mode=True),
    "a mean behind the map": nn.AvgPool2d((1, 2), 3, ceil_mode=True),
    "a largest over the edge": nn.MaxPool2d(3, 2, ceil_mode=True),
    "a largest of dilated ones over the edge": nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True),
    "a mean over the edge": nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
}


@pytest.mark.parametrize("name", POOLS)
def test_poolings_that_onnx_has_otherwise_answer_as_the_evaluator(tmp_path, runtime, name, capfd):
    check_onnx(runtime, *pooled(POOLS[name], (3, 6, 6)), tmp_path / "network.onnx")
    assert "onnxruntime" not in capfd.readouterr().err


def test_a_pooling_that_a_network_calls_on_maps_of_two_sizes_answers_as_the_evaluator(tmp_path, runtime):
    """Over the edge of the first, on whole windows of the second."""
    pool = nn.AvgPool2d(2, 2, ceil_mode=True)
    exported, transform, raw = pooled(nn.Sequential(pool, nn.ReLU(), pool), (2, 7, 7))
    check_onnx(runtime, exported, transform, raw, tmp_path / "network.onnx")
    assert exported.subnetwork[1][0] is pool


@settings(max_examples=200)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    stride=st.integers(1, 4),
    border=st.booleans(),
    dilation=st.integers(1, 2),
    ceil=st.booleans(),
    divisor=st.sampled_from([None, 1, 7]),
    largest=st.booleans(),
)
def test_a_pooling_for_onnx_is_the_pooling(sizes, kernel, stride, border, dilation, ceil, divisor, largest):
    padding = int(border and (kernel if isinstance(kernel, int) else min(kernel)) > 1)
    if largest:
        pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    else:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil, divisor_override=divisor)
    x = torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))
    try:
        expected = pool(x)
    except RuntimeError:
        assume(False)
    try:
        whole = copy.deepcopy(pool)
        whole.ceil_mode = False
        changed = whole(x).shape != expected.shape
    except RuntimeError:
        changed = True
    try:
        found = _Pooling("pool", pool)(x)
    except UnsupportedExport:
        assert changed
        return
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    # ONNX is asked for windows over the edge only where torch has some.
    assert not ceil or _Pooling("pool", pool)._overhangs(x) == changed


REFUSED = {
    "a divisor": (
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
        r"module 1 has divisor_override=3 and ceil_mode=True with windows that reach over the edge of its \[7, 6\] "
        r"maps, which ONNX cannot hold; write .safetensors or .pt2",
    ),
    "one side": (
        nn.MaxPool2d(2, 3, ceil_mode=True),
        r"module 1 has ceil_mode=True, which adds a window on one side of its \[7, 6\] maps, and on the other one in "
        r"ONNX but none in torch; write .safetensors or .pt2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_poolings_that_onnx_cannot_hold_are_refused_by_name(tmp_path, name):
    pool, message = REFUSED[name]
    exported, _, raw = pooled(pool, (3, 7, 6))
    with pytest.raises(UnsupportedExport, match=message):
        save(exported, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
    save(exported, tmp_path / "network.safetensors")
    assert torch.equal(load(tmp_path / "network.safetensors")(raw), exported(raw))


class OwnPool(nn.AvgPool2d):
    """Left to torch's exporter, which leaves the divisor out."""


@pytest.mark.parametrize("runtime", [True, False])
def test_an_onnx_file_that_answers_otherwise_is_refused_where_onnxruntime_is_installed(tmp_path, monkeypatch, runtime):
    exported, _, _ = pooled(OwnPool(2, divisor_override=1), (3, 6, 6))
    if not runtime:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        save(exported, tmp_path / "network.onnx")
        return
    pytest.importorskip("onnxruntime")
    message = (
        r"answers 5 random samples with logits that differ by [\d.]+ from its own, of which the largest is [\d.]+;"
    )
    with pytest.raises(UnsupportedExport, match=message):
        save(exported, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_answers_of_another_shape_are_refused(tmp_path, runtime):
    exported, transform, _ = drawn("mlp")
    save(exported, tmp_path / "network.onnx")
    other = Exported(transform, nn.Sequential(nn.Linear(12, CLASSES + 1)))
    with pytest.raises(UnsupportedExport, match=r"answers 5 samples with \[5, 5\], not \[5, 6\]; write .safetensors"):
        _check_answers((tmp_path / "network.onnx").read_bytes(), other)


def test_an_onnx_file_that_onnxruntime_cannot_run_is_refused(tmp_path, runtime, capfd):
    """It has no convolution of float64."""
    transform = drawn("averaged")[1]
    module = NETWORKS["averaged"]()[1].double()
    with pytest.raises(UnsupportedExport, match=r"cannot be run by onnxruntime: .*NOT_IMPLEMENTED"):
        save(Exported(transform, module), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
    assert "onnxruntime" not in capfd.readouterr().err


def test_an_onnx_file_that_onnx_itself_refuses_is_not_written(tmp_path):
    """It has no convolution of bfloat16."""
    transform = drawn("averaged")[1]
    module = NETWORKS["averaged"]()[1].bfloat16()
    with pytest.raises(UnsupportedExport, match=r"refused by ONNX's own checker: .*bfloat16.*; write .safetensors or"):
        save(Exported(transform, module), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dense_networks_of_other_types_are_written_as_onnx(tmp_path, runtime, dtype):
    exported, transform, raw = drawn("mlp")
    module = exported.subnetwork.to(dtype)
    exported = Exported(transform, module)
    save(exported, tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"x": raw.float().numpy()})[0])
    assert found.dtype == dtype
    tolerance = 1e-2 if dtype == torch.float16 else 1e-6
    assert torch.allclose(found, exported(raw), rtol=0, atol=tolerance * float(found.abs().max()))


def test_writing_onnx_draws_no_random_number(tmp_path):
    exported, _, _ = drawn("mlp")
    state = torch.get_rng_state()
    save(exported, tmp_path / "network.onnx")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_onnx_packages_it_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs the package {package}, .*pip install 'clnp-search\[export\]', or write .safetensors or .pt2"
    with pytest.raises(UnsupportedExport, match=message):
        save(drawn("mlp")[0], tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())
    save(drawn("mlp")[0], tmp_path / "network.safetensors")


@pytest.mark.parametrize("name", ["network.pt", "network", "network.safetensors.gz", ".onnx"])
def test_another_ending_is_refused_with_the_three_that_there_are(tmp_path, name):
    with pytest.raises(ValueError, match=rf"'{name}' ends in none of .safetensors, .onnx, .pt2; the ending chooses"):
        save(drawn("mlp")[0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*/none does not exist; make it first"):
        save(drawn("mlp")[0], tmp_path / "none" / "network.safetensors")


def test_samples_that_the_network_cannot_read_are_refused(tmp_path):
    _, module = mlp()
    for wrong, message in (
        ((13,), r"cannot read samples of shape \[13\]: "),
        ((2, 12), r"shape \[2, 12\]|\[2, 2, 5\]"),
    ):
        with pytest.raises(UnsupportedExport, match=message):
            save(Exported(Transform(None, 1.0, wrong), module), tmp_path / "network.safetensors")


def test_maps_for_logits_are_refused(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 1))
    with pytest.raises(UnsupportedExport, match=r"answers \[2, 1, 2, 3\] with \[2, 4, 2, 3\]; logits must be"):
        save(Exported(Transform(None, 1.0, (1, 2, 3)), module), tmp_path / "network.pt2")


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "network.safetensors"
    save(drawn("mlp", seed=1)[0], path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        save(drawn("mlp", seed=2)[0], path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_saving_changes_nothing_of_what_is_saved(tmp_path):
    exported, _, raw = drawn("flattened")
    before = {name: value.clone() for name, value in exported.state_dict().items()}
    answer = exported(raw)
    wanted = [value.requires_grad for value in exported.parameters()]
    for ending in ("safetensors", "onnx", "pt2"):
        save(exported, tmp_path / f"network.{ending}")
    assert all(torch.equal(value, before[name]) for name, value in exported.state_dict().items())
    assert torch.equal(exported(raw), answer)
    assert [value.requires_grad for value in exported.parameters()] == wanted
