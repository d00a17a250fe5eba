"""Measure what a stack takes, before the first one is formed."""

from collections.abc import Callable
from typing import TypeVar

from clnp import footprint, pace
from clnp.network import Network
from clnp.training import Member
from search.grid import members_that_fit, on_gpu
from search.records import JobResult, Measured, MeasureJob, Memory
from search.worker.process import device_name, gpu_bytes, no_memory, release
from search.worker.settings import WorkerSettings
from search.worker.work import Work, training

__all__ = ["MeasureWork"]

Result = TypeVar("Result")


class MeasureWork(Work):
    """Find out what a stack takes: of a GPU its memory, and how much longer its steps are than one member's."""

    def __init__(self, job: MeasureJob, settings: WorkerSettings) -> None:
        super().__init__(job, settings)
        self._members = job.members
        self._member = Member(job.cell.alpha, job.cell.learning_rate)

    def run(self) -> JobResult:
        opened = self.open()
        memory, members = None, self._members
        if on_gpu(self.experiment):
            memory = self._memory(opened)
            members = min(members, members_that_fit(memory, self._settings.gpu))
        found = self._if_it_fits(lambda: self._pace(opened, members)) if members > 1 else None
        return JobResult(measured=Measured(memory, found))

    def _memory(self, opened: Network) -> Memory:
        total, data = gpu_bytes(), (self.task.train, self.task.validation)
        how = (self._member, training(self.experiment))
        found = self._if_it_fits(
            lambda: footprint.measure(opened, *data, *how, seed=self.seed, peak=footprint.cuda_peak)
        )
        # Two members do not fit: each cell trains alone.
        fixed, member = (0, total) if found is None else (found.fixed + found.kept, found.member)
        return Memory(fixed, member, total, device_name(self.device))

    def _pace(self, opened: Network, members: int) -> pace.Pace:
        data, settings = (self.task.train, self.task.validation), training(self.experiment)
        return pace.measure(opened, *data, self._member, settings, members, seed=self.seed)

    def _if_it_fits(self, work: Callable[[], Result]) -> Result | None:
        """What it gives, or None: it finds no memory."""
        found = None
        try:
            found = work()
        except (RuntimeError, MemoryError) as error:
            if not no_memory(error):
                raise
        # Out of the handler: what was raised keeps the tensors of its frames alive.
        release(self.device)
        return found
