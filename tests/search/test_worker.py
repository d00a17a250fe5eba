"""What a worker returns, and what it refuses. Real training on the digits, two tasks, both kinds of head."""

import functools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import clnp.commit
import clnp.footprint
import clnp.pace
import search.building
import search.worker.commit
import search.worker.measure
import search.worker.stack
from clnp.activity import mean_activity
from clnp.evaluation import logits
from clnp.network import FREE
from clnp.ownership import with_free
from clnp.pace import Pace
from clnp.subnetwork import subnetwork
from clnp.tasks import Split
from clnp.tasks.encoded import decoded
from clnp.tasks.whole import WholeTask
from clnp.tensors import decode, encode
from clnp.thresholds import curve
from clnp.training import open_task, train
from search.artifacts import Artifacts
from search.building import assemble, assembled, build_sequence, forget
from search.experiment import Experiment
from search.memory import MemoryBook
from search.records import CellRecord, CommitJob, Committed, Job, JobResult, Measured, MeasureJob, Progress, StackJob
from search.run import Run
from search.worker import WorkerSettings, perform
from search.worker.process import no_memory

HEADS = ("single", "multi")


def experiment(**changes: Any) -> Experiment:
    plain = {
        "tasks": {"count": 2},
        "model": {"hidden": [40, 30]},
        "grid": {"alpha": [1e-3, [1e-4, 1e-3, 1e-3]], "learning_rate": [0.005]},
        "training": {"epochs": 3},
        "rule": {"margin": 3},
        "keep": "all",
    }
    return Experiment.model_validate({**plain, **changes})


@dataclass(frozen=True)
class Played:
    """A run's jobs and their results, in order: stack, commit, stack, commit."""

    experiment: Experiment
    settings: WorkerSettings
    jobs: tuple[Job, ...]
    results: tuple[JobResult, ...]

    def stack(self, task: int) -> StackJob:
        job = self.jobs[2 * task]
        assert isinstance(job, StackJob)
        return job

    def commit(self, task: int) -> CommitJob:
        job = self.jobs[2 * task + 1]
        assert isinstance(job, CommitJob)
        return job

    def cells(self, task: int) -> tuple[CellRecord, ...]:
        return self.results[2 * task].cells


@functools.cache
def play(head: str, folder: Path) -> Played:
    return perform_all(experiment(head=head), folder)


def perform_all(chosen: Experiment, folder: Path) -> Played:
    folder.mkdir(exist_ok=True)
    settings = WorkerSettings(str(folder), None, "cpu", 1)
    book = MemoryBook()
    sequence = build_sequence(chosen, 0, None)
    run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1)
    jobs, results = [], []
    while (job := run.next_job()) is not None:
        jobs.append(job)
        results.append(perform(job, settings))
        run.take(job.id, results[-1])
    assert run.finished, run.stopped
    return Played(chosen, settings, tuple(jobs), tuple(results))


@pytest.fixture(scope="module", params=HEADS)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def single(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play("single", tmp_path_factory.getbasetemp() / "played-single")


@pytest.fixture(autouse=True)
def own_caches() -> None:
    """No test sees a network or a task that another one had reason to spoil."""
    forget()


def free_part(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A trial's tensors without the activities that lie beside them."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("activity.")}


def bits(record: Any) -> Any:
    """A record without when it came about."""
    return replace(record, started=0.0, ended=0.0)


def test_a_stack_returns_what_its_members_scored(played: Played) -> None:
    """Promise 2: every point of a recorded staircase was scored by the canonical evaluator."""
    job = played.stack(1)
    network = open_task(assemble(played.experiment, job.commits, Artifacts(played.settings.artifacts)), seed=0)
    task = build_sequence(played.experiment, 0, None).task(1)
    for record in played.cells(1):
        assert record.artifact is not None
        assert record.score is not None
        free = free_part(decode(Artifacts(played.settings.artifacts).get(record.artifact)))
        member = with_free(network, free)
        whole = curve(member, mean_activity(member, task.train.x), task.validation)
        assert record.score.correct == whole[0].correct
        assert record.score.total == len(task.validation)
        best = -1
        for point in reversed(whole):
            if point.correct > best:
                assert point in record.staircase
                best = point.correct
        assert record.size == len(Artifacts(played.settings.artifacts).get(record.artifact))
        assert record.provenance.stack == (0, 1)
        assert record.provenance.threads == 1
        assert record.provenance.device.startswith("cpu")
        assert record.provenance.versions["torch"] == torch.__version__
        assert record.epoch == 3
        assert len(record.epochs) == 3
        assert record.majority == int(task.validation.y.bincount().max())
        assert record.started < record.ended


def test_the_same_job_gives_the_same_bits(played: Played) -> None:
    """Promise 3: a stack that runs again has the same records, hash for hash."""
    for job, result in zip(played.jobs, played.results, strict=True):
        again = perform(job, played.settings)
        assert list(map(bits, again.cells)) == list(map(bits, result.cells))
        if result.commit is not None:
            assert bits(again.commit) == bits(result.commit)


def test_progress_is_told_after_every_epoch_and_scan(single: Played) -> None:
    told: list[Progress] = []
    result = perform(single.stack(0), single.settings, told.append)
    assert [progress.epoch for progress in told] == [1, 2, 3, 3, 3]
    assert {progress.epochs for progress in told} == {3}
    best = max(record.epochs[-1] for record in result.cells) / 150
    assert told[2].accuracy == best


def test_what_report_raises_ends_the_job(single: Played) -> None:
    class StopError(Exception):
        pass

    def report(progress: Progress) -> None:
        if progress.epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        perform(single.stack(0), single.settings, report)


def test_a_stack_never_opens_the_test_split(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 5: the test split stays closed until the commit."""

    def opened(_: object) -> None:
        raise AssertionError("a stack opened the test split")

    monkeypatch.setattr(WholeTask, "open_test", opened)
    for task in (0, 1):
        assert perform(played.stack(task), played.settings).cells


def test_a_commit_opens_its_test_split_after_committing(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 5: of the open task; the earlier ones' splits are open already."""
    order: list[str] = []
    own = build_sequence(played.experiment, 0, None).task(1)._transform.permutation  # type: ignore[attr-defined]

    def open_test(task: WholeTask) -> Any:
        order.append(
            "own test"
            if task._transform.permutation is not None and torch.equal(task._transform.permutation, own)
            else "earlier test"
        )
        return real_open(task)

    def commit(*arguments: Any) -> None:
        order.append("commit")
        real_commit(*arguments)

    real_open, real_commit = WholeTask.open_test, search.worker.commit.commit
    monkeypatch.setattr(WholeTask, "open_test", open_test)
    monkeypatch.setattr(search.worker.commit, "commit", commit)
    assert perform(played.commit(1), played.settings).commit is not None
    assert order.index("commit") < order.index("own test")
    assert "own test" not in order[: order.index("commit")]


def test_a_worker_never_has_the_floats_of_a_training_split(single: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are a quarter of them; the validation split is decoded, for its scans."""
    asked = []

    def floats(split: Split) -> torch.Tensor:
        asked.append(len(split))
        return decoded(split.samples)

    monkeypatch.setattr(Split, "x", property(floats))
    result = perform(single.stack(0), single.settings)
    assert list(map(bits, result.cells)) == list(map(bits, single.cells(0)))
    task = build_sequence(single.experiment, 0, None).task(0)
    assert set(asked) == {len(task.validation)}


def test_a_member_whose_scan_raises_fails_alone(single: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []

    def staircase(*arguments: Any) -> Any:
        scanned.append(arguments)
        if len(scanned) == 1:
            raise RuntimeError("out of memory")
        return real(*arguments)

    real = search.worker.stack.staircase
    monkeypatch.setattr(search.worker.stack, "staircase", staircase)
    result = perform(single.stack(0), single.settings)
    assert result.failures == {0: "RuntimeError: out of memory"}
    assert list(map(bits, result.cells)) == [bits(single.cells(0)[1])]


def test_a_diverged_member_is_a_result_and_touches_no_other(single: Played) -> None:
    job = single.stack(0)
    wild = replace(job.cells[0], learning_rate=1e30)
    result = perform(replace(job, cells=(wild, job.cells[1])), single.settings)
    assert not result.failures
    diverged, other = result.cells
    assert diverged.diverged is not None
    assert (diverged.score, diverged.artifact, diverged.size, diverged.staircase) == (None, None, 0, ())
    assert bits(other) == bits(single.cells(0)[1])


def test_a_commit_measures_every_task_again(played: Played) -> None:
    """Promise 1: fingerprints unchanged and logits equal, in one process on one device."""
    artifacts = Artifacts(played.settings.artifacts)
    first, second = played.results[1].commit, played.results[3].commit
    assert first is not None
    assert second is not None
    assert (first.changed, second.changed) == (0, 0)
    assert second.fingerprints[0] == first.fingerprint
    assert len(second.fingerprints) == len(second.matrix) == 2
    assert second.matrix[0] == first.test
    assert second.test == second.matrix[1]
    assert second.claimed == played.commit(1).point.claimed
    assert second.validation.correct == played.commit(1).point.correct
    commits = played.commit(1).commits
    before = assemble(played.experiment, commits, artifacts)
    last = replace(commits[0], task=1, artifact=second.artifact, fingerprint=second.fingerprint)
    after = assemble(played.experiment, (*commits, last), artifacts)
    x = build_sequence(played.experiment, 0, None).task(0).open_test().x
    assert torch.equal(logits(subnetwork(before, 0), x), logits(subnetwork(after, 0), x))
    assert second.free == tuple(int((after.owner(layer) == -1).sum()) for layer in after.groups)


@pytest.mark.parametrize("task", [0, 1])
def test_every_task_is_compared_at_full_width(played: Played, monkeypatch: pytest.MonkeyPatch, task: int) -> None:
    """Promise 1: a connection into a task's unit that was not severed is seen, whichever task it is."""

    def spoil(network: Any, claims: Any) -> None:
        real(network, claims)
        free = network.owner(network.groups[0]) == FREE
        own = network.owner(network.groups[1]) == task
        network.weights(network.layers[1]).weight[own.unsqueeze(1) & free] = 10.0

    real = search.worker.commit.commit
    monkeypatch.setattr(search.worker.commit, "commit", spoil)
    failure = perform(played.commit(1), played.settings).failure
    assert failure is not None
    assert f"task {task + 1} is answered otherwise by the whole network" in failure.text
    assert "not severed" in failure.text


def test_what_is_committed_is_scored_after_the_commit(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 2: a commit that spoils the task's own weights is refused."""

    def spoil(network: Any, claims: Any) -> None:
        real(network, claims)
        layer = network.layers[-2]
        network.weights(layer).weight[network.owner(layer.group) == network.task - 1] *= -1

    real = search.worker.commit.commit
    monkeypatch.setattr(search.worker.commit, "commit", spoil)
    failure = perform(played.commit(1), played.settings).failure
    assert failure is not None
    assert failure.kind == "damage"
    assert "right answers" in failure.text


def test_a_commit_is_read_back_before_it_counts(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 3: the tensors that are stored are those whose fingerprint was taken."""

    def alter(network: Any, task: int) -> Any:
        tensors = real(network, task)
        tensors["hidden1.weight"][0] += 1.0
        return tensors

    real = search.worker.commit.added
    monkeypatch.setattr(search.worker.commit, "added", alter)
    failure = perform(played.commit(1), played.settings).failure
    assert failure is not None
    assert "comes back from its own tensors with another fingerprint" in failure.text


def test_theta_by_layer_is_scored_and_committed(single: Played, tmp_path: Path) -> None:
    """Promise 2: the commit finds the units of a θ that was measured in its layer's scale, from the trial's bytes."""
    layers = perform_all(experiment(rule={"margin": 3, "theta": "layers"}), tmp_path)
    for task in range(2):
        point, record = layers.commit(task).point, layers.results[2 * task + 1].commit
        assert record is not None
        assert (record.claimed, record.validation.correct) == (point.claimed, point.correct)
    one, other = layers.cells(0)[0], single.cells(0)[0]
    assert one.artifact == other.artifact, "training does not depend on θ"
    assert [point.claimed for point in one.staircase] != [point.claimed for point in other.staircase]


def test_a_replica_trains_with_its_own_seed(single: Played) -> None:
    """Replica r of seed s is replica 0 of seed s + r, bit for bit."""
    job = single.stack(0)
    second = replace(job, replica=1, data=build_sequence(single.experiment, 1, None).sha256(0))
    other = experiment(seed=1)
    as_first = replace(second, replica=0, experiment=other.to_json())
    mine, theirs = (perform(each, single.settings).cells for each in (second, as_first))
    assert [bits(record) for record in mine] == [bits(record) for record in theirs]
    assert all(a.artifact != b.artifact for a, b in zip(mine, single.cells(0), strict=True))


def test_a_trial_without_its_activity_is_damaged(single: Played) -> None:
    artifacts = Artifacts(single.settings.artifacts)
    tensors = free_part(decode(artifacts.get(single.commit(0).artifact)))
    failure = perform(replace(single.commit(0), artifact=artifacts.put(encode(tensors))), single.settings).failure
    assert failure is not None
    assert "holds no activity of hidden1, hidden2" in failure.text


def test_a_missing_cut_is_seen(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: without severing the sub-network's answer stays, and the whole network's does not."""
    monkeypatch.setattr(clnp.commit, "sever", lambda *_: None)
    failure = perform(played.commit(1), played.settings).failure
    assert failure is not None
    assert failure.kind == "damage"


def test_an_old_entry_that_moves_is_counted(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: measured again, never copied."""

    def spoil(network: Any, claims: Any) -> None:
        real(network, claims)
        layer = network.layers[0]
        network.weights(layer).bias[(network.owner(layer.group) == 0).nonzero()[0]] += 1e-6

    real = search.worker.commit.commit
    monkeypatch.setattr(search.worker.commit, "commit", spoil)
    result = perform(played.commit(1), played.settings)
    assert result.commit is not None
    assert result.commit.changed == 1
    assert result.commit.fingerprints[0] != played.commit(1).commits[0].fingerprint


def test_a_changed_answer_is_counted(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: the logits are compared as well as the fingerprints."""
    real, calls = search.worker.commit.logits, []

    def answer(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments) + (1e-6 if len(calls) > 1 else 0.0)

    monkeypatch.setattr(search.worker.commit, "logits", answer)
    result = perform(played.commit(1), played.settings)
    assert result.commit is not None
    assert result.commit.changed == 1


def test_a_changed_fingerprint_is_counted(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: also where no answer to the test split shows it."""
    real = search.worker.commit.fingerprint

    def changed(network: Any, task: int) -> str:
        return "0" * 64 if (network.task, task) == (2, 0) else real(network, task)

    monkeypatch.setattr(search.worker.commit, "fingerprint", changed)
    result = perform(played.commit(1), played.settings)
    assert result.commit is not None
    assert result.commit.changed == 1


@pytest.mark.parametrize("wrong", ["right answers", "threshold"])
def test_only_what_was_scored_is_committed(played: Played, wrong: str) -> None:
    """Promise 2."""
    job = played.commit(0)
    if wrong == "threshold":
        point = replace(job.point, theta=None)
    else:
        point = replace(job.point, correct=job.point.correct + 1)
    failure = perform(replace(job, point=point), played.settings).failure
    assert failure is not None
    assert failure.kind == "damage"
    assert "was recorded with" in failure.text


def test_damaged_tensors_are_named(single: Played, tmp_path: Path) -> None:
    job = single.commit(1)
    for sha256 in (job.artifact, job.commits[0].artifact):
        for content in (b"nonsense", None):
            copy = Artifacts(str(tmp_path / sha256[:8] / str(content is None)))
            for each in Artifacts(single.settings.artifacts).list():
                copy.put(Artifacts(single.settings.artifacts).get(each))
            file = Path(copy.location) / f"{sha256}.safetensors"
            file.unlink() if content is None else file.write_bytes(content)
            failure = perform(job, replace(single.settings, artifacts=copy.location)).failure
            assert failure is not None
            assert failure.kind == "damage"
            assert file.name in failure.text


def test_another_fingerprint_is_damage(played: Played) -> None:
    job = played.stack(1)
    commits = (replace(job.commits[0], fingerprint="0" * 64),)
    failure = perform(replace(job, commits=commits), played.settings).failure
    assert failure is not None
    assert failure.kind == "damage"
    assert "fingerprint" in failure.text


def test_other_data_are_refused(single: Played) -> None:
    failure = perform(replace(single.stack(0), data="0" * 64), single.settings).failure
    assert failure is not None
    assert failure.kind == "input"
    assert "0" * 64 in failure.text


def test_other_data_of_an_earlier_task_are_refused_before_anything_is_measured(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises 1 and 3: a task's later scores are on the data that it opened with."""

    def opened(_: object) -> None:
        raise AssertionError("measured on other data")

    monkeypatch.setattr(WholeTask, "open_test", opened)
    job = played.commit(1)
    assert job.earlier == (played.commit(0).data,)
    failure = perform(replace(job, earlier=("0" * 64,)), played.settings).failure
    assert failure is not None
    assert failure.kind == "input"
    assert re.search(
        rf"data of task 1 on .* SHA-256 is {job.earlier[0]}, and was 0{{64}} when .* old data back", failure.text
    )


def test_a_missing_data_set_is_refused(single: Played, tmp_path: Path) -> None:
    mnist = experiment(tasks={"count": 2, "dataset": "mnist"})
    job = replace(single.stack(0), experiment=mnist.to_json())
    failure = perform(job, replace(single.settings, data_dir=str(tmp_path))).failure
    assert failure is not None
    assert failure.kind == "input"


def test_a_full_layer_is_impossible(tmp_path: Path) -> None:
    """Task 1 keeps every unit, so the shared output layer has nothing left to give task 2."""
    chosen = experiment(model={"hidden": [8, 4]}, rule={"margin": 0}, training={"epochs": 1})
    settings = WorkerSettings(str(tmp_path), None, "cpu", 1)
    book, sequence = MemoryBook(), build_sequence(chosen, 0, None)
    run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1)
    job = run.next_job()
    assert isinstance(job, StackJob)
    result = perform(job, settings)
    keep_all = tuple(replace(r, staircase=(replace(r.staircase[0], theta=None),)) for r in result.cells)
    for record in keep_all:
        assert record.score is not None
    whole = tuple(
        replace(r, staircase=(replace(r.staircase[0], correct=r.score.correct, claimed=(8, 4)),))  # type: ignore[union-attr]
        for r in keep_all
    )
    run.take(job.id, replace(result, cells=whole))
    commit = run.next_job()
    assert isinstance(commit, CommitJob), run.stopped
    done = perform(commit, settings).commit
    assert done is not None
    assert done.free == (0, 0)
    committed = Committed(0, done.artifact, done.fingerprint, done.widths)
    # The run itself hands out no such job; a worker refuses it all the same.
    failure = perform(replace(job, task=1, commits=(committed,), data=sequence.sha256(1)), settings).failure
    assert failure is not None
    assert failure.kind == "impossible"


def test_weight_decay_reaches_the_optimizer(single: Played) -> None:
    """A large one takes the L1 term's part: other weights, and every record whole."""
    found = []
    for decay in (0.0, 0.5):
        chosen = experiment(training={"epochs": 2, "optimizer": "adamw", "weight_decay": decay})
        result = perform(replace(single.stack(0), experiment=chosen.to_json()), single.settings)
        found.append([record.artifact for record in result.cells])
    assert all(plain and decayed and plain != decayed for plain, decayed in zip(*found, strict=True))


def test_a_commit_says_what_it_used(played: Played) -> None:
    """Units claimed, reused and free, weights by class, and the share of new units' input that is from old ones."""
    first, second = played.results[1].commit, played.results[3].commit
    assert first is not None
    assert second is not None
    for record in (first, second):
        assert tuple(group.claimed for group in record.usage.groups) == record.claimed
        assert tuple(group.free for group in record.usage.groups) == record.free
        assert [layer.name for layer in record.usage.layers] == ["hidden1", "hidden2", "output"]
        assert record.usage.layers[0].old_share is None, "it reads the samples"
    assert [layer.old_share for layer in first.usage.layers[1:]] == [0.0, 0.0]
    assert 0 < (second.usage.layers[1].old_share or 0) < 1
    assert [group.reused for group in first.usage.groups] == [0, 0]
    assert 0 <= second.usage.groups[0].reused <= first.claimed[0]


def test_threads_and_determinism_are_set_on_purpose(single: Played) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    perform(single.stack(0), single.settings)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    # TF32 would lose more than the full width may differ by.
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


OWN = """
import torch
from torch import nn
from clnp.tasks import Split, from_function

def spoil():
    "SPOILT"

def net(shape, classes):
    spoil()
    return Net(classes)

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.flatten, self.hidden, self.relu = nn.Flatten(), nn.Linear(64, 30), nn.ReLU()
        self.output = nn.Linear(30, classes)
    def forward(self, x):
        spoil()
        return self.output(self.relu(self.hidden(self.flatten(x))))

def tasks(count, seed, validation):
    def make(index, test):
        draw = torch.Generator().manual_seed(2 * index + test)
        x, y = torch.rand(200, 1, 8, 8, generator=draw, dtype=torch.float32), torch.arange(200) % 3
        x[torch.arange(200), 0, 0, y] += 1
        spoil()
        return Split(x, y)
    spoil()
    return from_function(make, count=count, seed=seed, validation=validation, classes=3)

spoil()
"""

SPOILT = """
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("medium")
    torch.backends.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.benchmark = True
    torch.backends.mkldnn.enabled = False
    torch.set_flush_denormal(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False)
"""


def torch_settings() -> dict[str, Any]:
    backends = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.fp32_precision),
        "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision),
        "benchmark": backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
        "denormal": float(torch.tensor(1e-40, dtype=torch.float32) * 0.5) > 0,
    }


@pytest.mark.parametrize(
    "spoilt", [SPOILT, "\n    torch.set_default_dtype(torch.float64)\n", "\n    torch.set_default_device('meta')\n"]
)
def test_own_code_changes_no_setting_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str) -> None:
    """Promise 3: bits are those of the settings that the record names, whatever a person's code sets, and wherever."""
    results, while_training = [], []
    for name, spoil in (("quiet", "\n    pass\n"), ("loud", spoilt)):
        folder = tmp_path / name
        folder.mkdir()
        text = OWN.replace('\n    "SPOILT"\n', spoil)
        if spoilt != SPOILT:
            # Once, when imported: what it makes itself after that is its own affair.
            text = re.sub(r"^ +spoil\(\)\n", "", text, flags=re.MULTILINE)
        (folder / "ownbits.py").write_text(text)
        monkeypatch.delitem(sys.modules, "ownbits", raising=False)
        monkeypatch.setattr(sys, "path", list(sys.path))
        code = (str(folder),)
        plain = experiment(
            model={"kind": "ownbits:net"},
            tasks={"kind": "ownbits:tasks", "count": 1},
            grid={"alpha": [1e-3]},
            worker={"cells": 9},
        )
        chosen = search.building.resolve(plain, None, code)
        sequence = build_sequence(chosen, 0, None, code)
        run = Run(chosen, book := MemoryBook(), book, data=lambda _, task, of=sequence: of.sha256(task), workers=1)
        # The worker is another process, and imports the code itself.
        forget()
        del sys.modules["ownbits"]

        def spy(*arguments: Any, **named: Any) -> Any:
            while_training.append(torch_settings())
            return train(*arguments, **named)

        monkeypatch.setattr(search.worker.stack, "train", spy)
        tensors = tmp_path / f"tensors {name}"
        tensors.mkdir()
        settings = WorkerSettings(str(tensors), None, "cpu", 1, code)
        for _ in range(2):
            job = run.next_job()
            assert job is not None, run.stopped
            result = perform(job, settings)
            assert result.failure is None
            results.append(result)
            run.take(job.id, result)
        assert run.finished, run.stopped
        while_training.append(torch_settings())
    assert all(found == while_training[0] for found in while_training)
    assert while_training[0]["threads"] == 1
    assert list(map(bits, results[0].cells)) == list(map(bits, results[2].cells))
    assert bits(results[1].commit) == bits(results[3].commit)


def test_what_ran_before_the_worker_changes_no_setting_either(single: Played) -> None:
    torch.set_default_dtype(torch.float64)
    perform(single.stack(0), single.settings)
    assert torch.get_default_dtype() == torch.float32


get = Artifacts.get


def test_caches_are_bounded(single: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (search.building._sequence, search.building._task, search.building._network):
        assert cached.cache_info().maxsize is not None
    read = []
    monkeypatch.setattr(Artifacts, "get", lambda *given, **named: (read.append(given), get(*given, **named))[1])
    perform(single.stack(1), single.settings)
    perform(single.commit(1), single.settings)
    assert len(read) == 2, "the commit before is read once; the other is the winner"
    assert search.building._task.cache_info().hits == 1
    for index in range(6):
        assembled(single.experiment, (), Artifacts(str(tmp_path / str(index))))
    assert len(search.building._ASSEMBLED) == 4


def test_a_worker_reads_only_what_was_committed_since(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 25 tasks it would else fetch and hash the 24 before, in every task."""
    last = played.results[3].commit
    assert last is not None
    before = played.stack(1).commits
    after = (*before, Committed(1, last.artifact, last.fingerprint, last.widths))
    artifacts, read = Artifacts(played.settings.artifacts), []
    first = assembled(played.experiment, before, artifacts)
    untouched = first.copy().state_dict()
    monkeypatch.setattr(Artifacts, "get", lambda *given, **named: (read.append(given), get(*given, **named))[1])
    found = assembled(played.experiment, after, artifacts).state_dict()
    assert len(read) == 1
    assert assembled(played.experiment, before, artifacts) is first
    for expected, now in (
        (untouched, first.state_dict()),
        (assemble(played.experiment, after, artifacts).state_dict(), found),
    ):
        assert expected.keys() == now.keys()
        assert all(torch.equal(now[name], value) for name, value in expected.items())


LIMITED = """
import json, resource, sys

import psutil

from search.experiment import Experiment
from search.records import StackJob
from search.building import build_sequence
from search.memory import MemoryBook
from search.run import Run
from search.worker import WorkerSettings, perform

chosen = Experiment.model_validate(json.loads(sys.argv[1]))
settings, book = WorkerSettings(sys.argv[2], None, "cpu", 1), MemoryBook()
sequence = build_sequence(chosen, 0, None)
events = []
run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1, on_event=events.append)
job = run.next_job()
room = psutil.Process().memory_info().vms + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (room, room))
while job is not None:
    run.take(job.id, perform(job, settings))
    job = run.next_job()
print(json.dumps({
    "stopped": str(run.stopped),
    "finished": run.finished,
    "splits": [[job.cells, job.note] for job in book.splits],
    "stacks": sorted({record.provenance.stack for record in book.cells.get((0, 0), {}).values()}),
    "told": [event.text for event in events if event.kind == "stack split"],
    "losses": [[job.cells, job.note] for job in book.losses],
}))
"""


def limited(folder: Path, megabytes: int, **changes: Any) -> dict[str, Any]:
    """A run in a process that may take so much memory beyond what its imports took."""
    wide = {
        "tasks": {"count": 1},
        "model": {"hidden": [4000]},  # a batch's activations are 22 MB a member, each time that a step makes them
        "grid": {"alpha": [1e-3], "learning_rate": [1e-3 * place for place in range(1, 9)]},
        "rule": {"margin": 50},
        "training": {"epochs": 1, "batch_size": 1350},
        "worker": {"cells": 8, "gpu": 0},
        "retries": 0,
    }
    command = [sys.executable, "-c", LIMITED, json.dumps({**wide, **changes}), str(folder), str(megabytes * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_stack_that_finds_no_memory_is_split_and_the_run_goes_on(tmp_path: Path) -> None:
    """Promise 3: what had to differ is recorded."""
    found = limited(tmp_path, 400)
    assert found["finished"], found["stopped"]
    whole = list(range(8))
    assert found["splits"][0][0] == whole
    assert all(re.match(r"out of memory on .*:\d+: .*can't allocate memory", note) for _, note in found["splits"])
    assert found["told"][0].startswith("cells 0–7: out of memory on ")
    assert sorted(cell for stack in found["stacks"] for cell in stack) == whole
    assert max(map(len, found["stacks"])) <= 4
    assert found["losses"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_says_that_memory_is_wanting(text: str, expected: bool) -> None:
    """Where several processes share a GPU it need not be torch's own allocator that finds none."""
    assert no_memory(RuntimeError(text)) == expected


@pytest.mark.slow
def test_a_single_cell_that_finds_no_memory_is_lost_for_that_reason(tmp_path: Path) -> None:
    found = limited(tmp_path, 100)
    assert re.match(r"replica 1, task 1: cell 0 .* was lost once .* because: out of memory on ", found["stopped"])
    assert [cells for cells, _ in found["losses"]] == [[0]]
    assert [cells for cells, _ in found["splits"]] == [list(range(8)), [0, 1, 2, 3], [0, 1]]


@pytest.mark.parametrize(("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_hardly_spin_for_each_other(given: dict[str, str], expected: str) -> None:
    """It is said before torch is imported, which is when OpenMP reads it; unless somebody knows better."""
    script = "import os, sys, search.worker; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == f"{expected} False\n"


def test_memory_is_measured_for_the_stacks_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here in its place a gauge that counts what is trained."""
    trained: list[int] = []

    def gauge(work: Any, _: torch.device) -> int:
        work()
        return 1000 + 300 * trained[-1]

    def counted(*arguments: Any, **options: Any) -> Any:
        trained.append(len(arguments[3]))
        return train(*arguments, **options)

    monkeypatch.setattr(clnp.footprint, "train", counted)
    monkeypatch.setattr(clnp.footprint, "cuda_peak", gauge)
    monkeypatch.setattr(search.worker.measure, "gpu_bytes", lambda: 9_000_000)
    monkeypatch.setattr(clnp.pace, "_SLOW", math.inf)  # however busy this machine is
    chosen, settings, book = (
        experiment(worker={"gpu": 0.5}),
        WorkerSettings(str(tmp_path), None, "cpu", 1),
        MemoryBook(),
    )
    sequence = build_sequence(chosen, 0, None)
    run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1)
    job = run.next_job()
    assert isinstance(job, MeasureJob)
    assert run.next_job() is None, "no task opens before its stacks can be formed"
    result = perform(job, settings)
    assert trained == [1, 1, 2]
    assert result.measured is not None
    memory, pace = result.measured.memory, result.measured.pace
    assert memory is not None
    assert (memory.member, memory.total) == (300, 9_000_000)
    assert pace is not None
    assert pace.members == 2
    rest = sequence.task(0)
    data = sum(part.samples.nbytes + part.y.nbytes for part in (rest.train, rest.validation))
    # And the old features of later tasks: 40 + 30 units of every sample.
    kept = sum(len(part) * (40 + 30) * 4 for part in (rest.train, rest.validation))
    assert 1000 < memory.fixed - kept < 1000 + data
    run.take(job.id, result)
    assert book.measured == result.measured
    assert isinstance(run.next_job(), StackJob)


def test_where_two_members_find_no_memory_each_cell_trains_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(clnp.footprint, "cuda_peak", full)
    monkeypatch.setattr(search.worker.measure, "gpu_bytes", lambda: 9_000_000)
    settings, book = WorkerSettings(str(tmp_path), None, "cpu", 1), MemoryBook()
    chosen = experiment(worker={"gpu": 1})
    sequence = build_sequence(chosen, 0, None)
    run = Run(chosen, book, book, data=lambda _, task: sequence.sha256(task), workers=1)
    job = run.next_job()
    assert job is not None
    result = perform(job, settings)
    assert result.measured is not None
    assert result.measured.pace is None, "no stack that fits could be timed"
    run.take(job.id, result)
    stack = run.next_job()
    assert isinstance(stack, StackJob)
    assert len(stack.cells) == 1


def test_a_stack_that_finds_no_memory_while_it_is_timed_has_no_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: the stacks that form by the network's size alone go out in halves."""

    def full(*_: Any, **__: Any) -> Pace:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    chosen, settings = experiment(**MIDDLE), WorkerSettings(str(tmp_path), None, "cpu", 1)
    sequence = build_sequence(chosen, 0, None)
    run = Run(chosen, book := MemoryBook(), book, data=lambda _, task: sequence.sha256(task), workers=1)
    job = run.next_job()
    assert isinstance(job, MeasureJob)
    assert job.members == 2
    for wrong in (RuntimeError("a bug"), ValueError("a bug")):
        monkeypatch.setattr(clnp.pace, "measure", functools.partial(_raise, wrong))
        with pytest.raises(type(wrong), match="a bug"):
            perform(job, settings)
    monkeypatch.setattr(clnp.pace, "measure", full)
    result = perform(job, settings)
    assert result.measured == Measured(None, None)
    run.take(job.id, result)
    stack = run.next_job()
    assert isinstance(stack, StackJob)
    assert len(stack.cells) == 2


MIDDLE: dict[str, Any] = {"model": {"hidden": [300, 300]}, "worker": {"gpu": 0}}
"""112,200 weights: whether a stack gains is measured."""


def _raise(error: Exception, *_: Any, **__: Any) -> None:
    raise error


def test_the_precision_of_training_is_in_every_record(tmp_path: Path) -> None:
    """What bits depend on is recorded; float32 where nothing else is asked for."""
    for precision in ("float32", "bf16"):
        chosen = experiment(tasks={"count": 1}, training={"epochs": 3, "precision": precision})
        played = perform_all(chosen, tmp_path / precision)
        commit = played.results[1].commit
        assert commit is not None
        assert {record.provenance.precision for record in (*played.cells(0), commit)} == {precision}
