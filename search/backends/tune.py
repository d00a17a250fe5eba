"""The backend on Ray Tune: one ``Tuner.fit()`` for the whole run, whose trials are the run's jobs."""

import queue
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from search.backends.cluster import Cluster, prepare, silence
from search.backends.live import LiveBackend
from search.backends.reasons import first_line, reason
from search.errors import Unavailable
from search.experiment import Experiment
from search.machine import Pool, form_pool, this_machine
from search.records import JobResult, Progress, load
from search.run import Run
from search.worker import WorkerSettings

if TYPE_CHECKING:
    from search.backends.hooks import Ended, Exchange, Progressed, Returned

__all__ = ["Tune"]

_POLL = 0.1
"""Seconds between looks at whether to stop or Tune has ended, while nothing happens."""


class Tune(LiveBackend):
    """Carries jobs to the workers of a Ray cluster.

    Ray and Tune live in a thread of their own, where Python leaves signals alone; the thread that calls :meth:`execute`
    makes every call of the run. Between the two is an :class:`~search.backends.hooks.Exchange`. Workers are started
    once and kept.

    It begins to import Ray when it is made, which takes seconds; :meth:`start` then starts Ray in the background.

    Args:
        address: Of a Ray cluster that runs; None: one of our own on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        super().__init__()
        self._cluster = Cluster(address)
        self._ray = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._ready: Future[None] = self._ray.submit(_import_ray)
        self._pool: Pool | None = None
        self._settings: WorkerSettings | None = None

    def form_pool(self, experiment: Experiment) -> Pool:
        """Of this machine; or of those of a cluster, which is waited for."""
        if self._cluster.address is None:
            return form_pool(experiment, [this_machine()])
        self._ready = self._ray.submit(self._start, None)
        self._ready.result()
        return form_pool(experiment, self._ray.submit(self._cluster.nodes).result())

    def start(self, pool: Pool, settings: WorkerSettings) -> None:
        self._pool, self._settings = pool, settings
        if self._cluster.address is None:
            self._ready = self._ray.submit(self._start, pool)

    def execute(self, run: Run) -> None:
        from search.backends.hooks import Exchange

        if self._pool is None or self._settings is None:
            raise RuntimeError("start() comes before execute()")
        exchange = Exchange()
        fit = self._ray.submit(self._fit, exchange, self._pool, self._settings)
        try:
            left = self._carry(run, exchange, fit, self._pool.workers)
        finally:
            exchange.over.set()
        if left:
            # Told to stop, or the lease is lost: nobody waits for what runs.
            self.stop.set()
        else:
            fit.result()

    def close(self) -> None:
        if self.stop.is_set():
            self.kill()
            self._ray.shutdown(wait=False, cancel_futures=True)
        else:
            self._ray.submit(self._cluster.stop)
            self._ray.shutdown(wait=True)

    def kill(self) -> None:
        self._cluster.kill()

    def _start(self, pool: Pool | None) -> None:
        if not self.stop.is_set():
            self._cluster.start(pool)

    def _carry(self, run: Run, exchange: "Exchange", fit: "Future[None]", workers: int) -> set[int]:
        """Hand out jobs while workers are idle and take in what comes back, until the run is over.

        Returns:
            The jobs that are still with a worker.
        """
        out: set[int] = set()
        while not (run.over or self.stop.is_set()):
            while len(out) < workers and (job := run.next_job()) is not None:
                out.add(job.id)
                exchange.jobs.put(job)
            try:
                event = exchange.events.get(timeout=_POLL)
            except queue.Empty:
                if fit.done():
                    raise _ended(fit) from fit.exception()
                continue
            _take(run, event, out)
        return out

    def _fit(self, exchange: "Exchange", pool: Pool, settings: WorkerSettings) -> None:
        """The whole of Tune's life. Runs in Ray's thread."""
        self._ready.result()
        if self.stop.is_set():
            return  # Ray was not started for it, and Tune would start one of its own
        from ray import tune

        from search.backends.hooks import Delivery, Jobs, Parking, work

        parking = Parking(exchange)
        jobs = Jobs(exchange, settings, parking)
        tuner = tune.Tuner(
            tune.with_resources(work, {"cpu": pool.cpu, "gpu": pool.gpu}),
            tune_config=tune.TuneConfig(
                search_alg=jobs,
                scheduler=parking,
                num_samples=-1,
                # Parked trials count too.
                max_concurrent_trials=2 * pool.workers,
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",  # two under one name would mix their files
                storage_path=self._cluster.folder,
                verbose=0,
                callbacks=[Delivery(exchange, jobs)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


def _import_ray() -> None:
    prepare()
    import ray.tune  # noqa: F401

    silence()


def _trial_name(trial: Any) -> str:
    """Short, where Tune would make a name of the whole job."""
    return str(trial.trial_id)


def _take(run: Run, event: "Returned | Progressed | Ended", out: set[int]) -> None:
    """Tell the run what came back. ``out`` are the jobs that are with a worker."""
    from search.backends.hooks import Ended, Progressed

    if isinstance(event, Progressed):
        run.progress(event.job, load(Progress, event.progress))
    elif isinstance(event, Ended):
        out.discard(event.job)
        run.lost(event.job, event.reason)
    else:
        out.discard(event.job)
        try:
            result = load(JobResult, event.result)
        except ValidationError as error:
            run.lost(event.job, f"its worker runs another version: {first_line(str(error))}")
        else:
            run.take(event.job, result)


def _ended(fit: "Future[None]") -> Unavailable:
    error = fit.exception()
    if isinstance(error, Unavailable):
        return error
    why = "without a reason" if error is None else reason(error).removesuffix(".")
    return Unavailable(f"Ray Tune ended before the run did: {why}. The same command continues")
