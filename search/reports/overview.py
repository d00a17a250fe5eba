"""Every run of a database, a line each. Made without the experiments: to import what reads them takes longer."""

from collections import Counter
from typing import Any

from search.overview import Overview
from search.store import Store

__all__ = ["overview"]

STATES = ("running", "stopped", "open", "deleting", "finished")
"""What somebody may have to see to comes first."""


def overview(store: Store) -> dict[str, Any]:
    """All runs of a database: by state as in :data:`STATES`, within one the last that changed first."""
    runs = [_run(found) for found in store.overview()]
    runs.sort(key=lambda run: (STATES.index(run["state"]), -run["updated"], run["run"]))
    counts = Counter(run["state"] for run in runs)
    return {
        "storage": store.url,
        "states": {state: counts[state] for state in STATES if counts[state]},
        "runs": runs,
    }


def _run(found: Overview) -> dict[str, Any]:
    live = found.holder is not None and found.holder.live
    return {
        "run": found.name,
        "state": "running" if found.state == "open" and live else found.state,
        "reason": found.reason,
        "created": found.created,
        "updated": found.changed,
        "replicas": found.replicas,
        "count": found.tasks,
        "committed": found.committed,
        "tasks": found.replicas * found.tasks if found.replicas and found.tasks else None,
        "cells": {"total": found.cells, "finished": found.finished} if found.cells else None,
        "running": found.jobs if live else 0,
        "accuracy": found.accuracy,
        "damaged": found.damaged,
        "holder": _holder(found),
    }


def _holder(found: Overview) -> dict[str, Any] | None:
    if found.holder is None:
        return None
    return {"host": found.holder.host, "pid": found.holder.pid, "live": found.holder.live}
