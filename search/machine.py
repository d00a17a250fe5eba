"""What there is to work with: cores and GPUs, and the pool of workers that an experiment makes of them."""

import ctypes
import math
import os
import runpy
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from search.errors import BadInput
from search.experiment import Experiment
from search.grid import LARGE, cells
from search.text import plural

__all__ = ["Needs", "Node", "Pool", "cores", "fitting", "form_pool", "gpus", "this_machine", "threads"]

_FASTER = 0.6
"""t threads train a large network t^0.6 times as fast. Measured on the 2 cores of an x86_64 with AVX-512, torch 2.13,
the shortest step of one member with 1 and with 2 threads: 4.0 and 3.2 ms for 64-600-600-10 in batches of 64, 10.1 and
6.7 for 784-400-400-10 in batches of 256, 144 and 65 for 784-2000-2000-10. A small one loses: 0.8 and 2.5 ms for
64-128-128-10 in batches of 64."""

_MOST = 8
"""Threads that auto gives a worker at the most: more were not measured."""

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


def form_pool(experiment: Experiment, nodes: Sequence[Node], *, begun: int | None = None) -> Pool:
    """What ``workers`` and ``worker`` of an experiment become on these machines.

    ``gpu: auto`` takes a GPU where a machine has one; ``cpu: auto`` is 1 beside one, else see :func:`threads`;
    ``workers: auto`` takes as many as fit. A number of workers is taken as it is written, though more than there are
    cores only slow each other down.

    Args:
        begun: The threads of the run's last attempt. Bits depend on them, so ``cpu: auto`` keeps them where they fit.

    Raises:
        BadInput: No machine has what one worker needs, or they have fewer GPUs than the workers need.
    """
    wanted = experiment.worker
    gpu = (1.0 if any(node.gpus for node in nodes) else 0.0) if wanted.gpu == "auto" else float(wanted.gpu)
    cpu = wanted.cpu
    if cpu == "auto":
        if gpu:
            cpu = 1
        elif begun is not None and any(node.cpus >= begun for node in nodes):
            cpu = begun
        else:
            cpu = threads(experiment, nodes)
    room = sum(fitting(node, cpu, gpu) for node in nodes)
    # A Ray of our own is given more cores than there are; a cluster has those that it has.
    if not room and (gpu or experiment.workers == "auto" or any(node.id for node in nodes)):
        found = "; ".join(_amounts(node.cpus, node.gpus) for node in nodes) or "no machine"
        raise BadInput(f"a worker needs {_amounts(cpu, gpu)}; found: {found}; change worker.cpu or .gpu")
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
    return Pool(workers, "cuda" if gpu else "cpu", cpu, gpu)


def threads(experiment: Experiment, nodes: Sequence[Node]) -> int:
    """How many CPU threads make the run's tasks shortest; of those that do, the fewest.

    ::

        Σ over tasks  ⌈replicas · stacks / workers(t)⌉ · cells of a stack / t^0.6

    with as many workers of t threads as there are cores for, or as the experiment asks for, if there are cores for
    these. So a grid of 6 goes to a worker a core, and tasks of one cell to one worker with all cores. A network of
    fewer than 200,000 weights has one thread, a larger one no more than one for each 100,000, so that each has as much
    to do as it was measured with. Under ``worker.cells: auto`` its cells are taken to train alone, though what is
    measured once the threads are known may make stacks of them.

    Args:
        experiment: Its outline is known.
        nodes: Of the workers, none of which trains on a GPU.
    """
    weights = experiment.outline.weights
    if weights < LARGE:
        return 1
    wanted, first = experiment.worker.cells, cells(experiment, 0)[0]
    # Of the tasks after the first all have the same grid.
    often = Counter(min(task, 1) for task in range(experiment.copied, experiment.tasks.count))
    grids = [(len(cells(experiment, task, first)), times) for task, times in often.items()]

    def workers(each: int) -> int:
        room = sum(fitting(node, each, 0) for node in nodes)
        if experiment.workers == "auto":
            return room
        return experiment.workers if experiment.workers <= room else 0

    def length(each: int) -> float:
        total = 0
        for count, times in grids:
            size = 1 if wanted == "auto" else min(wanted, count)
            jobs = experiment.replicas * math.ceil(count / size)
            total += times * size * math.ceil(jobs / workers(each))
        return total / math.pow(each, _FASTER)

    most = min(max((node.cpus for node in nodes), default=1), weights // (LARGE // 2), _MOST)
    return min(filter(workers, range(1, most + 1)), key=length, default=1)


def fitting(node: Node, cpu: int, gpu: float) -> int:
    """How many workers with so many cores and GPUs a machine has room for."""
    by_cores = node.cpus // cpu
    if not gpu:
        return by_cores
    # A worker's share lies on one GPU, and whole GPUs are not shared.
    by_gpus = node.gpus * int(1 / gpu + 1e-9) if gpu < 1 else int(node.gpus / gpu)
    return min(by_cores, by_gpus)


def _amounts(cores: int, gpus: float) -> str:
    return f"{plural(cores, 'core')} and {gpus:g} GPU{'' if gpus == 1 else 's'}"
