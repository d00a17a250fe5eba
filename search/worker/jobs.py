"""Do a job: train a stack and scan it, measure what one takes, or commit a winner and measure every task again."""

from clnp.errors import Damaged, DataUnavailable, NothingToCommit
from search.errors import BadInput, Damage
from search.records import Failure, Job, JobResult, MeasureJob, StackJob
from search.worker.commit import CommitWork
from search.worker.measure import MeasureWork
from search.worker.process import configure
from search.worker.settings import WorkerSettings
from search.worker.stack import StackWork
from search.worker.work import Report

__all__ = ["perform"]


def perform(job: Job, settings: WorkerSettings, report: Report = lambda _: None) -> JobResult:
    """Do a job.

    Args:
        job: What to do, and all that is needed for it.
        settings: Of this worker.
        report: Told after every epoch, of fine-tuning too, and every scan how far a job has come. What it raises ends
            the job.

    Returns:
        The records; or, in :attr:`JobResult.failure`, why this job cannot succeed however often it is tried.

    Raises:
        Unavailable: The artifact store cannot be reached: another try may succeed.
        RuntimeError: Training failed, such as for want of memory: smaller stacks may succeed.
    """
    configure(settings)
    try:
        if isinstance(job, StackJob):
            return StackWork(job, settings, report).run()
        if isinstance(job, MeasureJob):
            return MeasureWork(job, settings).run()
        return CommitWork(job, settings, report).run()
    except (Damaged, Damage) as error:
        return JobResult(failure=Failure("damage", str(error)))
    except NothingToCommit as error:
        return JobResult(failure=Failure("impossible", str(error)))
    except (DataUnavailable, BadInput) as error:
        return JobResult(failure=Failure("input", str(error)))
