"""What a worker does: train a stack and scan it, measure what one takes, or commit a winner and measure every task
again.

A worker knows no Ray and no database. A job says all it needs, records go back to who called, tensors into the artifact
store (Promise 6). Who only says what a worker is told imports no torch: names are imported when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from search.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from search.worker.jobs import perform
    from search.worker.process import configure, device_name, worker_name

__all__ = ["WorkerSettings", "configure", "device_name", "perform", "worker_name"]

# Where a thread's core is taken, the others spin until it is done, and a step takes several times as long as on one
# thread; with so few turns no longer than on one. OpenMP reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_LATER = {"configure": "process", "device_name": "process", "perform": "jobs", "worker_name": "process"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
