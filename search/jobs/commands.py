"""What the commands about jobs do: submit, follow, stop and list them. Reports are what JSON can hold."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.errors import BadInput, Held, Unavailable
from search.jobs.client import Client, JobDetails, Missing, Refused
from search.jobs.follow import follow, last_attempt, read_log
from search.jobs.submission import Package, check_job_name
from search.text import clock
from search.versions import package_version

__all__ = ["ADDRESS_VARIABLE", "connect", "list_jobs", "logs", "stop", "submit", "wait"]

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Where Ray's own job commands look for the address too."""

_OURS = "clnp-search"
"""The key of a job's metadata that says that it is ours; its value is the version that submitted it."""

_COMMAND = "command"
"""Another one: what continues the run."""

_GRACE = 30
"""Seconds that Ray gives a driver between SIGTERM and SIGKILL. It needs 5 at most; Ray's default is 3."""

_STOPPING = 60.0
_STARTING = 60.0
_POLL = 0.5

_FORGET = 10.0
"""Seconds between a job's end and its deletion.

Ray looks once a second whether a job's supervisor lives. Where it misses it and finds no record of an end, it writes
that the job failed: into the record of the next one of that name, or into a new one that says nothing else.
"""

_STATUS = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
}
"""Ray's words, and ours."""

_NOT_FOUND = 127

_NOT_YET = "No available agent"
"""What a head says that was started a moment ago."""


def connect(address: str | None) -> Client:
    """The job server at ``address``, or at what :data:`ADDRESS_VARIABLE` names.

    Raises:
        BadInput: There is no address, or see :class:`~search.jobs.client.Client`.
        Unavailable: Nothing answers.
    """
    found = address or os.environ.get(ADDRESS_VARIABLE)
    if not found:
        raise BadInput(f"no --address, and no {ADDRESS_VARIABLE}; give the head's dashboard: http://HEAD:8265")
    return Client(found)


def submit(client: Client, package: Package) -> tuple[dict[str, Any], int]:
    """Have the cluster run it, and wait until its driver is started.

    The record of an earlier job of that name, which has ended, is deleted: the run's name stays the job's.

    Returns:
        A report, and the character of the job's log at which this attempt begins.

    Raises:
        Held: The run's job is not over.
        BadInput: The cluster has a job of that name that is not ours.
        Unavailable: The head refuses, or does not start it.
    """
    name = package.name
    before = _find(client, name)
    begin = 0 if before is None else _make_room(client, name, before)
    _send(client, package)
    job = _until(client, name, lambda job: job.status.name != "PENDING", _STARTING)
    if before is not None and _mistaken(job):
        _make_room(client, name, job)
        _send(client, package)
        job = _until(client, name, lambda job: job.status.name != "PENDING", _STARTING)
    report = _report(job) | {"address": client.address, "continues": before is not None, "files": sorted(package.files)}
    return report, begin


def _mistaken(job: JobDetails) -> bool:
    """Whether Ray took a job for the one of its name before: see :data:`_FORGET`."""
    return job.status.name == "FAILED" and str(job.error_type).startswith("JOB_SUPERVISOR_ACTOR")


def _send(client: Client, package: Package) -> None:
    """Submit the job, to a head that was started a moment ago too."""
    name = package.name
    metadata = {_OURS: package_version(), _COMMAND: package.command}
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_GRACE)}}
    with tempfile.TemporaryDirectory(prefix="clnp-submit-") as folder:
        for path, content in package.files.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if package.files:
            environment["working_dir"] = folder
        end = time.monotonic() + _STARTING
        while True:
            try:
                client.submit_job(
                    entrypoint=package.entrypoint, submission_id=name, runtime_env=environment, metadata=metadata
                )
                break
            except Refused as error:
                other = _find(client, name)
                if other is not None:
                    raise _held(client, other) from None  # somebody else was quicker
                if _NOT_YET not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(_POLL)


def wait(client: Client, name: str, begin: int, write: Callable[[str], None] | None) -> dict[str, Any]:
    """The job when it has ended; its log is passed to ``write`` until then, or with None to nobody.

    Raises:
        Unavailable: The head stayed away; the job may go on.
    """
    return _report(follow(client, name, write or _hush, begin=begin))


def logs(client: Client, name: str, write: Callable[[str], None], *, on: bool) -> None:
    """Pass the log of a run's job on: as it stands, or ``on`` until the job has ended.

    Raises:
        BadInput: The run has no job there.
        Unavailable: The head stayed away.
    """
    _ours(client, name)
    if on:
        follow(client, name, write, begin=last_attempt(client.get_job_logs(name), name))
    else:
        write(read_log(client, name))


def stop(client: Client, name: str) -> dict[str, Any]:
    """End a run's job in good order and wait until it has ended; one that has is left as it is.

    Raises:
        BadInput: The run has no job there.
        Unavailable: It does not end.
    """
    job = _ours(client, name)
    asked = not job.status.is_terminal()
    if asked:
        client.stop_job(name)
        job = _until(client, name, lambda job: job.status.is_terminal(), _STOPPING)
        if not job.status.is_terminal():
            raise Unavailable(f"run {name} was told to stop and still runs after {_STOPPING:.0f} s; try again")
    report = _report(job) | {"address": client.address, "asked": asked}
    if job.status.name == "STOPPED":
        report["outcome"] = _farewell(read_log(client, name))
    return report


def list_jobs(client: Client) -> dict[str, Any]:
    """The jobs that were submitted by us, the oldest first; others are counted."""
    jobs = client.list_jobs()
    ours = sorted((job for job in jobs if _is_ours(job)), key=lambda job: job.start_time or 0)
    return {"address": client.address, "jobs": [_report(job) for job in ours], "others": len(jobs) - len(ours)}


def _hush(_: str) -> None:
    """Where nobody watches."""


def _is_ours(job: JobDetails) -> bool:
    return job.type.name == "SUBMISSION" and _OURS in (job.metadata or {})


def _is_left(job: JobDetails) -> bool:
    """Whether it is what Ray wrote after a job's record was deleted: see :data:`_FORGET`."""
    return job.start_time is None and job.metadata is None and job.status.is_terminal()


def _find(client: Client, name: str) -> JobDetails | None:
    try:
        job = client.get_job_info(name)
    except Missing:
        return None
    if not (_is_ours(job) or _is_left(job)):
        raise BadInput(
            f"{client.address} has a job {name} that clnp-search did not submit; give the run another --name, or "
            f"delete that one: ray job delete {name}"
        )
    return job


def _ours(client: Client, name: str) -> JobDetails:
    job = _find(client, check_job_name(name))
    if job is None:
        raise BadInput(
            f"{client.address} has no job of run {name}; those that it has: clnp-search list --address {client.address}"
        )
    return job


def _held(client: Client, job: JobDetails) -> Held:
    name, since = job.submission_id, clock((job.start_time or 0) / 1000)
    return Held(
        f"run {name} is driven by its job on {client.address} since {since}; `clnp-search logs {name}` shows it, "
        f"`clnp-search stop {name}` ends it"
    )


def _make_room(client: Client, name: str, job: JobDetails) -> int:
    """Delete the record of a job that has ended; how long its log is, which the next one continues."""
    if not job.status.is_terminal():
        raise _held(client, job)
    begin = len(client.get_job_logs(name))
    ended = client.now if job.end_time is None else job.end_time / 1000
    time.sleep(min(_FORGET, max(0.0, ended + _FORGET - client.now)))
    try:
        client.delete_job(name)
    except (Missing, Refused):
        other = _find(client, name)
        if other is not None:
            raise _held(client, other) from None  # somebody else was quicker
    return begin


def _until(client: Client, name: str, over: Callable[[JobDetails], bool], seconds: float) -> JobDetails:
    """The job as soon as it is ``over``, or after so many seconds."""
    end = time.monotonic() + seconds
    while not over(job := client.get_job_info(name)) and time.monotonic() < end:
        time.sleep(_POLL)
    return job


def _report(job: JobDetails) -> dict[str, Any]:
    metadata = job.metadata or {}
    return {
        "run": job.submission_id,
        "status": _STATUS[job.status.name],
        "started": None if job.start_time is None else job.start_time / 1000,
        "ended": None if job.end_time is None else job.end_time / 1000,
        "exit_code": _exit_code(job),
        "outcome": _outcome(job),
        "command": metadata.get(_COMMAND),
        "version": metadata.get(_OURS),
    }


def _exit_code(job: JobDetails) -> int | None:
    """As `run` ends; None of a job that has not ended."""
    if not job.status.is_terminal():
        return None
    if job.status.name == "STOPPED":
        return 143
    code = job.driver_exit_code
    return Unavailable.exit_code if code is None else int(code) if code >= 0 else 128 - int(code)


def _outcome(job: JobDetails) -> str | None:
    """How a job ended, for people; None where its status says all."""
    if job.status.name != "FAILED":
        return None
    lines = [line for line in (job.message or "").splitlines() if line.strip()]
    code = job.driver_exit_code
    if code is None:
        return lines[0] if lines else "Ray says no reason"
    if code == _NOT_FOUND:
        return "the head's shell does not find clnp-search; install it there, on the PATH that Ray was started with"
    if code < 0:
        return f"its driver was killed by signal {-code}; the same command continues"
    lines = lines[1:]  # the first is Ray's
    said = [line for line in lines if line.startswith("clnp-search: ")] or lines[-1:]
    return said[-1].removeprefix("clnp-search: ") if said else f"exit code {code}"


def _farewell(log: str) -> str:
    """How a driver that was told to stop ended, by its last words."""
    last = [line for line in log.splitlines() if line.startswith("interrupted")]
    if not last:
        return "it ended without a word; a lease that it had ends within half a minute"
    if "before anything" in last[-1]:
        return "nothing was started yet"
    return "its jobs are given back and its lease is released"
