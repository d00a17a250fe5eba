"""A fork: a run that begins with the first commits of another one, copied record by record, nothing of them trained.

A copied task has its records and tensors in the new run alone: the other one may be deleted then. Until all of them are
there it is needed, and nothing is trained.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from search.artifacts import Artifacts
from search.book import Place, place
from search.decisions import losers
from search.errors import BadInput, Damage
from search.experiment import Experiment, Origin, differences, fork_differences
from search.records import CellRecord, CommitRecord, Opening
from search.replay import recorded_cells
from search.store import History, RunRow, Store
from search.text import plural, up_to
from search.writer import Writer

__all__ = ["check_records", "check_tensors", "copy_tasks", "is_whole", "with_origin"]


@dataclass(frozen=True, slots=True)
class _Source:
    """The run that is forked."""

    origin: Origin
    row: RunRow
    experiment: Experiment
    history: History
    artifacts: Artifacts


@dataclass(frozen=True, slots=True)
class _Task:
    """A committed task as it is copied.

    Attributes:
        tensors: SHA-256 → what they are, of those that the new run keeps.
        given_up: Cells, by index, whose tensors it goes without.
    """

    opening: Opening
    cells: Mapping[int, CellRecord]
    commit: CommitRecord
    tensors: Mapping[str, str]
    given_up: frozenset[int]


def with_origin(store: Store | None, experiment: Experiment, name: str, run: str, tasks: int) -> Experiment:
    """The experiment, begun with the first ``tasks`` commits of ``run``.

    Where run ``name`` began with just these, that is taken from its own record: then ``run`` may be gone.

    Args:
        store: The database, or None where there is none yet.

    Raises:
        BadInput: There is no such run, it is the new one itself, or ``tasks`` is below 1.
    """
    if run == name:
        raise BadInput(f"--from {run}: this is the new run's own name; give it another one with --name")
    if tasks < 1:
        raise BadInput(f"--task {tasks}: give how many tasks of {run} the new run begins with, 1 or more")
    held = None if store is None else store.run(name)
    known = None if held is None else Experiment.from_json(held.experiment).origin
    if known is not None and (known.run, known.tasks) == (run, tasks):
        return experiment.with_origin(known)
    row = None if store is None else store.run(run)
    if store is None or row is None:
        others = ", ".join(sorted(other.name for other in store.runs())) if store else ""
        where = "the database, which is not there yet" if store is None else store.url
        raise BadInput(f"--from {run}: no run is called that in {where}; it holds {others or 'no run yet'}")
    return experiment.with_origin(Origin(run, tasks, Experiment.from_json(row.experiment)))


def is_whole(experiment: Experiment, history: History) -> bool:
    """Whether everything that a run begins with is in its own records; so it is of one that was not forked."""
    origin = experiment.origin
    replicas = range(experiment.replicas)
    return origin is None or all((replica, origin.tasks - 1) in history.commits for replica in replicas)


def check_records(store: Store, experiment: Experiment, name: str, data: str | None) -> None:
    """Refuse a fork that the records of the other run do not allow; nothing happens once all of them are copied.

    Args:
        experiment: Its outline known.
        name: Of the new run.
        data: SHA-256 of its data set; None: not known yet, taken to be the other's.

    Raises:
        BadInput: The other run is gone, is another one now, has not that many commits, or learns something else.
        Damage: Records of it are gone or cannot be read.
    """
    held = store.history(name)
    if is_whole(experiment, held):
        return
    source = _read(store, experiment, name)
    problems = [*_problems(source, experiment, data), *_changes(source, held, name)]
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise BadInput(f"{_cannot(source.origin)}:\n{lines}")
    for here in _places(experiment):
        _task(source, experiment, *here)


def check_tensors(store: Store, experiment: Experiment, name: str) -> None:
    """Hash every file that has still to be copied. :func:`check_records` comes before.

    Raises:
        Damage: One is missing or changed.
    """
    held = store.history(name)
    if is_whole(experiment, held):
        return
    source = _read(store, experiment, name)
    for replica, task in _places(experiment):
        if (replica, task) not in held.commits:
            for sha256, what in _task(source, experiment, replica, task).tensors.items():
                _tensors(source, sha256, what, task)


def copy_tasks(
    store: Store,
    writer: Writer,
    experiment: Experiment,
    *,
    note: Callable[[str], None],
    stop: Callable[[], bool],
) -> bool:
    """Copy what a forked run begins with, or what of it is missing, task by task: tensors, opening, cells, commit.

    Every step can be done again (Promise 3), so that a copy that was killed is completed by the next one.

    Args:
        writer: Of the new run.
        note: Told once what is copied.
        stop: Asked before each file and record whether to leave it at that.

    Returns:
        Whether all of it is there; False only after ``stop``.

    Raises:
        BadInput: The other run is gone, or has changed.
        Damage: Records or tensors of it are gone, changed or cannot be read.
    """
    held = store.history(writer.name)
    if is_whole(experiment, held):
        return True
    check_records(store, experiment, writer.name, None)
    source = _read(store, experiment, writer.name)
    note(f"copying the first {source.origin} into {writer.name}")
    for replica, task in _places(experiment):
        if (replica, task) in held.commits:
            continue
        for step in _steps(source, writer, _task(source, experiment, replica, task)):
            if stop():
                return False
            step()
    return True


def _steps(source: _Source, writer: Writer, task: _Task) -> Iterator[Callable[[], object]]:
    """What copies a task, in the order in which one needs another."""
    replica, index = task.opening.replica, task.opening.task
    for sha256, what in task.tensors.items():
        yield lambda sha256=sha256, what=what: writer.artifacts.put(_tensors(source, sha256, what, index))  # type: ignore[misc]
    yield lambda: writer.open_task(task.opening)
    for cell, record in sorted(task.cells.items()):
        given_up = cell in task.given_up
        yield lambda record=record, given_up=given_up: writer.add_cell(replica, index, record, given_up=given_up)  # type: ignore[misc]
    yield lambda: writer.add_commit(task.commit)


def _places(experiment: Experiment) -> list[Place]:
    """Every (replica, task) that a forked run begins with, task by task."""
    tasks = 0 if experiment.origin is None else experiment.origin.tasks
    return [(replica, task) for task in range(tasks) for replica in range(experiment.replicas)]


def _read(store: Store, experiment: Experiment, name: str) -> _Source:
    origin = experiment.origin
    if origin is None:
        raise ValueError(f"run {name} is no fork")
    row = store.run(origin.run)
    if row is None or row.state == "deleting":
        raise BadInput(
            f"run {name} begins with the first {origin} and lacks some of their records, but run {origin.run} is there "
            f"no longer: restore the database from a backup, or delete {name} and make it anew"
        )
    artifacts = store.open_artifacts(row.artifacts)
    return _Source(origin, row, Experiment.from_json(row.experiment), store.history(origin.run), artifacts)


def _problems(source: _Source, experiment: Experiment, data: str | None) -> Iterator[str]:
    """What keeps the new run from beginning with these commits: a line each."""
    tasks, run = source.origin.tasks, source.origin.run
    if experiment.tasks.count < tasks:
        yield f"tasks.count: is {experiment.tasks.count}, and {tasks} tasks are to be copied"
    if experiment.replicas > source.experiment.replicas:
        yield f"replicas: was {source.experiment.replicas}, is {experiment.replicas}; {run} has no more to copy"
    for replica in range(min(experiment.replicas, source.experiment.replicas)):
        committed = sum(place == replica for place, _ in source.history.commits)
        if committed < tasks:
            yield f"replica {replica + 1} of {run} has committed {plural(committed, 'task')}, and --task is {tasks}"
    yield from fork_differences(source.experiment, experiment, source.row.data, data or source.row.data)


def _changes(source: _Source, held: History, name: str) -> Iterator[str]:
    """Whether the records that were copied already are still the other run's."""
    now, run = source.history, source.origin.run
    anew = f"delete {name} and make it anew, or give the new run another --name"
    if differences(source.origin.experiment, source.experiment, source.row.data, source.row.data):
        yield f"{run} is another run than the one that {name} was begun with; {anew}"
        return
    for here in sorted(here for here in held.openings if here[1] < source.origin.tasks):
        cells = now.cells.get(here, {})
        same = (
            held.openings[here] == now.openings.get(here)
            and all(record == cells.get(index) for index, record in held.cells.get(here, {}).items())
            and held.commits.get(here, now.commits.get(here)) == now.commits.get(here)
        )
        if not same:
            yield f"{place(*here)}: {run} has other records than those that {name} holds already; {anew}"
            return


def _task(source: _Source, experiment: Experiment, replica: int, task: int) -> _Task:
    here, run = (replica, task), source.origin.run
    commit = source.history.commits[here]
    cells = recorded_cells(source.history, commit, run)
    opening = source.history.openings.get(here)
    if opening is None:
        raise Damage(f"run {run}, {place(*here)}: the ledger has the commit and no opening; restore it from a backup")
    # What the other run gave up cannot be had, and what it is about to give up may be gone in a moment.
    gone = {*losers(experiment.keep, cells, commit), *losers(source.experiment.keep, cells, commit)}
    given_up = frozenset(
        index
        for index, record in cells.items()
        if record.artifact in gone or (replica, task, index) in source.history.given_up
    )
    tensors = {
        record.artifact: f"{place(*here)}, the tensors of cell {index}"
        for index, record in sorted(cells.items())
        if record.artifact and index not in given_up
    }
    tensors[commit.artifact] = f"{place(*here)}, the tensors of the commit"
    return _Task(opening, cells, commit, tensors, given_up)


def _tensors(source: _Source, sha256: str, what: str, task: int) -> bytes:
    """A file of the other run, hashed. Those of all tasks before ``task`` were sound."""
    whole = "No task before it could be forked instead"
    if task:
        whole = f"Before that, {up_to(task, 'task', verb=True)} whole: --task {task} forks there"
    try:
        return source.artifacts.get(sha256, recovery=whole)
    except Damage as error:
        raise Damage(f"{_cannot(source.origin)}: {what}: {error}") from error


def _cannot(origin: Origin) -> str:
    return f"run {origin.run} cannot be forked after task {origin.tasks}"
