"""What there is to work with: cores and GPUs, and the pool of workers that an experiment makes of them."""

import ctypes
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from search.errors import BadInput
from search.experiment import Experiment

__all__ = ["Needs", "Node", "Pool", "cores", "fitting", "form_pool", "gpus", "this_machine"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
"""The library of NVIDIA's driver, without which no CUDA device is seen."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: cores and GPUs that it offers.

    Attributes:
        name: For people.
        id, address: Of a cluster's node, Ray's.
    """

    cpus: int
    gpus: int
    name: str = "this machine"
    id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a run, all alike.

    Attributes:
        workers: How many jobs run at the same time.
        device: What each trains on.
        cpu: Cores, and so threads, of each.
        gpu: GPUs of each; a share such as 0.5 where two workers share one.
    """

    workers: int
    device: Literal["cpu", "cuda"]
    cpu: int
    gpu: float


@dataclass(frozen=True, slots=True)
class Needs:
    """What every node of a cluster must have.

    Attributes:
        artifacts: Where artifacts lie or will lie: every node must see the same there.
        prepared: Whether some of the run's lie there already.
        datasets: Those that tasks are made from: they lie in ``data_dir``, or are brought there.
        modules: Of a person's own functions, which are looked for in the folders ``code``.
    """

    artifacts: str
    prepared: bool = False
    datasets: tuple[str, ...] = ()
    data_dir: str | None = None
    modules: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


def cores() -> int:
    """The CPU cores that this process may use: its affinity, or the quota of its container where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def gpus() -> int:
    """The CUDA devices that this process may use. torch is imported only where it may see any: that takes a second."""
    if not _may_have_gpus():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _may_have_gpus() -> bool:
    """Whether the installed torch may see a GPU here, by what it was built for and by NVIDIA's driver."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return True  # its import says what is wrong
    built = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    if built["hip"] is not None or (built["cuda"] is not None and sys.platform not in _DRIVERS):
        return True
    if built["cuda"] is None:
        return False
    try:
        ctypes.CDLL(_DRIVERS[sys.platform])
    except OSError:
        return False
    return True


def this_machine() -> Node:
    """The machine that this process runs on."""
    return Node(cores(), gpus())


def form_pool(experiment: Experiment, nodes: Sequence[Node]) -> Pool:
    """What ``workers`` and ``worker`` of an experiment become on these machines.

    ``gpu: auto`` takes a GPU where a machine has one; ``workers: auto`` takes as many as fit. A number of workers is
    taken as it is written, though more than there are cores only slow each other down.

    Raises:
        BadInput: No machine has what one worker needs, or they have fewer GPUs than the workers need.
    """
    wanted = experiment.worker
    gpu = (1.0 if any(node.gpus for node in nodes) else 0.0) if wanted.gpu == "auto" else float(wanted.gpu)
    room = sum(fitting(node, wanted.cpu, gpu) for node in nodes)
    # A Ray of our own is given more cores than there are; a cluster has those that it has.
    if not room and (gpu or experiment.workers == "auto" or any(node.id for node in nodes)):
        found = "; ".join(f"{node.cpus} cores and {node.gpus} GPUs" for node in nodes) or "no machine"
        raise BadInput(
            f"a worker needs {wanted.cpu} cores and {gpu:g} GPUs, but there is {found}; change worker.cpu or .gpu"
        )
    if experiment.workers != "auto" and gpu and experiment.workers > room:
        raise BadInput(
            f"workers is {experiment.workers}, but GPUs and cores are enough for {room}; lower workers or worker.gpu"
        )
    if experiment.training.precision == "tf32" and not gpu:
        raise BadInput(
            "training.precision is tf32, but the workers train on CPUs, which have no TF32; leave it out, or give "
            "bf16 or workers with a GPU (worker.gpu)"
        )
    workers = room if experiment.workers == "auto" else experiment.workers
    return Pool(workers, "cuda" if gpu else "cpu", wanted.cpu, gpu)


def fitting(node: Node, cpu: int, gpu: float) -> int:
    """How many workers with so many cores and GPUs a machine has room for."""
    by_cores = node.cpus // cpu
    if not gpu:
        return by_cores
    # A worker's share lies on one GPU, and whole GPUs are not shared.
    by_gpus = node.gpus * int(1 / gpu + 1e-9) if gpu < 1 else int(node.gpus / gpu)
    return min(by_cores, by_gpus)
