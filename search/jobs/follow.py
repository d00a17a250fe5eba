"""A job's log, without what Ray writes into it, as it stands or as it grows."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from search.errors import Unavailable
from search.jobs.client import Client, JobDetails

__all__ = ["follow", "last_attempt", "read_log"]

_LOOK = 20.0
"""Seconds of silence after which the head is asked whether the job still runs, and is found to be gone."""

_PATIENCE = 120.0
"""Seconds for which a head that went away is looked for: the job goes on without a reader."""

_PAUSE = 1.0
"""Seconds before the first new connection."""


def _marker(name: str) -> str:
    """What Ray writes before a job's own lines. A name that was submitted again continues the same file."""
    return f"Running entrypoint for job {name}: "


def last_attempt(log: str, name: str) -> int:
    """Where in a log what Ray wrote for the last attempt begins; 0 where no attempt is seen."""
    lines = log.splitlines(keepends=True)
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].startswith(_marker(name)):
            return sum(map(len, lines[:place]))
    return 0


def read_log(client: Client, name: str) -> str:
    """The lines of the last attempt."""
    log: str = client.get_job_logs(name)
    return _Lines(name).take(log[last_attempt(log, name) :], end=True)


class _Lines:
    """Passes on what follows Ray's own lines; all of it where a job ended before it had begun."""

    def __init__(self, name: str) -> None:
        self._marker = _marker(name)
        self._held = ""
        self._begun = False

    def take(self, text: str, *, end: bool = False) -> str:
        self._held += text
        if not self._begun:
            before, marker, rest = self._held.partition(self._marker)
            if marker and "\n" in rest:
                self._begun, self._held = True, rest.partition("\n")[2]
            elif not end:
                return ""
            else:
                self._held = before + marker + rest
        text, self._held = self._held, ""
        return text


def follow(client: Client, name: str, write: Callable[[str], None], *, begin: int = 0) -> JobDetails:
    """Pass a job's log on until the job has ended, whatever becomes of the connection in between.

    Args:
        write: Given the text as it comes.
        begin: The character of the log to begin with.

    Returns:
        The job, ended.

    Raises:
        Missing: The job is there no longer.
        Unavailable: The head stayed away; the job may go on.
        BrokenPipeError: Raised by ``write``.
    """
    tail = _Tail(client, name, begin)
    lines = _Lines(name)
    lost, pause = None, _PAUSE
    while True:
        try:
            asyncio.run(tail.read(lambda text: write(lines.take(text))))
            job = client.get_job_info(name)
            if job.status.is_terminal():
                write(lines.take("", end=True))
                return job
            lost, pause = None, _PAUSE
        except BrokenPipeError:
            raise  # of ``write``: who reads it is gone, and no head is waited for
        except (aiohttp.ClientError, RuntimeError, OSError, Unavailable) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _PATIENCE:
                raise Unavailable(
                    f"the head at {client.address} was away for {_PATIENCE:.0f} s ({error}); run {name} may go on: "
                    f"clnp-search logs {name} --follow --address {client.address}"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 16 * _PAUSE)


class _Tail:
    """A log that is read from its beginning at each connection, and passed on once."""

    def __init__(self, client: Client, name: str, begin: int) -> None:
        self._client = client
        self._name = name
        self._seen = begin

    async def read(self, write: Callable[[str], None]) -> None:
        """Until the job has ended or the connection is lost."""
        stream = self._client.tail_job_logs(self._name)
        place = 0
        while (text := await self._next(stream)) is not None:
            new = text[max(0, self._seen - place) :]
            place += len(text)
            self._seen = max(self._seen, place)
            if new:
                write(new)

    async def _next(self, stream: AsyncIterator[str]) -> str | None:
        asked = asyncio.ensure_future(anext(stream, None))
        while not (await asyncio.wait({asked}, timeout=_LOOK))[0]:
            # A head that vanished says nothing, which a quiet job does too.
            await asyncio.to_thread(self._client.get_job_info, self._name)
        return asked.result()
