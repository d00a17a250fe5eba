"""The backend in this process: it carries every job, whatever happens to it, and stops in the middle of one."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from search.backends import inline
from search.backends.inline import Inline
from search.backends.reasons import reason
from search.errors import Damage, Unavailable
from search.experiment import Experiment
from search.machine import Pool, cores
from search.memory import MemoryBook
from search.records import Failure, Job, JobResult, Progress
from search.run import Run
from search.worker import WorkerSettings, perform

NewRun = Callable[..., Run]
Small = Callable[..., Experiment]


@pytest.fixture
def backend(settings: WorkerSettings) -> Inline:
    backend = Inline()
    backend.start(Pool(1, "cpu", 1, 0), settings)
    return backend


def test_a_run_goes_from_start_to_end(backend: Inline, small: Small, new_run: NewRun) -> None:
    book = MemoryBook()
    run = new_run(small(replicas=2), book)
    backend.execute(run)
    assert run.finished
    assert sorted(book.commits) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {job.state for job in book.jobs.values()} == {"done"}
    assert any(job.epoch == 2 for job in book.jobs.values())


def test_there_is_one_worker(backend: Inline, small: Small) -> None:
    assert backend.form_pool(small(workers=7)).workers == 1


def test_its_worker_has_every_core_for_a_large_network(backend: Inline, small: Small) -> None:
    large = small(model={"hidden": [900, 900]})
    assert backend.form_pool(large).cpu == min(cores(), 8)


def test_it_waits_for_its_settings(small: Small, new_run: NewRun) -> None:
    with pytest.raises(RuntimeError, match="start"):
        Inline().execute(new_run(small(), MemoryBook()))


def test_a_job_that_raises_is_lost_and_tried_again(
    backend: Inline,
    small: Small,
    new_run: NewRun,
    settings: WorkerSettings,
    results: Callable[[MemoryBook], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Promise 3: the records are those of a run in which nothing was lost."""
    undisturbed = MemoryBook()
    backend.execute(new_run(small(), undisturbed))
    tries: list[str] = []

    def fail_first(job: Job, *arguments: Any) -> JobResult:
        tries.append(job.kind)
        if tries.count(job.kind) == 1:
            raise RuntimeError("out of memory\nand more lines")
        return perform(job, *arguments)

    monkeypatch.setattr(inline, "perform", fail_first)
    book = MemoryBook()
    run = new_run(small(), book)
    backend.execute(run)
    assert run.finished
    assert [job.kind for job in book.losses] == ["stack", "commit"]
    assert all(job.note.startswith("RuntimeError: out of memory (test_inline.py:") for job in book.losses)
    assert results(book) == results(undisturbed)


def test_a_job_that_always_raises_stops_the_run(
    backend: Inline, small: Small, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> JobResult:
        raise RuntimeError("no")

    monkeypatch.setattr(inline, "perform", fail)
    run = new_run(small(retries=1), MemoryBook())
    backend.execute(run)
    assert isinstance(run.stopped, Unavailable)


def test_a_failure_stops_the_run(
    backend: Inline, small: Small, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = JobResult(failure=Failure("damage", "bytes"))
    monkeypatch.setattr(inline, "perform", lambda *_: failed)
    run = new_run(small(), MemoryBook())
    backend.execute(run)
    assert isinstance(run.stopped, Damage)


def test_stop_does_not_wait_for_the_job(
    backend: Inline, small: Small, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    seen: list[BaseException] = []

    def endless(job: Job, settings: WorkerSettings, report: Callable[[Progress], None]) -> JobResult:
        backend.stop.set()
        time.sleep(0.4)  # an epoch
        try:
            report(Progress("here", 1, 10**9, 0.5))
        except BaseException as error:
            seen.append(error)
            raise
        finally:
            ended.set()
        return JobResult()

    monkeypatch.setattr(inline, "perform", endless)
    book = MemoryBook()
    run = new_run(small(), book)
    began = time.monotonic()
    backend.execute(run)
    assert time.monotonic() - began < 0.35
    run.give_back()
    assert [job.state for job in book.jobs.values()] == ["given back"]
    assert ended.wait(5)
    assert [type(error).__name__ for error in seen] == ["_StoppedError"]
    assert not book.commits


def test_nothing_is_asked_for_after_stop(backend: Inline, small: Small, new_run: NewRun) -> None:
    book = MemoryBook()
    backend.stop.set()
    backend.execute(new_run(small(), book))
    assert not book.jobs


def test_it_imports_no_ray() -> None:
    script = "import sys, search.backends.inline, search.driver; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_reason_is_one_line() -> None:
    assert reason(RuntimeError("\n\n  first\nsecond")) == "RuntimeError: first"
    assert reason(KeyError()) == "KeyError: no reason given"
    assert len(reason(RuntimeError("x" * 10_000))) < 400
