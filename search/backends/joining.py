"""Whether a Ray cluster that runs can be joined: found, reachable, with its token, and of the same versions.

All is told before this process becomes a driver of the cluster, and nothing of it is changed. Import Ray before.
"""

import contextlib
import importlib
import os
import platform
import socket
import sys
from collections.abc import Iterator
from typing import Any

from search.errors import BadInput, Unavailable
from search.text import first_line

__all__ = ["find", "here", "machines", "reach", "read_token_again"]

_REACH = 5.0
"""Seconds that a host may take to accept a connection; Ray's own client has as many again."""


def find(address: str) -> str:
    """The head's ``host:port``, which answers, lets this process in and runs the same versions.

    Args:
        address: ``host:port``, or ``auto`` for the cluster that this machine is part of.

    Raises:
        BadInput: Not an address; another version of Ray or Python; a token is missing or wrong.
        Unavailable: Nothing answers, or what answers is no Ray.
    """
    found = _local() if address == "auto" else address
    reach(found)
    _check_versions(found, _metadata(found))
    return found


def machines(address: str) -> list[dict[str, Any]]:
    """What ``ray.nodes()`` gives, without a driver on the cluster.

    Args:
        address: From :func:`find`.
    """
    raylet, global_state = _private("_raylet"), _private("_private.state").GlobalState()
    global_state._initialize_global_state(raylet.GcsClientOptions.create(address, None, True, False))
    try:
        found: list[dict[str, Any]] = global_state.node_table()
    finally:
        global_state.disconnect()
    return found


def reach(address: str) -> None:
    """See whether anything listens: Ray itself would ask again for minutes.

    Raises:
        BadInput: Not ``host:port``.
        Unavailable: Nothing does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f"--address {address}: give the head's host:port, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Unavailable(
            f"no Ray cluster answers at {address}: {why}. Start its head, or give another --address; the same command "
            f"tries again"
        ) from error


def here() -> bool:
    """Whether a node of any cluster runs on this machine: a driver needs one."""
    return bool(_private("_private.services").find_node_ids())


def read_token_again() -> None:
    """Have Ray look at the environment again: what used Ray in this process before may have found no token there, or
    another one, and Ray remembers that."""
    raylet = _private("_raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _local() -> str:
    try:
        found = _private("_private.services").canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if found is None:
        raise Unavailable(
            "--address auto: this machine is part of no Ray cluster; join one with ray start --address=HOST:PORT, or "
            "give the head's host:port"
        )
    return str(found)


def _metadata(address: str) -> dict[str, str]:
    """What the head says of itself."""
    from ray.exceptions import AuthenticationError, RayError

    raylet, tokens = _private("_raylet"), _private("_private.authentication.authentication_token_setup")
    given = raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "token" and not given:
        # Ray itself would abort the process.
        raise _no_token("RAY_AUTH_MODE is token, and no token was given")
    try:
        with _mute():
            try:
                client = raylet.GcsClient(address=address)
            except AuthenticationError:
                if mode is not None or not given:
                    raise
                # There is one in the home folder or the environment: Ray sends it where it is told to.
                tokens._enable_token_auth()
                client = raylet.GcsClient(address=address)
            return dict(_private("_common.usage.usage_lib").get_cluster_metadata(client) or {})
    except AuthenticationError as error:
        if not given:
            raise _no_token(f"the cluster at {address} asks for a token, and none was given") from error
        said = ", RAY_AUTH_MODE notwithstanding" if mode not in (None, "token") else ""
        raise BadInput(
            f"the cluster at {address} refuses the token that was given{said}: give the one that its head was started "
            f"with, in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
        ) from error
    except (RayError, ConnectionError, RuntimeError) as error:
        raise Unavailable(
            f"what answers at {address} is no Ray cluster, or one that does not work: {_said(error)}. Give the address "
            f"of the head (its port is 6379, or what ray start --port said); the same command tries again"
        ) from error


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """What Ray's C++ part has to say goes past Python to the terminal: nowhere, for this moment.

    What Python writes meanwhile, such as another thread's last words, still gets there.
    """
    real = sys.stderr
    real.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    with open(os.dup(kept), "w", buffering=1, encoding="utf-8", errors="replace") as aside:
        try:
            sys.stderr = aside
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            sys.stderr = real
            os.close(kept)
            os.close(nowhere)


def _no_token(what: str) -> BadInput:
    return BadInput(
        f"{what}: put the token that the head was started with into ~/.ray/auth_token, or into a file that "
        f"RAY_AUTH_TOKEN_PATH names"
    )


def _check_versions(address: str, metadata: dict[str, str]) -> None:
    import ray

    if not metadata:
        return  # a head that was just started has said nothing yet; Ray itself asks again
    try:
        _private("_private.utils").check_version_info(metadata, address)
    except RuntimeError as error:
        theirs = f"Ray {metadata['ray_version']} and Python {metadata['python_version']}"
        raise BadInput(
            f"the cluster at {address} runs {theirs}, this machine Ray {ray.__version__} and Python "
            f"{platform.python_version()}: both must be the same; use an environment with the cluster's versions here, "
            f"or start the cluster from one with these"
        ) from error


def _private(module: str) -> Any:
    """A module of Ray's own, which is not typed."""
    return importlib.import_module(f"ray.{module}")


def _said(error: Exception) -> str:
    return first_line(str(error) or type(error).__name__).removesuffix(".")
