"""How jobs reach workers: the contract of every backend."""

import threading
from abc import ABC, abstractmethod

from search.run import Run

__all__ = ["Backend"]


class Backend(ABC):
    """Hands the jobs of a run to workers and their results back to it.

    The run decides what is done, in which order and how often; a backend only carries. It promises:

    - It asks :meth:`Run.next_job` whenever a worker is idle. ``None`` means nothing to hand out *now*: ask again after
      the next result.
    - Every job it was given ends in exactly one :meth:`Run.take` or :meth:`Run.lost`: ``lost`` for a worker that died
      or raised, with the reason in a line, whatever the cause. It never tries a job again itself: the retries are the
      run's, counted in the ledger, so that they outlive the driver. A backend that cannot tell whether a job was
      lost may report it late or twice; the run takes only what is out.
    - :meth:`Run.progress` may be called for a job in between, as often as there is something to say.
    - Its hooks (callbacks that a framework calls) never raise. What goes wrong while a record is written the run keeps
      as :attr:`Run.stopped`.
    - Workers get no database and no credentials (Promise 6): what they need is in the job.
    - The run may be called from any thread.

    Attributes:
        stop: Set by whoever wants the run to end early (a signal handler): no further job is asked for and
            :meth:`execute` returns within seconds, without waiting for the jobs that run; what had come back by then
            is taken in. The caller then calls :meth:`Run.give_back`.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()

    @abstractmethod
    def execute(self, run: Run) -> None:
        """Work until :attr:`Run.over` is true or :attr:`stop` is set.

        A run that stopped hands out nothing more; the jobs that run then are waited for and taken in
        (:attr:`Run.over` says when that is through). Whether the run is complete is a question for
        :attr:`Run.finished`, not for how this method returned.
        """
