"""Fine-tuning as part of a commit (Sec. 3.2): what a worker does and records, what is refused, and what is shown."""

import functools
import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import search.worker.commit
import search.worker.stack
from clnp.evaluation import logits
from clnp.forgetting import Point
from clnp.rounds import Round
from clnp.subnetwork import subnetwork
from search.artifacts import Artifacts
from search.audit import verify
from search.backends.simulated import Simulated, World
from search.building import assemble, build_sequence, forget
from search.checks import check_commit, unsound_rounds
from search.driver import run_experiment
from search.errors import Damage
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import CommitJob, CommitRecord, Job, JobResult, Progress, dump, load
from search.reports.final import final
from search.reports.plan import plan
from search.reports.replay import replay
from search.reports.show import show
from search.run import Run
from search.snapshot import Event
from search.store import Store, open_store
from search.tables import TABLES, print_table
from search.view import View, progress_line
from search.worker import WorkerSettings, perform

PLAIN: dict[str, Any] = {
    "name": "tuned",
    "tasks": {"count": 2},
    "model": {"hidden": [40, 30]},
    "grid": {"alpha": [1e-3], "learning_rate": [0.005]},
    "training": {"epochs": 3, "early_stopping": True, "patience": 2},
    "rule": {"margin": 1},
    "fine_tuning": {"epochs": 3, "learning_rate": 0.003, "alpha": 1e-4, "rounds": 3, "margin": 8},
}


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({**PLAIN, **changes})


# ── What a worker does ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Played:
    """A run's jobs and results: stack, commit, stack, commit."""

    experiment: Experiment
    settings: WorkerSettings
    jobs: tuple[Job, ...]
    results: tuple[JobResult, ...]

    def commit(self, task: int) -> tuple[CommitJob, CommitRecord]:
        job, record = self.jobs[2 * task + 1], self.results[2 * task + 1].commit
        assert isinstance(job, CommitJob)
        assert record is not None
        return job, record


@functools.cache
def play(folder: Path, head: str, theta: str) -> Played:
    chosen = experiment(head=head, rule={"margin": 1, "theta": theta})
    settings = WorkerSettings(str(folder), None, "cpu", 1)
    book, sequence = MemoryBook(), build_sequence(chosen, 0, None)
    run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1)
    jobs, results = [], []
    while (job := run.next_job()) is not None:
        jobs.append(job)
        results.append(perform(job, settings))
        run.take(job.id, results[-1])
    assert run.finished, run.stopped
    return Played(chosen, settings, tuple(jobs), tuple(results))


@pytest.fixture(scope="module", params=[("single", "shared"), ("multi", "layers")], ids="-".join)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("tuned"), *request.param)


@pytest.fixture(autouse=True)
def own_caches() -> None:
    forget()


def bits(record: CommitRecord | None) -> CommitRecord:
    assert record is not None
    return replace(record, started=0.0, ended=0.0)


def test_a_commit_is_fine_tuned_and_scored_again(played: Played) -> None:
    """Promise 2: the rounds begin with the rule's point, and what the last one kept is what is committed: restored from
    its bytes it has that score."""
    won = 0
    for task in (0, 1):
        job, record = played.commit(task)
        first, last = record.rounds[0], record.rounds[-1]
        assert (first.theta, first.claimed, first.pruned) == (job.point.theta, job.point.claimed, job.point.correct)
        assert record.point == job.point
        assert (record.claimed, record.validation.correct) == (last.claimed, last.correct)
        assert record.validation.correct >= job.needed
        assert all(one.pruned >= job.needed for one in record.rounds)
        won += sum(one.better for one in record.rounds)
        done = assembled(played, task)
        split = build_sequence(played.experiment, 0, None).task(task).validation
        right = (logits(subnetwork(done, task), split.x).argmax(1) == split.y).sum()
        assert int(right) == record.validation.correct
        assert tuple(int((done.owner(group) == task).sum()) for group in done.groups) == record.claimed
    assert won > 0, "nothing was won back: the test shows nothing"


def assembled(played: Played, task: int) -> Any:
    job, record = played.commit(task)
    last = replace((*job.commits, *played.commit(1)[0].commits)[0], task=task, artifact=record.artifact)
    last = replace(last, fingerprint=record.fingerprint, widths=record.widths)
    return assemble(played.experiment, (*job.commits, last), Artifacts(played.settings.artifacts))


def test_fine_tuning_changes_no_earlier_task(played: Played) -> None:
    """Promise 1: fingerprint, logits, and the score on the test split."""
    (_, first), (_, second) = played.commit(0), played.commit(1)
    assert (first.changed, second.changed) == (0, 0)
    assert second.fingerprints[0] == first.fingerprint
    assert second.matrix[0] == first.test
    x = build_sequence(played.experiment, 0, None).task(0).open_test().x
    answers = [logits(subnetwork(assembled(played, task), 0), x) for task in (0, 1)]
    assert torch.equal(*answers)


def test_a_fine_tuned_commit_that_runs_again_has_the_same_bits(played: Played) -> None:
    """Promise 3."""
    for task in (0, 1):
        job, record = played.commit(task)
        assert bits(perform(job, played.settings).commit) == bits(record)
        assert load(CommitRecord, dump(record)) == record


def test_every_epoch_of_a_commit_is_told(played: Played) -> None:
    told: list[Progress] = []
    job, record = played.commit(1)
    perform(job, played.settings, told.append)
    rounds = len(record.rounds)
    assert [progress.epoch for progress in told] == list(range(1, 3 * rounds + 1))
    assert {progress.epochs for progress in told} == {9}
    assert told[2].accuracy == (record.rounds[0].tuned or 0) / record.validation.total


def test_a_diverged_round_commits_what_was_pruned(played: Played) -> None:
    chosen = {**PLAIN["fine_tuning"], "learning_rate": 1e30, "rounds": 1}
    job, _ = played.commit(1)
    wild = experiment(head=played.experiment.head, fine_tuning=chosen, rule=played.experiment.rule.model_dump())
    result = perform(replace(job, experiment=wild.to_json()), played.settings)
    record = bits(result.commit)
    assert record.rounds == (Round(job.point.theta, job.point.claimed, job.point.correct, None),)
    assert (record.claimed, record.validation.correct) == (job.point.claimed, job.point.correct)


def test_what_is_not_the_winner_is_not_fine_tuned(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 2: its recorded score comes first; nothing is trained on what is something else."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was fine-tuned")

    monkeypatch.setattr(search.worker.commit, "fine_tune", never)
    job, _ = played.commit(0)
    wrong = replace(job, point=replace(job.point, correct=job.point.correct + 1))
    failure = perform(wrong, played.settings).failure
    assert failure is not None
    assert failure.kind == "damage"
    assert "was recorded with" in failure.text


def test_what_fine_tuning_scored_is_what_is_committed(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 2: a commit that spoils what was fine-tuned is refused."""
    job, record = played.commit(1)

    def spoil(network: Any, claims: Any) -> None:
        real(network, claims)
        layer = network.layers[-2]
        network.weights(layer).weight[network.owner(layer.group) == network.task - 1] *= -1

    real = search.worker.commit.commit
    monkeypatch.setattr(search.worker.commit, "commit", spoil)
    failure = perform(job, played.settings).failure
    assert failure is not None
    rounds = len(record.rounds)
    assert f"fine-tuned in {rounds} round{'s' if rounds > 1 else ''}, was recorded with" in failure.text


# ── What is taken in ──────────────────────────────────────────────────────────────────────────────────────────────────


def tuned(theta: float | None = 0.1, claimed: tuple[int, ...] = (8, 6), pruned: int = 90, **given: Any) -> Round:
    return Round(theta, claimed, pruned, given.get("tuned", 93))


def test_the_better_is_kept_and_ties_go_to_before() -> None:
    assert [tuned(tuned=count).correct for count in (93, 90, 89, None)] == [93, 90, 90, 90]
    assert [tuned(tuned=count).better for count in (93, 90, 89, None)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("rounds", "claimed", "asked", "why"),
    [
        ((), (8, 6), 2, "fine-tuned in 0 rounds where 2 were asked for"),
        ((tuned(),), (8, 6), 0, "fine-tuned in 1 rounds where 0 were asked for"),
        ((tuned(), tuned(claimed=(7, 6)), tuned(claimed=(6, 6))), (6, 6), 2, "in 3 rounds where 2"),
        ((tuned(theta=0.2),), (8, 6), 2, "at θ=0.2, but the rule's point has 90 and .* at θ=0.1"),
        ((tuned(claimed=(8, 5)),), (8, 5), 2, r"90 right answers and \[8, 5\] units"),
        ((tuned(pruned=91),), (8, 6), 2, "began with 91 right answers"),
        ((tuned(), tuned(claimed=(7, 7))), (7, 7), 2, r"round 2 of fine-tuning pruned \[8, 6\] units to \[7, 7\]"),
        ((tuned(), tuned()), (8, 6), 2, "round 2 .* units to"),
        ((tuned(), tuned(claimed=(7, 6), pruned=88)), (7, 6), 2, "round 2 .* 88 right answers, but 89 are needed"),
        ((tuned(), tuned(claimed=(7, 6))), (8, 6), 2, r"\[7, 6\] units were left .* but \[8, 6\] are claimed"),
        ((), (8, 5), 0, r"\[8, 6\] units were left .* but \[8, 5\] are claimed"),
    ],
)
def test_rounds_that_do_not_hang_together_are_refused(
    make: Any, rounds: tuple[Round, ...], claimed: tuple[int, ...], asked: int, why: str
) -> None:
    """Promise 2: before anything is written, and by verify."""
    record = replace(make.commit(), point=Point(0.1, 90, (8, 6), 0), needed=89, rounds=rounds, claimed=claimed)
    problem = unsound_rounds(record, asked)
    assert problem is not None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(problem)
    sound = replace(record, rounds=(tuned(), tuned(claimed=(7, 6), pruned=89)), claimed=(7, 6))
    assert unsound_rounds(sound, 2) is None


def test_another_score_or_other_rounds_than_asked_for_are_damage() -> None:
    book, jobs = MemoryBook(), []
    run = Run(experiment(), book, book, data=lambda *_: "data", workers=1)
    world = World()
    while not jobs:
        job = run.next_job()
        if isinstance(job, CommitJob):
            jobs.append(job)
        else:
            assert job is not None
            run.take(job.id, world.stack(job, {}, 0.0, 1.0))
    record = world.commit(jobs[0], 0.0, 1.0).commit
    assert record is not None
    check_commit(jobs[0], record, [])
    off = replace(record.validation, correct=record.validation.correct - 1)
    with pytest.raises(Damage, match="right after the last round of fine-tuning"):
        check_commit(jobs[0], replace(record, validation=off), [])
    with pytest.raises(Damage, match=r"fine-tuned in 0 rounds where 3 were asked for\. Nothing was committed"):
        check_commit(jobs[0], replace(record, rounds=()), [])
    plain = replace(jobs[0], experiment=experiment(fine_tuning=None).to_json())
    with pytest.raises(Damage, match="where 0 were asked for"):
        check_commit(plain, record, [])


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), rounds=st.integers(1, 5))
def test_simulated_commits_are_sound(seed: int, rounds: int) -> None:
    """Whatever the made-up workers draw, the run takes it; and what is claimed is what is no longer free."""
    chosen = experiment(seed=seed, fine_tuning={"rounds": rounds}, tasks={"count": 3})
    book, events = MemoryBook(), list[Event]()
    run = Run(chosen, book, book, data=lambda *_: "data", workers=2, on_event=events.append)
    Simulated(workers=2).execute(run)
    assert run.finished, run.stopped
    free = (40, 30)
    for _, record in sorted(book.commits.items()):
        free = tuple(left - new for left, new in zip(free, record.claimed, strict=True))
        assert record.free == free
    told = [event.text for event in events if event.kind == "task committed"]
    assert all("fine-tuned in" in text for text in told)


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def printed(kind: str, report: Any) -> str:
    stream = io.StringIO()
    print_table(TABLES[kind](report), stream)
    return stream.getvalue()


class Quiet(View):
    """Remembers what it was told, and how far commits were."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real run on a database, and the events that were told."""
    view = Quiet()
    path = tmp_path_factory.mktemp("shown") / "runs.db"
    with open_store(f"sqlite:///{path}") as store:
        run_experiment(store, experiment(), name="tuned", backend="inline", view=view)
    return path, view.events


@pytest.fixture
def store(finished: Any) -> Any:
    with open_store(f"sqlite:///{finished[0]}", create=False) as store:
        yield store


def test_show_tells_every_round(store: Store) -> None:
    report = show(store, "tuned")
    record = store.history("tuned").commits[0, 1]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [one["theta"] for one in report["rounds"]] == [one.theta for one in record.rounds]
    assert [tuple(one["claimed"].values()) for one in report["rounds"]] == [one.claimed for one in record.rounds]
    assert [one["pruned"]["correct"] for one in report["rounds"]] == [one.pruned for one in record.rounds]
    assert [one["tuned"] and one["tuned"]["correct"] for one in report["rounds"]] == [
        one.tuned for one in record.rounds
    ]
    assert [one["better"] for one in report["rounds"]] == [one.better for one in record.rounds]
    assert report["explained"]
    assert report["margin"] == 8
    text = printed("show", report)
    assert "\nfine-tuning\n" in text
    assert text.count("trained again") >= 1 + sum(one.better for one in record.rounds)
    assert f"({record.validation.correct} of {record.validation.total}) after fine-tuning, before pruning" in text
    wild = {**report["rounds"][0], "tuned": None, "better": False}
    assert "diverged  as it was pruned" in printed("show", {**report, "rounds": [wild]})


def test_what_fine_tuning_did_not_give_is_not_said_of_it(store: Store) -> None:
    report = show(store, "tuned")
    wild = {**report["rounds"][0], "tuned": None, "better": False}
    vain = {**wild, "tuned": wild["pruned"]}
    won = {**wild, "tuned": report["best"], "better": True}
    for rounds, said in (
        ([wild], "; fine-tuning diverged: committed as it was pruned\n"),
        ([vain, wild], "; fine-tuning gained nothing: committed as it was pruned\n"),
        ([won, wild], ") after fine-tuning, before pruning"),
        ([], "), before pruning"),
    ):
        text = printed("show", {**report, "rounds": rounds})
        (line,) = (line + "\n" for line in text.splitlines() if line.strip().startswith("validation "))
        assert said in line
        assert ("fine-tuning" in line) == bool(rounds)


def test_the_threshold_beside_the_units_is_that_of_the_last_round(store: Store) -> None:
    """Each round prunes again: the first θ does not leave the units that were committed."""
    history = store.history("tuned")
    record = history.commits[0, 1]
    later = replace(record.rounds[-1], theta=0.123456)
    history.commits[0, 1] = replace(record, rounds=(record.rounds[0], later))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "history", lambda *_: history)
        report = show(store, "tuned")
        row = final(store, "tuned")["replicas"][0]["tasks"][1]
    assert report["theta"] == row["theta"] == 0.123456
    assert re.search(r"\n +θ +0\.123456, in round 2 of fine-tuning\n", printed("show", report))


def test_a_replay_says_that_fine_tuning_is_none_of_it(store: Store) -> None:
    report = replay(store, "tuned", "8")
    tasks = report["replicas"][0]["tasks"]
    assert all(task["fine_tuned"] and task["cost"] == 0 for task in tasks)
    commits = store.history("tuned").commits
    assert [task["correct"] for task in tasks] == [commits[0, task].point.correct for task in range(len(tasks))]
    note = "right fewer than the committed trial where it was pruned, before fine-tuning; freed"
    assert note in printed("replay", report)
    for task in tasks:
        task["fine_tuned"] = False
    assert "right fewer than the commit; freed" in printed("replay", report)


def test_the_events_tell_what_was_won(store: Store, finished: Any) -> None:
    """The winner's is that of the rule's point, the commit's that of the last round."""
    for task in (0, 1):
        record = store.history("tuned").commits[0, task]
        winner, done = (
            next(event.text for event in finished[1] if (event.kind, event.task) == (kind, task))
            for kind in ("winner chosen", "task committed")
        )
        assert f"{record.point.correct} of 150 right" in winner
        assert f"{record.point.claimed[0]} + {record.point.claimed[1]} new units" in winner
        assert f"claimed {record.claimed[0]} + {record.claimed[1]} units" in done
        rounds = f"fine-tuned in {len(record.rounds)} round{'' if len(record.rounds) == 1 else 's'}: "
        assert rounds + f"{record.point.correct} → {record.validation.correct} of 150 right" in done


def test_verify_finds_a_fine_tuned_run_sound_and_a_changed_round(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1 on what was restored; Promise 2 on the records."""
    assert verify(store, "tuned")["problems"] == []
    history = store.history("tuned")
    record = history.commits[0, 1]
    history.commits[0, 1] = replace(record, rounds=(replace(record.rounds[0], pruned=1), *record.rounds[1:]))
    monkeypatch.setattr(Store, "history", lambda *_: history)
    (problem,) = verify(store, "tuned")["problems"]
    assert "task 2: fine-tuning began with 1 right answers" in problem
    more = replace(record.validation, correct=record.validation.correct + 1)
    history.commits[0, 1] = replace(record, validation=more)
    (problem,) = verify(store, "tuned")["problems"]
    assert f"{more.correct} right answers were recorded where {record.validation.correct} were scored" in problem


def test_the_plan_says_it_in_a_line() -> None:
    report = plan(experiment(fine_tuning={}), "new", store=None)
    assert report["fine_tuning"]["rounds"] == 1
    assert "fine-tuning   1 round of 20 epochs at 1e-4, α 5e-5\n" in printed("plan", report)
    text = printed(
        "plan", plan(experiment(fine_tuning={"rounds": 3, "margin": 4, "alpha": [0.1, 0, 1e-4]}), "new", store=None)
    )
    assert "at most 3 rounds of 20 epochs at 1e-4, α 0.1, 0, 1e-4, pruned at a margin of 4 % instead" in text
    plain = plan(experiment(fine_tuning=None), "new", store=None)
    assert plain["fine_tuning"] is None
    assert "fine-tuning" not in printed("plan", plain)


def test_the_view_tells_the_epochs_of_a_commit() -> None:
    book, lines = MemoryBook(), []

    def told(event: Event) -> None:
        if event.kind == "winner chosen":
            lines.append(event)

    run = Run(experiment(), book, book, data=lambda *_: "data", workers=1, on_event=told)
    world = World()
    while not lines:
        job = run.next_job()
        assert job is not None
        if not isinstance(job, CommitJob):
            run.take(job.id, world.stack(job, {}, 0.0, 1.0))
    assert isinstance(job, CommitJob)
    run.progress(job.id, Progress("host:1", 4, 9, 0.9))
    assert progress_line(run.snapshot()).endswith("running: commit epoch 4 of 9")
