"""What all work on a job begins with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from clnp.activity import by_layer
from clnp.network import Network
from clnp.training import Settings, open_task
from search.artifacts import Artifacts
from search.building import assembled, build_sequence, build_task, grown
from search.delivered import find
from search.errors import BadInput
from search.experiment import Experiment
from search.records import CommitJob, Job, Progress, Provenance
from search.worker.process import device_name, versions, worker_name
from search.worker.settings import WorkerSettings

__all__ = ["ACTIVITY", "Report", "Work", "training"]

Report = Callable[[Progress], None]

_PAUSE = 0.5
"""Seconds between two looks at whether to end, while artifacts are waited for."""

ACTIVITY = "activity."
"""Begins the names of a trial's entries that hold the mean activity of a group's units."""


class Work:
    """The network after the last commit, the task's data, and how far a job has come."""

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
        name, precision = device_name(self.device), self.experiment.training.precision
        return Provenance(stack, name, self._settings.threads, versions(), precision)


def training(experiment: Experiment) -> Settings:
    """Without what is of a grid alone: its halving."""
    return Settings(**experiment.training.model_dump(exclude={"halving", "halving_margin"}))
