import pytest
import torch
from torch import nn

from clnp.errors import UnsupportedNetwork
from clnp.graph import Group, Layer
from clnp.models import mlp
from clnp.network import FREE, Network


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_it_reads_layers_from_a_plain_sequential():
    network = Network(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    )
    assert network.layers == (
        Layer("0", "dense", "0", None, 6, 5, True),
        Layer("2", "dense", "2", "0", 5, 4, False),
        Layer("4", "dense", "4", "2", 4, 3, True),
    )
    assert network.groups == (Group("0", 5), Group("2", 4))
    assert network.last == Group("2", 4)
    assert network.output is network.layers[-1]
    assert network.norms == ()
    assert network.task == 0
    assert network.owner(network.last).tolist() == [FREE] * 4
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_given_module_is_neither_read_for_weights_nor_changed():
    module = mlp(6, [5], 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = Network(module)
    assert all(int(value.count_nonzero()) == 0 for value in network.parts.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_nothing_is_drawn_from_the_global_random_state():
    module = mlp(6, [5, 4], 3)
    random = torch.get_rng_state()
    Network(module)
    assert torch.equal(random, torch.get_rng_state())


def test_it_takes_over_dtype_and_device_and_nothing_else():
    module = mlp(6, [5], 3).double().train()
    module.hidden1.note = "of the user"
    network = Network(module)
    assert network.dtype == torch.float64
    assert not hasattr(network.weights(network.layers[-2]), "note")
    assert {value.device for value in network.state_dict().values()} == {torch.device("cpu")}


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["single", "multi"])
def test_it_is_made_where_the_module_is(head):
    network = Network(mlp(6, [5], 3).to("cuda"), head=head)
    network.place_head(0)
    assert {value.device.type for value in network.state_dict().values()} == {"cuda"}


def test_owners_travel_with_the_state_and_stay_whole_numbers():
    network = Network(mlp(6, [5], 3))
    network.owner(network.last)[2] = 0
    network.committed += 1
    other = Network(mlp(6, [5], 3))
    other.load_state_dict(network.state_dict())
    other.double()
    assert other.owner(other.last).tolist() == [FREE, FREE, 0, FREE, FREE]
    assert other.owner(other.last).dtype == torch.int64
    assert other.task == 1
    assert other.dtype == torch.float64


def test_a_copy_shares_no_memory_and_knows_the_layers_of_the_original():
    network = Network(mlp(6, [5, 4], 3), head="multi")
    network.place_head(0)
    other = network.copy()
    for value in other.parameters():
        value += 1
    other.owner(network.last)[0] = 0
    assert all(int(value.count_nonzero()) == 0 for value in network.parameters())
    assert network.owner(network.last).tolist() == [FREE] * 4
    assert other.weights(network.output, 0) is other.heads["0"]


def test_each_task_of_a_multi_head_network_has_its_own_output_layer():
    network = Network(mlp(6, [5], 3).double(), head="multi")
    random = torch.get_rng_state()
    network.place_head(0)
    network.weights(network.output, 0).weight.fill_(2.0)
    network.committed += 1
    network.place_head(1)
    network.place_head(0)
    assert network.weights(network.output, 0).weight.unique().tolist() == [2.0]
    assert network.weights(network.output) is network.weights(network.output, 1)
    assert network.weights(network.output).weight.shape == (3, 5)
    assert network.weights(network.output).weight.unique().tolist() == [0.0]
    assert network.weights(network.output).weight.dtype == torch.float64
    assert not network.weights(network.output).weight.requires_grad
    assert torch.equal(random, torch.get_rng_state())


def test_a_single_head_network_shares_its_output_layer():
    network = Network(mlp(6, [5], 3))
    network.place_head(1)
    assert network.weights(network.output, 0) is network.weights(network.output, 7)
    assert len(network.heads) == 0


def test_values_are_those_of_the_module():
    module = mlp(6, [5, 4], 3)
    network = Network(module)
    for layer in network.layers:
        network.weights(layer).load_state_dict(module.get_submodule(layer.name).state_dict())
    x = torch.randn(7, 6)
    found = [value for _, _, value in network.values(x)]
    assert len(found) == 4
    for place, value in enumerate(found):
        assert torch.equal(value, module[: place + 1](x))
    assert torch.equal([value for _, _, value in network.values(x, 0)][-1], module(x))


def test_one_relu_may_stand_in_many_places():
    relu = nn.ReLU()
    network = Network(nn.Sequential(nn.Linear(6, 5), relu, nn.Linear(5, 4), relu, nn.Linear(4, 3)))
    assert [layer.name for layer in network.layers] == ["0", "2", "4"]


def test_it_refuses_an_unknown_head():
    with pytest.raises(UnsupportedNetwork, match="""head is 'dual'; it can be "single" or "multi\""""):
        Network(mlp(6, [5], 3), head="dual")


def test_it_refuses_what_is_no_module():
    with pytest.raises(UnsupportedNetwork, match=r"the network is a str; give a torch.nn.Module"):
        Network("resnet18")
