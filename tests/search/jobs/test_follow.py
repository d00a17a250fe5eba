"""A log that is followed shows every line once, whatever becomes of the connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

import search.jobs.client
import search.jobs.commands
import search.jobs.follow
from search.errors import Unavailable
from search.jobs.follow import follow, last_attempt

BEGIN = "2026-01-01 INFO job_manager.py:1 -- Runtime env is setting up.\nRunning entrypoint for job small: exec x\n"


class Tailed:
    """A client whose log comes in pieces; the connection breaks after so many characters, each time one."""

    address = "http://head:8265"

    def __init__(self, text: str, breaks: list[int], size: int) -> None:
        self.text = text
        self.breaks = breaks
        self.size = size

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else None
        text = self.text[:end]
        for place in range(0, len(text), self.size):
            yield text[place : place + self.size]
        if end is not None:
            raise RuntimeError("the connection is lost")

    def get_job_info(self, _: str) -> Any:
        class Ended:
            status = JobStatus.SUCCEEDED

        return Ended()


@given(
    earlier=st.sampled_from(["", f"{BEGIN}old line\n", f"{BEGIN}old\n{BEGIN}older, cut o"]),
    log=st.text("ab\n", max_size=40),
    breaks=st.lists(st.integers(0, 300), max_size=3),
    size=st.integers(1, 50),
)
@example(earlier="", log="", breaks=[], size=1)
def test_every_line_is_shown_once(earlier: str, log: str, breaks: list[int], size: int) -> None:
    """However the text is cut, however often the connection is lost; of the last attempt alone, without Ray's lines."""
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.jobs.follow, "_PAUSE", 0.0)
        client: Any = Tailed(f"{earlier}{BEGIN}{log}", breaks, size)
        follow(client, "small", told.append, begin=len(earlier))
    assert "".join(told) == log


def test_a_job_that_never_began_shows_why() -> None:
    told: list[str] = []
    client: Any = Tailed("runtime_env setup failed: no space\n", [], 10)
    follow(client, "small", told.append)
    assert "".join(told) == "runtime_env setup failed: no space\n"


def test_a_head_that_stays_away_ends_the_looking_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.jobs.follow, "_PAUSE", 0.01)
    monkeypatch.setattr(search.jobs.follow, "_PATIENCE", 0.1)
    client: Any = Tailed(BEGIN, [3] * 10**4, 10)
    with pytest.raises(Unavailable, match="run small may go on: clnp-search logs small --follow"):
        follow(client, "small", lambda _: None)


def test_a_reader_that_goes_away_ends_the_looking_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``| head`` does: it is not the cluster's head that is away."""
    monkeypatch.setattr(search.jobs.follow, "_PATIENCE", 0.0)
    client: Any = Tailed(f"{BEGIN}one\n", [], 10)

    def write(text: str) -> None:
        if text:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(client, "small", write)


def test_a_head_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes, and no connection is lost."""

    class Gone(Tailed):
        async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
            await asyncio.sleep(60)
            yield ""

        def get_job_info(self, _: str) -> Any:
            raise Unavailable("nobody there")

    for name, value in (("_PAUSE", 0.01), ("_PATIENCE", 0.1), ("_LOOK", 0.05)):
        monkeypatch.setattr(search.jobs.follow, name, value)
    gone: Any = Gone("", [], 1)
    with pytest.raises(Unavailable, match="nobody there"):
        follow(gone, "small", lambda _: None)


def test_the_last_attempt_is_found() -> None:
    log = f"{BEGIN}one\n{BEGIN}two\n"
    assert log[last_attempt(log, "small") :] == f"{BEGIN.splitlines()[1]}\ntwo\n"
    assert last_attempt("nothing of it", "small") == 0
