"""Promise 1 where every task is fine-tuned before its commit, and with the safeguards of that removed."""

import pytest
import torch

from clnp import finetuning, narrowing
from clnp.activity import mean_activity
from clnp.evaluation import count_correct
from clnp.finetuning import fine_tune
from clnp.network import FREE
from clnp.subnetwork import cut
from clnp.training import Member, Settings

FORGOTTEN = {"fingerprint", "logits"}
HEADS = ("single", "multi")


def learn(made, claim, optimizer="adam", rounds=2):
    """One task trained, pruned to a share of what is free, fine-tuned, pruned further, fine-tuned, committed. Whether
    something was won, and whether what is committed has the score of its last round."""
    (network,) = made.train(made.opened(), [0.02])
    training, validation = made.data()
    claims = claim(network, mean_activity(network, training.x), made)
    found = fine_tune(
        network,
        claims,
        training,
        validation,
        Member((1e-3,) * len(network.layers), 0.02),
        Settings(epochs=3, batch_size=32, optimizer=optimizer),
        seed=0,
        needed=count_correct(cut(network, network.task, claims), validation) - 6,
        rounds=rounds,
    )
    made.commit(found.network, found.claims)
    last = found.rounds[-1]
    won = any(one.tuned is not None and one.tuned > one.pruned for one in found.rounds)
    return won, made.done[-1].correct == max(last.pruned, last.tuned or 0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "kind",
    [
        *("mlp", "conv + norm", "residual", "dense residual"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flat head", "table 2", "resnet")),
    ],
)
def test_fine_tuned_tasks(course, claim, kind, head):
    """Promises 1 and 2: fingerprints, canonical logits and the whole network of every task, after every commit, with
    growth and through the bytes of the commits in the middle; what is committed is what was scored last."""
    made = course(kind, head, tasks=4)
    outcomes = []
    for task in range(4):
        if task == 2:
            made.grow({group.name: 2 for group in made.network.groups})
            made.reload()
        outcomes.append(learn(made, claim.share, "adamw" if task % 2 else "adam"))
    made.reload()
    assert made.changes == []
    assert any(won for won, _ in outcomes), "nothing was ever won back: the test shows nothing"
    assert all(same for _, same in outcomes)


def thawed(monkeypatch):
    """Every unit of the narrow network is free, those of earlier tasks too."""
    proper = narrowing.narrow

    def narrow(network, claims):
        left = proper(network, claims)
        for group in left.groups:
            left.owner(group).fill_(FREE)
        return left

    monkeypatch.setattr(finetuning, "narrow", narrow)


@pytest.mark.parametrize("kind", ["mlp", pytest.param("residual", marks=pytest.mark.slow), "conv + norm"])
def test_without_freezing_it_shows(course, claim, monkeypatch, kind):
    """Promises 1 and 2: what trained earlier tasks' units as well has another score once it is put back, where they are
    not; were they put back too, the earlier tasks would be forgotten."""
    made = course(kind, "multi", tasks=3)
    learn(made, claim.share)
    thawed(monkeypatch)
    outcomes = [learn(made, claim.share, rounds=1) for _ in range(2)]
    assert made.red == set(), "put_back alone must keep them"
    assert not all(same for _, same in outcomes)
    proper = narrowing.trainable
    monkeypatch.setattr(
        narrowing, "trainable", lambda network: {n: torch.ones_like(mask) for n, mask in proper(network).items()}
    )
    made = course(kind, "multi", tasks=3)
    for _ in range(3):
        learn(made, claim.share, rounds=1)
    assert made.red >= FORGOTTEN
