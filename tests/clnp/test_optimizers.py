import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clnp.models import mlp
from clnp.network import FREE, Network
from clnp.optimizers import Adam, AdamW, Sgd
from clnp.ownership import entries, trainable
from clnp.stack import Stack


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


DECAY = 0.3


def adamw(module, rate):
    """Its decay on the weights of layers alone."""
    weights = [child.weight for child in module.modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    others = [value for value in module.parameters() if not any(value is weight for weight in weights)]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate)


KINDS = {
    "adam": (lambda *given: Adam(*given), lambda module, rate: torch.optim.Adam(module.parameters(), lr=rate)),
    "adamw": (lambda *given: AdamW(*given, weight_decay=DECAY), adamw),
    "sgd": (lambda *given: Sgd(*given), lambda module, rate: torch.optim.SGD(module.parameters(), lr=rate)),
    "momentum": (
        lambda *given: Sgd(*given, momentum=0.9),
        lambda module, rate: torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9),
    ),
}


def make(head="single", *, owned=0, dtype=torch.float64):
    """A network 6-5-4-3 with random weights; the first ``owned`` units of each hidden layer belong to task 0."""
    network = Network(mlp(6, [5, 4], 3).to(dtype), head=head)
    if owned:
        network.place_head(0)
        network.committed += 1
        for layer in network.groups:
            network.owner(layer)[:owned] = 0
    return random(network)


def random(network):
    network.place_head(network.task)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return network


def bits(value):
    return value.detach().view(torch.int64 if value.dtype == torch.float64 else torch.int32).clone()


def loss_gradients(stack, x, y):
    logits = stack.forward(x).transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, y.expand(stack.members, -1), reduction="none").mean(1)
    gradients = torch.autograd.grad(losses.sum(), list(stack.parameters.values()))
    return dict(zip(stack.parameters, gradients, strict=True))


def batches(count=6):
    return [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alphas", [(0.0, 0.0), (0.0, 0.02)])
def test_steps_are_those_of_torch_on_a_plain_network(kind, alphas):
    """Each member by itself, autograd for the loss and for the L1 penalty of the weights: the same to rounding."""
    ours, theirs = KINDS[kind]
    network = make()
    rates = (0.01, 0.003)
    stack = Stack(network, 2)
    alpha = {f"{layer.name}.weight": [place * value for value in alphas] for place, layer in enumerate(network.layers)}
    optimizer = ours(stack, alpha, rates)
    plain = []
    for rate in rates:
        module = mlp(6, [5, 4], 3).double()
        module.load_state_dict({name: value[0] for name, value in stack.parameters.items()})
        plain.append((module, theirs(module, rate)))
    for x, y in batches():
        optimizer.step(loss_gradients(stack, x, y))
        for member, (module, reference) in enumerate(plain):
            penalty = sum(
                alpha[name][member] * value.abs().sum() for name, value in module.named_parameters() if name in alpha
            )
            reference.zero_grad()
            (nn.functional.cross_entropy(module(x), y) + penalty).backward()
            reference.step()
    for member, (module, _) in enumerate(plain):
        for name, value in module.named_parameters():
            torch.testing.assert_close(stack.parameters[name][member], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owned", [0, 2])
def test_members_that_stay_go_on_as_if_nobody_had_gone(kind, owned):
    """With their α, their learning rate and what the optimizer remembers of them."""
    network = make(owned=owned)
    alpha = {f"{layer.name}.weight": [0.0, 0.02, 0.3] for layer in network.layers}
    whole, part = Stack(network, 3), Stack(network, 3)
    ours, theirs = (KINDS[kind][0](stack, alpha, (0.01, 0.003, 0.02)) for stack in (part, whole))
    for turn, (x, y) in enumerate(batches(8)):
        if turn == 4:
            ours.keep(part, [2, 0])
        for stack, optimizer in ((part, ours), (whole, theirs)):
            optimizer.step(loss_gradients(stack, x, y))
    assert part.members == 2
    for name, value in whole.parameters.items():
        torch.testing.assert_close(part.parameters[name], value[[2, 0]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rates", [(0.01, 0.003, 0.01), (0.01, 0.01, 0.01)])
def test_samples_may_lie_channels_last_in_memory(kind, rates):
    """Then a convolution's gradient lies so too, and a fused kernel, which goes by memory, would mix up its entries."""
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    network = random(Network(nn.Sequential(*convolutions, nn.Linear(6 * 16, 3)).double()))
    x, y = torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.randint(3, (7,))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        stack = Stack(network, 3)
        optimizer = KINDS[kind][0](stack, {layer.name + ".weight": [0.0, 0.02, 0.1] for layer in network.layers}, rates)
        for _ in range(4):
            gradients = loss_gradients(stack, x.to(memory_format=layout), y)
            optimizer.step(gradients)
        found.append((stack.parameters, all(gradient.is_contiguous() for gradient in gradients.values())))
    (plain, _), (turned, contiguous) = found
    assert not contiguous, "nothing is shown if torch makes every gradient contiguous"
    for name, value in plain.items():
        torch.testing.assert_close(turned[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_who_goes_gives_memory_back_tensor_by_tensor(kind):
    """A stack may fill its GPU: what is kept must not lie beside all that was there before."""
    network = random(Network(mlp(20, [30, 30, 30, 30], 3).double()))
    stack = Stack(network, 6)
    optimizer = KINDS[kind][0](stack, {layer.name + ".weight": [0.1] * 6 for layer in network.layers}, (0.01,) * 6)
    x, y = torch.randn(8, 20, dtype=torch.float64), torch.randint(3, (8,))
    optimizer.step(loss_gradients(stack, x, y))

    lying = {}

    def note(*tensors):
        for each in tensors:
            storage = each.untyped_storage()
            lying[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()

    class Most(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            note(*(each for each in tree_leaves(result) if isinstance(each, torch.Tensor)))
            self.most = max(self.most, sum(size for left, size in lying.values() if not left.expired()))
            return result

    note(*stack.parameters.values(), *(value for state in optimizer._states for value in state.values()))
    before = sum(size for _, size in lying.values())
    with Most() as seen:
        optimizer.keep(stack, [0, 1, 2, 3, 4])
    largest = max(value.nbytes for value in stack.parameters.values())
    assert before < seen.most < before + 2.5 * largest


def test_l1_pulls_weights_and_leaves_biases():
    """Sec. 2.2 and facts: L1 acts on weights; each member and layer has its own coefficient."""
    network = make()
    stack = Stack(network, 2)
    before = {name: value.detach().clone() for name, value in stack.parameters.items()}
    optimizer = Sgd(stack, {"hidden1.weight": [0.1, 0.0], "output.weight": [0.2, 0.4]}, (1.0, 0.5))
    optimizer.step({name: torch.zeros_like(value) for name, value in stack.parameters.items()})
    moved = {name: before[name] - value.detach() for name, value in stack.parameters.items()}
    sign = {name: value.sign() for name, value in before.items()}
    torch.testing.assert_close(moved["hidden1.weight"][0], 0.1 * sign["hidden1.weight"][0])
    torch.testing.assert_close(moved["output.weight"][0], 0.2 * sign["output.weight"][0])
    torch.testing.assert_close(moved["output.weight"][1], 0.2 * sign["output.weight"][1])
    assert not moved["hidden1.weight"][1].any()
    assert not any(moved[name].any() for name in ("hidden2.weight", "hidden1.bias", "hidden2.bias", "output.bias"))


def test_a_weight_of_exactly_zero_is_not_pulled():
    stack = Stack(make(), 1)
    stack.parameters["hidden1.weight"].detach().zero_()
    Sgd(stack, {"hidden1.weight": [0.1]}, (1.0,)).step(
        {name: torch.zeros_like(value) for name, value in stack.parameters.items()}
    )
    assert not stack.parameters["hidden1.weight"].detach().any()


def test_members_of_a_stack_step_as_they_do_alone():
    """One path for any number of members; in float64 they agree to rounding."""
    network = make(owned=2)
    alphas, rates = (0.0, 0.01, 0.1), (0.01, 0.003, 0.03)
    steps = batches()
    together = Stack(network, 3)
    optimizer = Adam(together, {f"{layer.name}.weight": alphas for layer in network.layers}, rates)
    for x, y in steps:
        optimizer.step(loss_gradients(together, x, y))
    for member in range(3):
        alone = Stack(network, 1)
        one = Adam(
            alone, {f"{layer.name}.weight": alphas[member : member + 1] for layer in network.layers}, [rates[member]]
        )
        for x, y in steps:
            one.step(loss_gradients(alone, x, y))
        for name, value in alone.parameters.items():
            torch.testing.assert_close(together.parameters[name][member], value[0], rtol=1e-9, atol=1e-12)
    assert all(bool((network.owner(layer) == FREE).any()) for layer in network.groups)


def test_decay_spares_biases_and_batchnorms(make_any):
    """Facts: decay, like L1, acts on weights."""
    network, _ = make_any("torchvision", 2, dtype=torch.float64)
    stack = Stack(network, 2)
    before = {name: value.detach().clone() for name, value in stack.parameters.items()}
    names = {f"{layer.name}.weight" for layer in network.layers}
    optimizer = AdamW(stack, {name: [0.0, 0.0] for name in names}, (0.1, 0.2), weight_decay=DECAY)
    optimizer.step({name: torch.zeros_like(value) for name, value in stack.parameters.items()})
    assert {name for name in before if name not in names}
    for name, value in stack.parameters.items():
        rates = torch.tensor([0.1, 0.2], dtype=torch.float64).view(2, *[1] * (value.dim() - 1))
        expected = before[name] * (1 - rates * DECAY) if name in names else before[name]
        torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network_kind", ["dense", "flattened", "averaged", "after", "torchvision"])
@pytest.mark.parametrize(("head", "poison"), [("single", torch.nan), ("multi", None), ("single", torch.inf)])
def test_frozen_entries_keep_every_bit(make_any, kind, network_kind, head, poison):
    """Promise 1: weights, kernels, biases, scales and shifts, whatever optimizer, head and gradient; L1, decay and
    momentum reach what is free alone, since nothing else is there to be reached. And a -0 stays a -0."""
    network, shape = make_any(network_kind, 4, head=head, committed=2)
    for value in entries(network).values():
        value[torch.rand(value.shape) < 0.2] = -0.0
    masks, before = trainable(network), {name: bits(value) for name, value in entries(network).items()}
    stack = Stack(network, 2)
    optimizer = KINDS[kind][0](stack, {f"{layer.name}.weight": [0.05] * 2 for layer in network.layers}, (0.01, 0.1))
    for _ in range(3):
        x, y = torch.randn(6, *shape), torch.randint(3, (6,))
        logits = stack.forward(x, torch.Generator()).transpose(1, 2)
        loss = nn.functional.cross_entropy(logits, y.expand(2, -1))
        gradients = torch.autograd.grad(loss, list(stack.parameters.values()), materialize_grads=True)
        if poison is not None:
            for gradient in gradients:
                gradient[0] = poison
        optimizer.step(dict(zip(stack.parameters, gradients, strict=True)))
    moved = 0
    for index in range(2):
        for name, value in stack.member(index).items():
            frozen = ~masks[name].expand_as(value)
            assert torch.equal(bits(value)[frozen], before[name][frozen])
            moved += int((bits(value) != before[name]).sum())
    assert moved
