"""A bucket of an S3-compatible store as a vault. Needs the extra ``s3``."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)

from search.artifacts.locations import split
from search.artifacts.vault import Entry, Missing, Nameless, Trouble, Vault

__all__ = ["Bucket"]

_CONNECT, _ANSWER = 5, 20
"""Seconds that a connection, and each answer, may take."""

_ABSENT = {("GetObject", "NoSuchKey"), ("DeleteObject", "NoSuchKey"), ("HeadObject", "404")}  # a HEAD has no words
_DENIED = {"AccessDenied", "AllAccessDisabled", "403"}
_UNKNOWN = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"),
    *("InvalidClientTokenId", "AuthFailure", "UnrecognizedClientException", "401"),
}
_PASSING = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout"),
    *("InternalError", "ServiceUnavailable", "OperationAborted"),
}
_MEND = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class Bucket(Vault):
    """Objects whose keys begin with a prefix: of one request each, so there whole or not at all.

    boto3 finds endpoint, region and credentials by itself: environment, files, the machine's role. Each object holds
    one file, so Optuna's ``Boto3ArtifactStore`` reads it by its key. It is not used here: it takes an absent bucket for
    an absent object, and uploads what is large in several parts.

    Args:
        location: As :func:`~search.artifacts.locations.normal` gives it.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._bucket, self._prefix = split(location)

    def address(self, name: str) -> str:
        return f"{self._location}/{name}"

    def read(self, name: str) -> bytes:
        with self._reachable() as client:
            data: bytes = client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        with self._reachable() as client:
            client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def size(self, name: str) -> int:
        with self._reachable() as client:
            found: int = client.head_object(Bucket=self._bucket, Key=self._prefix + name)["ContentLength"]
        return found

    def remove(self, name: str) -> bool:
        try:
            self.size(name)  # to remove what is not there is no error either
            with self._reachable() as client:
                client.delete_object(Bucket=self._bucket, Key=self._prefix + name)
        except Missing:
            return False
        return True

    def entries(self) -> Mapping[str, Entry]:
        cut = len(self._prefix)
        found = {
            entry["Key"][cut:]: Entry(entry["Size"], entry["LastModified"].timestamp())
            for entry in self._listed("Contents")
        }
        # What a console shows as an empty folder is an object of that name.
        found.pop("", None)
        return found

    def exists(self) -> bool:
        with self._reachable() as client:
            found = client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        return bool(found.get("Contents"))

    def make(self) -> None:
        """Nothing: a prefix is there with its first object, and a bucket is for its owner to make."""

    def unmake(self) -> None:
        """Nothing: a prefix goes with its last object."""

    def places(self) -> tuple[str, ...]:
        found = (entry["Prefix"][len(self._prefix) : -1] for entry in self._listed("CommonPrefixes"))
        return tuple(sorted(found))

    def _listed(self, what: str) -> list[Any]:
        with self._reachable() as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            return [entry for page in pages for entry in page.get(what, ())]

    @contextmanager
    def _reachable(self) -> Iterator[Any]:
        try:
            yield _client(_environment())
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if (error.operation_name, code) in _ABSENT:
                raise Missing from error
            raise self._refused(error, code) from error
        except BotoCoreError as error:
            raise _failed(error) from error
        except RecursionError:
            # botocore follows a bucket to its region, again and again where there is none.
            raise Trouble("the server leads elsewhere; give AWS_ENDPOINT_URL as it is there", passes=False) from None
        except ValueError as error:
            # Such as an AWS_ENDPOINT_URL that is no URL.
            raise Trouble(_redacted(str(error)), passes=False) from error

    def _refused(self, error: ClientError, code: str) -> Trouble:
        """What an answer of the server means."""
        said = _redacted(error.response.get("Error", {}).get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        action = f"s3:{_ACTIONS.get(error.operation_name, error.operation_name)}"
        if code == "NoSuchBucket":
            return Trouble(
                f"there is no bucket {self._bucket!r}; make it, or check its name and AWS_ENDPOINT_URL", passes=False
            )
        if code in _DENIED:
            return Trouble(
                f"access denied: these credentials may not {action} in bucket {self._bucket!r}; allow it, or set "
                f"{_MEND}",
                passes=False,
            )
        if code in _UNKNOWN:
            return Trouble(f"the credentials are refused ({code}: {said}); check {_MEND}", passes=False)
        passes = code in _PASSING or status == 429 or (status >= 500 and status != 501)
        return Trouble(f"the server answers {action} with {code or status}: {said or 'no reason given'}", passes=passes)


_SILENCE: dict[type[BotoCoreError], str] = {
    EndpointConnectionError: "cannot be reached",
    ConnectTimeoutError: f"cannot be reached in {_CONNECT} s",
    ReadTimeoutError: f"does not answer in {_ANSWER} s",
    ConnectionClosedError: "closes the connection",
}

_ACTIONS = {"HeadObject": "GetObject", "ListObjectsV2": "ListBucket"}
"""Request → the permission that it needs, where that has another name."""


def _failed(error: BotoCoreError) -> Trouble:
    """What it means that there was no answer."""
    if isinstance(error, NoCredentialsError):
        return Trouble(f"no credentials were found; set {_MEND}, on every node", passes=False)
    if isinstance(error, PartialCredentialsError | ProfileNotFound):
        return Trouble(f"{_redacted(str(error))}; check {_MEND}", passes=False)
    words = next((text for kind, text in _SILENCE.items() if isinstance(error, kind)), None)
    if words is not None:
        found = urlsplit(str(error.kwargs.get("endpoint_url", "")))
        where = f"{found.scheme}://{found.netloc.rpartition('@')[2]}"
        unknown = getattr(getattr(error.kwargs.get("error"), "__cause__", None), "errno", None) == socket.EAI_NONAME
        kind = Nameless if unknown else Trouble
        return kind(f"{where} {words} (is it running, and is AWS_ENDPOINT_URL right?)", passes=True)
    passes = isinstance(error, HTTPClientError | IncompleteReadError | CredentialRetrievalError)
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        passes = False
    return Trouble(_redacted(str(error)), passes=passes)


def _redacted(text: str) -> str:
    """The first line of a message, without what an endpoint's URL may hold."""
    line = next(iter(text.strip().splitlines()), "")
    return re.sub(r"//[^/@\s]*@", "//***@", line)


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))


@lru_cache(maxsize=4)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:  # noqa: ARG001 – what boto3 reads, so that it is a key
    """A client for this process: to make one takes a tenth of a second, and it may be used from several threads."""
    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=_CONNECT,
            read_timeout=_ANSWER,
            retries={"mode": "standard", "total_max_attempts": 1},  # who calls tries again, and says so
            response_checksum_validation="when_required",  # every artifact is hashed anyway
        ),
    )
