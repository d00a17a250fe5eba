from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from clnp.errors import UnsupportedNetwork
from clnp.models import mlp
from clnp.network import FREE, Layer, Network


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_it_reads_layers_from_a_plain_sequential():
    network = Network(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    )
    assert network.hidden == (Layer("0", 6, 5, True), Layer("2", 5, 4, False))
    assert network.last == Layer("2", 5, 4, False)
    assert network.output == Layer("4", 4, 3, True)
    assert network.task == 0
    assert network.owner(network.last).tolist() == [FREE] * 4
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_given_module_is_neither_read_for_weights_nor_changed():
    module = mlp(6, [5], 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = Network(module)
    assert all(int(value.count_nonzero()) == 0 for value in network.dense.parameters())
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
    assert not hasattr(network.linear(network.last), "note")
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
    assert other.linear(network.output, 0) is other.heads["0"]


def test_each_task_of_a_multi_head_network_has_its_own_output_layer():
    network = Network(mlp(6, [5], 3).double(), head="multi")
    random = torch.get_rng_state()
    network.place_head(0)
    network.linear(network.output, 0).weight.fill_(2.0)
    network.committed += 1
    network.place_head(1)
    network.place_head(0)
    assert network.linear(network.output, 0).weight.unique().tolist() == [2.0]
    assert network.linear(network.output) is network.linear(network.output, 1)
    assert network.linear(network.output).weight.shape == (3, 5)
    assert network.linear(network.output).weight.unique().tolist() == [0.0]
    assert network.linear(network.output).weight.dtype == torch.float64
    assert not network.linear(network.output).weight.requires_grad
    assert torch.equal(random, torch.get_rng_state())


def test_a_single_head_network_shares_its_output_layer():
    network = Network(mlp(6, [5], 3))
    network.place_head(1)
    assert network.linear(network.output, 0) is network.linear(network.output, 7)
    assert len(network.heads) == 0


def test_activations_are_the_outputs_of_every_hidden_relu():
    module = mlp(6, [5, 4], 3)
    network = Network(module)
    network.dense.load_state_dict(module.state_dict())
    x = torch.randn(7, 6)
    first, second = network.activations(x)
    assert torch.equal(first, module[:2](x))
    assert torch.equal(second, module[:4](x))


def test_one_relu_may_stand_in_many_places():
    relu = nn.ReLU()
    network = Network(nn.Sequential(nn.Linear(6, 5), relu, nn.Linear(5, 4), relu, nn.Linear(4, 3)))
    assert [layer.name for layer in network.layers] == ["0", "2", "4"]


def _changed(change, *where):
    module = mlp(6, [5], 3)
    for name in where:
        change(module.get_submodule(name))
    return module


def _hooked(child):
    child.register_forward_hook(lambda *_: None)


def _hooked_before(child):
    child.register_forward_pre_hook(lambda *_: None)


HOOK = "has a forward hook; remove it (one of torch.nn.utils.prune or weight_norm with their own remove functions)"
CAST = "call .float() or .double() on the network"


class _Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def _tied():
    square = [nn.Linear(5, 5), nn.Linear(5, 5)]
    square[1].weight = square[0].weight
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), square[0], nn.ReLU(), square[1], nn.ReLU(), nn.Linear(5, 3))


def _repeated():
    square = nn.Linear(5, 5)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), square, nn.ReLU(), square, nn.ReLU(), nn.Linear(5, 3))


SUPPORTED = "a network is Linear and ReLU in turn and ends with a Linear"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(6, 3), "the network is a Linear; give a torch.nn.Sequential"),
        (_Doubled(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "_Doubled has a forward() of its own"),
        (
            nn.Sequential(OrderedDict(first=nn.Linear(6, 5), squash=nn.Tanh(), last=nn.Linear(5, 3))),
            f"layer 'squash' (place 1) is a Tanh where a ReLU belongs; {SUPPORTED}",
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)),
            f"layer '2' (place 2) is a Dropout where a Linear belongs; {SUPPORTED}",
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 3))),
            f"layer '2' (place 2) is a Sequential where a Linear belongs; {SUPPORTED}",
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)),
            f"layer '1' (place 1) is a Linear where a ReLU belongs; {SUPPORTED}",
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(4, 3)),
            "layer '2' (place 2) reads 4 inputs, but '0' before it has 5 units; make them equal",
        ),
        (_tied(), "layer '4' (place 4) shares a weight with layer '2'; untie them"),
        (_repeated(), "layer '4' (place 4) shares a weight with layer '2'; untie them"),
        (nn.Sequential(), "the network has 0 Linear layers; at least one hidden layer is needed"),
        (nn.Sequential(nn.Linear(6, 3)), "the network has 1 Linear layers; at least one hidden layer is needed"),
        (
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()),
            "the network ends with '3', a ReLU; end it with the Linear of the logits",
        ),
        (
            nn.Sequential(OrderedDict(values=nn.Linear(6, 5), relu=nn.ReLU(), output=nn.Linear(5, 3))),
            "layer 'values' (place 0) has a name that torch keeps for itself; give it another",
        ),
        (_changed(nn.Module.half, "hidden1", "output"), f"layer 'hidden1' (place 0) is torch.float16; {CAST}"),
        (_changed(nn.Module.bfloat16, "output"), f"layer 'output' (place 2) is torch.bfloat16; {CAST}"),
        (
            _changed(nn.Module.double, "output"),
            f"layer 'output' (place 2) is torch.float64, but the first layer is torch.float32; {CAST}",
        ),
        (_changed(_hooked, "output"), f"layer 'output' (place 2) {HOOK}"),
        (_changed(_hooked, "relu1"), f"layer 'relu1' (place 1) {HOOK}"),
        (_changed(_hooked_before, "hidden1"), f"layer 'hidden1' (place 0) {HOOK}"),
        (_changed(_hooked, ""), f"the network {HOOK}"),
        (
            _changed(lambda child: prune.l1_unstructured(child, "weight", 0.5), "hidden1"),
            f"layer 'hidden1' (place 0) {HOOK}",
        ),
    ],
)
def test_it_refuses_what_it_cannot_prune(module, message):
    """Promise 8: refused with what was wrong, what was found and how to mend it."""
    with pytest.raises(UnsupportedNetwork) as refusal:
        Network(module)
    assert message in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_it_refuses_a_layer_without_units():
    with pytest.raises(UnsupportedNetwork, match=r"layer '0' \(place 0\) has 6 inputs and 0 units"):
        Network(nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 3)))


def test_it_refuses_an_unknown_head():
    with pytest.raises(UnsupportedNetwork, match="""head is 'dual'; it can be "single" or "multi\""""):
        Network(mlp(6, [5], 3), head="dual")
