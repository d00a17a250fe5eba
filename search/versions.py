"""What a record's bits depend on beside its cell: the versions that made it, and how two attempts differ in them."""

import importlib.metadata
import platform
from collections.abc import Mapping

import clnp

__all__ = ["begun_threads", "changes", "describe", "package_version"]

_PACKAGE = "clnp-search"


def package_version(name: str = _PACKAGE) -> str:
    """The version of an installed package; ``"not installed"`` for one that is not, such as a bare source tree."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(*more: str) -> dict[str, str]:
    """The versions of Python, of this package and its numerics, of torch, and of the packages ``more``.

    Read from the packages' metadata: nothing is imported. torch's local part (``+cpu``, ``+cu130``) is in it.
    """
    packages = {name: package_version(name) for name in (_PACKAGE, "torch", *more)}
    return {"python": platform.python_version(), "numerics": str(clnp.NUMERICS), **packages}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two attempts at a run, a phrase each: ``torch was 2.12.0, is 2.13.0``."""
    return [
        f"{key} was {before.get(key, 'not recorded')}, is {now.get(key, 'not recorded')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def begun_threads(attempt: Mapping[str, str] | None) -> int | None:
    """The threads that each worker of an attempt had on a CPU; None on a GPU, or where that is not recorded."""
    if attempt is None or attempt.get("device") != "cpu" or "threads" not in attempt:
        return None
    return int(attempt["threads"])
