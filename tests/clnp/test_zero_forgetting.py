"""Promise 1 from end to end: train, scan, choose, commit, and every earlier task is what it was, bit for bit."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from clnp import commit as commit_module
from clnp import evaluation, ownership, parts, training
from clnp.activity import mean_activity
from clnp.commit import added, commit, fingerprint, restore
from clnp.evaluation import count_correct, full_width_agrees, logits
from clnp.forgetting import Trial, choose
from clnp.network import Network
from clnp.ownership import with_free
from clnp.subnetwork import cut, subnetwork
from clnp.tasks.task import Split
from clnp.tensors import decode, encode
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, open_task, train

INPUTS, HIDDEN, CLASSES, TASKS = 8, (24, 40), 3, 3

OPTIMIZERS = {
    "adam": (Settings(epochs=8, batch_size=32), 0.01),
    "sgd": (Settings(epochs=5, batch_size=16, optimizer="sgd"), 0.1),
    "momentum": (Settings(epochs=5, batch_size=32, optimizer="sgd", momentum=0.9), 0.05),
}
ALPHA = (1e-3, 1e-3, 1e-3)


def blank(head: str) -> Network:
    first, second = HIDDEN
    modules = (nn.Linear(INPUTS, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, CLASSES))
    return Network(nn.Sequential(*modules), head=head)


def data(task: int) -> tuple[Split, Split]:
    """Noisy samples around one centre a class, other centres for every task: training and validation split."""
    source = torch.Generator().manual_seed(100 + task)
    centres = 2 * torch.randn(CLASSES, INPUTS, generator=source)
    splits = []
    for count in (240, 120):
        y = torch.randint(CLASSES, (count,), generator=source)
        splits.append(Split(centres[y] + torch.randn(count, INPUTS, generator=source), y))
    return splits[0], splits[1]


@dataclass
class Done:
    """What the driver would have recorded of a committed task."""

    fingerprint: str
    logits: Tensor
    tensors: bytes
    correct: int
    scored: int


def unchanged(network: Network, done: list[Done]) -> list[str]:
    """What is no longer as it was recorded; promise 1 says: nothing, ever."""
    found = []
    for task, record in enumerate(done):
        x = data(task)[1].x
        if fingerprint(network, task) != record.fingerprint:
            found.append("fingerprint")
        if not torch.equal(logits(subnetwork(network, task), x), record.logits):
            found.append("logits")
        if not full_width_agrees(network, x, task):
            found.append("full width")
    return found


def learn(network: Network, optimizer: str) -> tuple[Network, Done]:
    """One task: a grid of two, the sparsest within two points committed."""
    task = network.task
    training_split, validation = data(task)
    settings, rate = OPTIMIZERS[optimizer]
    opened = open_task(network, seed=0)
    results = train(
        opened, training_split, validation, [Member(ALPHA, rate), Member(ALPHA, rate / 2)], settings, seed=0
    )
    members = [with_free(opened, result.free) for result in results]
    activities = [mean_activity(member, training_split.x) for member in members]
    steps = [staircase(member, a, validation) for member, a in zip(members, activities, strict=True)]
    trials = [Trial(index, s.unpruned, s.points) for index, s in enumerate(steps)]
    majority = int(validation.y.bincount().max())
    winner = choose(trials, total=len(validation), majority=majority, margin=Fraction(2)).winner
    network = members[winner.index]
    commit(network, claims_at(network, activities[winner.index], winner.point.theta))
    answers = logits(subnetwork(network, task), validation.x)
    correct = count_correct(subnetwork(network, task), validation)
    record = Done(fingerprint(network, task), answers, encode(added(network, task)), correct, winner.point.correct)
    return network, record


def sequence(head: str, optimizer: str, tasks: int = 2) -> tuple[Network, list[Done], list[str]]:
    network, done, changes = blank(head), [], []
    for _ in range(tasks):
        network, record = learn(network, optimizer)
        done.append(record)
        changes += unchanged(network, done)
    return network, done, changes


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_nothing_old_ever_changes(head, optimizer):
    """Promises 1, 2 and 3: after every commit all earlier tasks are equal bit for bit; what was committed scores what
    was recorded; and the commits alone, as bytes, give it all back."""
    network, done, changes = sequence(head, optimizer, TASKS)
    assert changes == []
    assert [record.correct for record in done] == [record.scored for record in done]
    again = blank(head)
    for task, record in enumerate(done):
        assert record.correct > 70, "nothing was learnt, so nothing could be forgotten"
        restore(again, decode(record.tensors))
        assert unchanged(again, done[: task + 1]) == []
    for layer in network.groups:
        assert torch.equal(again.owner(layer), network.owner(layer))
    # What a restored network opens next is what the one that never stopped opens, so a resumed run trains the same.
    x = data(TASKS)[1].x
    assert torch.equal(*(logits(cut(open_task(n, seed=0), TASKS), x) for n in (network, again)))


def opened_up(only: str):
    """:func:`clnp.ownership.trainable` with one kind of frozen entry let go."""
    proper = ownership.trainable

    def trainable(network: Network) -> dict[str, Tensor]:
        masks = proper(network)
        output = network.output.name
        for name, mask in masks.items():
            layer, kind = name.rsplit(".", 1)
            if only in ("all", f"hidden {kind}" if layer != output else f"head {kind}"):
                masks[name] = torch.ones_like(mask)
        return masks

    return trainable


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("single", "hidden weight"),
        ("single", "hidden bias"),
        ("multi", "hidden weight"),
        ("multi", "hidden bias"),
        ("single", "head weight"),
        ("single", "head bias"),
    ],
)
def test_without_freezing_it_shows(monkeypatch, head, kind):
    """Promise 1, the safeguard removed: rows or biases of active units, columns or bias of a shared output layer."""
    monkeypatch.setattr(parts, "trainable", opened_up("all"))
    for module in (ownership, training):
        monkeypatch.setattr(module, "trainable", opened_up(kind))
    changes = sequence(head, "adam")[2]
    assert {"fingerprint", "logits"} <= set(changes)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_what_is_stacked_is_a_safeguard_of_its_own(monkeypatch, optimizer):
    """Promise 1: were every entry of a member put in place and not the free ones alone, nothing else would have been
    trained; where that is let go too, the check fails."""
    monkeypatch.setattr(ownership, "trainable", opened_up("all"))
    assert sequence("single", optimizer)[2] == []
    monkeypatch.setattr(parts, "trainable", opened_up("all"))
    assert {"fingerprint", "logits"} <= set(sequence("single", optimizer)[2])


@pytest.mark.parametrize("head", ["single", "multi"])
def test_without_severing_it_shows(monkeypatch, head):
    """Promise 1, the safeguard removed: only the full width sees that the next task's units reach an old one's."""
    monkeypatch.setattr(commit_module, "sever", lambda *_: None)
    assert set(sequence(head, "adam")[2]) == {"full width"}


def test_without_the_mask_of_a_single_head_it_shows(monkeypatch):
    """Promise 1, the safeguard removed: later units answer for an old task."""
    monkeypatch.setattr(evaluation, "masked", lambda *_: False)
    assert set(sequence("single", "adam")[2]) == {"full width"}


def test_without_a_head_of_its_own_it_shows(monkeypatch):
    """Promise 1, the safeguard removed: a task that goes on with the first task's head."""
    proper = Network.place_head

    def place_head(self: Network, task: int) -> None:
        proper(self, 0)
        self.heads[str(task)] = self.heads["0"]

    monkeypatch.setattr(Network, "place_head", place_head)
    assert {"fingerprint", "logits"} <= set(sequence("multi", "adam")[2])
