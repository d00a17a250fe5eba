"""Whether every node sees the same artifacts: the driver leaves something, the nodes answer, the driver looks.

The driver calls :func:`leave`, every node :func:`answer` with its token, the driver :func:`settle` with the answers.
"""

import functools
import hashlib
import secrets
from collections.abc import Mapping

from search.artifacts.store import Artifacts, is_probe, probe_name
from search.artifacts.vault import Missing
from search.errors import BadInput

__all__ = ["answer", "leave", "settle"]

_PATIENCE = 5.0
"""Seconds for which what may pass by itself is tried again: the other nodes wait meanwhile."""


def leave(location: str, *, prepared: bool = False) -> str:
    """Write something that nobody can guess where artifacts are to lie, and return the token that names it.

    What probes left there that were killed is removed.

    Args:
        prepared: Artifacts lie there already: a folder that is not there is on a share that is away, and not made.

    Raises:
        BadInput: The location cannot be one, or cannot be written.
        Unavailable: It cannot be written now.
    """
    artifacts = _open(location, prepared=prepared)
    token = _write(artifacts)
    artifacts.tidy()
    return token


def answer(location: str, token: str) -> str:
    """On a node: look for what the driver left, and write something of one's own. Nothing is made or written before.

    Args:
        token: From :func:`leave`.

    Returns:
        What :func:`settle` wants to know of this node.

    Raises:
        BadInput: It is not there: what this node has at the location is another place; or it cannot be read or written.
        Unavailable: It cannot be read or written now.
    """
    artifacts, name = _open(location), _name(token)
    try:
        found = artifacts.attempt("read", lambda: artifacts.vault.read(name))
    except Missing:
        raise BadInput(
            f"what the driver wrote in {location} is not there; give --artifacts a folder that all nodes share, or "
            "s3://BUCKET/PREFIX"
        ) from None
    if not _matches(token, found):
        raise BadInput(f"what the driver wrote in {location} comes back otherwise; give --artifacts another place")
    return _write(_open(location, prepared=True))


def settle(location: str, token: str, answers: Mapping[str, str]) -> list[str]:
    """What is wrong with the nodes that answered, a line each; empty where every one writes where the driver reads.

    All that was written for the probe is removed.

    Args:
        token: From :func:`leave`.
        answers: Node, by a name for people → what :func:`answer` returned there.

    Raises:
        BadInput: The location cannot be used any more.
        Unavailable: It cannot be used now.
    """
    artifacts = _open(location)
    problems = [
        f"what {node} wrote in {location} does not come to the driver; give --artifacts a folder that all nodes share, "
        "or s3://BUCKET/PREFIX"
        for node, given in answers.items()
        if not _came(artifacts, given)
    ]
    for each in map(_name, (token, *answers.values())):
        artifacts.attempt("removed", functools.partial(artifacts.vault.remove, each))
    return problems


def _open(location: str, *, prepared: bool = False) -> Artifacts:
    return Artifacts(location, prepared=prepared, patience=_PATIENCE)


def _write(artifacts: Artifacts) -> str:
    data = secrets.token_bytes(32)
    name = probe_name(data)
    artifacts.attempt("written", lambda: artifacts.vault.write(name, data))
    return name


def _came(artifacts: Artifacts, token: str) -> bool:
    """Whether what a node wrote is here, as it wrote it."""
    name = _name(token)
    try:
        return _matches(token, artifacts.attempt("read", lambda: artifacts.vault.read(name)))
    except Missing:
        return False


def _name(token: str) -> str:
    if not is_probe(token):
        raise ValueError(f"{token!r} is no token of a probe")
    return token


def _matches(token: str, data: bytes) -> bool:
    """Whether these bytes are those that the token was made for: its name holds their SHA-256."""
    return hashlib.sha256(data).hexdigest() == token[1:65]
