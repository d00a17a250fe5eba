"""Promise 1 over 11 tasks: every network of the paper, every optimizer, both heads, with growth and reloading between.

After every commit each earlier task is measured again: its fingerprint, its canonical logits bit for bit, and the
full-width network, see ``Course.check``.
"""

from itertools import combinations, product

import pytest
import torch

from clnp.growth import widths

TASKS, GROWTH = 11, 6  # 1: after so many tasks what ran short grows, and the commits go through bytes

CASES = list(product(("mlp", "table 2", "table 3", "resnet"), ("adam", "momentum", "adamw"), ("single", "multi")))


def pairs(case):
    """Every two choices of a case, each with its factor's place."""
    return set(combinations(enumerate(case), 2))


def covering(cases):
    """Few cases that have every pair of choices: each time the one with the most pairs that no other has yet."""
    missing, found = set().union(*map(pairs, cases)), []
    while missing:
        found.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(found[-1])
    return found


COVERING = covering(CASES)


def run(course, claim, ruled=()):
    """11 tasks: growth, and on from what the bytes give back, after the sixth.

    Args:
        ruled: The tasks that the whole rule chooses the units of, as many as it likes; what ran short grows after them.
    """
    for task in range(TASKS):
        if task == GROWTH:
            before = widths(course.network)
            course.grow(course.short())
            assert sum(widths(course.network)) > sum(before), "growth was asked for, and nothing grew"
            course.reload()
        course.learn(None if task in ruled else claim)
        if task in ruled:
            course.grow(course.short())
    course.reload()


def test_the_covering_cases_have_every_pair():
    """Every network with every optimizer, every network with each head, every optimizer with each head."""
    assert set().union(*map(pairs, COVERING)) == set().union(*map(pairs, CASES))
    assert len(COVERING) == 12


@pytest.mark.parametrize(("kind", "optimizer", "head"), COVERING)
def test_nothing_old_ever_changes(course, claim, kind, optimizer, head):
    """Promise 1, and 3: the commits alone, as bytes, give every task back."""
    # A residual network may train with one member a stack; two of a Sequential one share their batches.
    epochs, members = {"mlp": (6, 2), "resnet": (1, 1)}.get(kind, (2, 2))
    made = course(kind, head, optimizer, epochs=epochs, tasks=TASKS, members=members)
    run(made, claim.share, ruled=range(0, TASKS, 2) if kind == "mlp" else ())
    assert made.changes == []
    assert made.network.task == TASKS
    # Real gradients: what a task left behind is not what the next one draws.
    assert len({record.fingerprint for record in made.done}) == TASKS
    assert all(record.logits.isfinite().all() for record in made.done)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "optimizer", "head"), CASES)
def test_nothing_old_ever_changes_where_much_is_learnt(course, claim, kind, optimizer, head):
    """Promises 1 to 3 with the whole rule, staircases and choice, for some of the tasks; and networks that answer well
    above chance, so that there is something to forget."""
    # Dropout learns slowly.
    epochs, members = 20 if kind == "table 2" else 12, 1 if kind == "resnet" else 2
    made = course(kind, head, optimizer, epochs=epochs, tasks=TASKS, members=members)
    run(made, claim.share, ruled=(0, GROWTH, TASKS - 1))
    assert made.changes == []
    total = len(made.done[0].logits)
    assert sum(record.unpruned for record in made.done) > 0.55 * TASKS * total


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_real_resnet_18(course, claim, head):
    """Promise 1 on torchvision's own ResNet-18, 64 to 512 channels."""
    made = course("resnet-18", head, epochs=2, tasks=3, members=1)
    for _ in range(3):
        made.learn(claim.share)
    made.grow({made.network.last.name: 8, "conv1": 3})
    made.reload()
    assert made.changes == []
    assert torch.stack([record.logits for record in made.done]).isfinite().all()


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "optimizer", "head"), COVERING)
def test_nothing_old_ever_changes_on_a_gpu(course, claim, monkeypatch, kind, optimizer, head):
    """Promise 1 where every kernel must give the same bits every time; and so it does when all is trained twice."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        twice = [course(kind, head, optimizer, epochs=2, tasks=TASKS, device="cuda") for _ in range(2)]
        for made in twice:
            run(made, claim.share)
            assert made.changes == []
    finally:
        torch.set_deterministic_debug_mode(mode)
    first, second = ([record.fingerprint for record in made.done] for made in twice)
    assert first == second
