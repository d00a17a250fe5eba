"""The backend on Ray Tune: one ``Tuner.fit()`` for the whole run, whose trials are the run's jobs."""

import contextlib
import queue
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from search.backends.cluster import Cluster, prepare, silence
from search.backends.lean import ready_workers
from search.backends.live import LiveBackend
from search.backends.reasons import reason
from search.errors import Unavailable
from search.experiment import Experiment
from search.machine import Needs, Pool, form_pool, this_machine
from search.records import JobResult, Progress, load
from search.run import Run
from search.text import first_line
from search.worker import WorkerSettings

if TYPE_CHECKING:
    from search.backends.hooks import Ended, Exchange, Progressed, Returned
    from search.backends.nodes import Nodes

__all__ = ["Tune"]

_MANY = 10_000
"""More trials at once than any cluster has workers."""

_POLL = 0.1
"""Seconds between looks at whether to stop or Tune has ended, while nothing happens."""

_LAST = 1.0
"""Seconds in which what came back before a stop is taken in; a driver has 3 to do that and release its lease."""


class Tune(LiveBackend):
    """Carries jobs to the workers of a Ray cluster.

    Ray and Tune live in a thread of their own, where Python leaves signals alone; the thread that calls :meth:`execute`
    makes every call of the run. Between the two is an :class:`~search.backends.hooks.Exchange`. Workers are started
    once and kept.

    It begins to import Ray when it is made, which takes seconds; :meth:`start` then starts Ray in the background. A
    cluster that runs is joined by :meth:`form_pool`, which asks its nodes what they have; while the run lasts nodes may
    go and come, and with ``workers: auto`` it has as many workers as fit on those that are there.

    Args:
        address: Of a Ray cluster that runs; None: one of our own on this machine.
        needs: What every node of such a cluster must have.
        note: Told, a line each, what happens to its nodes.
    """

    def __init__(
        self, address: str | None = None, *, needs: Needs | None = None, note: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__()
        self._cluster = Cluster(address)
        self._needs = needs
        self._note = note
        self._nodes: Nodes | None = None
        self._ray = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._ready: Future[None] = self._ray.submit(_import_ray, address is None)
        self._pool: Pool | None = None
        self._settings: WorkerSettings | None = None

    def form_pool(self, experiment: Experiment, *, begun: int | None = None) -> Pool:
        """Of this machine; or of the nodes of a cluster, each of which is asked what it has.

        Raises:
            BadInput: Also where a node lacks something.
        """
        if self._cluster.address is None:
            return form_pool(experiment, [this_machine()], begun=begun)
        self._ready.result()
        pool: Future[Pool] = self._ray.submit(self._join, experiment, begun)
        return pool.result()

    def start(self, pool: Pool, settings: WorkerSettings) -> None:
        self._pool, self._settings = pool, settings
        if self._nodes is not None:
            self._settings = replace(settings, delivered=self._nodes.delivered)
        else:
            # A Ray of our own begins with a process a core: one a worker, each of which sets its own threads.
            self._pool = pool = replace(pool, cpu=1)
            self._ready = self._ray.submit(self._start, pool)

    def execute(self, run: Run) -> None:
        from search.backends.hooks import Exchange

        if self._pool is None or self._settings is None:
            raise RuntimeError("start() comes before execute()")
        exchange = Exchange()
        fit = self._ray.submit(self._fit, exchange, self._pool, self._settings)
        try:
            left = self._carry(run, exchange, fit, self._pool)
        finally:
            exchange.over.set()
        if left or self.stop.is_set():
            # Told to stop, or the lease is lost: nobody waits for what runs, nor for Tune's own end.
            self.stop.set()
        else:
            fit.result()

    def close(self) -> None:
        if self._nodes is not None:
            self._nodes.close()
        if self.stop.is_set():
            self.kill()
            self._ray.shutdown(wait=False, cancel_futures=True)
        else:
            self._ray.submit(self._cluster.stop)
            self._ray.shutdown(wait=True)

    def kill(self) -> None:
        self._cluster.kill()

    def _start(self, pool: Pool) -> None:
        if not self.stop.is_set():
            self._cluster.start(pool)

    def _join(self, experiment: Experiment, begun: int | None) -> Pool:
        """Join the cluster and ask its nodes. Runs in Ray's thread."""
        from search.backends.nodes import Nodes, read_nodes

        if self._needs is None:
            raise RuntimeError("a cluster's nodes are asked for what is needed")
        head = self._cluster.join()
        pool = form_pool(experiment, read_nodes(), begun=begun)
        most = None if experiment.workers == "auto" else experiment.workers
        self._nodes = Nodes(head, self._needs, pool, most, self._note)
        self._nodes.admit(self.stop.is_set)
        if not self.stop.is_set():
            self._nodes.watch()
        return pool

    def _workers(self, pool: Pool) -> int:
        """How many jobs may be with workers at this moment."""
        return pool.workers if self._nodes is None else self._nodes.slots

    def _carry(self, run: Run, exchange: "Exchange", fit: "Future[None]", pool: Pool) -> set[int]:
        """Hand out jobs while workers are idle and take in what comes back, until the run is over.

        Returns:
            The jobs that are still with a worker.
        """
        out: set[int] = set()
        while not (run.over or self.stop.is_set()):
            while len(out) < self._workers(pool) and (job := run.next_job()) is not None:
                out.add(job.id)
                exchange.jobs.put(job)
            try:
                event = exchange.events.get(timeout=_POLL)
            except queue.Empty:
                if self._nodes is not None and self._nodes.lost is not None:
                    self.stop.set()  # without its head nothing of the cluster can be ended in good order
                    raise self._nodes.lost from None
                if fit.done():
                    raise _ended(fit) from fit.exception()
                continue
            _take(run, event, out, self._fell)
        self._take_last(run, exchange, out)
        return out

    def _take_last(self, run: Run, exchange: "Exchange", out: set[int]) -> None:
        """Take in the results that were there when the run was told to stop: else they would be trained again."""
        from search.backends.hooks import Returned

        until = time.monotonic() + _LAST
        while not (run.over or exchange.events.empty()) and time.monotonic() < until:
            event = exchange.events.get()
            if isinstance(event, Returned):
                _take(run, event, out, self._fell)

    def _fell(self, event: "Ended") -> bool:
        """Whether a job was lost with its node: nobody's doing."""
        return not event.blame or (self._nodes is not None and event.node is not None and self._nodes.fell(event.node))

    def _fit(self, exchange: "Exchange", pool: Pool, settings: WorkerSettings) -> None:
        """The whole of Tune's life. Runs in Ray's thread."""
        self._ready.result()
        if self.stop.is_set():
            return  # Ray was not started for it, and Tune would start one of its own
        from ray import tune

        from search.backends.hooks import Delivery, Jobs, Parking, work

        parking = Parking(exchange, pool, self._nodes)
        jobs = Jobs(exchange, settings, parking)
        tuner = tune.Tuner(
            tune.with_resources(work, {"cpu": pool.cpu, "gpu": pool.gpu}),
            tune_config=tune.TuneConfig(
                search_alg=jobs,
                scheduler=parking,
                num_samples=-1,
                # Parked trials count too; and the workers of a cluster may become more.
                max_concurrent_trials=2 * pool.workers if self._nodes is None else _MANY,
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",  # two under one name would mix their files
                storage_path=self._cluster.folder,
                verbose=0,
                callbacks=[Delivery(exchange, jobs, parking)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        with ready_workers() if self._cluster.address is None else contextlib.nullcontext():
            tuner.fit()


def _import_ray(own: bool) -> None:
    """Ray alone: Tune is imported while Ray's processes start."""
    prepare(own=own)
    import ray  # noqa: F401

    silence()


def _trial_name(trial: Any) -> str:
    """Short, where Tune would make a name of the whole job."""
    return str(trial.trial_id)


def _take(run: Run, event: "Returned | Progressed | Ended", out: set[int], fell: "Callable[[Ended], bool]") -> None:
    """Tell the run what came back. ``out`` are the jobs that are with a worker; ``fell``: whether its node did."""
    from search.backends.hooks import Ended, Progressed

    if isinstance(event, Progressed):
        run.progress(event.job, load(Progress, event.progress))
    elif isinstance(event, Ended):
        if event.job in out:
            out.discard(event.job)
            gone = fell(event)
            run.lost(event.job, f"its node went: {event.reason}" if gone else event.reason, blame=not gone)
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
