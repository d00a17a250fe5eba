"""Train a stack of cells and scan it."""

import time
from dataclasses import replace
from typing import Any

from clnp.activity import mean_activity
from clnp.errors import Diverged
from clnp.network import Network
from clnp.ownership import with_free
from clnp.tensors import encode
from clnp.thresholds import staircase
from clnp.training import Member, Trained, train
from search.records import Cell, CellRecord, JobResult, Progress, Score, StackJob
from search.text import first_line
from search.worker.process import no_memory, release, worker_name
from search.worker.settings import WorkerSettings
from search.worker.work import ACTIVITY, Report, Work, training

__all__ = ["StackWork"]


class StackWork(Work):
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
            if not no_memory(error):
                raise
            too_large = f"out of memory on {worker_name()}: {first_line(str(error) or type(error).__name__)}"
        else:
            return self._records(opened, trained)
        # Out of the handler: what was raised keeps the tensors of its frames alive.
        release(self.device)
        return JobResult(too_large=too_large)

    def _train(self, opened: Network) -> list[Trained]:
        return train(
            opened,
            self.task.train,
            self.task.validation,
            [Member(cell.alpha, cell.learning_rate) for cell in self._job.cells],
            replace(training(self.experiment), halving=self.experiment.halving(self._job.task)),
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
        if trained.diverged is not None or trained.dropped is not None:
            return self._record(cell, trained, diverged=trained.diverged)
        network = with_free(opened, trained.free)
        try:
            activity = mean_activity(network, self.task.train.samples)
        except Diverged as error:
            # Finite on the validation split, and beyond float32 on some training sample.
            return self._record(cell, trained, diverged=str(error))
        found = staircase(network, self.order(network, activity), self.task.validation)
        # θ is one unit's activity to the bit: measured again elsewhere, that unit might be claimed after all.
        data = encode({**trained.free, **{ACTIVITY + name: means for name, means in activity.items()}})
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
            dropped=trained.dropped,
            **{**empty, **found},
        )
