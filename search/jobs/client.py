"""Ray's job client, made to answer in time, to say nothing of its own, and to fail in our words."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from search.errors import BadInput, Unavailable

try:
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobDetails, JobSubmissionClient
except ImportError as error:
    raise BadInput(
        f"jobs need Ray's job client, which is not whole here ({error}): pip install 'clnp-search[cluster]'"
    ) from None

__all__ = ["Client", "JobDetails", "Missing", "Refused", "check_address"]

_TIMES = (10.0, 60.0)
"""Seconds for connecting, and between two bytes of an answer: the head starts things before it takes a job."""

_RAY = ((2, 60), (3, 0))
"""From this version of Ray, and below that one, a head can run what is submitted: as in pyproject.toml."""

_OTHERS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client takes these before the address that it is given."""

_TOKEN = "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or its file in RAY_AUTH_TOKEN_PATH"

_FORM = "give the one of the head's dashboard: http://HEAD:8265"


class Missing(BadInput):
    """There is no such job."""


class Refused(Unavailable):
    """The head could not do what it was asked for."""


def check_address(address: str) -> str:
    """``address``, if it can be a dashboard's.

    Raises:
        BadInput: It cannot.
    """
    parts = urlsplit(address)
    if "@" in address:
        raise BadInput(f"--address holds a user or a password, and is not shown; {_FORM}, a token in RAY_AUTH_TOKEN")
    if parts.scheme == "ray":
        raise BadInput(f"--address {address}: this is Ray Client's, which takes no jobs; {_FORM}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--address {address}: jobs go to another address than workers; {_FORM}")
    return address.rstrip("/")


class Client(JobSubmissionClient):
    """The job server of a cluster's head.

    Args:
        address: Of its dashboard; see :func:`check_address`.

    Raises:
        BadInput: The address is none; what answers there is no dashboard of Ray's, or of another version; it asks for a
            token that it is not given, or refuses it.
        Unavailable: Nothing answers.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        self.now = time.time()
        """By the head's clock at its last answer, seconds since 1970."""
        _silence()
        try:
            with _without(_OTHERS):
                super().__init__(self.address)
        except AuthenticationError:
            raise BadInput(f"RAY_AUTH_MODE is token, and no token was given; {_TOKEN}") from None

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """In place of Ray's own check, which is content with Ray 2.0 and takes any web server's answer apart."""
        if self._server_ray_version is not None:
            return
        answer = self._do_request("GET", "/api/version")
        try:
            version = str(answer.json()["ray_version"])
            number = tuple(map(int, version.split(".")[:2]))
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{self.address} is no dashboard of Ray's; {_FORM}") from None
        self._server_ray_version = version
        if not _RAY[0] <= number < _RAY[1]:
            oldest, newest = (".".join(map(str, each)) for each in _RAY)
            raise BadInput(
                f"{self.address} runs Ray {version}; clnp-search needs at least {oldest} and less than {newest} there"
            )

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        """Every request of Ray's client passes here."""
        try:
            answer = super()._do_request(method, endpoint, timeout=_TIMES, **options)
        except AuthenticationError as error:
            raise BadInput(self._unauthorized(str(error))) from None
        except requests.exceptions.RequestException as error:
            raise Unavailable(
                f"the head at {self.address} does not answer ({_reason(error)}); is it up, and is this its dashboard?"
            ) from None
        with contextlib.suppress(KeyError, ValueError):
            self.now = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        job = endpoint.startswith("/api/jobs/")
        if answer.status_code == 404 and job:
            raise Missing(f"{self.address} knows no such job")
        if answer.status_code == 404 and not endpoint.startswith("/api/packages/"):
            raise BadInput(f"{self.address} is no dashboard of Ray's; {_FORM}")
        if answer.status_code >= 400 and answer.status_code != 404:
            raise Refused(
                f"the head at {self.address} refuses (status {answer.status_code}): {_last_line(answer.text)}"
            )
        return answer

    def _unauthorized(self, text: str) -> str:
        if text.startswith("Authentication required"):
            return f"the head at {self.address} asks for a token and was given none; {_TOKEN}"
        return f"the head at {self.address} refuses this token; {_TOKEN}"


def _silence() -> None:
    """Ray's client tells of uploads, its logger's own handler writes it."""
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def _without(variables: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _reason(error: BaseException) -> str:
    """The innermost of the errors that requests wraps, in a line."""
    if isinstance(error, requests.exceptions.Timeout):
        return f"nothing within {_TIMES[isinstance(error, requests.exceptions.ReadTimeout)]:.0f} s"
    inside = getattr(error, "reason", None) or next((each for each in error.args if isinstance(each, Exception)), None)
    if isinstance(inside, Exception):
        return _reason(inside)
    text = str(error).rpartition(": ")[2].strip().rstrip(".")
    return text if text.isprintable() and text else "what it says is not HTTP"


def _last_line(text: str) -> str:
    """A traceback's last line says what was wrong."""
    with contextlib.suppress(ValueError):
        text = str(json.loads(text).get("msg", text)) if text.startswith("{") else text
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "without a reason"
