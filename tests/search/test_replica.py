"""What is next for one replica, on hand-made records."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from clnp.forgetting import Point
from clnp.usage import Usage
from search.book import Place
from search.checks import check_cells, check_commit
from search.decisions import losers
from search.errors import Damage, Impossible, Unavailable
from search.events import of_commit, of_winner
from search.experiment import Experiment
from search.records import Cell, CellRecord, CommitJob, CommitRecord, Opening, Provenance, Score, StackJob
from search.replica import Commit, Open, Remove, Replica, Train

PROVENANCE = Provenance((0,), "cpu", 1, {})


@dataclass
class Table:
    """A history by hand."""

    openings: dict[Place, Opening] = field(default_factory=dict)
    cells: dict[Place, dict[int, CellRecord]] = field(default_factory=dict)
    commits: dict[Place, CommitRecord] = field(default_factory=dict)
    losses: list["Lost"] = field(default_factory=list)
    splits: list["Lost"] = field(default_factory=list)


@dataclass
class Lost:
    kind: str
    replica: int
    task: int
    cells: tuple[int, ...]


def experiment(**changes: Any) -> Experiment:
    grid = {"alpha": [1e-4, 1e-3], "learning_rate": [1e-3, 2e-3], **changes.pop("grid", {})}
    plain = {"tasks": {"count": 2}, "model": {"hidden": [20, 10]}, "grid": grid, "rule": {"margin": [1.0, 10.0]}}
    return Experiment.model_validate({**plain, "worker": {"cells": 2}, "retries": 1, **changes})


def cell(index: int) -> Cell:
    return Cell(index, (1e-4 if index < 2 else 1e-3,) * 3, 1e-3 if index % 2 == 0 else 2e-3)


def cell_record(index: int, *points: tuple[int, int], unpruned: int | None = None, task: int = 0) -> CellRecord:
    """``points``: right answers and units of the second layer, falling; none: diverged."""
    staircase = tuple(Point(0.1 * place, right, (4, units), 0) for place, (right, units) in enumerate(points))
    score = Score(points[0][0] if unpruned is None else unpruned, 100) if points else None
    return CellRecord(
        cell=cell(index),
        diverged=None if points else "not finite after epoch 1",
        score=score,
        majority=10,
        epochs=(),
        epoch=1,
        staircase=staircase,
        artifact=f"tensors {task} {index}" if points else None,
        size=0,
        provenance=PROVENANCE,
        started=0.0,
        ended=1.0,
    )


def opening(task: int = 0, stacks: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3))) -> Opening:
    return Opening(0, task, "data", tuple(cell(index) for index in range(4)), stacks, (20, 10))


def commit_record(task: int = 0, **changes: Any) -> CommitRecord:
    plain = CommitRecord(
        replica=0,
        task=task,
        winner=cell(1),
        point=Point(0.1, 94, (4, 3), 0),
        unpruned=Score(95, 100),
        validation=Score(94, 100),
        test=Score(90, 100),
        best=95,
        needed=94,
        candidates=(0, 1),
        missing=(),
        widths=(20, 10),
        claimed=(4, 3),
        free=(16, 7),
        usage=Usage((), ()),
        artifact=f"commit {task}",
        size=0,
        fingerprints=tuple(f"fingerprint {place}" for place in range(task + 1)),
        changed=0,
        matrix=(Score(90, 100),) * (task + 1),
        provenance=PROVENANCE,
        started=0.0,
        ended=1.0,
    )
    return replace(plain, **changes)


FULL = {
    0: cell_record(0, (95, 9), (94, 8), (90, 1)),
    1: cell_record(1, (94, 3), (93, 1)),
    2: cell_record(2, (93, 2), (80, 1)),
    3: cell_record(3),
}


def machine(table: Table | None = None, **changes: Any) -> Replica:
    allow_missing = changes.pop("allow_missing", False)
    return Replica(0, experiment(**changes), table or Table(), workers=1, allow_missing=allow_missing)


def opened(records: dict[int, CellRecord] | None = None, *losses: Lost) -> Table:
    return Table({(0, 0): opening()}, {(0, 0): dict(records or {})}, {}, list(losses))


def committed(second: Opening | None = None) -> Table:
    openings = {(0, 0): opening()} | ({(0, 1): second} if second else {})
    return Table(openings, {(0, 0): FULL}, {(0, 0): commit_record()})


def all_next(replica: Replica) -> list[object]:
    """Steps until there is none that does not wait, each handed out."""
    steps: list[object] = []
    while (step := replica.next()) is not None:
        steps.append(step)
        assert len(steps) < 20, "it hands out what is out"
        if not isinstance(step, Train | Commit):
            break
        replica.hand_out(len(steps), step)
    return steps


def test_a_task_opens_with_its_cells_and_stacks() -> None:
    step = machine().next()
    assert isinstance(step, Open)
    assert step.cells == tuple(cell(index) for index in range(4))
    assert [index for stack in step.stacks for index in stack] == [0, 1, 2, 3]


def test_stacks_are_those_of_the_written_opening() -> None:
    """Promise 3: a resumed task forms the stacks it opened with, whatever would be formed now."""
    table = Table({(0, 0): opening(stacks=((0, 1, 2), (3,)))})
    assert all_next(machine(table)) == [Train(0, (0, 1, 2), frozenset({0, 1, 2})), Train(0, (3,), frozenset({3}))]


def test_a_stack_with_some_records_runs_again_whole_for_the_missing_ones() -> None:
    """Promise 3: only the missing records are wanted of it."""
    assert all_next(machine(opened({0: FULL[0], 2: FULL[2], 3: FULL[3]}))) == [Train(0, (0, 1), frozenset({1}))]


def test_a_commit_waits_for_every_record() -> None:
    replica = machine(opened({index: FULL[index] for index in (0, 1, 2)}))
    step = replica.next()
    assert step == Train(0, (2, 3), frozenset({3}))
    replica.hand_out(1, step)
    assert replica.next() is None
    replica.recorded(FULL[3])
    assert replica.next() is None, "its job is out until it has returned"
    replica.returned(1)
    assert isinstance(replica.next(), Commit)


def test_the_winner_is_the_sparsest_candidate_at_the_tasks_margin() -> None:
    """Sec. 2.2: best 95 of 100, margin 1.0: 94 are needed; cells 0 and 1 reach it, cell 1 with fewer units."""
    step = machine(opened(FULL)).next()
    assert isinstance(step, Commit)
    assert (step.choice.best, step.choice.needed, step.choice.candidates) == (95, 94, (0, 1))
    assert (step.winner, step.artifact, step.score) == (cell(1), "tensors 0 1", Score(94, 100))
    assert step.choice.winner.point == FULL[1].staircase[0]
    loose = machine(opened(FULL), rule={"margin": [10.0, 1.0]}).next()
    assert isinstance(loose, Commit)
    assert (loose.choice.needed, loose.choice.candidates) == (85, (0, 1, 2))


def test_every_task_has_its_margin() -> None:
    """Margins 1.0 and 10.0: the second task takes 85 of a best 95 for its cut line."""
    table = committed(opening(1))
    table.cells[0, 1] = FULL
    step = machine(table).next()
    assert isinstance(step, Commit)
    assert (step.task, step.choice.needed, step.choice.winner.point) == (1, 85, FULL[1].staircase[1])


@pytest.mark.parametrize(
    ("tasks", "widths", "winner", "place", "over"),
    [
        (2, (20, 10), 1, 0, ()),  # 5 units of the second layer: cell 0 has its 90, cell 1 its 94
        (3, (20, 10), 1, 0, ()),
        (4, (20, 10), 1, 1, ()),  # 2 units: cells 1 and 2 have 93, cell 1 with fewer units
        (11, (20, 10), 1, 1, ("hidden2",)),  # none: the sparsest above the floor
        (4, (20, 12), 1, 0, ()),
        (2, (6, 10), 1, 1, ("hidden1",)),  # half of 6 units: each point claims 4
        (11, (6, 10), 1, 1, ("hidden1", "hidden2")),
    ],
)
def test_under_a_budget_the_winner_is_the_most_accurate_that_fits(
    tasks: int, widths: tuple[int, int], winner: int, place: int, over: tuple[str, ...]
) -> None:
    """An equal share of the second layer among the tasks to come; a floor of 10: 85 of a best 95."""
    table = opened(FULL)
    table.openings[0, 0] = replace(opening(), widths=widths)
    replica = machine(table, rule={"kind": "budget", "tasks": tasks, "floor": 10.0})
    step = replica.next()
    assert isinstance(step, Commit)
    assert (step.choice.needed, step.choice.candidates) == (85, (0, 1, 2))
    assert (step.winner.index, step.choice.winner.point) == (winner, FULL[winner].staircase[place])
    job = replica.hand_out(1, step)
    assert isinstance(job, CommitJob)
    assert job.over_budget == over
    assert ("over budget in " + ", ".join(over) in of_winner(job).text) == bool(over)


@pytest.mark.parametrize(
    ("claimed", "free", "widths", "units"),
    [
        ((4, 3), (16, 7), (20, 10), 3),  # half of 7 units for each of two tasks
        ((4, 8), (16, 2), (20, 10), 1),
        ((4, 8), (16, 2), (20, 14), 3),  # four more, grown when the task opened
    ],
)
def test_a_later_task_shares_what_is_left_and_what_has_grown(
    claimed: tuple[int, int], free: tuple[int, int], widths: tuple[int, int], units: int
) -> None:
    table = committed(replace(opening(1), widths=widths))
    table.cells[0, 1] = {index: cell_record(index, (95, 4), (94, 3), (93, 2), (92, 1), task=1) for index in range(4)}
    table.commits[0, 0] = commit_record(claimed=claimed, free=free)
    step = machine(table, rule={"kind": "budget", "tasks": 3, "floor": 10.0}).next()
    assert isinstance(step, Commit)
    assert step.choice.winner.fits
    assert step.choice.winner.point.claimed == (4, units)


def test_a_stack_lost_twice_falls_into_its_cells() -> None:
    stack = Lost("stack", 0, 0, (0, 1))
    once = machine(opened(None, stack))
    assert once.next() == Train(0, (0, 1), frozenset({0, 1}))
    twice = machine(opened({0: FULL[0]}, stack, stack))
    assert all_next(twice) == [Train(0, (1,), frozenset({1})), Train(0, (2, 3), frozenset({2, 3}))]
    once.lost("stack", (0, 1), "gone")
    assert once.next() == Train(0, (0,), frozenset({0}))


def test_a_stack_without_memory_goes_out_in_halves() -> None:
    whole = opening(stacks=((0, 1, 2, 3),))
    replica = machine(Table({(0, 0): whole}))
    replica.split((0, 1, 2, 3))
    halves = [Train(0, (0, 1), frozenset({0, 1})), Train(0, (2, 3), frozenset({2, 3}))]
    assert all_next(replica) == halves
    again = machine(Table({(0, 0): whole}, splits=[Lost("stack", 0, 0, (0, 1, 2, 3)), Lost("stack", 0, 0, (2, 3))]))
    singles = [Train(0, (index,), frozenset({index})) for index in (2, 3)]
    assert all_next(again) == [halves[0], *singles], "a resumed task forms the same ones (Promise 3)"
    others = [Lost("stack", 1, 0, (0, 1, 2, 3)), Lost("stack", 0, 1, (0, 1, 2, 3))]
    assert all_next(machine(Table({(0, 0): whole}, splits=others))) == [Train(0, (0, 1, 2, 3), frozenset(range(4)))]


@pytest.mark.parametrize(
    ("split", "sizes"),
    [((0, 1, 2, 3), [2, 2]), ((0, 1), [1, 1, 1, 1]), ((0, 1, 2), [2, 2])],
)
def test_later_tasks_form_no_stack_that_is_known_to_find_no_memory(split: tuple[int, ...], sizes: list[int]) -> None:
    table = replace(committed(), splits=[Lost("stack", 0, 0, split)])
    replica = machine(table, worker={"cells": 4})
    replica.removed()
    step = replica.next()
    assert isinstance(step, Open)
    assert [len(stack) for stack in step.stacks] == sizes


def test_losses_of_other_tasks_and_replicas_do_not_count() -> None:
    others = [Lost("stack", 1, 0, (0, 1)), Lost("stack", 0, 1, (0, 1)), Lost("commit", 0, 0, (0, 1))] * 2
    assert machine(opened(None, *others)).next() == Train(0, (0, 1), frozenset({0, 1}))


def test_a_member_that_raised_goes_out_alone() -> None:
    replica = machine(opened({0: FULL[0]}, Lost("stack", 0, 0, (1,))))
    assert replica.next() == Train(0, (1,), frozenset({1}))


def test_a_cell_is_tried_retries_times_more() -> None:
    replica = machine(opened())
    replica.lost("stack", (1,), "gone.")
    with pytest.raises(
        Unavailable, match=r"replica 1, task 1: cell 1 \(alpha=.*lost 2 times.*gone\. The same.*--allow-missing"
    ):
        replica.lost("stack", (1,), "gone.")


def test_without_retries_one_loss_is_too_many() -> None:
    with pytest.raises(Unavailable, match=r"was lost once \(retries: 0\), the last time because: gone\. The same"):
        machine(opened(), retries=0).lost("stack", (1,), "gone.")


def test_losses_are_counted_on_after_a_driver_died() -> None:
    replica = machine(opened(None, Lost("stack", 0, 0, (1,))))
    with pytest.raises(Unavailable, match="lost 2 times"):
        replica.lost("stack", (1,), "gone")


def test_a_commit_is_tried_retries_times_more() -> None:
    replica = machine(opened(FULL), allow_missing=True)
    replica.lost("commit", (1,), "gone")
    assert isinstance(replica.next(), Commit)
    with pytest.raises(Unavailable, match="the commit was lost 2 times"):
        replica.lost("commit", (1,), "gone")


def test_cells_lost_too_often_are_missing_where_that_is_allowed() -> None:
    table = opened({0: FULL[0], 2: FULL[2], 3: FULL[3]}, *[Lost("stack", 0, 0, (1,))] * 2)
    step = machine(table, allow_missing=True).next()
    assert isinstance(step, Commit)
    assert step.missing == (1,)
    assert step.winner == cell(0)
    assert isinstance(machine(table).next(), Train), "without allow_missing it is tried again"


def test_with_every_cell_missing_there_is_nothing_to_commit() -> None:
    table = opened(None, *[Lost("stack", 0, 0, (index,)) for index in range(4)] * 2)
    with pytest.raises(Unavailable, match=r"each of its 4 cells was lost more than once, .* tries them again"):
        machine(table, allow_missing=True).next()


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ({index: cell_record(index) for index in range(4)}, "diverged"),
        ({index: cell_record(index, (10, 1)) for index in range(4)}, "most frequent class"),
    ],
)
def test_a_task_with_nothing_worth_committing_is_impossible(records: dict[int, CellRecord], why: str) -> None:
    with pytest.raises(Impossible, match=rf"replica 1, task 1: .*{why}.*lower.*--name") as refusal:
        machine(opened(records)).next()
    assert str(refusal.value).endswith(". Change the grid and give the new run another --name"), "nothing is kept"


def test_what_stops_later_says_how_to_go_on_from_what_is_kept() -> None:
    table = committed(opening(1))
    table.cells[0, 1] = {index: cell_record(index) for index in range(4)}
    with pytest.raises(Impossible) as refusal:
        machine(table).next()
    assert str(refusal.value).endswith(
        ". The task committed so far is kept; to go on with another grid: --from NAME --task 1 --name NEW"
    )
    table.commits[0, 0] = FULL_LAST
    with pytest.raises(Impossible) as refusal:
        machine(table).next()
    assert "--from" not in str(refusal.value), "one task that fills the layer leaves none to begin with"
    table.openings[0, 1] = opening(1)
    table.commits[0, 1] = commit_record(1, claimed=(4, 4), free=(12, 0))
    for rule, limit in (({"margin": 1.0}, "margin"), ({"kind": "budget", "tasks": 9, "floor": 2.0}, "floor")):
        replica = machine(table, rule=rule, tasks={"count": 3})
        replica.removed()
        with pytest.raises(Impossible, match=f"larger α or {limit}.*--from NAME --task 1 --name NEW"):
            replica.next()


FULL_LAST = commit_record(claimed=(4, 10), free=(16, 0))


@pytest.mark.parametrize("second", [None, opening(1)])
def test_a_full_last_layer_ends_a_single_head_before_any_job(second: Opening | None) -> None:
    """Also where the next task was opened: known from the last commit, nothing is trained for it."""
    table = committed(second)
    table.commits[0, 0] = FULL_LAST
    replica = machine(table)
    replica.removed()
    with pytest.raises(Impossible, match=r"replica 1, task 2: no free unit left in hidden2: all 10 are owned.*--name"):
        replica.next()
    multi = machine(table, head="multi")
    multi.removed()
    assert isinstance(multi.next(), Train if second else Open)


def test_a_last_layer_that_the_last_task_filled_is_no_harm() -> None:
    table = committed()
    table.commits[0, 0] = FULL_LAST
    replica = machine(table, tasks={"count": 1}, rule={"margin": 1.0})
    replica.removed()
    assert replica.next() is None
    assert replica.finished


def test_a_replica_that_stopped_has_no_next_step() -> None:
    replica = machine(opened())
    step = replica.next()
    assert isinstance(step, Train)
    replica.hand_out(1, step)
    error = Impossible("it cannot be done")
    replica.stop(error)
    assert replica.stopped is error
    assert replica.next() is None
    replica.returned(1)
    replica.recorded(FULL[0])
    assert replica.next() is None
    assert not replica.finished


def test_a_full_layer_is_named_where_no_trial_learnt_anything() -> None:
    table = committed(opening(1))
    table.commits[0, 0] = commit_record(claimed=(20, 3), free=(0, 7))
    table.cells[0, 1] = {index: cell_record(index, (10, 1), task=1) for index in range(4)}
    full = "hidden1 has no free unit left: widen it or prune harder"
    with pytest.raises(Impossible, match=rf"most frequent class \(10\); lower α, or train longer; {full}\. The task "):
        machine(table).next()
    table.cells[0, 1] = {index: cell_record(index) for index in range(4)}
    with pytest.raises(Impossible, match="diverged") as refusal:
        machine(table).next()
    assert "hidden1" not in str(refusal.value)


def test_a_staircase_of_another_trial_is_damage() -> None:
    records = {**FULL, 0: cell_record(0, (50, 9), unpruned=95)}
    with pytest.raises(Damage, match="replica 1, task 1"):
        machine(opened(records)).next()


def test_the_next_task_opens_after_the_losers_are_removed() -> None:
    """Also when the removal was cut off: with the next task not yet open it is done again, whole."""
    replica = machine(committed())
    assert replica.next() == Remove(0, ("tensors 0 0", "tensors 0 2"))
    replica.removed()
    step = replica.next()
    assert isinstance(step, Open)
    assert step.task == 1
    assert isinstance(machine(committed(opening(1))).next(), Train)


@pytest.mark.parametrize(
    ("keep", "removed"),
    [("winners", ("tensors 0 0", "tensors 0 2")), ("candidates", ("tensors 0 2",)), ("all", ())],
)
def test_losers_are_what_keep_leaves_out(keep: Any, removed: tuple[str, ...]) -> None:
    assert losers(keep, FULL, commit_record()) == removed


def test_equal_tensors_of_winner_and_loser_stay() -> None:
    records = {**FULL, 0: replace(FULL[0], artifact=FULL[1].artifact)}
    assert losers("winners", records, commit_record()) == ("tensors 0 2",)


def test_after_first_winner_keeps_the_first_tasks_choice() -> None:
    replica = machine(committed(), grid={"after_first": "winner"})
    replica.removed()
    step = replica.next()
    assert isinstance(step, Open)
    assert [(one.alpha, one.learning_rate) for one in step.cells] == [(cell(1).alpha, cell(1).learning_rate)]
    assert step.stacks == ((0,),)


def test_it_is_finished_when_the_last_removal_is_done() -> None:
    table = committed(opening(1))
    table.cells[0, 1] = {index: replace(record, artifact="other") for index, record in FULL.items()}
    table.commits[0, 1] = commit_record(1)
    replica = machine(table)
    assert not replica.finished
    assert isinstance(replica.next(), Remove)
    replica.removed()
    assert replica.finished
    assert replica.next() is None


def test_jobs_carry_what_a_worker_needs() -> None:
    table = committed(opening(1))
    replica = machine(table)
    step = replica.next()
    assert isinstance(step, Train)
    job = replica.hand_out(7, step)
    assert isinstance(job, StackJob)
    assert (job.id, job.replica, job.task, job.cells, job.data) == (7, 0, 1, (cell(0), cell(1)), "data")
    assert [(one.task, one.artifact, one.fingerprint) for one in job.commits] == [(0, "commit 0", "fingerprint 0")]
    assert Experiment.from_json(job.experiment) == experiment()


def test_a_commit_carries_the_data_of_every_task_so_far() -> None:
    """Promises 1 and 3: each as it was when its task opened, for the worker that measures them all again."""
    openings = {(0, 0): replace(opening(), data="first"), (0, 1): replace(opening(1), data="second")}
    records = {index: replace(FULL[index], artifact=f"tensors 1 {index}") for index in FULL}
    replica = machine(Table(openings, {(0, 0): FULL, (0, 1): records}, {(0, 0): commit_record()}))
    step = replica.next()
    assert isinstance(step, Commit)
    job = replica.hand_out(1, step)
    assert isinstance(job, CommitJob)
    assert (job.earlier, job.data) == (("first",), "second")


@pytest.mark.parametrize(
    "table",
    [
        Table({(0, 1): opening(1)}),
        Table({(0, 0): opening()}, {}, {(0, 0): commit_record(), (0, 1): commit_record(1)}),
        Table({(0, 0): opening(), (0, 1): opening(1), (0, 2): opening(2)}, {}, {(0, 0): commit_record()}),
    ],
)
def test_a_history_with_gaps_is_damage(table: Table) -> None:
    with pytest.raises(Damage, match=r"replica 1.*restore the database"):
        machine(table)


COMMIT_JOB = CommitJob(
    id=1,
    replica=0,
    task=1,
    winner=cell(1),
    point=Point(0.1, 94, (4, 3), 0),
    artifact="tensors 1 1",
    score=Score(95, 100),
    best=95,
    needed=94,
    candidates=(0, 1),
    missing=(),
    commits=(),
    widths=(20, 10),
    data="data",
    earlier=("data",),
    experiment={},
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"changed": 1}, "change 1 earlier"),
        ({"fingerprints": ("other", "fingerprint 1")}, "would change task 1: its fingerprint is other instead"),
        ({"fingerprints": ("fingerprint 0",)}, "measure 2 tasks again, but came with 1"),
        ({"matrix": (Score(90, 100),)}, "1 test scores"),
        ({"validation": Score(93, 100)}, "94 of 100 were right when .* 93 of 100"),
        ({"validation": Score(94, 101)}, "94 of 101"),
        ({"missing": (3,)}, "the rule decided .*, but the worker's commit says"),
        ({"winner": cell(0)}, "the worker's commit is of"),
        ({"point": Point(0.2, 94, (4, 3), 0)}, "θ=0.2"),
        ({"replica": 1}, "replica 2"),
        ({"widths": (20, 11)}, r"had \[20, 10\] units .* says \[20, 11\]"),
    ],
)
def test_a_commit_that_changes_the_old_or_is_not_what_was_scored_is_damage(changes: dict[str, Any], why: str) -> None:
    """Promises 1 and 2: checked against the ledger before anything is written."""
    earlier = [commit_record()]
    check_commit(COMMIT_JOB, commit_record(1), earlier)
    with pytest.raises(Damage, match=why):
        check_commit(COMMIT_JOB, commit_record(1, **changes), earlier)


def test_a_commit_that_says_otherwise_what_is_over_budget_is_damage() -> None:
    job, over = replace(COMMIT_JOB, over_budget=("hidden2",)), commit_record(1, over_budget=("hidden2",))
    check_commit(job, over, [commit_record()])
    assert of_commit(over).text.endswith("free, over budget in hidden2")
    assert "over budget" not in of_commit(commit_record(1)).text
    with pytest.raises(Damage, match=r"the rule decided .*hidden2.*but the worker's commit says .*'over_budget': \(\)"):
        check_commit(job, commit_record(1), [commit_record()])


def test_a_record_of_another_cell_is_damage() -> None:
    job = StackJob(1, 0, 0, (cell(0), cell(1)), (), (20, 10), "data", {})
    check_cells(job, [FULL[1]])
    with pytest.raises(Damage, match="cell 2 "):
        check_cells(job, [FULL[2]])
    with pytest.raises(Damage, match="cell 1 "):
        check_cells(job, [replace(FULL[1], cell=replace(cell(1), learning_rate=0.5))])
