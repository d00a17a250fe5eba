"""A backend in virtual time: the whole orchestration in milliseconds, with durations and failures as wanted.

Its workers train nothing. Their records are made up from cell, seed and stack alone (:class:`World`), so that
any order of completion, any loss and any restart must end with the same ones (Promise 3).
"""

import hashlib
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from clnp.forgetting import Point
from clnp.halving import Dropped, halve
from clnp.pace import Pace
from clnp.rounds import Round
from clnp.usage import GroupUse, LayerUse, Usage
from search.backends.base import Backend
from search.experiment import Experiment
from search.grid import on_gpu
from search.names import cell_key
from search.outline import Outline
from search.records import (
    Cell,
    CellRecord,
    CommitJob,
    CommitRecord,
    Failure,
    Job,
    JobResult,
    Measured,
    MeasureJob,
    Memory,
    Progress,
    Provenance,
    Score,
    StackJob,
)
from search.run import Run

__all__ = ["Fate", "Simulated", "World"]


@dataclass(frozen=True, slots=True)
class Fate:
    """How one attempt at a job goes.

    Attributes:
        duration: Virtual seconds until it ends.
        lost: Why the worker dies at the end of them, or None.
        raised: Cell index → why this member raises; the others return their records.
        failure: Why it can never succeed, or None.
        too_large: Why a stack finds no memory, or None.
    """

    duration: float = 1.0
    lost: str | None = None
    raised: Mapping[int, str] = field(default_factory=dict)
    failure: Failure | None = None
    too_large: str | None = None


def _always_well(_job: Job, _attempt: int) -> Fate:
    return Fate()


def _never(_job: StackJob, _cell: Cell) -> bool:
    return False


def _never_full(_job: StackJob) -> bool:
    return False


_ROOMY = Memory(fixed=2**30, member=2**28, total=80 * 2**30, device="simulated")


class World:
    """Makes up what workers find, and stands for the artifact store: a resumed simulation needs the same one.

    Accuracies and staircases depend on the seed, the task and the cell; tensors also on the stack, as real ones do, and
    on the commits before. A job whose tensors are not there fails as damaged.

    Args:
        total: Samples of the validation and of the test split.
        classes: The most frequent class has ``total // classes`` of them.
        diverges: Whether a cell of a job diverges.
        fills: Whether the cells of a job claim every unit that is left of the group that the head reads.
        memory: What a stack takes of a GPU.
        gain: How many times as long as a stack its members take one after another.

    Attributes:
        artifacts: SHA-256 of what was written → units left free by it, where it is a commit's. Remove one to lose it.
    """

    def __init__(
        self,
        *,
        total: int = 1000,
        classes: int = 10,
        diverges: Callable[[StackJob, Cell], bool] = _never,
        fills: Callable[[StackJob], bool] = _never_full,
        memory: Memory = _ROOMY,
        gain: float = 4.0,
    ) -> None:
        self._memory = memory
        self._gain = gain
        self.artifacts: dict[str, tuple[int, ...]] = {}
        self._total = total
        self._majority = total // classes
        self._diverges = diverges
        self._fills = fills

    def measure(self, job: MeasureJob) -> JobResult:
        """What a stack takes: of a GPU memory too."""
        experiment = Experiment.from_json(job.experiment)
        pace = Pace(1.0, job.members / self._gain, job.members) if job.members > 1 else None
        return JobResult(measured=Measured(self._memory if on_gpu(experiment) else None, pace))

    def stack(self, job: StackJob, raised: Mapping[int, str], started: float, ended: float) -> JobResult:
        """The records of a stack, without those of the members that raised."""
        missing = self._missing(job)
        if missing is not None:
            return JobResult(failure=missing)
        experiment = Experiment.from_json(job.experiment)
        cells = [cell for cell in job.cells if cell.index not in raised]
        dropped = self._dropped(experiment, job)
        records = tuple(self._cell(experiment, job, cell, dropped.get(cell.index), started, ended) for cell in cells)
        self.artifacts.update((record.artifact, ()) for record in records if record.artifact is not None)
        return JobResult(records, failures=dict(raised))

    def commit(self, job: CommitJob, started: float, ended: float) -> JobResult:
        """The record of a commit: what was scored, fine-tuned where asked for, no earlier fingerprint changed."""
        missing = self._missing(job)
        if missing is not None:
            return JobResult(failure=missing)
        experiment = Experiment.from_json(job.experiment)
        rounds = _rounds(experiment, job)
        claimed, correct = job.point.claimed, job.point.correct
        if rounds:
            claimed, correct = rounds[-1].claimed, rounds[-1].correct
        free = tuple(units - new for units, new in zip(self._free(job), claimed, strict=True))
        before = [commit.artifact for commit in job.commits]
        artifact = _sha256("commit", job.artifact, job.point.theta, *rounds, *before)
        self.artifacts[artifact] = free
        fingerprints = (*(commit.fingerprint for commit in job.commits), _sha256("fingerprint", artifact))
        matrix = tuple(Score(self._draw(fingerprint), self._total) for fingerprint in fingerprints)
        record = CommitRecord(
            replica=job.replica,
            task=job.task,
            winner=job.winner,
            point=job.point,
            unpruned=job.score,
            validation=Score(correct, job.score.total),
            test=matrix[-1],
            best=job.best,
            needed=job.needed,
            candidates=job.candidates,
            missing=job.missing,
            widths=job.widths,
            claimed=claimed,
            free=free,
            usage=_usage(experiment.outline, job, claimed, free),
            artifact=artifact,
            size=4 * sum(claimed),
            fingerprints=fingerprints,
            changed=0,
            matrix=matrix,
            provenance=_provenance((job.winner.index,)),
            started=started,
            ended=ended,
            over_budget=job.over_budget,
            rounds=rounds,
        )
        return JobResult(commit=record)

    def _cell(
        self, experiment: Experiment, job: StackJob, cell: Cell, dropped: Dropped | None, started: float, ended: float
    ) -> CellRecord:
        stack = tuple(member.index for member in job.cells)
        seed = _seed(experiment, job, cell)
        diverged = "not finite after epoch 1" if self._diverges(job, cell) else None
        correct, gone = self._draw(*seed), bool(diverged or dropped)
        artifact = _sha256(*seed, stack, *(commit.fingerprint for commit in job.commits))
        counts = self._counts(experiment, job, cell)
        return CellRecord(
            cell=cell,
            diverged=diverged,
            score=None if gone else Score(correct, self._total),
            majority=self._majority,
            epochs=() if diverged else counts[: dropped.epoch] if dropped else counts,
            epoch=1 if diverged else 0 if dropped else len(counts),
            staircase=() if gone else self._points(experiment, job, correct, *seed),
            artifact=None if gone else artifact,
            size=0 if gone else 4 * sum(job.widths),
            provenance=_provenance(stack),
            started=started,
            ended=ended,
            dropped=dropped,
        )

    def _counts(self, experiment: Experiment, job: StackJob, cell: Cell) -> tuple[int, ...]:
        """Right answers after each epoch: they rise evenly."""
        correct, epochs = self._draw(*_seed(experiment, job, cell)), experiment.training.epochs
        return tuple(correct * epoch // epochs for epoch in range(1, epochs + 1))

    def _dropped(self, experiment: Experiment, job: StackJob) -> dict[int, Dropped]:
        """By cell's index whom halving drops."""
        found: dict[int, Dropped] = {}
        halving = experiment.halving(job.task)
        if halving is None:
            return found
        for epoch in halving.epochs:
            cells = [cell for cell in job.cells if cell.index not in found and not self._diverges(job, cell)]
            counts = [self._counts(experiment, job, cell)[epoch - 1] for cell in cells]
            gone = halve(counts, (), epoch=epoch, total=self._total, margin=halving.margin)
            found |= {cells[place].index: why for place, why in gone.items()}
        return found

    def _points(self, experiment: Experiment, job: StackJob, correct: int, *seed: object) -> tuple[Point, ...]:
        points = _staircase(experiment, correct, *seed)
        if not self._fills(job):
            return points
        last = experiment.outline.last
        left = self._free(job)[last]
        return tuple(
            replace(point, claimed=(*point.claimed[:last], left, *point.claimed[last + 1 :])) for point in points
        )

    def _free(self, job: Job) -> tuple[int, ...]:
        """Units that the job finds free."""
        if not job.commits:
            return job.widths
        before = job.commits[-1]
        grown = zip(self.artifacts[before.artifact], job.widths, before.widths, strict=True)
        return tuple(free + now - was for free, now, was in grown)

    def _draw(self, *of: object) -> int:
        """Right answers: between 90 % and 99 %."""
        return random.Random(repr(of)).randint(self._total * 90 // 100, self._total * 99 // 100)

    def _missing(self, job: Job) -> Failure | None:
        needed = [commit.artifact for commit in job.commits]
        needed += [job.artifact] if isinstance(job, CommitJob) else []
        lost = [artifact for artifact in needed if artifact not in self.artifacts]
        return Failure("damage", f"artifact {lost[0]} is not in the store") if lost else None


@dataclass(slots=True)
class _Moment:
    """Something that happens to a job at a virtual time."""

    job: Job
    fate: Fate
    started: float
    epoch: int | None
    """The epoch that is reported, or None: the job ends."""


class Simulated(Backend):
    """Workers in virtual time.

    Args:
        workers: How many jobs run at once.
        plan: (job, how often this job's cells went out before) → how it goes.
        world: What workers find.

    Attributes:
        time: The virtual time, in seconds.
        busy: Virtual seconds that workers spent on jobs, over all workers.
    """

    def __init__(
        self, *, workers: int, plan: Callable[[Job, int], Fate] = _always_well, world: World | None = None
    ) -> None:
        super().__init__()
        self.time = 0.0
        self.busy = 0.0
        self.world = world or World()
        self._workers = workers
        self._plan = plan
        self._attempts: Counter[tuple[object, ...]] = Counter()
        self._moments: list[tuple[float, int, _Moment]] = []
        self._count = itertools.count()

    def execute(self, run: Run) -> None:
        running = 0
        while not self.stop.is_set() and not run.over:
            while running < self._workers and (job := run.next_job()) is not None:
                self._start(job)
                running += 1
            if self._moments:
                self.time, _, moment = heapq.heappop(self._moments)
                running -= self._happen(run, moment)
            elif not run.over:
                raise RuntimeError("the run hands out nothing, and no job is with a worker: it can never end")

    def _start(self, job: Job) -> None:
        cells = job.cells if isinstance(job, StackJob) else (job.cell if isinstance(job, MeasureJob) else job.winner,)
        attempt = (job.kind, job.replica, job.task, cells)
        fate = self._plan(job, self._attempts[attempt])
        self._attempts[attempt] += 1
        self.busy += fate.duration
        epochs = _epochs(job)
        for epoch in range(1, epochs):
            self._at(self.time + fate.duration * epoch / epochs, _Moment(job, fate, self.time, epoch))
        self._at(self.time + fate.duration, _Moment(job, fate, self.time, None))

    def _at(self, time: float, moment: _Moment) -> None:
        heapq.heappush(self._moments, (time, next(self._count), moment))

    def _happen(self, run: Run, moment: _Moment) -> bool:
        """Tell the run; say whether the job has ended."""
        job, fate = moment.job, moment.fate
        if moment.epoch is not None:
            epochs = _epochs(job)
            run.progress(job.id, Progress("simulated", moment.epoch, epochs, moment.epoch / epochs))
            return False
        if fate.lost is not None:
            run.lost(job.id, fate.lost)
        elif fate.failure is not None:
            run.take(job.id, JobResult(failure=fate.failure))
        elif fate.too_large is not None:
            run.take(job.id, JobResult(too_large=fate.too_large))
        elif isinstance(job, MeasureJob):
            run.take(job.id, self.world.measure(job))
        elif isinstance(job, CommitJob):
            run.take(job.id, self.world.commit(job, moment.started, self.time))
        else:
            run.take(job.id, self.world.stack(job, fate.raised, moment.started, self.time))
        return True


def _epochs(job: Job) -> int:
    if isinstance(job, StackJob):
        return int(job.experiment["training"]["epochs"])
    tuned = job.experiment.get("fine_tuning")
    return int(tuned["rounds"] * tuned["epochs"]) if tuned else 1


def _staircase(experiment: Experiment, correct: int, *seed: object) -> tuple[Point, ...]:
    """Rising θ, falling right answers and units; every task fits, whatever the points that are picked."""
    draw = random.Random(repr(("staircase", *seed)))
    widths = experiment.outline.widths
    room = [width // experiment.tasks.count for width in widths]
    points: list[Point] = []
    theta, right = 0.0, correct + draw.randint(0, 2)
    claimed = [draw.randint((units + 1) // 2, units) for units in room]
    for _ in range(draw.randint(3, 8)):
        free_weights = sum(width - units for width, units in zip(widths, claimed, strict=True))
        points.append(Point(theta, right, tuple(claimed), free_weights))
        theta += draw.uniform(0.01, 0.1)
        right -= draw.randint(1, 4)
        claimed = [max(1, units - draw.randint(0, 3)) for units in claimed]
    return tuple(points)


def _rounds(experiment: Experiment, job: CommitJob) -> tuple[Round, ...]:
    """Of fine-tuning: as many as asked for, or until nothing more is pruned; some win back right answers."""
    asked, rounds = experiment.fine_tuning, list[Round]()
    draw = random.Random(repr(("rounds", experiment.seed + job.replica, job.task, cell_key(job.winner))))
    theta, claimed, pruned = job.point.theta, job.point.claimed, job.point.correct
    for _ in range(0 if asked is None else asked.rounds):
        tuned = None if draw.random() < 0.1 else min(job.score.total, pruned + draw.randint(-3, 6))
        rounds.append(Round(theta, claimed, pruned, tuned))
        theta = draw.uniform(0.01, 0.1)
        claimed = tuple(min(units, max(1, units - draw.randint(0, 2))) for units in claimed)
        pruned = draw.randint(job.needed, rounds[-1].correct)
        if claimed == rounds[-1].claimed:
            break
    return tuple(rounds)


def _usage(outline: Outline, job: CommitJob, claims: tuple[int, ...], free: tuple[int, ...]) -> Usage:
    units = zip(outline.group_names, claims, free, strict=True)
    share = None if job.task == 0 else 0.5
    return Usage(
        tuple(GroupUse(name, claimed, 0, left) for name, claimed, left in units),
        tuple(LayerUse(layer.name, layer.weights, 0, 0, share) for layer in outline.layers),
    )


def _seed(experiment: Experiment, job: StackJob, cell: Cell) -> tuple[object, ...]:
    return experiment.seed + job.replica, job.task, cell_key(cell)


def _provenance(stack: tuple[int, ...]) -> Provenance:
    return Provenance(stack, device="simulated", threads=1, versions={})


def _sha256(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()
