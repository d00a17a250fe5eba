# ruff: noqa: ARG002 – hooks take the arguments that Tune calls them with
"""What Ray Tune calls: where its trials come from, how their workers stay warm, and where results go.

A Tune trial is one job. All hooks run in Tune's thread. They write no database and never raise: what they have goes
through an :class:`Exchange` to the driver's thread. Nothing in them may be pickled, and Tune pickles searchers, so they
show it an empty state: no job, no credential ends up on disk.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from search.backends.nodes import Nodes
from search.machine import Pool
from search.records import Job, Progress, dump, load, load_job
from search.text import first_line
from search.worker import WorkerSettings

__all__ = ["Delivery", "Ended", "Exchange", "Jobs", "Parking", "Progressed", "Returned", "work"]

_LOOK = 0.05
"""Seconds that Tune's loop waits for a job while a worker is idle. Its own pause between looks is 0.1."""

_NODE_DIED = ("node has died", "node is dead", "node was terminated")
"""What Ray says of a worker that went with its node, in any of its versions' words."""

_REPORT = 2.0
"""Seconds between a job's reports: each stops the training until Tune has seen it."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A job's result, as JSON."""

    job: int
    result: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a job has come, as JSON."""

    job: int
    progress: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A job whose worker died or raised.

    Attributes:
        node: Of a cluster, where that worker was; None: not known.
        blame: Whether it may have been the job's doing, by what Ray says.
    """

    job: int
    reason: str
    node: str | None = None
    blame: bool = True


class Exchange:
    """What Tune's thread and the driver's thread hand each other.

    Attributes:
        jobs: From the driver.
        events: To the driver.
        over: Set by the driver: there will be no further job.
    """

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Returned | Progressed | Ended] = queue.SimpleQueue()
        self.over = threading.Event()


class _Unpickled:
    """Keeps to its process: a copy is the same object, and what is pickled is empty."""

    def __deepcopy__(self, memo: object) -> Any:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Jobs(_Unpickled, Searcher):
    """Gives Tune a trial for every job that the driver hands out."""

    def __init__(self, exchange: Exchange, settings: WorkerSettings, parking: "Parking") -> None:
        super().__init__()
        self.of: dict[str, int] = {}
        """Trial → job, of the trials that have not ended."""
        self._exchange = exchange
        self._settings = dump(settings)
        self._parking = parking

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        # While no trial lives, None would make Tune look again once a second only, for up to ten minutes: wait here.
        while not self._exchange.over.is_set():
            if self._parking.waking:
                return None
            try:
                job = self._exchange.jobs.get(timeout=_LOOK)
            except queue.Empty:
                if self.of:
                    return None
                continue
            self.of[trial_id] = job.id
            return {"kind": job.kind, "job": dump(job), "settings": self._settings}
        finished: str = Searcher.FINISHED
        return finished

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """The driver hands out no more jobs than there are workers; Tune need not count."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the callback below hears it too, with the reason of an error."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's state is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see :meth:`save`."""


class Parking(_Unpickled, TrialScheduler):
    """Keeps the worker of a trial whose job is done until another trial wants it.

    Tune itself would keep one idle worker and end the others, and each new one costs 5 to 10 seconds (torch's import).
    So a trial that has returned its result is parked: it stays as it is, its worker waiting. A new trial takes over
    the worker of one that is parked, one in each step of Tune's loop, since Tune's own cache holds one; where none is
    parked it gets a new worker.

    On a cluster new workers are asked for on the nodes that may be used at that moment. When one of these goes, what is
    parked there is dropped, and trials that wait for a worker, there perhaps, end: their jobs go out again. So do those
    that come while no node may be used.

    Args:
        pool: What a worker has.
        nodes: Of a cluster; None: a Ray of our own.
    """

    def __init__(self, exchange: Exchange, pool: Pool | None = None, nodes: Nodes | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.node_of: dict[str, str] = {}
        """Trial → node, of those that are heard of."""
        self.withdrawn: set[str] = set()
        """Trials that ended before they had a worker."""
        self._exchange = exchange
        self._pool = pool
        self._nodes = nodes
        self._gone: frozenset[str] = frozenset()
        self._waiting: set[Trial] = set()
        self._stranded: list[Trial] = []
        self._parked: deque[Trial] = deque()
        self._waking: Trial | None = None

    @property
    def waking(self) -> bool:
        """Whether a worker is on its way from one trial to the next."""
        return self._waking is not None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if self._parked:
            self._waking = self._parked.popleft()
        if self._nodes is None:
            return
        self._waiting.add(trial)
        # Tune hands a worker on between equal requests alone.
        passed_on = None
        if self._waking is not None:
            passed_on = self._waking.placement_group_factory
            self.node_of[trial.trial_id] = self.node_of[self._waking.trial_id]
        usable = self._nodes.usable
        if passed_on is None and not usable:
            self._stranded.append(trial)  # Ray raises where a worker is asked for on none of its nodes
            return
        trial.update_resources(passed_on or self._request(usable))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "node" in result:
            self.node_of[trial.trial_id] = result["node"]
        if "result" not in result:
            return str(TrialScheduler.CONTINUE)
        self._parked.append(trial)
        return str(TrialScheduler.NOOP)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Called once a step, before Tune looks for the workers of new trials."""
        while self._stranded:
            trial = self._stranded.pop()
            self._waiting.discard(trial)
            self._withdraw(tune_controller, trial)
        if self._nodes is not None and self._nodes.gone != self._gone:
            self._gone = self._nodes.gone
            self._clear(tune_controller)
        if self._waking is not None:
            self._wake(tune_controller, self._waking)
            self._waking = None
        while self._exchange.over.is_set() and self._parked:
            tune_controller.stop_trial(self._parked.popleft())

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing: its worker is gone, and was not parked."""

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing: only parked trials complete."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing: what is removed before it ran is in :attr:`withdrawn`."""

    def debug_string(self) -> str:
        return "Keeping the workers of finished jobs for the next ones."

    def _request(self, usable: Sequence[str]) -> tune.PlacementGroupFactory:
        """A new worker's, on the nodes that may be used now."""
        if self._pool is None:
            raise RuntimeError("nodes come with a pool")
        bundle = {"CPU": self._pool.cpu} | ({"GPU": self._pool.gpu} if self._pool.gpu else {})
        among = f"in({','.join(usable)})"
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[{"ray.io/node-id": among}])

    def _wake(self, tune_controller: Any, trial: Trial) -> None:
        """End a parked trial, so that its worker is free for the one that was added."""
        if self._nodes is None:
            tune_controller.stop_trial(trial)
            return
        # While a trial with another request waits for a worker, Tune keeps none whose request nobody is known to want.
        cache, request = tune_controller._actor_cache, trial.placement_group_factory
        cache.increase_max(request)
        tune_controller.stop_trial(trial)
        cache.decrease_max(request)

    def _clear(self, tune_controller: Any) -> None:
        """Drop what is parked on nodes that went, and end what waits for a worker."""
        for trial in [*self._parked, *([self._waking] if self._waking else [])]:
            if self.node_of.get(trial.trial_id) in self._gone:
                # Not stop_trial, which would hand the dead worker on. This frees what Ray reserves elsewhere for it.
                tune_controller._process_trial_failure(trial, exception=TuneError("its node is gone"))
                if trial is self._waking:
                    self._waking = None
                else:
                    self._parked.remove(trial)
        for trial in self._waiting:
            if trial.status == Trial.PENDING:
                self._withdraw(tune_controller, trial)
        self._waiting.clear()

    def _withdraw(self, tune_controller: Any, trial: Trial) -> None:
        """End a trial that has no worker yet."""
        self.withdrawn.add(trial.trial_id)
        tune_controller.stop_trial(trial)
        if trial in tune_controller._staged_trials:
            tune_controller._unstage_trial_with_resources(trial)


class Delivery(_Unpickled, TrialProgressCallback):
    """Passes results, progress and errors on. It stands in for Tune's own callback, which prints."""

    def __init__(self, exchange: Exchange, jobs: Jobs, parking: Parking) -> None:
        super().__init__()
        self._events = exchange.events
        self._jobs = jobs
        self._parking = parking

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        job = self._jobs.of.get(trial.trial_id)
        # Taken out, so that Tune does not keep every record in memory until the end.
        returned, progress = result.pop("result", None), result.pop("progress", None)
        if job is None:
            return
        if progress is not None:
            self._events.put(Progressed(job, progress))
        if returned is not None:
            self._events.put(Returned(job, returned))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        job = self._jobs.of.pop(trial.trial_id, None)
        if job is not None:
            why, node = _why(trial), self._parking.node_of.pop(trial.trial_id, None)
            self._events.put(Ended(job, why, node, blame=not any(said in why for said in _NODE_DIED)))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        job = self._jobs.of.pop(trial.trial_id, None)
        self._parking.node_of.pop(trial.trial_id, None)
        if job is not None and trial.trial_id in self._parking.withdrawn:
            self._parking.withdrawn.discard(trial.trial_id)
            self._events.put(Ended(job, "a node went before it had a worker", blame=False))
        elif job is not None:
            # Too late to matter for a job whose result was returned before.
            self._events.put(Ended(job, "its worker ended without a result"))


def _why(trial: Trial) -> str:
    """The reason of an error in a line, from the file that Tune wrote.

    Its first line counts failures. A task that raised follows with its frames, what it raised last; a worker that
    died with what Ray knows of it, the plainest first.
    """
    try:
        text = Path(trial.error_file or "").read_text()
    except OSError:
        return "its worker ended; Tune kept no reason"
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    raised = bool(lines) and "ray::" in lines[0]
    return first_line(lines[-1] if raised else "\n".join(lines))


def work(config: dict[str, Any]) -> None:
    """A Tune trial: do one job and report its result. Runs in a worker process.

    Its first report says where it is, so that a job that is lost before it was heard of is not held against its cells
    if it was its node that went.
    """
    from search.worker import perform  # torch: the driver, which imports this too, has it later

    text = config["job"]
    job = load_job(config["kind"], text)
    settings = load(WorkerSettings, config["settings"])
    node = ray.get_runtime_context().get_node_id()
    _say_where(node)
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT:
            last = time.monotonic()
            tune.report({"progress": dump(progress), "node": node})

    tune.report({"result": dump(perform(job, settings, report)), "node": node})


@lru_cache
def _say_where(node: str) -> None:
    """Once a worker: each report costs a step of Tune's loop."""
    tune.report({"node": node})
