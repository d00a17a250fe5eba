"""The process that a worker is: how torch is set in it, what it is called, what its device has."""

import gc
import os
import platform
import socket
from functools import lru_cache

import torch

from search.versions import describe
from search.worker.settings import WorkerSettings

__all__ = ["configure", "device_name", "gpu_bytes", "no_memory", "release", "versions", "worker_name"]

_NO_MEMORY = (
    "can't allocate memory",  # on a CPU
    "CUDA error: out of memory",  # the driver's: contexts of several processes are no part of torch's count
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says where it raises no type of its own."""


def configure(settings: WorkerSettings) -> None:
    """Make torch give the same bits for the same job: a set number of threads, deterministic kernels, full float32.

    A person's own code, which runs later, changes nothing of it: see :func:`search.own_code.kept`.

    For the whole process. On a CPU the bits depend on the number of threads; Ray's workers would otherwise take it
    from ``OMP_NUM_THREADS``.
    """
    # cuBLAS reads it when CUDA starts and is not deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(settings.threads)
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)
    # As torch.use_deterministic_algorithms(True), which imports torch's compiler for it: 1.6 s in every worker.
    torch.set_deterministic_debug_mode("error")
    torch.set_float32_matmul_precision("highest")
    # Convolutions have a switch of their own, and TF32 keeps three digits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if settings.device == "cuda" and settings.gpu < 1:
        # Else one worker's stack would be another's want of memory.
        torch.cuda.set_per_process_memory_fraction(settings.gpu)


def device_name(device: str) -> str:
    """The device and what of it bits depend on, such as ``cpu AVX512`` or ``cuda NVIDIA H100 80GB HBM3``."""
    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} {torch.cuda.get_device_name(device)}"


def worker_name() -> str:
    """This worker, for people: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def gpu_bytes() -> int:
    """What the GPU of this process has."""
    return int(torch.cuda.mem_get_info()[1])


def no_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether what was raised says that memory is wanting."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def release(device: str) -> None:
    """Give memory back that nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of what this worker's bits depend on."""
    # torch's own word beside its metadata's, which need not name the build.
    return {**describe(), "torch": torch.__version__, "python": platform.python_version()}
