"""Where artifacts lie: a folder's path, or ``s3://BUCKET/PREFIX``."""

import os
import posixpath
import re

from search.errors import BadInput

__all__ = ["is_bucket", "join", "normal", "parent", "split"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PART = re.compile(r"[A-Za-z0-9!_.*'() -]+")

_SUPPORTED = "give a folder, or s3://BUCKET/PREFIX"
_CHAIN = (
    "credentials do not belong into a location, which is written down and shown: set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
)


def is_bucket(location: str) -> bool:
    """Whether a location is in an object store."""
    return location.startswith("s3://")


def normal(location: str) -> str:
    """The location as it is written down: an absolute path, or a URL without needless slashes.

    Raises:
        BadInput: It is neither.
    """
    scheme = _SCHEME.match(location)
    if scheme is None:
        if not location:
            raise BadInput(f"artifacts at '': {_SUPPORTED}")
        return os.path.abspath(location)
    if scheme[1].lower() != "s3" or not location.lower().startswith("s3://"):
        raise BadInput(f"artifacts at {_masked(location)!r}: only folders and s3:// are supported; {_SUPPORTED}")
    return _normal_bucket(location)


def split(location: str) -> tuple[str, str]:
    """Bucket and prefix; the prefix ends with ``/`` or is empty."""
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/" if prefix else ""


def join(home: str, place: str, name: str) -> str:
    """``name`` in ``place``, which, if it is a relative path, lies in the folder ``home``."""
    return posixpath.join(place, name) if is_bucket(place) else os.path.join(home, place, name)


def parent(location: str) -> str:
    """What a location lies in."""
    return posixpath.dirname(location) if is_bucket(location) else os.path.dirname(location)


def _normal_bucket(location: str) -> str:
    rest = location[len("s3://") :]
    if "@" in rest:
        raise BadInput(f"artifacts at {_masked(location)!r}: {_CHAIN}")
    bucket, *parts = rest.rstrip("/").split("/")
    shown = _masked(location)
    if not _BUCKET.fullmatch(bucket):
        raise BadInput(f"artifacts at {shown!r}: {_masked(bucket)!r} cannot name a bucket; give s3://BUCKET/PREFIX")
    for part in parts:
        if not _PART.fullmatch(part) or part in (".", ".."):
            raise BadInput(
                f"artifacts at {shown!r}: {_masked(part)!r} cannot be a part of a prefix; use letters, digits and "
                "!_.*'()- between single slashes"
            )
    return "/".join(("s3:/", bucket, *parts))


def _masked(location: str) -> str:
    """Without what may be a password in it: before an ``@``, or after a ``?``."""
    return re.sub(r"^([A-Za-z0-9+.-]*:/+)?.*@", r"\1***@", re.sub(r"(?s)\?.*", "?***", location))
