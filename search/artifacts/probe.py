"""Whether every node sees the same artifacts: the driver leaves something, the nodes answer, the driver looks.

The driver calls :func:`leave`, every node :func:`answer` with its token, the driver :func:`settle` with the answers.
"""

import hashlib
import secrets
from collections.abc import Mapping

from search.artifacts.store import Artifacts, is_probe, probe_name
from search.artifacts.vault import Missing, Trouble
from search.errors import BadInput, Unavailable

__all__ = ["answer", "leave", "settle"]


def leave(location: str) -> str:
    """Write something that nobody can guess where artifacts are to lie, and return the token that names it.

    Raises:
        BadInput: The location cannot be one, or cannot be written.
    """
    return _write(Artifacts(location))


def answer(location: str, token: str) -> str:
    """On a node: look for what the driver left, and write something of one's own. Nothing is made or written before.

    Args:
        token: From :func:`leave`.

    Returns:
        What :func:`settle` wants to know of this node.

    Raises:
        BadInput: It is not there: what this node has at the location is another place; or it cannot be read or written.
    """
    artifacts = Artifacts(location)
    try:
        found = artifacts.vault.read(_name(token))
    except Missing:
        raise BadInput(
            f"what the driver wrote in {location} is not there; give --artifacts a folder that all nodes share, or "
            "s3://BUCKET/PREFIX"
        ) from None
    except Trouble as error:
        raise BadInput(f"artifacts cannot be read in {location}: {error}") from error
    if not _matches(token, found):
        raise BadInput(f"what the driver wrote in {location} comes back otherwise; give --artifacts another place")
    return _write(Artifacts(location, prepared=True))


def settle(location: str, token: str, answers: Mapping[str, str]) -> list[str]:
    """What is wrong with the nodes that answered, a line each; empty where every one writes where the driver reads.

    All that was written for the probe is removed.

    Args:
        token: From :func:`leave`.
        answers: Node, by a name for people → what :func:`answer` returned there.

    Raises:
        Unavailable: The location cannot be used any more.
    """
    artifacts = Artifacts(location)
    problems = []
    try:
        for node, given in answers.items():
            try:
                sound = _matches(given, artifacts.vault.read(_name(given)))
            except Missing:
                sound = False
            if not sound:
                problems.append(
                    f"what {node} wrote in {location} does not come to the driver; give --artifacts a folder that all "
                    "nodes share, or s3://BUCKET/PREFIX"
                )
        for each in (token, *answers.values()):
            artifacts.vault.remove(_name(each))
    except Trouble as error:
        raise Unavailable(f"artifacts in {location} cannot be used: {error}; the same command tries again") from error
    return problems


def _write(artifacts: Artifacts) -> str:
    data = secrets.token_bytes(32)
    name = probe_name(data)
    try:
        artifacts.vault.write(name, data)
    except (Missing, Trouble) as error:
        raise BadInput(f"artifacts cannot be written in {artifacts.location}: {error}") from error
    return name


def _name(token: str) -> str:
    if not is_probe(token):
        raise ValueError(f"{token!r} is no token of a probe")
    return token


def _matches(token: str, data: bytes) -> bool:
    """Whether these bytes are those that the token was made for: its name holds their SHA-256."""
    return hashlib.sha256(data).hexdigest() == token[1:65]
