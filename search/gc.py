"""``gc``: find artifacts that no row of the ledger needs, and remove them."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from search.artifacts import join, parent
from search.artifacts.vault import Entry
from search.decisions import losers
from search.errors import Held, SearchError, Unavailable
from search.experiment import Experiment
from search.rows import Tensors
from search.store import History, RunRow, Store

__all__ = ["collect", "surplus", "survey"]

_RUN_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{8}")

_LATE = 600.0
"""Seconds after the last that the ledger knows of a run, in which a worker that outlived its driver may still write.
What is younger is another's: the same tensors may belong to a copy of this database, which went on."""


@dataclass(frozen=True, slots=True)
class _Waste:
    """What of a run's artifacts nobody needs, by name.

    Attributes:
        given_up: Of cells that were not committed and are not to be kept.
        orphans: Of no row: a worker or its driver was killed before its record was written.
        half_written: No whole file.
        younger: Of no row, and written when this database knew nothing of the run any more: never removed.
    """

    given_up: dict[str, Entry]
    orphans: dict[str, Entry]
    half_written: dict[str, Entry]
    younger: dict[str, Entry]


def surplus(experiment: Experiment, history: History) -> list[str]:
    """The tensors that ``keep`` does not keep of the tasks that are committed: it may have changed since they were."""
    gone = {
        artifact
        for (replica, task), commit in history.commits.items()
        for artifact in losers(experiment.keep, history.cells.get((replica, task), {}), commit)
    }
    known = {
        record.artifact
        for (replica, task), cells in history.cells.items()
        for index, record in cells.items()
        if (replica, task, index) not in history.given_up
    }
    return sorted(gone & known)


def survey(store: Store, name: str | None = None) -> dict[str, Any]:
    """What could be removed of one run, or of all, and the places of runs that are not in this database.

    Raises:
        BadInput: No run has this name.
        Unavailable: The artifacts of the run that is named cannot be reached.
    """
    return _report(
        store, name, [_look(store, row, strict=name is not None) for row in _rows(store, name)], removed=False
    )


def collect(store: Store, name: str | None = None) -> dict[str, Any]:
    """Remove it, each run's while its lease is held; what :func:`survey` gives of what went.

    A run that is driven, or that cannot be reached, is left alone and named.

    Raises:
        As :func:`survey`.
    """
    found = [_remove(store, row, strict=name is not None) for row in _rows(store, name)]
    return _report(store, name, found, removed=True)


def _rows(store: Store, name: str | None) -> list[RunRow]:
    return store.runs() if name is None else [store.find(name)]


def _look(store: Store, row: RunRow, *, strict: bool) -> dict[str, Any]:
    holder = store.holder(row.name)
    if row.state == "deleting":
        return _skipped(row, f"is being deleted; end that: clnp-search delete {row.name}")
    if holder is not None and holder.live:
        return _skipped(row, f"is driven by process {holder.pid} on {holder.host}")
    try:
        return _entry(row, _waste(store, row))
    except SearchError as error:
        if strict:
            raise
        return _skipped(row, str(error), unreachable=True)


def _remove(store: Store, row: RunRow, *, strict: bool) -> dict[str, Any]:
    found = _look(store, row, strict=strict)
    if found["skipped"] or not found["files"]:
        return found
    try:
        with store.annotate(row.name) as writer:
            # Looked at again: now nobody else writes.
            waste = _waste(store, row)
            writer.remove_artifacts(surplus(Experiment.from_json(row.experiment), store.history(row.name)))
            for sha256 in (*waste.given_up, *waste.orphans):
                writer.artifacts.remove(sha256)
            writer.artifacts.sweep()
    except Held as error:
        return _skipped(row, str(error))
    except SearchError as error:
        if strict:
            raise
        return _skipped(row, str(error), unreachable=True)
    return _entry(row, waste)


def _waste(store: Store, row: RunRow) -> _Waste:
    if store.is_away(row):
        raise Unavailable(f"{row.artifacts} is not there, and rows name tensors in it: is it on a share that is away?")
    artifacts = store.open_artifacts(row.artifacts)
    needed, named = _needed(Experiment.from_json(row.experiment), store.history(row.name), store.tensors(row.name))
    waste = _Waste({}, {}, artifacts.half_written(), {})
    last = _last_known(store, row)
    for sha256, entry in artifacts.entries().items():
        if sha256 in needed:
            continue
        if sha256 in named:
            waste.given_up[sha256] = entry
        elif entry.written > last + _LATE:
            waste.younger[sha256] = entry
        else:
            waste.orphans[sha256] = entry
    return waste


def _needed(experiment: Experiment, history: History, rows: Iterable[Tensors]) -> tuple[set[str], set[str]]:
    """The artifacts that some row needs, and all that the rows name."""
    lost = {
        (replica, task, artifact)
        for (replica, task), commit in history.commits.items()
        for artifact in losers(experiment.keep, history.cells.get((replica, task), {}), commit)
    }
    rows = list(rows)
    needed = {row.artifact for row in rows if not row.given_up and (row.replica, row.task, row.artifact) not in lost}
    return needed, {row.artifact for row in rows}


def _last_known(store: Store, row: RunRow) -> float:
    """When this database last heard of a run, by its clock."""
    holder = store.holder(row.name)
    times = [row.updated, 0.0 if holder is None else holder.until]
    for attempt in store.attempts(row.name):
        times += [attempt.started, attempt.ended or 0.0]
    return max(times)


def _report(store: Store, name: str | None, runs: list[dict[str, Any]], *, removed: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "runs": runs,
        "unknown": [] if name is not None else sorted(_unknown(store)),
        "files": sum(run["files"] for run in runs),
        "bytes": sum(run["bytes"] for run in runs),
    }


def _entry(row: RunRow, waste: _Waste) -> dict[str, Any]:
    kinds = {"given_up": waste.given_up, "orphans": waste.orphans, "half_written": waste.half_written}
    counted = {kind: _count(found) for kind, found in kinds.items()}
    return {
        "run": row.name,
        "location": row.artifacts,
        "skipped": None,
        "unreachable": False,
        **counted,
        "younger": _count(waste.younger),
        "files": sum(count["files"] for count in counted.values()),
        "bytes": sum(count["bytes"] for count in counted.values()),
    }


def _skipped(row: RunRow, why: str, *, unreachable: bool = False) -> dict[str, Any]:
    empty = _entry(row, _Waste({}, {}, {}, {}))
    return {**empty, "skipped": why, "unreachable": unreachable}


def _count(found: dict[str, Entry]) -> dict[str, int]:
    return {"files": len(found), "bytes": sum(entry.size for entry in found.values())}


def _unknown(store: Store) -> Iterator[str]:
    """Places beside those of our runs that look like a run's: another database may own them."""
    ours = {row.artifacts for row in store.runs()}
    for place in {parent(location) for location in ours} | {store.artifacts}:
        # One that cannot be reached was named with its runs.
        with suppress(SearchError):
            for inner in store.open_artifacts(place).places():
                location = join("", place, inner)
                if _RUN_PLACE.fullmatch(inner) and location not in ours:
                    yield location
