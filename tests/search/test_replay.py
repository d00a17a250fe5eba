"""The rule at another margin, on hand-made tables and on what simulated runs recorded."""

import functools
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.forgetting import Point
from clnp.usage import Usage
from search.backends.simulated import Simulated, World
from search.book import Loss, Place
from search.errors import Damage
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import Cell, CellRecord, CommitRecord, Opening, Provenance, Score
from search.replay import Replayed, replay
from search.run import Run

PROVENANCE = Provenance((0,), "cpu", 1, {})


@dataclass
class Table:
    """A history by hand."""

    openings: dict[Place, Opening] = field(default_factory=dict)
    cells: dict[Place, dict[int, CellRecord]] = field(default_factory=dict)
    commits: dict[Place, CommitRecord] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    splits: list[Loss] = field(default_factory=list)


def experiment(replicas: int = 1, count: int = 3, margin: float = 1.0) -> Experiment:
    return Experiment.model_validate(
        {
            "tasks": {"count": count},
            "model": {"hidden": [40, 30]},
            "replicas": replicas,
            "grid": {"alpha": [1e-4, 1e-3, 1e-2], "learning_rate": [1e-3]},
            "rule": {"margin": margin},
        }
    )


def point(right: int, units: int) -> Point:
    return Point(round(1 - right / 200, 6), right, (5, units), 0)


def cell_record(index: int, *points: Point) -> CellRecord:
    return CellRecord(
        cell=Cell(index, (10.0 ** (index - 4),) * 3, 1e-3),
        diverged=None if points else "not finite after epoch 1",
        score=Score(points[0].correct, 200) if points else None,
        majority=20,
        epochs=(),
        epoch=1,
        staircase=points,
        artifact=None,
        size=0,
        provenance=PROVENANCE,
        started=0.0,
        ended=1.0,
    )


def add_task(table: Table, task: int, winner: int, pruned: Point, *records: CellRecord) -> None:
    table.cells[0, task] = {record.cell.index: record for record in records}
    table.commits[0, task] = CommitRecord(
        replica=0,
        task=task,
        winner=records[winner].cell,
        point=pruned,
        unpruned=Score(pruned.correct, 200),
        validation=Score(pruned.correct, 200),
        test=Score(90, 100),
        best=190,
        needed=188,
        candidates=(winner,),
        missing=(),
        widths=(0, 0),
        claimed=pruned.claimed,
        free=(0, 0),
        usage=Usage((), ()),
        artifact="",
        size=0,
        fingerprints=("",) * (task + 1),
        changed=0,
        matrix=(Score(90, 100),) * (task + 1),
        provenance=PROVENANCE,
        started=0.0,
        ended=1.0,
    )


def picks_same(task: Replayed) -> bool:
    """Whether winner and θ are those of the commit, whatever came before."""
    return (task.winner.index, task.point) == (task.committed.index, task.committed_point)


@pytest.fixture
def table() -> Table:
    """Three tasks at a margin of 1 point, so 2 of 200 samples: each committed with 188 or more of a best 190."""
    made = Table()
    steep = cell_record(0, point(190, 9), point(188, 8), point(180, 1))
    flat = cell_record(1, point(189, 7), point(188, 6), point(186, 5))
    add_task(made, 0, 0, point(188, 8), steep, cell_record(1, point(150, 1)), cell_record(2))
    add_task(made, 1, 1, point(188, 6), steep, flat, cell_record(2))
    add_task(made, 2, 0, point(188, 8), steep, cell_record(1, point(150, 1)), cell_record(2))
    return made


def test_the_same_margin_picks_the_same(table: Table) -> None:
    (tasks,) = replay(experiment(), table, Fraction(1))
    assert [task.outcome for task in tasks] == ["same"] * 3
    assert [(task.winner.index, task.needed, task.candidates) for task in tasks] == [
        (0, 188, (0,)),
        (1, 188, (0, 1)),
        (0, 188, (0,)),
    ]
    assert [(task.cost, task.freed) for task in tasks] == [(0, (0, 0))] * 3


def test_a_wider_margin_is_exact_up_to_the_first_difference(table: Table) -> None:
    """Two points are 4 samples: task 1 picks the same as it has no point between, task 2 a sparser one (Promise 4)."""
    first, second, third = replay(experiment(), table, Fraction(2))[0]
    assert (first.outcome, first.winner.index, first.needed) == ("same", 0, 186)
    assert (second.outcome, second.winner.index, second.point) == ("would differ", 1, point(186, 5))
    assert (second.cost, second.total, second.points, second.freed) == (2, 200, 1.0, (0, 1))
    assert (third.outcome, picks_same(third)) == ("given the history", True)


def test_no_margin_costs_units(table: Table) -> None:
    first, second, _ = replay(experiment(), table, Fraction(0))[0]
    assert (first.outcome, first.point, first.cost, first.freed) == ("would differ", point(190, 9), -2, (0, -1))
    assert (second.outcome, second.winner.index, picks_same(second)) == ("given the history", 0, False)


@pytest.mark.parametrize(("rounds", "outcome"), [(1, "same"), (2, "would differ")])
def test_rounds_that_prune_to_the_cut_line_differ_with_it(table: Table, rounds: int, outcome: str) -> None:
    """Promise 4: the same first point is not the same commit where later rounds would have pruned to another line."""
    tuned = Experiment.model_validate({**experiment().to_file(), "fine_tuning": {"rounds": rounds}})
    wider, same = (replay(tuned, table, Fraction(margin))[0][0] for margin in (2, 1))
    assert (wider.outcome, picks_same(wider)) == (outcome, True)
    assert same.outcome == "same"


def test_margins_are_exact(table: Table) -> None:
    """0.999… of a sample is not a sample: 189 are needed for 190 at 0.5 points, 190 just below."""
    assert replay(experiment(), table, Fraction("0.5"))[0][0].needed == 189
    assert replay(experiment(), table, Fraction("0.4999999999999999999"))[0][0].needed == 190


def test_only_committed_tasks_are_replayed(table: Table) -> None:
    del table.commits[0, 2]
    (tasks, others) = replay(experiment(replicas=2), table, Fraction(1))
    assert len(tasks) == 2
    assert others == []


def test_a_study_that_is_gone_is_damage(table: Table) -> None:
    records = table.cells.pop((0, 1))
    for name, study in (("mine", "mine/replica-0/task-01"), (None, "NAME/replica-0/task-01")):
        named = {} if name is None else {"name": name}
        with pytest.raises(
            Damage, match=rf"^replica 1, task 2: its study {study} or the winner's trial is gone .*backup$"
        ):
            replay(experiment(), table, Fraction(1), **named)
    table.cells[0, 1] = {index: record for index, record in records.items() if index != 1}
    with pytest.raises(Damage, match="or the winner's trial is gone"):
        replay(experiment(), table, Fraction(1))


def test_a_loser_that_is_gone_is_damage_too(table: Table) -> None:
    """Promise 4: at another margin it might have won. What the commit did without is not missed."""
    cells = table.cells[0, 1]
    table.openings[0, 1] = Opening(0, 1, "", tuple(record.cell for record in cells.values()), (), ())
    del cells[2]
    with pytest.raises(Damage, match=r"task 2: its study .* or the trial of cell 2 in it is gone"):
        replay(experiment(), table, Fraction(1))
    table.commits[0, 1] = replace(table.commits[0, 1], missing=(2,))
    assert len(replay(experiment(), table, Fraction(1))[0]) == 3


@functools.cache
def simulated(margin: float) -> MemoryBook:
    world = World(total=500)
    book = MemoryBook(world.artifacts)
    run = Run(experiment(2, 4, margin), book, book, data=lambda *_: "data", workers=2)
    Simulated(workers=2, world=world).execute(run)
    assert run.finished
    return book


@settings(max_examples=30, deadline=None)
@given(ran=st.sampled_from([0.0, 0.5, 2.0]), asked=st.sampled_from(["0", "0.2", "0.5", "1.1", "2", "5"]))
def test_what_would_differ_is_what_a_run_at_that_margin_does(ran: float, asked: str) -> None:
    """Promise 4: up to and with the first task that differs it is what a run at the other margin commits."""
    truth = simulated(float(asked)).commits
    for tasks in replay(experiment(2, 4, ran), simulated(ran), Fraction(asked)):
        outcomes = [task.outcome for task in tasks]
        exact = [task for task in tasks if task.outcome != "given the history"]
        assert len(tasks) == 4
        assert outcomes[: len(exact)] == [task.outcome for task in exact]
        assert outcomes.count("would differ") == (1 if any(not picks_same(task) for task in tasks) else 0)
        for task in exact:
            commit = truth[task.replica, task.task]
            assert (task.winner, task.point, task.candidates) == (commit.winner, commit.point, commit.candidates)


def test_it_is_ordered_by_replica_and_task() -> None:
    replicas = replay(experiment(2, 4, 0.5), simulated(0.5), Fraction(3))
    places = [[(task.replica, task.task) for task in tasks] for tasks in replicas]
    assert places == [[(replica, task) for task in range(4)] for replica in range(2)]
    assert all(isinstance(task, Replayed) for tasks in replicas for task in tasks)
