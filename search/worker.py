"""What a worker does: train a stack and scan it, or commit a winner and measure every task again.

A worker knows no Ray and no database. A job says all it needs, records go back to who called, tensors into the artifact
store (Promise 6).
"""

import gc
import math
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clnp.activity import by_layer, mean_activity
from clnp.commit import added, commit, fingerprint, restore
from clnp.diagnostics import diagnose
from clnp.errors import Damaged, DataUnavailable, Diverged, NothingToCommit
from clnp.evaluation import count_correct, full_width_agrees, full_width_difference, logits
from clnp.finetuning import fine_tune
from clnp.footprint import cuda_peak, measure
from clnp.growth import widths
from clnp.network import FREE, Network
from clnp.ownership import Claims, with_free
from clnp.rounds import Round
from clnp.subnetwork import cut, subnetwork
from clnp.tensors import decode, encode
from clnp.thresholds import claims_at, staircase
from clnp.training import Member, Settings, Trained, open_task, train
from clnp.usage import Usage
from search.artifacts import Artifacts
from search.building import assembled, build_sequence, build_task, grown
from search.delivered import find
from search.errors import BadInput, Damage
from search.experiment import Experiment
from search.records import (
    Cell,
    CellRecord,
    CommitJob,
    CommitRecord,
    Failure,
    Job,
    JobResult,
    MeasureJob,
    Memory,
    Progress,
    Provenance,
    Score,
    StackJob,
)
from search.sections import FineTuning, spread
from search.text import first_line, plural
from search.versions import describe

__all__ = [
    "WorkerSettings",
    "configure",
    "device_name",
    "perform",
    "worker_name",
]

Report = Callable[[Progress], None]

_WITHOUT_WINNER = (
    "Every commit is whole without it. Without a copy the cells of this task have to be trained again: clnp-search "
    "verify says how"
)

_PAUSE = 0.5
"""Seconds between two looks at whether to end, while artifacts are waited for."""

_ACTIVITY = "activity."
"""Begins the names of a trial's entries that hold the mean activity of a group's units."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Where a worker finds things and what it may use.

    Attributes:
        artifacts: Where the run's tensors are, prepared: a folder, or ``s3://BUCKET/PREFIX``.
        data_dir: Where data sets lie, or None: where they lie by default.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads that torch may use. Bits depend on it.
        code: The folders in which a person's own functions are looked for.
        gpu: Its share of a GPU, or how many: a worker with a share takes no more of the memory.
        patience: Seconds for which artifacts are tried again while they cannot be reached: what was trained is worth
            more than the wait.
        delivered: The name under which data sets were brought to nodes that lack them, or None.
    """

    artifacts: str
    data_dir: str | None
    device: str
    threads: int
    code: tuple[str, ...] = ()
    gpu: float = 1.0
    patience: float = 600.0
    delivered: str | None = None


def perform(job: Job, settings: WorkerSettings, report: Report = lambda _: None) -> JobResult:
    """Do a job.

    Args:
        job: What to do, and all that is needed for it.
        settings: Of this worker.
        report: Told after every epoch, of fine-tuning too, and every scan how far a job has come. What it raises ends
            the job.

    Returns:
        The records; or, in :attr:`JobResult.failure`, why this job cannot succeed however often it is tried.

    Raises:
        Unavailable: The artifact store cannot be reached: another try may succeed.
        RuntimeError: Training failed, such as for want of memory: smaller stacks may succeed.
    """
    configure(settings)
    try:
        if isinstance(job, StackJob):
            return _Stack(job, settings, report).run()
        if isinstance(job, MeasureJob):
            return _Measure(job, settings).run()
        return _Commit(job, settings, report).run()
    except (Damaged, Damage) as error:
        return JobResult(failure=Failure("damage", str(error)))
    except NothingToCommit as error:
        return JobResult(failure=Failure("impossible", str(error)))
    except (DataUnavailable, BadInput) as error:
        return JobResult(failure=Failure("input", str(error)))


def configure(settings: WorkerSettings) -> None:
    """Make torch give the same bits for the same job: a set number of threads, deterministic kernels, full float32.

    A person's own code, which runs later, changes nothing of it: see :func:`search.own_code.kept`.

    For the whole process. On a CPU the bits depend on the number of threads; Ray's workers would otherwise take it
    from ``OMP_NUM_THREADS``.
    """
    # cuBLAS reads it when CUDA starts and is not deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(settings.threads)
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)
    # As torch.use_deterministic_algorithms(True), which imports torch's compiler for it: 1.6 s in every worker.
    torch.set_deterministic_debug_mode("error")
    torch.set_float32_matmul_precision("highest")
    # Convolutions have a switch of their own, and TF32 keeps three digits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if settings.device == "cuda" and settings.gpu < 1:
        # Else one worker's stack would be another's want of memory.
        torch.cuda.set_per_process_memory_fraction(settings.gpu)


def device_name(device: str) -> str:
    """The device and what of it bits depend on, such as ``cpu AVX512`` or ``cuda NVIDIA H100 80GB HBM3``."""
    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} {torch.cuda.get_device_name(device)}"


def worker_name() -> str:
    """This worker, for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def gpu_bytes() -> int:
    """What the GPU of this process has."""
    return int(torch.cuda.mem_get_info()[1])


def _no_memory(error: RuntimeError | MemoryError) -> bool:
    # On a CPU torch raises no type of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _release(device: str) -> None:
    """Give memory back that nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


class _Place:
    """What both kinds of job begin with: the network after the last commit, and the task's data."""

    def __init__(self, job: Job, settings: WorkerSettings, report: Report = lambda _: None) -> None:
        self.started = time.time()
        self.experiment = Experiment.from_json(job.experiment)
        self.seed = self.experiment.seed + job.replica
        self.device = settings.device
        self.artifacts = Artifacts(settings.artifacts, prepared=True, patience=settings.patience, pause=self._pause)
        self._report = report
        self._told = Progress(worker_name(), 0, 0, None)
        where = (find(settings.delivered, settings.data_dir), settings.code)
        self.sequence = build_sequence(self.experiment, job.replica, *where)
        # A commit measures the earlier tasks again: on other data their scores would be of something else.
        for task, opened in enumerate(job.earlier if isinstance(job, CommitJob) else ()):
            self._check_data(task, opened)
        self._check_data(job.task, job.data)
        self.task = build_task(self.experiment, job.replica, job.task, *where)
        before = assembled(self.experiment, job.commits, self.artifacts, settings.code)
        self.network = grown(before, job.widths).copy().to(self.device)
        self._settings = settings

    def _check_data(self, task: int, opened: str) -> None:
        found = self.sequence.sha256(task)
        if found != opened:
            raise BadInput(
                f"the data of task {task + 1} on {worker_name()} are other than the run's: their SHA-256 is {found}, "
                f"and was {opened} when the task opened; bring the old data back: give this worker the same files"
            )

    def tell(self, progress: Progress) -> None:
        self._told = progress
        self._report(progress)

    def _pause(self, seconds: float) -> bool:
        """While artifacts cannot be reached: say so, and be told to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._report(replace(self._told, waiting=self.artifacts.waiting))
            time.sleep(min(left, _PAUSE))
        return True

    def open(self) -> Network:
        return open_task(self.network, seed=self.seed)

    def order(self, network: Network, activity: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """By hidden group the numbers that θ is compared with: ``rule.theta``."""
        return by_layer(network, activity) if self.experiment.rule.theta == "layers" else activity

    def provenance(self, stack: tuple[int, ...]) -> Provenance:
        return Provenance(stack, device_name(self.device), self._settings.threads, _versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    # torch's own word beside its metadata's, which need not name the build.
    return {**describe(), "torch": torch.__version__, "python": platform.python_version()}


class _Stack(_Place):
    """Train cells as one stack, then find how far each can be pruned."""

    def __init__(self, job: StackJob, settings: WorkerSettings, report: Report) -> None:
        super().__init__(job, settings, report)
        self._job = job
        self._total = len(self.task.validation)
        self._majority = int(self.task.validation.y.bincount().max())
        self._best = 0

    def run(self) -> JobResult:
        opened = self.open()
        try:
            trained = self._train(opened)
        except (RuntimeError, MemoryError) as error:
            if not _no_memory(error):
                raise
            too_large = f"out of memory on {worker_name()}: {first_line(str(error) or type(error).__name__)}"
        else:
            return self._records(opened, trained)
        # Out of the handler: what was raised keeps the tensors of its frames alive.
        _release(self.device)
        return JobResult(too_large=too_large)

    def _train(self, opened: Network) -> list[Trained]:
        return train(
            opened,
            self.task.train,
            self.task.validation,
            [Member(cell.alpha, cell.learning_rate) for cell in self._job.cells],
            _training(self.experiment),
            seed=self.seed,
            on_epoch=self._epoch,
        )

    def _records(self, opened: Network, trained: list[Trained]) -> JobResult:
        job = self._job
        records: list[CellRecord] = []
        failures: dict[int, str] = {}
        for cell, member in zip(job.cells, trained, strict=True):
            try:
                records.append(self._finish(opened, cell, member))
            except RuntimeError as error:
                failures[cell.index] = f"{type(error).__name__}: {error}"
            self._tell(self.experiment.training.epochs)
        return JobResult(cells=tuple(records), failures=failures)

    def _epoch(self, epoch: int, correct: tuple[int, ...]) -> None:
        self._best = max(correct)
        self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        epochs = self.experiment.training.epochs
        self.tell(Progress(worker_name(), epoch, epochs, self._best / self._total))

    def _finish(self, opened: Network, cell: Cell, trained: Trained) -> CellRecord:
        """Scan a member, keep its tensors, and say what came of it."""
        if trained.diverged is not None:
            return self._record(cell, trained, diverged=trained.diverged)
        network = with_free(opened, trained.free)
        try:
            activity = mean_activity(network, self.task.train.x)
        except Diverged as error:
            # Finite on the validation split, and beyond float32 on some training sample.
            return self._record(cell, trained, diverged=str(error))
        found = staircase(network, self.order(network, activity), self.task.validation)
        # θ is one unit's activity to the bit: measured again elsewhere, that unit might be claimed after all.
        data = encode({**trained.free, **{_ACTIVITY + name: means for name, means in activity.items()}})
        return self._record(
            cell,
            trained,
            score=Score(found.unpruned, self._total),
            staircase=found.points,
            artifact=self.artifacts.put(data),
            size=len(data),
        )

    def _record(self, cell: Cell, trained: Trained, diverged: str | None = None, **found: Any) -> CellRecord:
        empty: dict[str, Any] = {"score": None, "staircase": (), "artifact": None, "size": 0}
        return CellRecord(
            cell=cell,
            diverged=diverged,
            majority=self._majority,
            epochs=trained.epochs,
            epoch=trained.epoch,
            provenance=self.provenance(tuple(member.index for member in self._job.cells)),
            started=self.started,
            ended=time.time(),
            **{**empty, **found},
        )


class _Measure(_Place):
    """Find out how much of the GPU's memory a stack takes."""

    def __init__(self, job: MeasureJob, settings: WorkerSettings) -> None:
        super().__init__(job, settings)
        self._job = job

    def run(self) -> JobResult:
        cell, total, found = self._job.cell, gpu_bytes(), None
        try:
            found = measure(
                self.open(),
                self.task.train,
                self.task.validation,
                Member(cell.alpha, cell.learning_rate),
                _training(self.experiment),
                seed=self.seed,
                peak=cuda_peak,
            )
        except (RuntimeError, MemoryError) as error:
            if not _no_memory(error):
                raise
        _release(self.device)
        # Two members do not fit: each cell trains alone.
        fixed, member = (0, total) if found is None else (found.fixed, found.member)
        return JobResult(memory=Memory(fixed, member, total, device_name(self.device)))


class _Commit(_Place):
    """Prune the winner at its threshold, fine-tune what is left where that is asked for, claim, freeze, and measure
    every task again (Promises 1 and 2)."""

    def __init__(self, job: CommitJob, settings: WorkerSettings, report: Report) -> None:
        super().__init__(job, settings, report)
        self._job = job

    def run(self) -> JobResult:
        job = self._job
        network, validation, usage, rounds = self._prune()
        # Only now does this task's test split open: its commit stands (Promise 5).
        measured = [self._measure(network, task) for task in range(job.task + 1)]
        fingerprints = tuple(fingerprint(network, task) for task in range(job.task + 1))
        changed = sum(
            committed.fingerprint != now or not same
            for committed, now, (_, same) in zip(job.commits, fingerprints, measured, strict=False)
        )
        data = encode(added(network, job.task))
        if not changed:
            self._check_return(data, fingerprints[-1])
        record = CommitRecord(
            replica=job.replica,
            task=job.task,
            winner=job.winner,
            point=job.point,
            unpruned=job.score,
            validation=validation,
            test=measured[-1][0],
            best=job.best,
            needed=job.needed,
            candidates=job.candidates,
            missing=job.missing,
            widths=widths(network),
            claimed=rounds[-1].claimed if rounds else job.point.claimed,
            free=tuple(int((network.owner(group) == FREE).sum()) for group in network.groups),
            usage=usage,
            artifact=self.artifacts.put(data),
            size=len(data),
            fingerprints=fingerprints,
            changed=changed,
            matrix=tuple(score for score, _ in measured),
            provenance=self.provenance((job.winner.index,)),
            started=self.started,
            ended=time.time(),
            over_budget=job.over_budget,
            rounds=rounds,
        )
        return JobResult(commit=record)

    def _prune(self) -> tuple[Network, Score, Usage, tuple[Round, ...]]:
        """The committed network, its trained free weights still in place, its score on the validation split, its use by
        the task, and the rounds of fine-tuning.

        Raises:
            Damaged: It is not the one that was recorded.
        """
        job, validation = self._job, self.task.validation
        tensors = decode(self._winner())
        names = [group.name for group in self.network.groups]
        if missing := [name for name in names if _ACTIVITY + name not in tensors]:
            raise Damaged(f"artifact {job.artifact} holds no activity of {', '.join(missing)}")
        activity = {name: tensors.pop(_ACTIVITY + name) for name in names}
        network = with_free(self.open(), tensors)
        claims: Claims = claims_at(network, self.order(network, activity), job.point.theta)
        expected, rounds = (job.point.claimed, job.point.correct), tuple[Round, ...]()
        if self.experiment.fine_tuning is not None:
            self._compare(claims, count_correct(cut(network, job.task, claims), validation), expected)
            network, claims, rounds = self._fine_tune(network, claims, self.experiment.fine_tuning)
            expected = rounds[-1].claimed, rounds[-1].correct
        commit(network, claims)
        correct = count_correct(subnetwork(network, job.task), validation)
        self._compare(claims, correct, expected, len(rounds))
        return network, Score(correct, len(validation)), diagnose(network, activity), rounds

    def _winner(self) -> bytes:
        try:
            return self.artifacts.get(self._job.artifact, recovery=_WITHOUT_WINNER)
        except Damage as error:
            raise Damage(f"the tensors of cell {self._job.winner.index}: {error}") from None

    def _compare(self, claims: Claims, correct: int, expected: tuple[tuple[int, ...], int], rounds: int = 0) -> None:
        job, claimed = self._job, tuple(int(claims[group.name].sum()) for group in self.network.groups)
        if (claimed, correct) != expected:
            tuned = f", fine-tuned in {plural(rounds, 'round')}," if rounds else ""
            raise Damaged(
                f"cell {job.winner.index} at θ={job.point.theta}{tuned} was recorded with {expected[1]} right answers "
                f"and {list(expected[0])} units claimed, and has {correct} and {list(claimed)} on "
                f"{device_name(self.device)}; continue on the kind of device and with the versions that trained it"
            )

    def _fine_tune(
        self, network: Network, claims: Claims, asked: FineTuning
    ) -> tuple[Network, Claims, tuple[Round, ...]]:
        """What fine-tuning keeps of the winner, pruned (Sec. 3.2)."""
        total = len(self.task.validation)

        def tell(number: int, epoch: int, correct: int) -> None:
            done = (number - 1) * asked.epochs + epoch
            self.tell(Progress(worker_name(), done, asked.rounds * asked.epochs, correct / total))

        found = fine_tune(
            network,
            claims,
            self.task.train,
            self.task.validation,
            Member(spread(asked.alpha, len(network.layers)), asked.learning_rate),
            replace(_training(self.experiment), epochs=asked.epochs, early_stopping=False, patience=None),
            seed=self.seed,
            needed=self._job.needed,
            theta=self._job.point.theta,
            rounds=asked.rounds,
            order=self.order,
            on_epoch=tell,
        )
        return found.network, found.claims, found.rounds

    def _measure(self, network: Network, task: int) -> tuple[Score, bool]:
        """A task's score on its test split after the commit, and whether its logits are those from before.

        Raises:
            Damaged: The network at full width answers otherwise than the task's sub-network.
        """
        test = self.sequence.task(task).open_test()
        answer = logits(subnetwork(network, task), test.x)
        if not full_width_agrees(network, test.x, task, narrow=answer):
            finite = math.isfinite(full_width_difference(network, test.x, task, narrow=answer))
            why = "a connection into it was not severed" if finite else "a unit that it does not read overflows"
            raise Damaged(
                f"task {task + 1} is answered otherwise by the whole network than by its sub-network after the commit "
                f"of task {network.task}: {why}. Nothing was committed"
            )
        same = task == self._job.task or torch.equal(logits(subnetwork(self.network, task), test.x), answer)
        return Score(int((answer.argmax(1) == test.y.to(answer.device)).sum()), len(test)), same

    def _check_return(self, data: bytes, expected: str) -> None:
        """Compare what comes back from a commit's bytes with what went into them."""
        again = self.network.copy()
        restore(again, decode(data))
        if fingerprint(again, self._job.task) != expected:
            raise Damaged(f"task {self._job.task + 1} comes back from its own tensors with another fingerprint")


def _training(experiment: Experiment) -> Settings:
    return Settings(**experiment.training.model_dump())
