"""Growth (Sec. 4) and depletion: what is written down, what a resumed run makes of it, and real runs of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.audit import verify
from search.backends.simulated import Simulated, World
from search.decisions import grown_widths
from search.driver import run_experiment
from search.errors import Impossible
from search.experiment import Experiment, differences
from search.memory import MemoryBook
from search.replica import Open, Replica
from search.reports.common import read_run
from search.reports.final import final
from search.reports.forecast import forecast
from search.reports.plan import plan
from search.reports.show import show
from search.reports.status import status
from search.run import Run
from search.sections import Grow
from search.store import Store, open_store
from search.view import View

PLAIN: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 4},
    "model": {"hidden": [20, 10]},
    "grid": {"alpha": [1e-4, 1e-3], "learning_rate": [1e-3]},
    "training": {"epochs": 2},
}


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**PLAIN, **changes})


def simulated(chosen: Experiment, book: MemoryBook, world: World) -> Run:
    run = Run(chosen, book, book, data=lambda *_: "data", workers=2)
    Simulated(workers=2, world=world).execute(run)
    return run


def full_world() -> World:
    """Every task claims all that is left of the last layer."""
    return World(fills=lambda _: True)


# ── What grows, and when ──────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 5000), st.integers(1, 99))
def test_a_share_is_of_the_first_width_and_rounded_up(width: int, percent: int) -> None:
    assert Grow(by=percent / 100).units(width) == -(-width * percent // 100)
    assert Grow(by=percent).units(width) == percent


def test_only_what_ran_out_grows_and_never_before_the_first_task() -> None:
    book, world = MemoryBook(), full_world()
    run = simulated(experiment(grow={"by": 0.25}), book, world)
    assert run.finished, run.stopped
    widths = [book.openings[0, task].widths for task in range(4)]
    assert widths == [(20, 10), (20, 13), (20, 16), (20, 19)]
    assert [book.commits[0, task].widths for task in range(4)] == widths
    assert [book.commits[0, task].free[1] for task in range(4)] == [0, 0, 0, 0]
    assert [book.commits[0, task].claimed[1] for task in range(4)] == [10, 3, 3, 3]


def test_below_says_when_a_group_has_run_out() -> None:
    book = MemoryBook()
    simulated(experiment(), book, World())
    last = book.commits[0, 0]
    free = replace(last, free=(5, 4), widths=(20, 12))
    assert grown_widths(experiment(), free) == (20, 12)
    assert grown_widths(experiment(grow={"by": 3}), free) == (20, 12)
    assert grown_widths(experiment(grow={"by": 3, "below": 5}), free) == (20, 15)
    assert grown_widths(experiment(grow={"by": 0.5, "below": 6}), free) == (30, 17)


def test_an_open_task_keeps_what_it_opened_with() -> None:
    """Promise 3: whatever grow says when the run goes on."""
    book, world = MemoryBook(), full_world()
    run = Run(experiment(grow={"by": 4}), book, book, data=lambda *_: "data", workers=1)
    while (0, 1) not in book.openings:
        job = run.next_job()
        assert job is not None
        run.take(job.id, world.stack(job, {}, 0.0, 1.0) if job.kind == "stack" else world.commit(job, 0.0, 1.0))
    assert book.openings[0, 1].widths == (20, 14)
    for grow in (None, {"by": 9}):
        replica = Replica(0, experiment(grow=grow), book, workers=1)
        step = replica.next()
        assert not isinstance(step, Open)
        assert replica.hand_out(99, step).widths == (20, 14)  # type: ignore[arg-type, union-attr]


def test_a_run_that_stopped_full_goes_on_with_grow() -> None:
    """Sec. 4: the same command with grow: added; growth is free to change between attempts."""
    world = full_world()
    book = MemoryBook(world.artifacts)
    stopped = simulated(experiment(), book, world).stopped
    assert isinstance(stopped, Impossible)
    assert "no free unit left in hidden2: all 10 are owned" in str(stopped)
    assert "give the same command with grow: in the experiment" in str(stopped)
    assert len(book.commits) == 1
    grows = experiment(grow={"by": 0.5})
    assert differences(experiment(), grows, "d", "d") == []
    book.take().stop()
    assert simulated(grows, book, world).finished
    whole = MemoryBook()
    assert simulated(grows, whole, full_world()).finished
    assert [opening.widths for opening in book.openings.values()] == [
        opening.widths for opening in whole.openings.values()
    ]


@given(st.integers(0, 60))
def test_a_run_killed_anywhere_grows_the_same(after: int) -> None:
    """Promise 3."""

    class KilledError(Exception):
        pass

    left = [after]

    def step(_what: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KilledError

    chosen, world = experiment(grow={"by": 0.25}), full_world()
    book = MemoryBook(world.artifacts, step)
    try:
        simulated(chosen, book, world)
    except KilledError:
        assert simulated(chosen, book.take(), world).finished
    assert [opening.widths[1] for _, opening in sorted(book.openings.items())] == [10, 13, 16, 19]


# ── What is reported ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        yield store


def recorded(store: Store, chosen: Experiment, world: World, jobs: int | None = None) -> None:
    """A run in a real database, of made-up records; cut off after so many jobs."""
    layers = chosen.outline.layer_names
    with store.take("small", experiment_json=chosen.to_json(), data="d", versions={}, layers=layers) as writer:
        run = Run(chosen, writer, store.history("small"), data=lambda *_: "data", workers=1)
        while jobs != 0 and (job := run.next_job()) is not None:
            run.take(job.id, world.stack(job, {}, 0.0, 1.0) if job.kind == "stack" else world.commit(job, 0.0, 1.0))
            jobs = None if jobs is None else jobs - 1
        assert jobs == 0 or run.finished, run.stopped


def test_reports_know_the_widths(store: Store) -> None:
    recorded(store, experiment(grow={"by": 0.25}), full_world(), jobs=3)
    known = read_run(store, "small")
    assert [(one.layer, one.free, one.full) for one in forecast(known, 0)][1] == ("hidden2", 3, None)
    fixed = replace(known, experiment=experiment())
    assert forecast(fixed, 0)[1].full == 2
    (run,) = status(store, "small")["runs"]
    assert run["units"] == {"hidden1": 20, "hidden2": 10}
    (replica,) = run["replicas"]
    assert (replica["units"]["hidden2"], replica["free"]["hidden2"]) == (13, 3), "grown in the task that is open"
    recorded(store, experiment(grow={"by": 0.25}), full_world_again(store))
    assert show(store, "small", task=1)["units"]["hidden2"] == 10
    assert show(store, "small", task=4)["units"]["hidden2"] == 19
    assert final(store, "small")["replicas"][0]["tasks"][3]["free"]["hidden2"] == 0


def full_world_again(store: Store) -> World:
    """The world of a run that goes on: what it made before is there."""
    world = full_world()
    history = store.history("small")
    for record in history.commits.values():
        world.artifacts[record.artifact] = record.free
    for cells in history.cells.values():
        world.artifacts.update((cell.artifact, ()) for cell in cells.values() if cell.artifact)
    return world


# ── Real training ─────────────────────────────────────────────────────────────────────────────────────────────────────

REAL: dict[str, Any] = {
    "tasks": {"count": 3},
    "model": {"hidden": [8, 6]},
    "grid": {"alpha": [0.0], "learning_rate": [0.01]},
    "training": {"epochs": 3},
    "rule": {"margin": 0},
    "worker": {"gpu": 0},
}


@pytest.fixture
def keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit claims every free unit: tiny layers are full after the first task."""
    import search.worker.stack
    from clnp.thresholds import claims_at

    real = search.worker.stack.staircase

    def staircase(*arguments: Any) -> Any:
        found = real(*arguments)
        first = found.points[-1]
        claims = claims_at(arguments[0], arguments[1], None)
        claimed = tuple(int(claims[group.name].sum()) for group in arguments[0].groups)
        point = replace(first, theta=None, correct=found.unpruned, claimed=claimed)
        return replace(found, points=(point,))

    monkeypatch.setattr(search.worker.stack, "staircase", staircase)


class Quiet:
    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self, *_: object) -> None:
        pass

    def event(self, *_: object) -> None:
        pass

    def note(self, *_: object) -> None:
        pass


def run(store: Store, chosen: Experiment) -> None:
    run_experiment(store, chosen, name="small", backend="inline", view=Quiet())


@pytest.mark.usefixtures("keeps_all")
@pytest.mark.parametrize(
    ("head", "grow", "widths"),
    [("single", {"by": 0.5}, (16, 12)), ("multi", {"by": 0.5}, (16, 12)), ("multi", None, (8, 6))],
)
def test_the_disk_of_a_plan_is_the_most(store: Store, head: str, grow: Any, widths: tuple[int, int]) -> None:
    """Header, activity and all, of a network that grows before every task but the first and of one that does not."""
    chosen = experiment(**REAL, head=head, keep="all", grow=grow)
    disk = plan(chosen, "small", store=None)["disk"]
    run(store, chosen)
    history = store.history("small")
    assert history.commits[0, 2].widths == widths
    trials = [cell.size for cells in history.cells.values() for cell in cells.values()]
    commits = [commit.size for commit in history.commits.values()]
    assert 0 < max(trials) <= disk["trial"]
    assert sum(commits) <= disk["commits"]
    assert sum(trials) + sum(commits) <= disk["kept"]


@pytest.mark.usefixtures("keeps_all")
def test_a_full_network_with_a_head_a_task_trains_heads_alone(store: Store) -> None:
    """The paper's final-layer transfer learning: nothing is claimed, and every task is learnt to some degree."""
    run(store, experiment(**REAL, head="multi"))
    commits = store.history("small").commits
    assert [commits[0, task].claimed for task in range(3)] == [(8, 6), (0, 0), (0, 0)]
    for task in (1, 2):
        record = commits[0, task]
        assert record.changed == 0
        assert record.validation.correct > 0.2 * record.validation.total
        assert [group.reused for group in record.usage.groups] != [0, 0]
    assert verify(store, "small")["sound"]


@pytest.mark.usefixtures("keeps_all")
def test_a_full_network_with_one_head_stops_and_goes_on_with_grow(store: Store) -> None:
    """Promises 1 and 3: grown in the middle, nothing old changes by a bit, and verify takes it all back from bytes."""
    with pytest.raises(Impossible, match=r"no free unit left in hidden2: all 6 are owned.* grow:"):
        run(store, experiment(**REAL))
    (stopped,) = status(store, "small")["runs"]
    assert stopped["state"] == "stopped"
    assert "grow:" in stopped["reason"]
    grows = experiment(**REAL, grow={"by": 0.5})
    run(store, grows)
    commits = store.history("small").commits
    assert [commits[0, task].widths for task in range(3)] == [(8, 6), (12, 9), (16, 12)]
    assert [commits[0, task].claimed for task in range(3)] == [(8, 6), (4, 3), (4, 3)]
    assert len({commits[0, task].fingerprints[0] for task in range(3)}) == 1
    assert all(commits[0, task].matrix[0] == commits[0, 0].test for task in range(3))
    found = verify(store, "small")
    assert found["sound"], found["problems"]
