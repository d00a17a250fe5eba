"""A Ray to work on: one of our own on this machine, or one that runs. Started quietly, and ended without remains."""

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from search.backends import joining
from search.backends.lean import few_processes
from search.errors import BadInput, Unavailable
from search.machine import Node, Pool
from search.text import first_line

__all__ = ["Cluster", "look", "prepare", "silence"]

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output, which is silent when it is told to be
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU keeps the environment it had
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths stay what they are
    "RAY_DEDUP_LOGS_ALLOW_REGEX": "(?!)",  # of what Ray's daemons have to say nothing is printed,
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # and every line is dropped
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a trace for a SIGTERM
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the driver's
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # nobody restores from Tune's own state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they come through the run
}

_PATIENCE = "3"
"""Seconds that Ray's client asks a head, several times in turn, before it gives up."""

_OBJECTS = 128 * 2**20
"""Bytes of Ray's object store: jobs and records are JSON of some kilobytes."""

_DYING = 0.5
"""Seconds that a process which is killed may take to be gone."""

_PREFIX = "clnp-ray-"

_LONGEST_TEMPORARY = 12
"""Characters of a temporary folder's path under which Ray's sockets still have names that a system allows (107)."""


def prepare(*, own: bool) -> None:
    """Set what Ray reads from the environment. Must come before Ray is imported.

    A cluster of our own asks for a token, which is new each time and in memory alone: Ray would write one into the
    home folder. One that runs has its own, or none: a driver with another loses its actors.
    """
    os.environ.update(_ENVIRONMENT)
    if not own:
        os.environ.setdefault("RAY_py_gcs_connect_timeout_s", _PATIENCE)
    if own and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def silence() -> None:
    """Keep Ray's own messages from the terminal. Must come after Ray is imported, which sets its loggers up."""
    logger = logging.getLogger("ray")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
    warnings.filterwarnings("ignore", module=r"ray\b.*")


def look(address: str) -> list[Node]:
    """The nodes of a cluster that runs, which is only read.

    Raises:
        BadInput, Unavailable: As :meth:`Cluster.join`.
    """
    prepare(own=False)
    import ray  # noqa: F401

    from search.backends.nodes import read_nodes

    silence()
    _refuse_client(address)
    return read_nodes(joining.machines(joining.find(address)))


def _refuse_client(address: str) -> None:
    """Refuse an address of Ray Client.

    Raises:
        BadInput: It is one.
    """
    if address.startswith("ray://"):
        raise BadInput(
            f"--address {address}: Ray Client cannot carry a run; give host:port from a machine of the cluster, or "
            f"send it there as a job: clnp-search submit"
        )


class Cluster:
    """Ray, from :meth:`start` to :meth:`stop`.

    Args:
        address: Of a cluster that runs (``host:port``, or ``auto`` for the one that this machine is part of); None:
            one of our own, on this machine alone.

    Raises:
        BadInput: An address of Ray Client.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None:
            _refuse_client(address)
        self.address = address
        parent = tempfile.gettempdir()
        short = parent if len(parent) <= _LONGEST_TEMPORARY or os.name == "nt" else "/tmp"
        _sweep(short)
        self.folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=short)
        """Where Ray and Tune keep their files; removed at the end."""

    def start(self, pool: Pool) -> None:
        """Start a Ray of our own with room for a pool of workers. Takes seconds.

        Raises:
            Unavailable: It does not start.
        """
        joining.read_token_again()
        with few_processes():
            self._init(
                address="local",  # without it Ray joins whatever runs on this machine
                num_cpus=pool.workers * pool.cpu,
                include_dashboard=False,
                object_store_memory=_OBJECTS,
                _temp_dir=self.folder,
                _system_config={"preload_python_modules": ["search.backends.preload"]},
            )

    def join(self) -> str:
        """Become a driver of the cluster that runs; its head's ``host:port``.

        Raises:
            BadInput: It runs other versions, does not let us in, or has no node on this machine.
            Unavailable: It cannot be reached.
        """
        if self.address is None:
            raise RuntimeError("there is no cluster to join")
        head = joining.find(self.address)
        if not joining.here():
            raise BadInput(
                f"--address {self.address}: no node of a cluster runs on this machine, and a driver needs one; run the "
                f"command on a machine of the cluster, or send it there: clnp-search submit"
            )
        self._init(address=head)
        return head

    def _init(self, **options: Any) -> None:
        import ray
        import ray._private.utils

        # Ray keeps a driver's command line as its job's entry point and shows it to everybody on the cluster: the
        # password of a --storage URL with it.
        ray._private.utils.get_entrypoint_name = lambda: "clnp-search"
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "on this machine" if self.address is None else f"at {self.address}"
            why = first_line(str(error)).removesuffix(".")
            raise Unavailable(f"Ray does not start {where}: {why}. The same command tries again") from error

    def stop(self) -> None:
        """Disconnect and, of a Ray of our own, end every process and remove its files."""
        import ray

        ray.shutdown()
        self.kill()

    def kill(self) -> None:
        """End every process of a Ray of our own at once, in whatever state, and remove its files.

        A cluster that runs ends this driver's workers by itself once the driver is gone.
        """
        found = dict[int, psutil.Process]()
        # Stopped first: none starts another meanwhile, which would be nobody's child once it is gone.
        while new := [process for process in self._processes() if process.pid not in found]:
            found |= {process.pid: process for process in new}
            _each(new, psutil.Process.suspend)
        _each(found.values(), psutil.Process.kill)
        psutil.wait_procs(list(found.values()), timeout=_DYING)  # until then they write into the folder
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        """Ray's processes: children of this one that were given our folder, and their children."""
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(self.folder in part for part in child.cmdline()):
                    found += [child, *child.children(recursive=True)]
        return found


def _each(processes: Iterable[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)


def _sweep(parent: str) -> None:
    """Remove the folders of drivers that were killed."""
    for folder in Path(parent).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
