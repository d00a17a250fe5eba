"""The graph of a network: its order, its taps, and the modules that it stands for."""

import pytest
import torch
from torch import nn

from clnp.graph import INPUT, Add, Graph, Group, Layer, Node, Norm, Plain
from clnp.network import Network
from clnp.reading import read_graph

DENSE = Layer("d", "dense", "d", "c", 24, 5, True, positions=6)
CONV = Layer("c", "conv", "c", None, 3, 4, False, kernel=(3, 2), stride=(2, 1), padding="valid", dilation=(1, 2))


def test_shapes_are_those_of_torch():
    for layer in (DENSE, CONV):
        module = layer.blank(torch.device("cpu"), torch.float64)
        assert module.weight.shape == layer.shape
        assert module.weight.dtype == torch.float64
        assert (module.bias is not None) == layer.bias
        assert not any(bool(value.any()) or value.requires_grad for value in module.parameters())
    assert (DENSE.fan_in, CONV.fan_in) == (24, 18)
    assert (module.kernel_size, module.stride, module.padding, module.dilation) == ((3, 2), (2, 1), "valid", (1, 2))


def test_a_module_of_another_width_is_drawn_nowhere():
    state = torch.get_rng_state()
    module = CONV.module(2, 7, torch.float32)
    DENSE.blank(torch.device("cpu"), torch.float32)
    assert module.weight.is_meta
    assert module.weight.shape == (7, 2, 3, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_units_of_a_flattened_map_own_their_columns_in_a_row():
    """Facts: channel c of an NCHW map owns columns c·H·W … (c+1)·H·W − 1."""
    units = torch.tensor([False, True, False, True])
    where = torch.zeros(1, 4, 2, 3, dtype=torch.bool)
    where[:, units] = True
    assert torch.equal(DENSE.columns(units), where.flatten(1)[0])
    assert CONV.columns(units) is units


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_begins_as_torchs(dims, affine):
    norm = Norm("n", "g", 4, dims, 1e-3, 0.2, affine).blank(3, torch.device("cpu"), torch.float64)
    assert type(norm) is (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    assert (norm.num_features, norm.eps, norm.momentum, norm.affine) == (3, 1e-3, 0.2, affine)
    assert not norm.training
    assert norm.running_var.tolist() == [1.0] * 3


def test_the_output_layer_is_last_wherever_it_stands():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    graph = read_graph(Early())
    assert [layer.name for layer in graph.layers] == ["a", "b", "c"]
    assert graph.output.name == "c"
    assert not graph.chain
    assert graph.readers("a") == (graph.output,)
    assert [layer.group for layer in graph.layers] == ["a", "a", "c"]
    assert graph.taps == {"a": (2,)}


def test_taps_are_after_the_activation_and_before_what_moves_numbers():
    """Facts: mean of the post-activation output, before pooling."""
    graph = read_graph(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.Conv2d(4, 3, 1),
            nn.AvgPool2d(2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(12, 5),
            nn.Linear(5, 2),
        )
    )
    assert graph.taps == {"0": (2,), "5": (7,), "9": (9,)}


@pytest.mark.parametrize("kind", ["dense", "flattened", "averaged", "after", "before", "flat", "torchvision"])
@pytest.mark.parametrize("seed", range(5))
def test_nodes_come_after_what_they_read_and_every_group_is_tapped(make_module, kind, seed):
    module, shape = make_module(kind, seed)
    network = Network(module)
    graph = network.graph
    for place, node in enumerate(graph.nodes):
        assert all(INPUT <= read < place for read in node.inputs)
        assert len(node.inputs) == (2 if isinstance(node.op, Add) else 1)
    assert set(graph.taps) == {group.name for group in graph.groups}
    for name, places in graph.taps.items():
        assert places
        assert all(graph.nodes[place].group == name for place in places)
    assert [group.name for group in graph.groups] == list(dict.fromkeys(layer.group for layer in graph.layers[:-1]))
    assert graph.chain == (kind in ("dense", "flattened", "averaged"))
    assert {layer.source for layer in graph.layers} - {None} == {group.name for group in graph.groups}
    for layer in graph.layers:
        if layer.source is not None:
            assert layer.inputs == network.group(layer.source).units * layer.positions
    network.check_shape(shape)


def test_a_value_is_kept_until_its_last_reader():
    nodes = [
        Node("a", Plain(nn.Identity), (INPUT,), "g"),
        Node("b", Plain(nn.Identity), (0,), "g"),
        Node("c", Add(), (0, 1), "g"),
        Node("d", Add(), (2, INPUT), "g"),
    ]
    graph = Graph(nodes, [Group("g", 1)])
    seen = []

    def apply(node, inputs):
        seen.append((node.name, [float(value) for value in inputs]))
        return inputs[0] + (inputs[1] if len(inputs) > 1 else 1)

    assert float(graph.run(torch.tensor(1.0), apply)) == 6
    assert seen == [("a", [1]), ("b", [2]), ("c", [2, 3]), ("d", [5, 1])]
    assert [place for place, _, _ in graph.walk(torch.tensor(1.0), apply)] == [0, 1, 2, 3]
