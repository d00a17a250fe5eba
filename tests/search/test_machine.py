"""What ``workers`` and ``worker`` become on the machines that there are."""

import os
from pathlib import Path
from typing import Any

import pytest

from search import machine
from search.errors import BadInput
from search.experiment import Experiment
from search.machine import Node, Pool, cores, form_pool, this_machine, threads


def pool(nodes: list[Node], workers: Any = "auto", **worker: Any) -> Pool:
    return form_pool(Experiment.model_validate({"workers": workers, "worker": worker}), nodes)


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([Node(4, 0)], {}, Pool(4, "cpu", 1, 0)),
        ([Node(5, 0)], {"cpu": 2}, Pool(2, "cpu", 2, 0)),
        ([Node(8, 2)], {}, Pool(2, "cuda", 1, 1)),
        ([Node(8, 2)], {"gpu": 0}, Pool(8, "cpu", 1, 0)),
        ([Node(8, 2)], {"gpu": 0.5}, Pool(4, "cuda", 1, 0.5)),
        ([Node(8, 2)], {"gpu": 0.4}, Pool(4, "cuda", 1, 0.4)),  # two on each GPU
        ([Node(8, 3)], {"gpu": 2}, Pool(1, "cuda", 1, 2)),
        ([Node(2, 8)], {}, Pool(2, "cuda", 1, 1)),
        ([Node(3, 0), Node(3, 0)], {"cpu": 2}, Pool(2, "cpu", 2, 0)),  # a worker lies on one machine
        ([Node(4, 0), Node(4, 1)], {}, Pool(1, "cuda", 1, 1)),
        ([Node(2, 0)], {"workers": 6}, Pool(6, "cpu", 1, 0)),
        (
            [Node(0, 0, "head", "1"), Node(4, 2, "a", "2"), Node(16, 1, "b", "3")],
            {"gpu": 0.25},
            Pool(8, "cuda", 1, 0.25),
        ),
        (
            [Node(9, 8, "a", "1"), Node(9, 3, "b", "2"), Node(2, 4, "c", "3")],
            {"gpu": 2, "cpu": 2},
            Pool(6, "cuda", 2, 2),
        ),
    ],
)
def test_a_pool_fits_its_machines(nodes: list[Node], asked: dict[str, Any], expected: Pool) -> None:
    assert pool(nodes, **asked) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "match"),
    [
        ([Node(2, 0)], {"cpu": 4}, "4 cores and 0 GPUs; found: 2 cores and 0 GPUs; change worker.cpu or .gpu"),
        ([Node(2, 0)], {"gpu": 1}, "needs 1 core and 1 GPU; found: 2 cores"),
        ([Node(1, 1)], {"gpu": 1, "cpu": 2}, "2 cores and 1 GPU; found: 1 core and 1 GPU;"),
        ([Node(8, 2)], {"workers": 3}, "enough for 2"),
        ([], {}, "no machine"),
        ([Node(2, 0, "a", "1")], {"workers": 2, "cpu": 4}, "4 cores and 0 GPUs"),  # a cluster has what it has
    ],
)
def test_what_does_not_fit_is_refused(nodes: list[Node], asked: dict[str, Any], match: str) -> None:
    """Promise 8."""
    with pytest.raises(BadInput, match=match):
        pool(nodes, **asked)


def test_a_precision_that_cpus_lack_is_refused() -> None:
    """Promise 8: a CPU would train in float32, and the records would say otherwise."""
    asked = {"training": {"precision": "tf32"}}
    with pytest.raises(BadInput, match="precision is tf32, but the workers train on CPUs"):
        form_pool(Experiment.model_validate(asked), [Node(2, 0)])
    assert form_pool(Experiment.model_validate(asked), [Node(2, 1)]).device == "cuda"


MNIST: dict[str, Any] = {"tasks": {"dataset": "mnist", "count": 25}, "model": {"hidden": [2000, 2000]}}
ONE: dict[str, Any] = {"alpha": [1e-4], "learning_rate": [0.001]}
SIX: dict[str, Any] = {"alpha": [1e-4, 1e-3], "learning_rate": [0.001, 0.002, 0.003]}
THREE_TASKS: dict[str, Any] = {"grid": {**SIX, "after_first": "winner"}, "tasks": {"dataset": "mnist", "count": 3}}


@pytest.mark.parametrize(
    ("sizes", "asked", "expected"),
    [
        ([2], {"grid": ONE}, 2),
        ([2], {"grid": SIX}, 1),
        ([8], {"grid": ONE}, 8),
        ([8], {"grid": ONE, "replicas": 4}, 2),
        ([8], {"grid": SIX}, 1),  # 8 workers, two of them idle, are faster than 4 with two rounds
        ([12], {"grid": SIX}, 2),
        ([64], {"grid": ONE}, 8),  # of its 5,588,000 weights would be 55: as far as it was measured
        ([3, 8], {"grid": ONE}, 8),  # a worker lies on one machine
        ([4, 4], {"grid": ONE, "replicas": 2}, 4),
        ([2], {"grid": {**SIX, "after_first": "winner"}}, 2),  # 24 tasks of one cell outweigh one of six
        ([2], {"grid": {**SIX, "after_first": "winner"}, "tasks": {"dataset": "mnist", "count": 2}}, 1),
        ([8], {"grid": SIX, "worker": {"cells": 3}}, 4),  # two stacks
        # Two stacks of three cells take longer than a task of one.
        ([2], {**THREE_TASKS, "worker": {"cells": 3}}, 1),
        ([8], {"grid": SIX, "workers": 1}, 8),
        ([8], {"grid": SIX, "workers": 3}, 2),
        ([2], {"grid": SIX, "workers": 5}, 1),  # there is no core for each
        ([8], {"grid": ONE, "model": {"hidden": [400, 400]}}, 4),  # 477,600 weights
        ([8], {"grid": ONE, "model": {"hidden": [200, 200]}}, 1),  # 198,800 weights
    ],
)
def test_threads_are_as_many_as_make_the_tasks_shortest(sizes: list[int], asked: dict[str, Any], expected: int) -> None:
    experiment = Experiment.model_validate({**MNIST, **asked})
    nodes = [Node(cpus, 0) for cpus in sizes]
    assert threads(experiment, nodes) == expected
    made = form_pool(experiment, nodes)
    room = sum(cpus // expected for cpus in sizes)
    assert made == Pool(asked.get("workers", room), "cpu", expected, 0)


def test_threads_that_are_asked_for_are_taken() -> None:
    asked = Experiment.model_validate({**MNIST, "grid": ONE, "worker": {"cpu": 3}})
    assert form_pool(asked, [Node(8, 0)]) == Pool(2, "cpu", 3, 0)
    on_gpu = Experiment.model_validate({**MNIST, "grid": ONE})
    assert form_pool(on_gpu, [Node(8, 1)]) == Pool(1, "cuda", 1, 1)


def test_a_run_keeps_its_threads_where_they_fit() -> None:
    """Promise 3: bits depend on them, and a run may go on with more tasks, or elsewhere."""
    one = Experiment.model_validate({**MNIST, "grid": ONE})
    assert form_pool(one, [Node(8, 0)]).cpu == 8
    assert form_pool(one, [Node(8, 0)], begun=2) == Pool(4, "cpu", 2, 0)
    assert form_pool(one, [Node(1, 0), Node(4, 0)], begun=4).cpu == 4
    assert form_pool(one, [Node(2, 0)], begun=4).cpu == 2
    assert form_pool(one, [Node(8, 1)], begun=2).cpu == 1
    asked = Experiment.model_validate({**MNIST, "grid": ONE, "worker": {"cpu": 3}})
    assert form_pool(asked, [Node(8, 0)], begun=2).cpu == 3


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000\n", None), ("150000 100000\n", 1), ("50000 100000\n", 1), ("nonsense", None)]
)
def test_a_quota_counts(quota: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(machine, "_QUOTA", file)
    allowed = len(os.sched_getaffinity(0))
    assert cores() == (allowed if expected is None else min(expected, allowed))


def test_this_machine_has_a_core() -> None:
    assert this_machine().cpus >= 1


@pytest.mark.parametrize(
    ("built", "driver", "expected"),
    [
        ({"cuda": None, "hip": None}, "libc.so.6", False),
        ({"cuda": "13.0", "hip": None}, "libc.so.6", True),
        ({"cuda": "13.0", "hip": None}, "libabsent.so.1", False),
        ({"cuda": None, "hip": "7.0"}, "libabsent.so.1", True),
    ],
)
def test_torch_is_asked_for_gpus_where_it_may_see_some(
    built: dict[str, Any], driver: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it was built for and the driver: its import, which takes a second, comes while Ray starts."""
    monkeypatch.setattr(machine.runpy, "run_path", lambda _: built)
    monkeypatch.setattr(machine, "_DRIVERS", {"linux": driver})
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(asked.append("torch")))
    assert machine.gpus() == 0
    assert asked == ["torch"] * expected


def test_the_installed_torch_says_what_it_was_built_for() -> None:
    import torch

    assert torch.cuda.device_count() == machine.gpus()
