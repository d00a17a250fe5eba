import pytest
import torch
from torch import nn

from clnp.activity import mean_activity
from clnp.commit import commit, fingerprint
from clnp.errors import UnsupportedNetwork
from clnp.graph import Group, Layer
from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.training import open_task


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


CONV = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("modules", "shape", "message"),
    [
        (CONV, (2, 8, 6), "layer '0' cannot read [2, 8, 6], which samples of shape [2, 8, 6] become: "),
        (CONV, (3, 2, 2), "layer '0' cannot read [3, 2, 2]"),
        (CONV, (3, 3, 3), "layer '2' cannot read [4, 1, 1], which samples of shape [3, 3, 3] become: "),
        (CONV, (3, 12, 12), "layer '4' cannot read [100], which samples of shape [3, 12, 12] become: "),
        (CONV, (24,), "layer '0' cannot read [24]"),
        (
            (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.AvgPool2d(2), nn.Flatten()),
            (3, 8, 8),
            "the network ends with '4' of shape [27] for samples of shape [3, 8, 8]; its 3 logits must be all that is "
            "left: average the maps",
        ),
        (
            (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            (8, 8),
            "cannot read [8, 8]",
        ),
        (
            (nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
            (2, 6),
            "layer '0' cannot read [2, 6], which samples of shape [2, 6] become: it reads features, so put a Flatten",
        ),
        (
            (nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
            (2, 4),
            "layer '0' cannot read [2, 4], which samples of shape [2, 4] become: it reads maps [channels, h, w]",
        ),
        (
            (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AvgPool2d(2), nn.Flatten()),
            (2, 8, 8),
            "the network ends with '4' of shape [27] for samples of shape [2, 8, 8]; its 3 logits must be all",
        ),
        ((nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3)), (), "layer '0' cannot read []"),
    ],
)
def test_samples_that_it_cannot_answer_are_refused(modules, shape, message):
    """Promise 8: before anything starts, with the layer, what reaches it and the samples' shape."""
    network = Network(nn.Sequential(*modules), head="multi")
    with pytest.raises(UnsupportedNetwork) as refusal:
        network.check_shape(shape)
    assert message in str(refusal.value)


@pytest.mark.parametrize("shape", [(3, 8, 6), (3, 8, 7), (3, 9, 7)])
def test_samples_that_become_what_is_read_are_accepted(shape):
    """A pool may leave a row or column out."""
    assert Network(nn.Sequential(*CONV)).check_shape(shape)[-1] == (3,)


def test_additions_of_maps_that_do_not_fit_are_refused():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 2), nn.Linear(4, 3)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.fc(self.pool(self.a(x) + self.b(x)).flatten(1))

    with pytest.raises(UnsupportedNetwork, match=r"layer 'add' cannot read \[4, 5, 6\] and \[4, 4, 5\], which samples"):
        Network(Uneven()).check_shape((1, 5, 6))


@pytest.mark.parametrize("kind", ["dense", "flattened", "averaged", "after", "before", "flat", "torchvision"])
def test_asking_for_a_shape_changes_nothing(make_any, kind):
    for committed in (0, 2):
        network, shape = make_any(kind, 1, head="multi", committed=committed)
        before, random = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
        network.check_shape(shape)
        assert torch.equal(random, torch.get_rng_state())
        assert network.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert not network.training
        with pytest.raises(UnsupportedNetwork):
            network.check_shape((shape[0] + 1, *shape[1:]))


@pytest.mark.parametrize("kind", ["dense", "flattened", "averaged", "after", "before", "flat", "torchvision"])
def test_the_state_of_every_kind_travels(make_any, make_module, kind):
    """After save and load, and .to(): owners stay whole numbers and fingerprints what they were."""
    network, _ = make_any(kind, 3, committed=2)
    other = Network(make_module(kind, 3)[0])
    other.load_state_dict(network.state_dict())
    assert other.task == 2
    for task in range(2):
        assert fingerprint(other, task) == fingerprint(network, task)
    other.double()
    assert other.dtype == torch.float64
    for group in network.groups:
        assert torch.equal(other.owner(group), network.owner(group))
        assert other.owner(group).dtype == torch.int64
        assert other.group(group.name) == group
    with pytest.raises(KeyError):
        other.group("nobody")


def test_names_may_be_paths_and_words_that_torch_keeps():
    """A person's module is taken as it is."""
    inner = nn.Sequential()
    inner.add_module("values", nn.Linear(6, 5))
    inner.add_module("norm", nn.BatchNorm1d(5))
    module = nn.Sequential()
    module.add_module("keys", inner)
    module.add_module("output", nn.Linear(5, 3))
    network = Network(module)
    assert [layer.name for layer in network.layers] == ["keys.values", "output"]
    assert [norm.name for norm in network.norms] == ["keys.norm"]
    assert network.owner("keys.values").tolist() == [FREE] * 5
    assert network.weights(network.layers[0]).weight.shape == (5, 6)
    assert network.norm(network.norms[0]).num_features == 5


def test_it_stays_in_evaluation_mode():
    """In the other its BatchNorms would take what is measured on into the statistics of old units (Promise 1)."""
    network = Network(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))
    opened = open_task(network, seed=0)
    commit(opened, {"0": torch.ones(5, dtype=torch.bool)})
    before = fingerprint(opened, 0)
    assert nn.Sequential(opened.train()).train()[0] is opened
    mean_activity(opened, torch.randn(9, 6))
    assert fingerprint(opened, 0) == before
    assert not any(module.training for module in opened.modules())
