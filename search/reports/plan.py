"""What an experiment would do on this machine or a cluster: nothing is started or written."""

from collections.abc import Iterator, Sequence

from search.advice import warnings
from search.decisions import budget_of, grown_widths
from search.errors import BadInput
from search.experiment import Experiment, differences
from search.fork import check_records, check_tensors
from search.grid import cells, gains, measured_for, members_that_fit, stacks, to_measure
from search.machine import Node, Pool, form_pool, this_machine
from search.names import check_run_name
from search.own_code import folders
from search.records import Cell, CommitRecord, Measured
from search.reports.common import Known, Report, cell, layers
from search.reports.disk import disk
from search.reports.forecast import forecast, forecast_after
from search.reports.offer import idle_warnings, offer
from search.reports.status import run_status
from search.store import Store
from search.text import group_list
from search.versions import begun_threads

__all__ = ["plan"]


def plan(
    experiment: Experiment,
    name: str,
    *,
    store: Store | None,
    data_dir: str | None = None,
    nodes: Sequence[Node] | None = None,
) -> Report:
    """Every cell in full, the stacks, the workers, the disk, and what the database holds under ``name`` already.

    Args:
        store: The database, or None where there is none yet.
        data_dir: Where to look for the data set.
        nodes: Of a cluster; None: this machine.

    Raises:
        BadInput: The name cannot name a run, the workers do not fit the machines, network and tasks cannot be built, or
            the run that it is forked from does not allow it.
    """
    check_run_name(name)
    code = folders(experiment.code)
    if not experiment.plain:
        from search.building import resolve

        experiment = resolve(experiment, data_dir, code)
    outline = experiment.outline
    data, absent = _data(experiment, data_dir, code)
    nodes = [this_machine()] if nodes is None else nodes
    known = _known(store, name)
    attempts = [] if store is None else store.attempts(name)
    pool = form_pool(experiment, nodes, begun=begun_threads(attempts[-1].versions if attempts else None))
    experiment = experiment.with_gpu(pool.gpu)
    measured = None if known is None else measured_for(experiment, known.history.measured)
    grids = list(_grids(experiment, pool, measured))
    offered = offer(pool, nodes, experiment.replicas * max(len(part["stacks"]) for part in grids) if grids else 0)
    refused = _refused(known, experiment, data)
    source = None
    if store is not None and experiment.origin is not None and not refused:
        check_records(store, experiment, name, data)
        check_tensors(store, experiment, name)
        source = _known(store, experiment.origin.run)
    # Of another network nothing is forecast: its groups have no claims yet.
    goes_on = known is not None and known.experiment.outline.groups == experiment.outline.groups
    planned = experiment if goes_on else None
    widths = _widths_at_most(experiment, known, source)
    return {
        "run": name,
        "description": experiment.description,
        "tasks": experiment.tasks.title,
        "count": experiment.tasks.count,
        "replicas": experiment.replicas,
        "origin": None if experiment.origin is None else experiment.origin.text,
        "head": experiment.head,
        "network": experiment.model.kind,
        "shape": list(outline.shape),
        "units": layers(outline.group_names, outline.widths),
        "classes": outline.classes,
        "weights": outline.weights,
        "grow": None if experiment.grow is None else experiment.grow.model_dump(mode="json"),
        "units_at_most": layers(outline.group_names, widths),
        "validation": outline.validation,
        "epochs": experiment.training.epochs,
        "training": experiment.training.model_dump(mode="json"),
        "rule": experiment.rule.kind,
        "margin": experiment.rule.model_dump(mode="json")["margin"],
        "budget": _budget(experiment, known, source),
        "theta_scale": experiment.rule.theta,
        "sparsity": experiment.rule.sparsity,
        "fine_tuning": experiment.fine_tuning and experiment.fine_tuning.model_dump(mode="json"),
        "layers": list(outline.layer_names),
        "grids": grids,
        "workers": {
            "count": pool.workers,
            "device": pool.device,
            "threads": pool.cpu,
            "gpu": pool.gpu,
            "cells": _fits(measured, pool) if experiment.worker.cells == "auto" else experiment.worker.cells,
            "pace": _pace(measured),
            "measures": measured is None and any(part["measures"] for part in grids),
        },
        "offer": offered,
        "disk": disk(experiment, widths),
        "storage": None if store is None else store.url,
        "held": None if known is None or store is None else run_status(store, known, planned),
        "refused": refused,
        "warnings": [
            *warnings(experiment),
            *idle_warnings(experiment, pool, offered),
            *_halving_alone(experiment, grids),
            *_forecasts(experiment, known if goes_on else None, source),
            *_over_budget(known),
            *absent,
        ],
    }


def _data(experiment: Experiment, data_dir: str | None, code: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """The data's SHA-256, or None and what is wrong with them: a plan needs no data, the run will."""
    from search.data import data_sha256

    try:
        return data_sha256(experiment, data_dir, code), []
    except BadInput as error:
        return None, [str(error)]


def _known(store: Store | None, name: str) -> Known | None:
    row = None if store is None else store.run(name)
    if store is None or row is None:
        return None
    return Known(row, Experiment.from_json(row.experiment), store.history(name))


def _refused(known: Known | None, experiment: Experiment, data: str | None) -> list[str]:
    """What keeps this experiment from continuing the run of that name; data that are absent are not held against it."""
    if known is None:
        return []
    return differences(known.experiment, experiment, known.row.data, known.row.data if data is None else data)


def _fits(measured: Measured | None, pool: Pool) -> int | None:
    """How many cells a worker's share of a GPU holds, where that was measured."""
    return None if measured is None or measured.memory is None else members_that_fit(measured.memory, pool.gpu)


def _pace(measured: Measured | None) -> Report | None:
    """How much longer a stack's steps are than one cell's, where that was measured."""
    if measured is None or measured.pace is None:
        return None
    pace = measured.pace
    return {"members": pace.members, "times": pace.together / pace.alone, "gains": gains(pace)}


def _grids(experiment: Experiment, pool: Pool, measured: Measured | None) -> Iterator[Report]:
    """The grid of the first task, and that of the later ones where it is another; of a fork those that it trains."""
    count, copied = experiment.tasks.count, experiment.copied
    first = cells(experiment, 0)
    last = count if experiment.grid.after_first is None else 1
    if copied < last:
        yield _grid(experiment, pool, measured, first, copied + 1, last)
    begin = max(copied, last) + 1
    if begin > count:
        return
    if experiment.grid.after_first == "winner":
        # One cell, known once the first task is committed: any stands for it.
        later = _grid(experiment, pool, measured, cells(experiment, 1, first[0]), begin, count)
        yield {**later, "cells": "the winner of the first task"}
    else:
        yield _grid(experiment, pool, measured, cells(experiment, 1), begin, count)


def _grid(
    experiment: Experiment, pool: Pool, measured: Measured | None, grid: tuple[Cell, ...], first: int, last: int
) -> Report:
    pace = None if measured is None else measured.pace
    formed = stacks(experiment, grid, workers=pool.workers, most=_fits(measured, pool), pace=pace)
    return {
        "first": first,
        "last": last,
        "count": len(grid),
        "cells": [cell(one, experiment) for one in grid],
        "stacks": [list(stack) for stack in formed],
        "measures": to_measure(experiment, grid, workers=pool.workers) > 0,
    }


def _halving_alone(experiment: Experiment, grids: Sequence[Report]) -> Iterator[str]:
    """Where halving finds nobody to compare a cell with."""
    alone = [part for part in grids if part["count"] > 1 and len(part["stacks"]) == part["count"]]
    if experiment.training.halving and alone:
        yield (
            f"training.halving drops nobody: each of the {alone[0]['count']} cells trains alone, and who is behind is "
            f"seen within a stack only; worker.cells={alone[0]['count']} makes them one"
        )


def _widths_at_most(experiment: Experiment, known: Known | None, source: Known | None) -> tuple[int, ...]:
    """Units that each hidden group could have in the last task: it may grow before every task but the first.

    What a run that goes on, or that is forked, has grown by already is counted as it is, whatever ``grow`` said then.
    """
    first, grow, last = experiment.outline.widths, experiment.grow, experiment.tasks.count - 1

    def most(now: Sequence[int], task: int) -> tuple[int, ...]:
        left = max(0, last - task)
        return tuple(
            width + (0 if grow is None else left * grow.units(units)) for width, units in zip(now, first, strict=True)
        )

    found = [most(first, 0)]
    if known is not None and known.experiment.outline.groups == experiment.outline.groups:
        for replica in known.replicas:
            # Between two tasks the next has still to open, and may grow.
            done = len(known.commits(replica))
            opened = done if known.opening(replica, done) else done - 1
            found.append(most(known.room(replica)[0], max(0, opened)))
    if source is not None and source.experiment.outline.groups == experiment.outline.groups:
        copied = experiment.copied
        found += [most(commit.widths, copied - 1) for r in source.replicas for commit in source.commits(r)[:copied]]
    return tuple(map(max, zip(*found, strict=True)))


def _budget(experiment: Experiment, known: Known | None, source: Known | None) -> Report | None:
    """Of the budget rule how many tasks share the units, and the most that the first task it decides may claim: None
    where that is not known, or no task is left to it. Of replicas that differ, the most in any."""
    rule, task = experiment.rule, experiment.copied
    if rule.kind != "budget":
        return None
    found = []
    for replica in range(experiment.replicas if task < experiment.tasks.count else 0):
        earlier = _begun_with(experiment, known, source, replica)
        if len(earlier) == task:
            widths = grown_widths(experiment, earlier[-1]) if earlier else experiment.outline.widths
            found.append(budget_of(experiment, earlier, widths) or ())
    most = layers(experiment.outline.group_names, tuple(map(max, zip(*found, strict=True)))) if found else None
    return {"tasks": rule.tasks, "floor": rule.floor, "task": task + 1, "most": most}


def _begun_with(experiment: Experiment, known: Known | None, source: Known | None, replica: int) -> list[CommitRecord]:
    """The commits that a fork is given, of those that are there."""
    held = [] if known is None else known.commits(replica)[: experiment.copied]
    return held if source is None or len(held) == experiment.copied else source.commits(replica)[: experiment.copied]


def _over_budget(known: Known | None) -> Iterator[str]:
    """Where even the floor left a task with more units than its budget."""
    if known is None:
        return
    for replica in known.replicas:
        commits = known.commits(replica)
        over = [record for record in commits if record.over_budget]
        if over:
            tasks = ", ".join(f"task {record.task + 1} ({group_list(record.over_budget)})" for record in over)
            yield (
                f"replica {replica + 1}: over budget even at the floor: {tasks}; a higher α, more epochs or a larger "
                f"floor from here on leaves more room: {_fork(known, len(commits))}"
            )


def _forecasts(experiment: Experiment, known: Known | None, source: Known | None) -> Iterator[str]:
    """Where a layer would run out, by what the tasks so far claimed; of a fork not begun, those that it is given."""
    limit = "floor" if experiment.rule.kind == "budget" else "margin"
    for replica in range(experiment.replicas):
        begun = [] if known is None else known.commits(replica)
        if known is not None and len(begun) >= experiment.copied:
            found = forecast(known, replica, experiment)
            remedy = f"a higher α or {limit} from here on leaves more room ({_fork(known, len(begun))})"
        else:
            given = _begun_with(experiment, known, source, replica)
            found = forecast_after(experiment, given, given[-1].free if given else ())
            remedy = f"a higher α or {limit} leaves more room"
        for one in found:
            if one.full is not None:
                yield (
                    f"replica {replica + 1}: {one.layer} has {one.free} free units and a task claimed "
                    f"{float(one.claimed):.0f} on average, so task {one.full} of {one.count}"
                    f"{' budgeted' if one.budgeted else ''} would find too few; {remedy}, grow: adds units to this run"
                )


def _fork(known: Known, tasks: int) -> str:
    """How a new run begins with these tasks."""
    return f"--from {known.row.name} --task {tasks} --name NEW"
