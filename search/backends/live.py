"""What the backends with real workers have in common: a life from the forming of a pool to its end."""

from abc import abstractmethod

from search.backends.base import Backend
from search.experiment import Experiment
from search.machine import Pool
from search.worker import WorkerSettings

__all__ = ["LiveBackend"]


class LiveBackend(Backend):
    """A backend that is used in this order: :meth:`form_pool`, :meth:`start`, ``execute``, :meth:`close`.

    :meth:`close` may come at any point, and :meth:`kill` from any thread.
    """

    @abstractmethod
    def form_pool(self, experiment: Experiment, *, begun: int | None = None) -> Pool:
        """What the workers will be. Starts nothing that :meth:`close` does not end.

        Args:
            begun: See :func:`search.machine.form_pool`.

        Raises:
            BadInput: There is no machine with what one worker needs.
            Unavailable: The machines cannot be reached.
        """

    @abstractmethod
    def start(self, pool: Pool, settings: WorkerSettings) -> None:
        """Have these workers ready for ``execute``; in the background where that takes time."""

    @abstractmethod
    def close(self) -> None:
        """End the workers: at once where ``stop`` is set, else in good order."""

    @abstractmethod
    def kill(self) -> None:
        """End at once what runs outside this process. What runs in it goes on until the process ends."""
