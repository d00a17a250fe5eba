"""What an experiment would do."""

import io
import json
import sys

import pytest

from clnp.pace import Pace
from search.building import forget
from search.errors import BadInput
from search.grid import cells
from search.machine import Node, cores
from search.records import Measured, Memory, dump
from search.reports.plan import plan
from search.tables import TABLES, print_table

OWN = """
import torch
from torch import nn
from clnp.tasks import Split, from_function

class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.branch, self.relu = nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        self.flatten, self.dense, self.output = nn.Flatten(), nn.Linear(64 * width, width), nn.Linear(width, classes)
    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.flatten(self.relu(x + self.branch(x)))
        return self.output(self.relu(self.dense(x)))

def make(classes, width):
    return Net(width, classes)

def tasks(count, seed, validation):
    def make(index, test):
        return Split(torch.zeros(40, 1, 8, 8), torch.arange(40) % 3)
    return from_function(make, count=count, seed=seed, validation=validation, classes=3)
"""


def printed(report) -> str:
    out = io.StringIO()
    print_table(TABLES["plan"](report), out)
    return " ".join(out.getvalue().split())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a network and of tasks of one's own."""
    (tmp_path / "grownets.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield str(tmp_path)
    sys.modules.pop("grownets", None)
    forget()


def test_every_cell_is_there_in_full(experiment):
    """One α a named layer, in every cell."""
    (grid,) = plan(experiment(), "new", store=None)["grids"]
    assert (grid["first"], grid["last"], grid["count"]) == (1, 3, 4)
    for found, cell in zip(grid["cells"], cells(experiment(), 0), strict=True):
        assert found == {
            "cell": cell.index,
            "alpha": dict(zip(("hidden1", "hidden2", "output"), cell.alpha, strict=True)),
            "learning_rate": cell.learning_rate,
        }
    assert sorted(cell for stack in grid["stacks"] for cell in stack) == [0, 1, 2, 3]


def test_what_auto_became(experiment):
    workers = plan(experiment(), "new", store=None)["workers"]
    assert workers == {
        "count": cores(),
        "device": "cpu",
        "threads": 1,
        "gpu": 0.0,
        "cells": None,
        "pace": None,
        "measures": False,
    }


def test_on_a_gpu_stacks_are_as_large_as_its_memory_once_that_is_known(store, experiment):
    """Both memory and pace are measured by the run's first job; a plan before it says so. A note of the version before
    has the memory alone."""
    gpus, run = [Node(cpus=8, gpus=1, name="g")], experiment(worker={"gpu": 0.5}, replicas=2)
    before = plan(run, run.name, store=store, nodes=gpus)
    assert before["workers"]["cells"] is None
    assert "as many cells at once as its memory holds if that is faster: both are measured first" in printed(before)
    with store.take(run.name, experiment_json=run.to_json(), data="d", versions={}) as writer:
        memory = Memory(fixed=100, member=100, total=600, device="cuda")
        writer.close_job(writer.hand_out("measure", 0, 0, ()), "done", dump(memory))
    after = plan(run, run.name, store=store, nodes=gpus)
    assert after["workers"]["cells"] == 1  # 0.9 of half of 600, without the 100
    assert [len(stack) for stack in after["grids"][0]["stacks"]] == [1, 1, 1, 1]
    assert "which trains 1 cell at once at the most" in printed(after)


MIDDLE = {"model": {"hidden": [300, 300]}}
"""112,200 weights: whether a stack gains is measured."""


@pytest.mark.parametrize(
    ("pace", "stacks", "said"),
    [
        (Pace(0.002, 0.003, 4), 2, "; a stack of 4 takes 1.5 times as long a step as one cell: cells train as stacks"),
        (Pace(0.002, 0.007, 4), 4, "; a stack of 4 takes 3.5 times as long a step as one cell: each cell trains alone"),
        (Pace(0.2, 0.2, 1), 4, "; one cell's steps are too slow for a stack to gain by: each cell trains alone"),
    ],
)
def test_on_a_cpu_stacks_form_where_they_were_measured_to_gain(store, experiment, pace, stacks, said):
    nodes, run = [Node(cpus=2, gpus=0)], experiment(replicas=1, **MIDDLE)
    before = plan(run, run.name, store=store, nodes=nodes)
    assert before["workers"]["measures"]
    assert "on cpu, which trains cells as stacks if that is faster: that is measured first" in printed(before)
    with store.take(run.name, experiment_json=run.to_json(), data="d", versions={}) as writer:
        writer.close_job(writer.hand_out("measure", 0, 0, ()), "done", dump(Measured(None, pace)))
    after = plan(run, run.name, store=store, nodes=nodes)
    assert not after["workers"]["measures"]
    assert len(after["grids"][0]["stacks"]) == stacks
    assert f"on cpu{said}" in printed(after)
    # What a CPU took says nothing of a GPU.
    assert plan(run, run.name, store=store, nodes=[Node(cpus=2, gpus=1)])["workers"]["measures"]


def test_threads_are_said(experiment):
    """A network that leaves cores idle has several; a small one never."""
    one = {"grid": {"alpha": [0.001], "learning_rate": [0.001]}, "replicas": 1}
    nodes = [Node(cpus=4, gpus=0)]
    small = plan(experiment(**one), "new", store=None, nodes=nodes)
    large = plan(experiment(**one, model={"hidden": [500, 500]}), "new", store=None, nodes=nodes)
    assert [report["workers"]["threads"] for report in (small, large)] == [1, 2]
    assert "2, each with 2 threads on cpu" in printed(large)


def test_a_later_grid_of_its_own(experiment):
    grid = {"alpha": [0.001, 0.002], "learning_rate": [0.001], "after_first": {"alpha": [0.003]}}
    first, later = plan(experiment(grid=grid), "new", store=None)["grids"]
    assert (first["first"], first["last"], later["first"], later["last"]) == (1, 1, 2, 3)
    assert [cell["alpha"]["hidden1"] for cell in later["cells"]] == [0.003]


def test_the_first_winner_as_the_later_grid(experiment):
    grid = {"alpha": [0.001, 0.002], "learning_rate": [0.001], "after_first": "winner"}
    _, later = plan(experiment(grid=grid), "new", store=None)["grids"]
    assert later["cells"] == "the winner of the first task"
    assert later["count"] == 1


@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_disk_is_at_most_what_the_widths_say(experiment, head):
    disk = plan(experiment(head=head), "new", store=None)["disk"]
    network = 4 * (64 * 32 + 32 + 32 * 24 + 24 + 24 * 10 + 10)
    units, beside = 8 * (32 + 24), 200 * (6 * 3 + 2 + 1)
    assert disk["trial"] == network + units + beside
    assert disk["task"] == 4 * disk["trial"]
    heads = 2 * 4 * (24 * 10 + 10) if head == "multi" else 0
    assert disk["commits"] == 2 * (network + units + heads + 3 * beside)
    assert disk["kept"] == disk["commits"] + 2 * 3 * disk["trial"]


@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_disk_of_a_network_that_grows_is_that_of_the_last_task(experiment, head):
    """Every group could grow before each task but the first."""
    grows = plan(experiment(head=head, grow={"by": 0.25}), "new", store=None)
    assert grows["units_at_most"] == {"hidden1": 32 + 2 * 8, "hidden2": 24 + 2 * 6}
    wide = plan(experiment(head=head, model={"hidden": [48, 36]}), "new", store=None)
    for key in ("trial", "task", "commits", "kept"):
        # Biases alone are not counted to the last one.
        assert wide["disk"][key] <= grows["disk"][key] <= 1.01 * wide["disk"][key]


@pytest.mark.parametrize("head", ["single", "multi"])
def test_the_growth_of_maps_and_branches_is_counted(experiment, own, head):
    """Channels that are flattened, added and normed: as large as the network that is built so wide."""
    own_kind = {"kind": "grownets:make"}
    keys = {"tasks": {"kind": "grownets:tasks", "count": 3}, "grid": {"alpha": [0.001]}, "head": head}
    small = experiment(**keys, model={**own_kind, "options": {"width": 20}}, grow={"by": 0.5})
    grows = plan(small.with_code(own), "new", store=None)
    assert set(grows["units_at_most"].values()) == {40}
    large = experiment(**keys, model={**own_kind, "options": {"width": 40}})
    wide = plan(large.with_code(own), "new", store=None)
    for key in ("trial", "task", "commits", "kept"):
        assert wide["disk"][key] <= grows["disk"][key] <= 1.01 * wide["disk"][key]


def test_what_the_database_holds_of_that_name(store, experiment, simulate):
    simulate(experiment(), stop_after=17)
    report = plan(experiment(), "made-up", store=store)
    assert report["held"]["run"] == "made-up"
    (refused,) = report["refused"]
    assert refused.startswith(f'data: was "{"d" * 64}", is ')
    assert plan(experiment(), "other", store=store)["held"] is None


def test_a_changed_experiment_is_said_to_be_refused(store, experiment, simulate):
    simulate(experiment(), stop_after=1)
    refused = plan(experiment(seed=4, replicas=5), "made-up", store=store)["refused"]
    assert [line for line in refused if line.startswith("seed: was 0, is 4")]
    assert not [line for line in refused if "replicas" in line]


def test_warnings_of_the_experiment_are_passed_on(experiment):
    warnings = plan(experiment(rule={"margin": 0.1}), "new", store=None)["warnings"]
    assert [line for line in warnings if "margin" in line and "150" in line]


def test_a_layer_that_will_run_out_is_foretold_from_the_claims_so_far(store, experiment, simulate):
    few = experiment(tasks={"count": 2}, replicas=1)
    simulate(few)
    many = experiment(tasks={"count": 40}, replicas=1)
    with store.take("made-up", experiment_json={}, data="", versions={}) as writer:
        writer.update_run(many.to_json())
    report = plan(many, "made-up", store=store)
    commits = store.history("made-up").commits
    claimed = (commits[0, 0].claimed[1] + commits[0, 1].claimed[1]) / 2
    full = 3 + int(commits[0, 1].free[1] // claimed)
    assert [line for line in report["warnings"] if "hidden2 has" in line and f"so task {full} of 40" in line]


def test_what_is_planned_is_forecast_not_what_was_run(store, experiment, simulate):
    """A run that is finished may go on with more tasks; other groups have no claims."""
    simulate(experiment(replicas=1))
    (last,) = [commit for place, commit in store.history("made-up").commits.items() if place == (0, 2)]

    def foretold(**changes):
        report = plan(experiment(replicas=1, **changes), "made-up", store=store)
        found = report["held"]["replicas"][0]["forecast"]["hidden2"]
        return found, [line for line in report["warnings"] if "hidden2 has" in line]

    found, lines = foretold(tasks={"count": 40})
    assert (found["count"], found["full"]) == (40, 4 + int(last.free[1] // found["claimed"]))
    (line,) = lines
    assert f"hidden2 has {last.free[1]} free units" in line
    assert f"so task {found['full']} of 40 would find too few; a higher α or margin from here on" in line
    assert "(--from made-up --task 3 --name NEW)" in line
    assert foretold()[1] == foretold(tasks={"count": 40}, grow={"by": 4})[1] == []
    found, lines = foretold(model={"hidden": [32, 24, 8]}, grid={"alpha": [1e-3]}, tasks={"count": 40})
    assert (found["count"], lines) == (3, [])


def test_what_of_training_is_off_by_default_is_told(experiment):
    def trials(**training):
        stream = io.StringIO()
        keys = {"rule": {"margin": 2, "theta": "layers"}, "training": {"epochs": 4, **training}}
        print_table(TABLES["plan"](plan(experiment(**keys), "new", store=None)), stream)
        assert "margin 2 %, θ by layer, sparsity by units\n" in stream.getvalue()
        return next(line.strip() for line in stream.getvalue().splitlines() if line.strip().startswith("trials"))

    assert trials().endswith(" of 4 epochs each")
    assert trials(early_stopping=True).endswith(" of 4 epochs each, early stopping")
    assert trials(early_stopping=True, patience=3).endswith(" of 4 epochs each, early stopping (patience 3)")
    assert trials(precision="bf16").endswith(" of 4 epochs each, bf16 products")
    report = plan(experiment(), "new", store=None)
    assert (report["theta_scale"], report["training"]["norm_alpha"]) == ("shared", 0.0)
    report["training"]["norm_alpha"] = 1e-4
    stream = io.StringIO()
    print_table(TABLES["plan"](report), stream)
    assert " of 4 epochs each, norm α 1e-4\n" in stream.getvalue()
    assert "θ by layer" not in stream.getvalue()


def test_data_that_are_missing_are_a_warning(experiment, tmp_path):
    tasks = {"count": 2, "dataset": "mnist"}
    report = plan(experiment(tasks=tasks), "new", store=None, data_dir=str(tmp_path))
    assert [line for line in report["warnings"] if str(tmp_path) in line]


def test_a_name_that_cannot_name_a_run_is_refused(experiment):
    with pytest.raises(BadInput, match="cannot name a run"):
        plan(experiment(), "../up", store=None)


def test_the_report_is_json(store, experiment, simulate):
    simulate(experiment(), stop_after=8)
    report = plan(experiment(rule={"margin": [1, 2, 3]}), "made-up", store=store)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_growth_is_told(experiment):
    assert plan(experiment(), "new", store=None)["grow"] is None
    report = plan(experiment(grow={"by": 0.25, "below": 3}), "new", store=None)
    assert report["grow"] == {"by": 0.25, "below": 3}
    console = io.StringIO()
    print_table(TABLES["plan"](report), console)
    wanted = "by 25 % of its first width, of a group with fewer than 3 free: at most 48 + 36 units at the end"
    assert wanted in console.getvalue()
    deep = experiment(grow={"by": 10}, model={"hidden": [20] * 30}, grid={"alpha": [0.001]})
    console = io.StringIO()
    print_table(TABLES["plan"](plan(deep, "new", store=None)), console)
    assert (
        "by 10 units, of a group with fewer than 1 free: at most 1,200 units in 30 groups at the" in console.getvalue()
    )


def test_what_has_grown_is_counted_as_it_is(store, experiment, simulate):
    """Growth may change between attempts: what the first ones added stays."""
    count = {"tasks": {"count": 4}, "replicas": 1}
    few = experiment(**count, grow={"by": 50, "below": 1000})
    simulate(few, stop_after=11)
    assert store.history("made-up").openings[0, 1].widths == (82, 74)
    assert (0, 2) not in store.history("made-up").openings
    for grow, most in (({"by": 3}, (88, 80)), (None, (82, 74)), ({"by": 50}, (182, 174))):
        report = plan(experiment(**count, grow=grow), "made-up", store=store)
        assert tuple(report["units_at_most"].values()) == most


BUDGET = {"kind": "budget", "tasks": 25, "floor": 2.0}


def test_the_budget_is_told_with_what_the_first_task_may_claim(experiment):
    report = plan(experiment(rule={**BUDGET, "tasks": 6}), "new", store=None)
    assert report["rule"] == "budget"
    assert report["budget"] == {"tasks": 6, "floor": 2.0, "task": 1, "most": {"hidden1": 16, "hidden2": 4}}
    stream = io.StringIO()
    print_table(TABLES["plan"](report), stream)
    wanted = "budget for 6 tasks, floor 2 %, new units of task 1 at most 16 + 4, sparsity by units"
    assert wanted in stream.getvalue()
    report = plan(experiment(), "new", store=None)
    assert (report["rule"], report["budget"]) == ("margin", None)


def test_what_is_over_budget_already_is_a_warning(store, experiment, simulate):
    run = experiment(rule=BUDGET, replicas=1)
    simulate(run)
    over = [record.over_budget for _, record in sorted(store.history("made-up").commits.items())]
    assert all("hidden2" in names for names in over)
    tasks = ", ".join(f"task {task} ({', '.join(names)})" for task, names in enumerate(over, start=1))
    lines = plan(run, "made-up", store=store)["warnings"]
    assert [line for line in lines if "over budget even" in line] == [
        f"replica 1: over budget even at the floor: {tasks}; a higher α, more epochs or a larger floor from "
        "here on leaves more room: --from made-up --task 3 --name NEW"
    ]
    assert any("cannot be met" in line for line in lines), "25 tasks share 24 units"
