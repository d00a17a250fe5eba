"""The backend without workers of its own: jobs run in this process, one after another. Imports no Ray."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

from search.backends.live import LiveBackend
from search.backends.reasons import reason
from search.experiment import Experiment
from search.machine import Pool, form_pool, this_machine
from search.records import Job, JobResult, Progress
from search.run import Run
from search.worker import WorkerSettings, perform

__all__ = ["Inline"]

_POLL = 0.05
"""Seconds between looks at whether to stop."""


class Inline(LiveBackend):
    """Runs every job on one thread of this process.

    What comes back is written by the thread that called :meth:`execute`, progress by the other. A job that runs when
    ``stop`` is set is left behind: it ends after its current epoch or scan.
    """

    def __init__(self) -> None:
        super().__init__()
        self._settings: WorkerSettings | None = None

    def form_pool(self, experiment: Experiment, *, begun: int | None = None) -> Pool:
        return form_pool(experiment.model_copy(update={"workers": 1}), [this_machine()], begun=begun)

    def start(self, pool: Pool, settings: WorkerSettings) -> None:  # noqa: ARG002 – there is one worker, this process
        self._settings = settings

    def close(self) -> None:
        """Nothing: no worker outlives :meth:`execute` but one that is told to end."""

    def kill(self) -> None:
        """Nothing: all runs in this process."""

    def execute(self, run: Run) -> None:
        if self._settings is None:
            raise RuntimeError("start() comes before execute()")
        executor = ThreadPoolExecutor(1, thread_name_prefix="worker")
        try:
            while not (run.over or self.stop.is_set()):
                job = run.next_job()
                if job is None:
                    # With nothing out there is no result to wait for: the run has just ended, or lacks a step.
                    if not run.over:
                        raise RuntimeError("the run is not over, has no job out and hands none out")
                    return
                self._carry(run, job, self._settings, executor)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _carry(self, run: Run, job: Job, settings: WorkerSettings, executor: ThreadPoolExecutor) -> None:
        def report(progress: Progress) -> None:
            if self.stop.is_set():
                raise _StoppedError
            run.progress(job.id, progress)

        future: Future[JobResult] = executor.submit(perform, job, settings, report)
        while not wait((future,), _POLL).done:
            if self.stop.is_set() or run.over:
                # Over with a job out: the lease is lost, and nothing that comes back can be written.
                self.stop.set()
                return
        error = future.exception()
        if isinstance(error, _StoppedError):
            return
        if error is None:
            run.take(job.id, future.result())
        else:
            run.lost(job.id, reason(error))


class _StoppedError(Exception):
    """Ends a job in the middle, since the run is to stop."""
