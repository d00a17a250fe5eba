"""How many workers fit on which machine, and what would be idle."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import BadInput
from search.experiment import Experiment
from search.machine import Node, form_pool
from search.reports.offer import idle_warnings, offer


def offered(nodes: list[Node], jobs: int = 100, workers: Any = "auto", **worker: Any) -> tuple[Any, list[str]]:
    experiment = Experiment.model_validate({"workers": workers, "worker": worker, "replicas": 2})
    pool = form_pool(experiment, nodes)
    found = offer(pool, nodes, jobs)
    return found, list(idle_warnings(experiment, pool, found))


def test_node_by_node() -> None:
    found, warned = offered([Node(8, 2, "a"), Node(3, 4, "b"), Node(16, 0, "c")], gpu=1, cpu=2)
    keys = ("name", "slots", "workers", "idle_cores", "idle_gpus")
    assert [tuple(node[key] for key in keys) for node in found["nodes"]] == [
        ("a", 2, 2, 4, 0),
        ("b", 1, 1, 1, 3),
        ("c", 0, 0, 16, 0),
    ]
    assert (found["slots"], found["idle"], warned) == (3, 0, [])


@pytest.mark.parametrize(
    ("gpu", "match"),
    [
        (0.4, "a GPU has room for 2 workers, and 0.2 of it stays idle; .* such as 0.5"),
        (0.6, "a GPU has room for 1 worker, and 0.4 of it stays idle; .* such as 1"),
    ],
)
def test_a_share_that_leaves_something_over_is_said(gpu: float, match: str) -> None:
    (line,) = offered([Node(8, 2)], gpu=gpu)[1]
    assert re.search(match, line)


@pytest.mark.parametrize("gpu", [0.5, 0.25, 1 / 3, 0.2, 0.1, 1, 2])
def test_a_share_that_leaves_nothing_is_not(gpu: float) -> None:
    assert offered([Node(64, 2)], gpu=gpu)[1] == []


def test_workers_without_a_job_are_said() -> None:
    found, (line,) = offered([Node(8, 0)], jobs=6, gpu=0)
    assert found["idle"] == 2
    assert line == (
        "2 workers of 8 would be idle: a task has at most 3 stacks, and there are 2 replicas; worker.cells forms "
        "smaller stacks, more replicas have more"
    )


def test_where_cells_train_alone_no_smaller_stacks_are_offered() -> None:
    _, (line,) = offered([Node(16, 0)], jobs=12, gpu=0)
    assert line.endswith("a task has at most 6 stacks, and there are 2 replicas; more replicas have more")


def test_workers_without_a_core_are_said() -> None:
    assert "the cores are enough for 2" in offered([Node(2, 0)], workers=5, gpu=0)[1][0]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=6),
    cpu=st.integers(1, 4),
    gpu=st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 1, 2, 3]),
)
def test_no_machine_gives_more_than_it_has(sizes: list[tuple[int, int]], cpu: int, gpu: float) -> None:
    nodes = [Node(cores, gpus) for cores, gpus in sizes]
    experiment = Experiment.model_validate({"worker": {"cpu": cpu, "gpu": gpu}})
    try:
        pool = form_pool(experiment, nodes)
    except BadInput:
        return  # no machine has what one worker needs
    found = offer(pool, nodes, 1000)
    assert sum(node["workers"] for node in found["nodes"]) == pool.workers == found["slots"]
    for node in found["nodes"]:
        assert node["workers"] * cpu + node["idle_cores"] == node["cores"]
        assert node["idle_gpus"] >= 0
        assert abs(node["workers"] * gpu + node["idle_gpus"] - node["gpus"]) < 1e-5
