import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from clnp import training
from clnp.activity import mean_activity
from clnp.commit import added, commit, fingerprint
from clnp.errors import NothingToCommit
from clnp.evaluation import full_width_agrees, logits
from clnp.forgetting import Trial, choose
from clnp.models import mlp, split_cifar_narrow
from clnp.network import Network
from clnp.ownership import active, entries, take_free, trainable, with_free
from clnp.parts import dropped
from clnp.seeding import generator
from clnp.stack import Stack
from clnp.subnetwork import cut, subnetwork
from clnp.tasks import permuted, split
from clnp.tasks.task import Split
from clnp.tensors import encode
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, check_batches, open_task, train


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


ADAM = Settings(epochs=2, batch_size=16)
OPTIMIZERS = {
    "adam": Settings(epochs=2, batch_size=16),
    "sgd": Settings(epochs=2, batch_size=16, optimizer="sgd"),
    "momentum": Settings(epochs=2, batch_size=16, optimizer="sgd", momentum=0.9),
    "adamw": Settings(epochs=2, batch_size=16, optimizer="adamw", weight_decay=0.2),
}


def splits(seed=0, *, n=70, inputs=6, classes=3, dtype=torch.float32):
    """A noisy task whose classes a small network can only partly tell apart."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, inputs, generator=random, dtype=dtype)
    y = torch.randint(classes, (n + 40,), generator=random)
    x = centres[y] + torch.randn(n + 40, inputs, generator=random, dtype=dtype)
    return Split(x[:n], y[:n]), Split(x[n:], y[n:])


def member(alpha=0.0, rate=0.01, layers=3):
    return Member((alpha,) * layers, rate)


def owned(head="single", *, counts=(2, 2), dtype=torch.float32):
    """A network 6-5-4-3 with one committed task, which owns the first units of each hidden layer."""
    network = open_task(Network(mlp(6, [5, 4], 3).to(dtype), head=head), seed=7)
    claims = {
        layer.name: torch.arange(layer.units) < count for layer, count in zip(network.groups, counts, strict=True)
    }
    commit(network, claims)
    return network


def bits(value):
    return value.detach().view(torch.int64 if value.dtype == torch.float64 else torch.int32)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


# Opening a task


def test_a_task_opens_with_weights_drawn_as_linear_draws_them():
    network = open_task(Network(mlp(400, [300], 10)), seed=3)
    for name, value in entries(network).items():
        bound = 1 / math.sqrt(400 if name.startswith("hidden1") else 300)
        assert float(value.abs().max()) <= bound
    weight = entries(network)["hidden1.weight"]
    assert float(weight.std()) == pytest.approx(0.05 / math.sqrt(3), rel=0.02)
    nn.init.kaiming_uniform_(
        reference := torch.empty(300, 400), a=math.sqrt(5), generator=generator(3, "init", 0, "hidden1")
    )
    torch.testing.assert_close(weight, reference)


def test_opening_leaves_the_given_network_and_the_global_random_state_alone():
    network = Network(mlp(6, [5, 4], 3), head="multi")
    random = torch.get_rng_state()
    opened = open_task(network, seed=0)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(value.any() for value in network.parameters())
    assert not network.heads
    assert list(opened.heads) == ["0"]


def test_seed_task_and_layer_decide_what_is_drawn():
    first = entries(open_task(Network(mlp(6, [6, 6], 3)), seed=0))
    assert same(first, entries(open_task(Network(mlp(6, [6, 6], 3)), seed=0)))
    assert not torch.equal(
        first["hidden1.weight"], entries(open_task(Network(mlp(6, [6, 6], 3)), seed=1))["hidden1.weight"]
    )
    assert not torch.equal(first["hidden1.weight"], first["hidden2.weight"])
    second = Network(mlp(6, [6, 6], 3))
    second.committed += 1
    assert not torch.equal(first["hidden1.weight"], entries(open_task(second, seed=0))["hidden1.weight"])


@pytest.mark.parametrize("head", ["single", "multi"])
def test_opening_draws_free_entries_anew_and_touches_no_bit_of_others(head):
    """Promise 1 and Alg. 1, "Re-initialize W_free": severed zeros stay zero."""
    network = owned(head)
    for value in network.parameters():
        value[torch.rand(value.shape) < 0.2] = -0.0
    opened = open_task(network, seed=1)
    old = entries(open_task(network, seed=2)) if head == "multi" else entries(network)
    for name, mask in trainable(opened).items():
        if name.startswith("output") and head == "multi":
            continue
        new, mask = entries(opened)[name], mask.expand_as(entries(opened)[name])
        assert torch.equal(bits(new)[~mask], bits(old[name])[~mask])
        assert not bool((new[mask] == old[name][mask]).any())
    if head == "multi":
        assert same(dict(opened.heads["0"].named_parameters()), dict(network.heads["0"].named_parameters()))
    assert opened.task == network.task == 1
    assert int(opened.weights(opened.layers[1]).weight[:2, 2:].count_nonzero()) == 0


def test_what_a_free_entry_becomes_does_not_depend_on_what_else_is_free():
    """Facts: all grid points of a task start from the same weights, whatever was committed before."""
    blank = Network(mlp(6, [5, 4], 3))
    blank.committed += 1
    whole = entries(open_task(blank, seed=1))
    for counts in ((1, 3), (4, 1), (2, 2)):
        network = open_task(owned(counts=counts), seed=1)
        for name, mask in trainable(network).items():
            where = mask.expand_as(whole[name])
            assert torch.equal(entries(network)[name][where], whole[name][where])


def test_float64_begins_with_the_float32_weights():
    wide = entries(open_task(Network(mlp(6, [5], 3).double()), seed=0))
    narrow = entries(open_task(Network(mlp(6, [5], 3)), seed=0))
    assert same({name: value.float() for name, value in wide.items()}, narrow)


def test_a_single_head_without_a_free_last_unit_cannot_open_a_task():
    with pytest.raises(
        NothingToCommit, match=r"no free unit left in hidden2: all 4 are owned after 1 tasks.* prune harder"
    ):
        open_task(owned("single", counts=(2, 4)), seed=0)


def test_a_full_earlier_layer_does_not_keep_a_single_head_from_opening():
    opened = open_task(owned("single", counts=(5, 2)), seed=0)
    (trained,) = train(opened, *splits(), [member()], ADAM, seed=0)
    assert list(trained.free) == ["hidden2.weight", "hidden2.bias", "output.weight"]


def test_a_full_multi_head_network_trains_its_head_alone():
    """Sec. 2.1: equivalent to final layer transfer learning."""
    opened = open_task(owned("multi", counts=(5, 4)), seed=0)
    (trained,) = train(opened, *splits(), [member(rate=0.05)], Settings(epochs=20, batch_size=16), seed=0)
    assert list(trained.free) == ["output.weight", "output.bias"]
    assert trained.epochs[-1] > trained.epochs[0]
    result = with_free(opened, trained.free)
    for layer in opened.layers[:-1]:
        assert torch.equal(result.weights(layer).weight, opened.weights(layer).weight)
    assert not torch.equal(result.weights(result.output).weight, opened.weights(opened.output).weight)


# Training


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_what_torch_does_to_a_plain_network(kind):
    """Network, batches, loss, L1, optimizer and epochs together, in float64: the same to rounding."""
    settings = OPTIMIZERS[kind]
    data, validation = splits(dtype=torch.float64)
    opened = open_task(Network(mlp(6, [5, 4], 3).double()), seed=5)
    alpha = (0.001, 0.01, 0.002)
    (trained,) = train(opened, data, validation, [Member(alpha, 0.02)], settings, seed=5)
    module = mlp(6, [5, 4], 3).double()
    module.load_state_dict(entries(opened))
    layers = [child for child in module if isinstance(child, nn.Linear)]
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    elif settings.optimizer == "adamw":
        groups = [
            {"params": [layer.weight for layer in layers], "weight_decay": settings.weight_decay},
            {"params": [layer.bias for layer in layers], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=settings.momentum)
    order, epochs = generator(5, "order", 0), []
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(data), generator=order).split(settings.batch_size):
            loss = nn.functional.cross_entropy(module(data.x[batch]), data.y[batch])
            loss = loss + sum(a * layer.weight.abs().sum() for a, layer in zip(alpha, layers, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        epochs.append(int((module(validation.x).argmax(1) == validation.y).sum()))
    for name, value in module.named_parameters():
        torch.testing.assert_close(trained.free[name], value.detach(), rtol=1e-9, atol=1e-11)
    assert trained.epochs == tuple(epochs)
    assert trained.epoch == settings.epochs


@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_stack_is_its_members_alone(head):
    """One path for any number of members, each with its own α a layer and learning rate."""
    opened = open_task(owned(head, dtype=torch.float64), seed=0)
    members = [Member((0.0, 0.0, 0.0), 0.01), Member((0.1, 0.0, 0.01), 0.01), Member((0.0, 0.05, 0.0), 0.05)]
    data = splits(dtype=torch.float64)
    together = train(opened, *data, members, ADAM, seed=0)
    for one, result in zip(members, together, strict=True):
        (alone,) = train(opened, *data, [one], ADAM, seed=0)
        assert alone.epochs == result.epochs
        for name, value in alone.free.items():
            torch.testing.assert_close(result.free[name], value, rtol=1e-8, atol=1e-10)
    weights = [result.free["hidden1.weight"] for result in together]
    assert not torch.allclose(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_the_same_seed_gives_the_same_bits_and_nothing_stays_from_one_task_to_the_next():
    """Promise 3, and promise 1: optimizer state is not carried over."""
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    before = {name: value.clone() for name, value in opened.state_dict().items()}
    members = [member(0.001), member(0.0, 0.02)]
    first = train(opened, *splits(), members, ADAM, seed=0)
    train(opened, *splits(1), members, ADAM, seed=0)
    again = train(opened, *splits(), members, ADAM, seed=0)
    for a, b in zip(first, again, strict=True):
        assert same(a.free, b.free)
        assert (a.epochs, a.epoch) == (b.epochs, b.epoch)
    assert all(torch.equal(value, before[name]) for name, value in opened.state_dict().items())
    other = train(opened, *splits(), members, ADAM, seed=1)
    assert not same(first[0].free, other[0].free)


def test_all_members_see_the_same_batches():
    """Facts: all grid points of a task see the same batches. Equal cells agree to rounding, wherever they stand."""
    opened = open_task(Network(mlp(6, [5, 4], 3).double()), seed=0)
    first, *others = train(opened, *splits(dtype=torch.float64), [member(0.001)] * 4, ADAM, seed=0)
    for other in others:
        for name, value in first.free.items():
            torch.testing.assert_close(other.free[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_sequence_of_tasks_moves_no_bit_of_an_earlier_one(kind, head):
    """Promise 1: zero forgetting, bit for bit, with a member that diverges beside the one that is committed."""
    network, known = Network(mlp(6, [12, 12], 3), head=head), []
    for task in range(3):
        opened = open_task(network, seed=0)
        data, validation = splits(task)
        kept, wild = train(
            opened, data, validation, [member(0.001, 0.02), member(0.001, 1e30)], OPTIMIZERS[kind], seed=0
        )
        assert wild.diverged
        network = with_free(opened, kept.free)
        free = {layer.name: ~active(network, layer) for layer in network.groups}
        commit(network, {name: units & (units.cumsum(0) <= 4) for name, units in free.items()})
        known.append((validation.x, logits(subnetwork(network, task), validation.x), fingerprint(network, task)))
        for earlier, (x, answers, print_) in enumerate(known):
            assert torch.equal(logits(subnetwork(network, earlier), x), answers)
            assert fingerprint(network, earlier) == print_
            assert full_width_agrees(network, x, earlier)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("rate", [1e30, 3e38])
def test_a_diverging_member_changes_no_bit_of_another(kind, rate):
    opened = open_task(owned(), seed=0)
    calm = train(opened, *splits(), [member(0.001), member(0.002), member(0.003)], OPTIMIZERS[kind], seed=0)
    counts = []
    wild = train(
        opened,
        *splits(),
        [member(0.001), member(0.002, rate), member(0.003)],
        OPTIMIZERS[kind],
        seed=0,
        on_epoch=lambda epoch, correct: counts.append((epoch, correct)),
    )
    for index in (0, 2):
        assert same(calm[index].free, wild[index].free)
        assert calm[index].epochs == wild[index].epochs
        assert calm[index].diverged is None
    assert wild[1].diverged == "not finite after epoch 1"
    assert (wild[1].free, wild[1].epochs, wild[1].epoch) == ({}, (), 0)
    assert counts == [(epoch, (wild[0].epochs[epoch - 1], 0, wild[2].epochs[epoch - 1])) for epoch in (1, 2)]


def test_training_ends_when_every_member_has_diverged():
    epochs = []
    results = train(
        open_task(Network(mlp(6, [5, 4], 3)), seed=0),
        *splits(),
        [member(rate=1e30), member(rate=1e31)],
        Settings(epochs=9, batch_size=16),
        seed=0,
        on_epoch=lambda epoch, _: epochs.append(epoch),
    )
    assert all(result.diverged for result in results)
    assert epochs == [1]


def test_finite_weights_that_answer_with_infinity_have_diverged():
    """One step, whose loss was still finite, to weights that are still finite."""
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    (result,) = train(opened, *splits(n=16), [member(rate=1e30)], Settings(epochs=1, batch_size=16), seed=0)
    assert result.diverged == "not finite after epoch 1"


def test_a_loss_that_was_not_finite_is_a_divergence(monkeypatch):
    """Even where weights and answers come through it finite."""
    cross_entropy = functional.cross_entropy

    def overflow(logits, target, reduction):
        return cross_entropy(logits, target, reduction=reduction) + torch.tensor([[0.0], [torch.inf]])

    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    monkeypatch.setattr(functional, "cross_entropy", overflow)
    first, second = train(opened, *splits(), [member(), member()], ADAM, seed=0)
    assert first.diverged is None
    assert second.diverged == "not finite after epoch 1"


def test_frozen_columns_of_a_shared_output_layer_get_no_share_of_l1():
    opened = open_task(owned(), seed=0)
    (result,) = train(opened, *splits(), [member(10.0)], ADAM, seed=0)
    assert result.free["output.weight"].shape == (3, 2)
    assert same(
        {"old": with_free(opened, result.free).weights(opened.output).weight[:, :2]},
        {"old": opened.weights(opened.output).weight[:, :2]},
    )
    assert "output.bias" not in result.free


# Epochs


def best_first(epochs):
    return epochs.index(max(epochs)) + 1


def test_early_stopping_keeps_the_first_best_epoch_whole():
    """Facts: the first best validation epoch is restored whole. It is the network of that epoch, bit for bit."""
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    members = [member(0.0, 0.05), member(0.01, 0.02), member(0.0, 0.2)]
    settings = Settings(epochs=12, batch_size=16, early_stopping=True)
    results = train(opened, *splits(), members, settings, seed=0)
    for index, result in enumerate(results):
        assert len(result.epochs) == 12
        assert result.epoch == best_first(result.epochs)
        short = train(opened, *splits(), members, Settings(epochs=result.epoch, batch_size=16), seed=0)
        assert same(result.free, short[index].free)
        assert short[index].epochs == result.epochs[: result.epoch]
    assert {result.epoch for result in results} - {12}, "no member was best before the end: this shows nothing"
    last = train(opened, *splits(), members, Settings(epochs=12, batch_size=16), seed=0)
    assert [result.epoch for result in last] == [12, 12, 12]


def test_a_member_ends_when_its_patience_does_and_training_when_all_have():
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    members = [member(0.0, 0.05), member(0.01, 0.02), member(0.0, 0.2)]
    seen = []
    long = train(opened, *splits(), members, Settings(epochs=30, batch_size=16), seed=0)
    settings = Settings(epochs=30, batch_size=16, early_stopping=True, patience=2)
    results = train(opened, *splits(), members, settings, seed=0, on_epoch=lambda epoch, _: seen.append(epoch))
    for result, whole in zip(results, long, strict=True):
        expected = next(n for n in range(1, 31) if n - best_first(whole.epochs[:n]) == 2 or n == 30)
        assert result.epochs == whole.epochs[:expected]
        assert result.epoch == best_first(result.epochs)
    assert len({len(result.epochs) for result in results}) > 1, "all members ended together: this shows too little"
    assert seen == list(range(1, max(len(result.epochs) for result in results) + 1))


def test_a_member_that_diverges_after_its_best_epoch_keeps_nothing(monkeypatch):
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    looks = iter([True, True, False])
    monkeypatch.setattr(Stack, "finite", lambda _: torch.tensor([next(looks)]))
    settings = Settings(epochs=9, batch_size=16, early_stopping=True)
    (result,) = train(opened, *splits(), [member()], settings, seed=0)
    assert result.diverged == "not finite after epoch 3"
    assert (result.free, len(result.epochs), result.epoch) == ({}, 2, 0)


def test_the_scored_network_is_the_one_given_back():
    """Promise 2: the counts of the last epoch are those of the returned tensors."""
    opened = open_task(owned(), seed=0)
    data, validation = splits()
    (result,) = train(opened, data, validation, [member(0.001)], ADAM, seed=0)
    network = with_free(opened, result.free)
    answers = logits(cut(network, network.task), validation.x).argmax(1)
    assert result.epochs[-1] == int((answers == validation.y).sum())


class _Waits(TorchDispatchMode):
    """Counts the times that a number is read from a tensor, for which a host waits for its device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_within_an_epoch():
    opened = open_task(owned(), seed=0)
    waits = []
    for batch_size in (4, 35):
        with _Waits() as mode:
            train(opened, *splits(), [member(0.01)] * 3, Settings(epochs=2, batch_size=batch_size), seed=0)
        waits.append(mode.count)
    assert waits[0] == waits[1]


@pytest.mark.gpu
def test_a_gpu_is_never_waited_for_within_an_epoch(monkeypatch):
    """And it learns what a CPU learns, to rounding."""
    opened = open_task(owned(dtype=torch.float64), seed=0)
    data, members = splits(dtype=torch.float64), [member(0.01), member(0.0, 0.02)]
    expected = train(opened, *data, members, ADAM, seed=0)
    whole = training._pass

    def watched(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return whole(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "_pass", watched)
    for one, other in zip(expected, train(opened.cuda(), *data, members, ADAM, seed=0), strict=True):
        assert one.epochs == other.epochs
        for name, value in one.free.items():
            torch.testing.assert_close(other.free[name].cpu(), value, rtol=1e-8, atol=1e-10)


def test_training_works_without_gradients_around_it():
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    (expected,) = train(opened, *splits(), [member()], ADAM, seed=0)
    with torch.no_grad():
        (found,) = train(opened, *splits(), [member()], ADAM, seed=0)
    assert same(expected.free, found.free)


# Every kind of network

CHAINS = ("dense", "flattened", "averaged")
RESIDUALS = ("after", "before", "flat", "torchvision")


def labelled(shape, count, *, seed=0, dtype=torch.float32):
    """Samples around one pattern a class, and their classes."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(3, *shape, generator=random)
    patterns += torch.randn(3, shape[0], *[1] * (len(shape) - 1), generator=random)  # An average tells them apart too.
    y = torch.randint(3, (count,), generator=random)
    return Split((patterns[y] + torch.randn(count, *shape, generator=random)).to(dtype), y)


@pytest.mark.parametrize("kind", CHAINS + RESIDUALS)
@pytest.mark.parametrize(("head", "committed"), [("multi", 0), ("single", 2)])
def test_a_stack_of_every_kind_is_its_members_alone(make_any, kind, head, committed):
    """In float64 for a few steps: weights, and the statistics of BatchNorms, with the same dropout masks."""
    network, shape = make_any(kind, committed + 1, head=head, committed=committed, dtype=torch.float64)
    opened = open_task(network, seed=0)
    layers = len(opened.layers)
    members = [Member((alpha,) * layers, rate) for alpha, rate in ((0.0, 0.01), (0.02, 0.01), (0.0, 0.05))]
    data, validation = labelled(shape, 40, dtype=torch.float64), labelled(shape, 20, seed=1, dtype=torch.float64)
    settings = Settings(epochs=1, batch_size=12)
    together = train(opened, data, validation, members, settings, seed=0)
    for one, result in zip(members, together, strict=True):
        (alone,) = train(opened, data, validation, [one], settings, seed=0)
        assert result.diverged is alone.diverged is None
        assert alone.epochs == result.epochs
        assert alone.free.keys() == result.free.keys()
        for name, value in alone.free.items():
            # Adam divides by the square root of a moment that may be next to nothing: rounding grows there.
            torch.testing.assert_close(result.free[name], value, rtol=1e-5, atol=1e-7)


def at_full_width(opened, data, member, *, epochs, batch_size):
    """The same task trained as Sec. 2.1 has it: every unit computed, and what is frozen put back after each step."""
    masks, wide = trainable(opened), opened.copy()
    values = {name: value.clone().requires_grad_() for name, value in entries(opened).items()}
    alpha = {f"{layer.name}.weight": member.alpha[at] for at, layer in enumerate(opened.layers)}
    for layer in wide.layers:
        for kind in ("weight", "bias"):
            if (name := f"{layer.name}.{kind}") in values:
                wide.weights(layer)._parameters.pop(kind)
                setattr(wide.weights(layer), kind, values[name])
    mask = None
    if opened.head == "single":
        mask = opened.output.columns(~active(opened, opened.last))
    optimizer = torch.optim.Adam(values.values(), lr=member.learning_rate)
    order = generator(0, "order", opened.task)
    for _ in range(epochs):
        for batch in torch.randperm(len(data), generator=order).split(batch_size):
            *_, (_, _, answers) = wide.values(data.x[batch], opened.task, mask=mask)
            optimizer.zero_grad()
            functional.cross_entropy(answers, data.y[batch]).backward()
            with torch.no_grad():
                for name, value in values.items():
                    value.grad = torch.zeros_like(value) if value.grad is None else value.grad
                    value.grad += alpha.get(name, 0.0) * value.sign()
                before = {name: value.clone() for name, value in values.items()}
                optimizer.step()
                for name, value in values.items():
                    value.copy_(torch.where(masks[name], value, before[name]))
    return take_free(opened, {name: value.detach() for name, value in values.items()})


@pytest.mark.parametrize("kind", ["dense", "flattened", "averaged"])
@pytest.mark.parametrize(("head", "committed"), [("multi", 2), ("single", 2), ("single", 0)])
def test_training_the_free_part_is_training_the_whole_width_with_masks(make_any, kind, head, committed):
    """Sec. 2.1: old units are computed once and have no gradient; what is learnt is the same."""
    drawn = (make_any(kind, seed, head=head, committed=committed, dtype=torch.float64) for seed in range(100))
    # A Dropout's masks and a free channel's statistics have tests of their own.
    network, shape = next((n, s) for n, s in drawn if not n.norms and not any(dropped(node) for node in n.graph.nodes))
    opened = open_task(network, seed=0)
    data, validation = labelled(shape, 50, dtype=torch.float64), labelled(shape, 20, seed=1, dtype=torch.float64)
    member = Member((0.01,) * len(opened.layers), 0.01)
    (found,) = train(opened, data, validation, [member], Settings(epochs=2, batch_size=16), seed=0)
    expected = at_full_width(opened, data, member, epochs=2, batch_size=16)
    assert found.free.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.free[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["dense", "averaged", "torchvision"])
def test_bf16_products_learn_nearly_the_same(make_any, kind):
    """Only where it is asked for, and of training alone: entries, statistics and scores stay float32."""
    network, shape = make_any(kind, 3, head="multi", committed=1)
    opened = open_task(network, seed=0)
    data, validation = labelled(shape, 200), labelled(shape, 150, seed=1)
    member = Member((1e-4,) * len(opened.layers), 0.01)
    full, short = (
        train(opened, data, validation, [member], Settings(3, 20, precision=precision), seed=0)[0]
        for precision in ("float32", "bf16")
    )
    assert abs(full.epochs[-1] - short.epochs[-1]) <= 15
    assert not torch.is_autocast_enabled("cpu")
    moved = 0
    for name, value in full.free.items():
        assert short.free[name].dtype == torch.float32
        moved += int((short.free[name] != value).sum())
    assert moved
    opened_values = take_free(opened, entries(opened))
    distance = sum(float((short.free[name] - value).square().sum()) for name, value in full.free.items())
    way = sum(float((value - opened_values[name]).square().sum()) for name, value in full.free.items())
    assert distance < 0.2 * way, "rounding, and not another course"


@pytest.mark.parametrize("kind", ["dense", "averaged", "torchvision"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_old_features_that_are_not_kept_are_computed_again(make_any, monkeypatch, kind, head):
    """Where they take too much memory; to rounding the same."""
    network, shape = make_any(kind, 3, head=head, committed=2, dtype=torch.float64)
    opened = open_task(network, seed=0)
    data, validation = labelled(shape, 50, dtype=torch.float64), labelled(shape, 20, seed=1, dtype=torch.float64)
    members = [Member((0.01,) * len(opened.layers), 0.01)] * 2
    kept = train(opened, data, validation, members, Settings(epochs=2, batch_size=16), seed=0)
    monkeypatch.setattr(training, "PREFIX_BYTES", 0)
    computed = train(opened, data, validation, members, Settings(epochs=2, batch_size=16), seed=0)
    for one, other in zip(kept, computed, strict=True):
        assert one.epochs == other.epochs
        for name, value in one.free.items():
            torch.testing.assert_close(other.free[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["flattened", "averaged", "torchvision"])
def test_after_a_float32_epoch_a_stack_scores_as_its_members_alone(make_any, kind):
    """Facts: stacked and alone differ by rounding, so by a few samples."""
    network, shape = make_any(kind, 2, head="multi", committed=1, last=12)
    opened = open_task(network, seed=0)
    data, validation = labelled(shape, 200), labelled(shape, 150)
    members = [Member((alpha,) * len(opened.layers), rate) for alpha, rate in ((0.0, 0.01), (1e-3, 0.01), (0.0, 0.02))]
    settings = Settings(epochs=2, batch_size=20)
    together = train(opened, data, validation, members, settings, seed=0)
    for one, result in zip(members, together, strict=True):
        (alone,) = train(opened, data, validation, [one], settings, seed=0)
        assert abs(result.epochs[-1] - alone.epochs[-1]) <= 10
    assert max(result.epochs[-1] for result in together) > 75, "nothing was learnt"


@pytest.mark.parametrize("kind", CHAINS + RESIDUALS)
@pytest.mark.parametrize(("optimizer", "head"), [("adamw", "single"), ("momentum", "multi")])
def test_training_of_every_kind_moves_nothing_old(make_any, kind, optimizer, head):
    """Promise 1: after two tasks a third, on real gradients; and what it scored is what is put in place (promise 2)."""
    network, shape = make_any(kind, 3, head=head, committed=2)
    x = torch.randn(20, *shape)
    known = [(fingerprint(network, task), logits(subnetwork(network, task), x)) for task in range(2)]
    opened = open_task(network, seed=0)
    data, validation = labelled(shape, 40), labelled(shape, 30, seed=1)
    (result,) = train(opened, data, validation, [member(0.01, 0.05, len(opened.layers))], OPTIMIZERS[optimizer], seed=0)
    trained = with_free(opened, result.free)
    answers = logits(cut(trained, 2), validation.x).argmax(1)
    assert abs(int((answers == validation.y).sum()) - result.epochs[-1]) <= 1
    assert any(not torch.equal(value, entries(opened)[name]) for name, value in entries(trained).items())
    commit(trained, {group.name: ~active(trained, group) for group in trained.groups})
    for task, (print_, answer) in enumerate(known):
        assert fingerprint(trained, task) == print_
        assert torch.equal(logits(subnetwork(trained, task), x), answer)
        assert full_width_agrees(trained, x, task)


@pytest.mark.parametrize("kind", ["flattened", "averaged", "before", "torchvision"])
def test_opening_draws_kernels_as_torch_does_and_begins_batchnorms_anew(make_any, kind):
    """Facts: full fan-in, severed zeros stay zero, parameters and statistics of free channels reset."""
    network, _ = make_any(kind, 8, head="multi", committed=2)
    opened = open_task(network, seed=4)
    masks, old = trainable(opened), entries(open_task(network, seed=5))
    for layer in opened.layers:
        weight = entries(opened)[f"{layer.name}.weight"]
        drawn = torch.empty_like(weight)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator(4, "init", 2, layer.name))
        where = masks[f"{layer.name}.weight"].expand_as(weight)
        torch.testing.assert_close(weight[where], drawn[where])
    starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for norm in opened.norms:
        free = ~active(opened, norm.group)
        for kind_, start in starts.items():
            if (value := entries(opened).get(f"{norm.name}.{kind_}")) is not None:
                assert bool((value[free] == start).all())
                assert torch.equal(bits(value[~free]), bits(old[f"{norm.name}.{kind_}"][~free]))


@pytest.mark.parametrize("kind", CHAINS + RESIDUALS)
def test_a_full_network_of_every_kind_trains_its_new_head_alone(make_any, kind):
    """Sec. 2.1, depletion: the same as final layer transfer learning."""
    network, shape = make_any(kind, 2, head="multi", committed=1, share=1.0)
    opened = open_task(network, seed=0)
    x = torch.randn(9, *shape)
    data, validation = labelled(shape, 40), labelled(shape, 30)
    features = [value for _, _, value in opened.values(x)]
    (result,) = train(opened, data, validation, [member(0.0, 0.05, len(opened.layers))], ADAM, seed=0)
    output = opened.output.name
    assert list(result.free) == [f"{output}.weight", *([f"{output}.bias"] if opened.output.bias else [])]
    trained = with_free(opened, result.free)
    assert all(torch.equal(a, b) for a, (_, _, b) in zip(features, trained.values(x), strict=True))
    assert not torch.equal(trained.weights(trained.output).weight, opened.weights(opened.output).weight)


def dropping(p=0.5):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(p), nn.Flatten(), nn.Linear(72, 3)
    )


class AdamSteps(TorchDispatchMode):
    """The dtypes of the numbers of steps that the fused kernel of Adam is given."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._fused_adamw_:
            self.dtypes.update(step.dtype for step in args[5])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("default", ["dtype", "device"])
def test_what_torch_makes_by_default_changes_no_bit(default):
    """A person's script may have set a default dtype or device; on a GPU, Adam's kernel reads steps as float32."""
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(216, 10)
    network = Network(nn.Sequential(*layers))

    def learn():
        sequence = split("digits", classes=10, count=1, seed=0, validation=0.1, samples=200)
        task, opened = sequence.task(0), open_task(network, seed=0)
        with AdamSteps() as steps:
            (found,) = train(opened, task.train, task.validation, [member(1e-4, layers=2)], ADAM, seed=0)
        trained = with_free(opened, found.free)
        activity = mean_activity(trained, task.train.samples)
        points = staircase(trained, activity, task.validation).points
        commit(trained, claims_at(trained, activity, points[0].theta))
        assert steps.dtypes == {torch.float32}
        return points, fingerprint(trained, 0), encode(added(trained, 0)), sequence.sha256(0)

    expected = learn()
    if default == "device":
        with torch.device("meta"):
            found = learn()
    else:
        torch.set_default_dtype(torch.float64)
        try:
            found = learn()
        finally:
            torch.set_default_dtype(torch.float32)
    assert found == expected


def test_dropout_is_seeded_by_replica_and_task_and_used():
    data, validation = labelled((2, 6, 5), 40), labelled((2, 6, 5), 20, seed=1)
    one = [member(0.0, 0.01, 2)]
    opened = open_task(Network(dropping(), head="multi"), seed=0)
    random = torch.get_rng_state()
    first, again = (train(opened, data, validation, one, ADAM, seed=0)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert same(first.free, again.free)
    plain = open_task(Network(dropping(0.0), head="multi"), seed=0)
    assert same(entries(plain), entries(opened))
    assert not same(train(plain, data, validation, one, ADAM, seed=0)[0].free, first.free)
    assert not same(train(opened, data, validation, one, ADAM, seed=1)[0].free, first.free)


def test_early_stopping_restores_statistics_with_the_weights():
    """Facts: the first best validation epoch is restored whole. It is the network of that epoch, bit for bit."""
    data, validation = labelled((2, 6, 5), 24), labelled((2, 6, 5), 60, seed=0)
    opened = open_task(Network(dropping(), head="multi"), seed=0)
    settings = Settings(epochs=10, batch_size=8, early_stopping=True)
    results = [
        train(opened, data, validation, [member(0.0, rate, 2)], settings, seed=0)[0] for rate in (0.05, 0.1, 0.3)
    ]
    assert any(result.epoch < 10 for result in results), "no member was best before the end: this shows nothing"
    for rate, result in zip((0.05, 0.1, 0.3), results, strict=True):
        assert result.epoch == best_first(result.epochs)
        short = Settings(epochs=result.epoch, batch_size=8)
        (expected,) = train(opened, data, validation, [member(0.0, rate, 2)], short, seed=0)
        assert {"1.running_mean", "1.running_var"} <= result.free.keys()
        assert same(result.free, expected.free)
        answers = logits(cut(with_free(opened, result.free), 0), validation.x).argmax(1)
        assert abs(int((answers == validation.y).sum()) - result.epochs[result.epoch - 1]) <= 1


@pytest.mark.parametrize(
    ("samples", "batch_size", "fits"), [(33, 16, False), (1, 8, False), (4, 1, False), (34, 16, True)]
)
def test_a_batch_of_one_sample_has_no_variance(samples, batch_size, fits):
    """Promise 8: said before anything starts, and not by a NaN."""
    network = open_task(Network(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))), seed=0)
    data, settings = labelled((6,), samples), Settings(epochs=1, batch_size=batch_size)
    if fits:
        check_batches(network, (6,), samples, batch_size)
        assert train(network, data, data, [member(layers=2)], settings, seed=0)[0].diverged is None
        return
    for refused in (
        lambda: check_batches(network, (6,), samples, batch_size),
        lambda: train(network, data, data, [member(layers=2)], settings, seed=0),
    ):
        with pytest.raises(
            ValueError, match=r"the last batch holds 1, of which the BatchNorm '1' has no variance; give"
        ):
            refused()


def test_a_map_has_a_variance_in_one_sample():
    network = open_task(Network(dropping()), seed=0)
    data = labelled((2, 6, 5), 9)
    check_batches(network, (2, 6, 5), 9, 8)
    assert train(network, data, data, [member(layers=2)], Settings(1, 8), seed=0)[0].diverged is None


def test_without_a_batchnorm_a_batch_of_one_sample_is_a_batch():
    network, data = open_task(Network(mlp(6, [5], 3)), seed=0), labelled((6,), 33)
    for batch_size in (16, 1):
        check_batches(network, (6,), 33, batch_size)
        assert train(network, data, data, [member(layers=2)], Settings(1, batch_size), seed=0)[0].diverged is None


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Member((0.1, -0.1), 0.01), r"alpha is \(0.1, -0.1\); every coefficient must be finite and at least 0"),
        (lambda: Member((math.inf,), 0.01), "alpha is"),
        (lambda: Member((0.0,), 0.0), "learning_rate is 0.0; it must be finite and above 0"),
        (lambda: Member((0.0,), math.nan), "learning_rate is nan"),
        (lambda: Settings(0, 16), "epochs is 0; it must be a whole number, at least 1"),
        (lambda: Settings(1, 16.5), "batch_size is 16.5; it must be a whole number"),
        (lambda: Settings(1, 0), "batch_size is 0"),
        (lambda: Settings(1, 16, precision="fp8"), "precision is 'fp8'; it can be 'float32', 'tf32', 'bf16'"),
        (lambda: Settings(1, 16, optimizer="rmsprop"), """is 'rmsprop'; it can be "adam", "adamw" or "sgd\""""),
        (lambda: Settings(1, 16, optimizer="sgd", momentum=1.0), "momentum is 1.0; it must be at least 0 and below 1"),
        (lambda: Settings(1, 16, momentum=0.9), "momentum is 0.9, but adam has none"),
        (lambda: Settings(1, 16, weight_decay=0.1), 'weight_decay is 0.1, but adam has none; use optimizer "adamw"'),
        (lambda: Settings(1, 16, optimizer="adamw", weight_decay=-0.1), "weight_decay is -0.1; it must be finite"),
        (lambda: Settings(1, 16, norm_alpha=-1.0), "norm_alpha is -1.0; it must be finite and at least 0"),
        (lambda: Settings(1, 16, norm_alpha=math.nan), "norm_alpha is nan; it must be finite and at least 0"),
        (lambda: Settings(1, 16, optimizer="adamw", weight_decay=math.inf), "weight_decay is inf; it must be finite"),
        (lambda: Settings(1, 16, optimizer="adamw", momentum=0.9), "momentum is 0.9, but adamw has none"),
        (lambda: Settings(1, 16, patience=3), "patience is 3 without early_stopping"),
        (lambda: Settings(1, 16, early_stopping=True, patience=0), "patience is 0; it must be a whole number"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_whole_numbers_may_be_numpys():
    assert Settings(np.int64(5), np.int32(16)) == Settings(5, 16)


@pytest.mark.parametrize(
    ("members", "spoil", "message"),
    [
        ([], lambda split: split, "no member to train"),
        (
            [Member((0.0,), 0.01)],
            lambda split: split,
            r"alpha is \(0.0,\), but the layers are hidden1, hidden2, output; give one α for each",
        ),
        (
            [member()],
            lambda split: Split(split.x[:, :5], split.y),
            r"layer 'hidden1' cannot read \[5\], which samples of shape \[5\] become",
        ),
        ([member()], lambda split: Split(split.x[:0], split.y[:0]), "validation split has 0 samples x and 0 classes y"),
        ([member()], lambda split: Split(split.x[:3], split.y), "3 samples x and 40 classes y; give as many, at least"),
        ([member()], lambda split: Split(split.x, split.y + 1), "has classes 1 to 3; the output layer has 0 to 2"),
        ([member()], lambda split: Split(split.x, split.y.int()), r"y torch.int32 \[40\]; give torch.int64 \[n\]"),
        ([member()], lambda split: Split(split.x, split.y.view(-1, 1)), r"y torch.int64 \[40, 1\]; give torch.int64"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(members, spoil, message):
    data, validation = splits()
    opened = open_task(Network(mlp(6, [5, 4], 3)), seed=0)
    with pytest.raises(ValueError, match=message):
        train(opened, data, spoil(validation), members, ADAM, seed=0)


def test_a_multi_head_network_must_be_opened_first():
    with pytest.raises(ValueError, match="no head for task 1; train what open_task gives"):
        train(Network(mlp(6, [5, 4], 3), head="multi"), *splits(), [member()], ADAM, seed=0)


@pytest.mark.parametrize("kind", ["mlp", "table 2"])
def test_a_stack_has_the_same_winner_as_its_members_alone(kind):
    """Promise 4: which cells share a stack moves bits, and on these real digits neither candidates nor winner."""
    if kind == "mlp":
        tasks, alphas, settings = permuted("digits", count=1, seed=0, validation=0.1), (1e-5, 3e-4, 3e-3), (8, 0.01)
        network = Network(mlp(tasks.shape, (64, 64), tasks.classes))
    else:
        tasks = split("digits", classes=5, count=2, seed=0, validation=0.2)
        alphas, settings = (1e-5, 1e-4, 3e-4), (12, 0.005)
        network = Network(split_cifar_narrow(shape=tasks.shape, classes=tasks.classes, width=0.3))
    # Of eight seeds one has a cell a sample from the line, which is a candidate in one way and not in the other.
    opened, task, (epochs, rate) = open_task(network, seed=5), tasks.task(0), settings
    members = [Member((alpha,) * len(opened.layers), rate) for alpha in alphas]
    found = []
    for stacks in ([members], [[one] for one in members]):
        trials = []
        for stack in stacks:
            for result in train(opened, task.train, task.validation, stack, Settings(epochs, 32), seed=5):
                trained = with_free(opened, result.free)
                steps = staircase(trained, mean_activity(trained, task.train.x), task.validation)
                trials.append(Trial(len(trials), steps.unpruned, steps.points))
        majority = int(task.validation.y.bincount().max())
        found.append(choose(trials, total=len(task.validation), majority=majority, margin=Fraction(6)))
    assert found[0].winner.index == found[1].winner.index
    assert found[0].candidates == found[1].candidates
    assert len(found[0].candidates) > 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_l1_on_batchnorms_reaches_the_scales_and_shifts_of_free_channels_alone(optimizer):
    """And weight decay does not, though α names them."""
    made = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    network = open_task(Network(made), seed=0)
    (group,), (norm,) = network.groups, network.norms
    network.norm(norm).weight.data.mul_(-0.5)
    commit(network, {group.name: torch.arange(5) < 2})
    opened, (train_split, validation) = open_task(network, seed=0), splits()
    decay = {"weight_decay": 0.5} if optimizer == "adamw" else {}

    def scale(norm_alpha, rate):
        settings = Settings(1, 70, optimizer=optimizer, norm_alpha=norm_alpha, **decay)
        (found,) = train(opened, train_split, validation, [member(rate=rate, layers=2)], settings, seed=0)
        trained = with_free(opened, found.free).norm(norm)
        return trained.weight.detach(), trained.bias.detach()

    (scale_0, shift_0), (scale_1, shift_1) = scale(0.0, 0.01), scale(100.0, 0.01)
    old = network.norm(norm)
    assert torch.equal(bits(scale_1[:2]), bits(old.weight[:2]))
    assert torch.equal(bits(shift_1[:2]), bits(old.bias[:2]))
    # A free channel begins with scale 1 and shift 0, whose sign is 0.
    assert (scale_1[2:] <= scale_0[2:]).all()
    assert torch.equal(shift_1[2:], shift_0[2:])
    if optimizer == "sgd":
        torch.testing.assert_close(scale_1[2:], scale_0[2:] - 0.01 * 100.0)
    else:  # Adam's first step is as long as the rate; of a decay it would be longer.
        torch.testing.assert_close(scale_1[2:], torch.full((3,), 0.99))
