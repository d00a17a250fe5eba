"""Where the first wall stands: what the reports, the driver, the database and Ray cost as runs and trials grow.

    python tests/benchmarks/scale.py PART … [--url postgresql+psycopg://…]

Parts: ``status`` (1,000 runs with 100,000 trials in one database), ``driver`` (1,000 simulated workers), ``writes`` (a
trial's writes, in an empty database and in the full one) and ``ray`` (jobs without work). Without ``--url`` the
database is a SQLite file in a temporary folder. A server's database must be empty.
"""

import argparse
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from optuna.storages._rdb.models import BaseModel
from sqlalchemy import Connection, Engine, Table, event, insert, select, text, update

from search.backends.simulated import Fate, Simulated, World
from search.experiment import Experiment
from search.ledger import Leases, Runs
from search.machine import Pool
from search.memory import MemoryBook
from search.records import Cell, StackJob
from search.run import Run
from search.store import Store, open_store

TEMPLATE = "made-up"
"""The run that is recorded in earnest; all others are copies of its rows."""

CUT = 5
"""Of eleven tasks those that a run has committed which is not finished; in its next one it has 2 cells of 6."""

STATES = ("finished", "finished", "open", "stopped", "finished", "finished", "finished", "held")
"""In turn; ``held``: open, with a live lease."""

STEP = 1_000_000
"""Copy k of a row has k times this more in its number."""


def make_experiment(**changes: Any) -> Experiment:
    keys: dict[str, Any] = {
        "name": TEMPLATE,
        "tasks": {"count": 11},
        "model": {"hidden": [200, 100]},
        "replicas": 2,
        "grid": {"alpha": [0.001, 0.002], "learning_rate": [0.001, 0.002, 0.003]},
        "training": {"epochs": 4},
        "rule": {"margin": 1.0},
    }
    return Experiment.model_validate({**keys, **changes})


def record(store: Store, experiment: Experiment, *, workers: int = 2) -> None:
    """Record a whole run, in virtual time."""
    with store.take(
        experiment.name,
        experiment_json=experiment.to_json(),
        data="d" * 64,
        versions={"torch": "2.13.0"},
        layers=experiment.outline.layer_names,
    ) as writer:
        history = store.history(experiment.name)
        run = Run(experiment, writer, history, data=lambda *_: "e" * 64, workers=workers)
        Simulated(workers=workers, world=World()).execute(run)
        writer.finish("finished")


def copy(store: Store, copies: int) -> None:
    """Copy the run that was recorded, row by row.

    A copy holds what a finished run does, or what one does that was cut off in a task; see :data:`STATES`.
    """
    with store.database.engine.begin() as connection:
        for table in sorted_tables():
            connection.execute(text(_copy(table, copies)))
            if store.database.dialect == "postgresql":
                _move_sequence(connection, table)
        held = select(Runs.id).where(Runs.name.like("run-%"), Runs.reason == "held")
        lease = {"token": "t" * 32, "host": "node-7", "boot": "b", "namespace": "n", "pid": 7, "started": 1.0}
        until = store.database.clock(connection) + 86400.0
        lease |= {"taken": until - 90000.0, "expires": until, "renewals": 9}
        rows = [{"run_id": run, **lease} for run in connection.execute(held).scalars()]
        if rows:
            connection.execute(insert(Leases), rows)
        connection.execute(update(Runs).where(Runs.reason == "held").values(state="open", reason=""))
    with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def sorted_tables() -> list[Table]:
    """The ledger's tables and Optuna's that hold a run's rows, those first that others refer to."""
    found = [*Runs.metadata.sorted_tables, *BaseModel.metadata.sorted_tables]
    return [table for table in found if table.name not in ("clnp_schema", "clnp_leases", "version_info")]


_WHOLE = "copy.state = 'finished'"
_TASK = "CAST(substr(study_name, length(study_name) - 1) AS INTEGER)"
_KEPT = {
    "clnp_openings": f"{_WHOLE} OR task <= {CUT}",
    "clnp_jobs": f"{_WHOLE} OR task < {CUT}",
    "clnp_cells": f"{_WHOLE} OR task < {CUT} OR task = {CUT} AND cell < 2",
    "clnp_commits": f"{_WHOLE} OR task < {CUT}",
    "studies": f"{_WHOLE} OR {_TASK} <= {CUT}",
    "study": f"{_WHOLE} OR {_TASK} <= {CUT}",
    "trial": f"{_WHOLE} OR {_TASK} < {CUT} OR {_TASK} = {CUT} AND trials.number < 2",
}
"""Which rows a copy keeps, by table or by how its name begins."""

_CHANGED = {
    "clnp_runs.name": "'run-' || k",
    "clnp_runs.folder": "'run-' || k",
    "clnp_runs.state": "copy.state",
    "clnp_runs.reason": "CASE copy.state WHEN 'stopped' THEN 'replica 1, task 6: cell 2 was lost 3 times' "
    "WHEN 'held' THEN 'held' ELSE '' END",
    "clnp_runs.updated": "clnp_runs.updated - k",
    "clnp_attempts.token": "substr(k || '-' || token, 1, 32)",
    "clnp_jobs.nonce": "substr(k || '-' || nonce, 1, 32)",
    "clnp_jobs.started": "clnp_jobs.started - k",
    "clnp_jobs.ended": "clnp_jobs.ended - k",
    "studies.study_name": f"'run-' || k || substr(study_name, {len(TEMPLATE) + 1})",
}


def _copy(table: Table, copies: int) -> str:
    """One statement that copies a table's rows of the recorded run."""
    states = " ".join(f"WHEN {number} THEN '{state}'" for number, state in enumerate(STATES))
    kind = table.name.partition("_")[0]
    joins = "" if kind == "clnp" or table.name == "studies" else " JOIN studies USING (study_id)"
    joins = f" JOIN trials USING (trial_id){joins}" if kind == "trial" else joins
    values = []
    for column in table.columns:
        own = f"{table.name}.{column.name}"
        numbered = column.foreign_keys or (table.autoincrement_column is column)
        values.append(_CHANGED.get(own, f"{own} + k * {STEP}" if numbered else own))
    kept = _KEPT.get(table.name, _KEPT.get(kind.rstrip("s"), "1 = 1"))
    names = ", ".join(column.name for column in table.columns)
    return f"""
        INSERT INTO {table.name} ({names})
        WITH RECURSIVE number(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM number WHERE k < {copies}),
        copy AS (SELECT k, CASE k % {len(STATES)} {states} END AS state FROM number)
        SELECT {", ".join(values)} FROM {table.name}{joins} CROSS JOIN copy WHERE {kept}"""


def _move_sequence(connection: Connection, table: Table) -> None:
    column = table.autoincrement_column
    if column is not None:
        last = f"(SELECT max({column.name}) FROM {table.name})"
        connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), {last})"))


class Meter:
    """Stands in for an object and keeps what each call of it takes: seconds of CPU, of wall clock, and statements.

    Of the CPU it is the process's: nothing else may run in it meanwhile.
    """

    def __init__(self, of: Any, *engines: Engine) -> None:
        self.calls: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        self._of = of
        self._statements = 0
        for engine in engines:
            event.listen(engine, "before_cursor_execute", self._count)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            cpu, wall, statements = time.process_time(), time.perf_counter(), self._statements
            try:
                return found(*arguments, **named)
            finally:
                spent = time.process_time() - cpu, time.perf_counter() - wall, self._statements - statements
                self.calls[name].append(spent)

        return call

    def _count(self, *_: object) -> None:
        self._statements += 1


def drive(replicas: int, workers: int, tasks: int, cells: int) -> tuple[Meter, int]:
    """A run in virtual time and in memory; its jobs, of one cell each, end in no order. Gives also its trials."""
    rates = [0.001 * (1 + index) for index in range(cells // 2)]
    grid = {"alpha": [0.001, 0.002], "learning_rate": rates}
    experiment = make_experiment(replicas=replicas, tasks={"count": tasks}, grid=grid, worker={"cells": 1})
    world, draw = World(), random.Random(0)
    book = MemoryBook(world.artifacts)
    run = Run(experiment, book, book, data=lambda *_: "e" * 64, workers=workers)
    meter = Meter(run)
    Simulated(workers=workers, world=world, plan=lambda *_: Fate(draw.uniform(50, 150))).execute(meter)
    if not run.finished:
        raise RuntimeError(f"the simulated run did not end: {run.stopped}")
    return meter, sum(map(len, book.cells.values()))


def driver_rows(sizes: list[tuple[int, int, int, int]]) -> Iterator[str]:
    yield "| replicas | workers | tasks | cells | trials | calls a trial | CPU ms a trial | of it next_job | take |"
    yield "| --- " * 9 + "|"
    for replicas, workers, tasks, cells in sizes:
        meter, trials = drive(replicas, workers, tasks, cells)
        spent = {name: 1000 * sum(call[0] for call in calls) / trials for name, calls in meter.calls.items()}
        calls = sum(map(len, meter.calls.values())) / trials
        figures = f"{calls:.1f} | {sum(spent.values()):.2f} | {spent['next_job']:.2f} | {spent['take']:.2f}"
        yield f"| {replicas} | {workers} | {tasks} | {cells} | {trials:,} | {figures} |"


def write(store: Store, name: str, *, tasks: int = 3, cells: int = 24) -> Meter:
    """What the writes of a run take, each cell a job."""
    rates = [0.001 * (1 + index) for index in range(cells // 2)]
    grid = {"alpha": [0.001, 0.002], "learning_rate": rates}
    experiment = make_experiment(name=name, replicas=1, tasks={"count": tasks}, grid=grid, worker={"cells": 1})
    given = {"data": "d" * 64, "versions": {}, "layers": experiment.outline.layer_names}
    with store.take(name, experiment_json=experiment.to_json(), **given) as writer:
        meter = Meter(writer, store.database.engine, writer._studies._storage.engine)
        run = Run(experiment, meter, store.history(name), data=lambda *_: "e" * 64, workers=24)
        Simulated(workers=24, world=World()).execute(run)
        writer.finish("finished")
    return meter


def write_rows(empty: Meter, full: Meter) -> Iterator[str]:
    yield "| write | calls a trial | statements | CPU ms, empty | CPU ms, full | wall ms, empty | wall ms, full |"
    yield "| --- " * 7 + "|"
    trials = len(empty.calls["add_cell"])
    for name, calls in empty.calls.items():
        both = [calls, full.calls[name]]
        statements = " / ".join(f"{statistics.mean(call[2] for call in one):.1f}" for one in both)
        times = [f"{1000 * statistics.median(call[kind] for call in one):.1f}" for kind in (0, 1) for one in both]
        yield f"| {name} | {len(calls) / trials:.2f} | {statements} | {' | '.join(times)} |"
    sums = [
        f"{1000 * sum(call[0] for calls in one.calls.values() for call in calls) / trials:.1f}" for one in (empty, full)
    ]
    yield f"| a trial in all | | | {' | '.join(sums)} | | |"


def status_rows(url: str, rounds: int) -> Iterator[str]:
    """Whole commands, Python's start among them."""
    yield "| command | wall s, the best of so many | CPU s |"
    yield "| --- " * 3 + "|"
    commands = (["status"], ["status", "--format", "json"], ["status", "run-8"], ["show", "run-8"], ["--help"])
    for command in commands:
        storage = [] if command == ["--help"] else ["--storage", url]
        walls, cpus = [], []
        for _ in range(rounds):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            program = [sys.executable, "-m", "search", *command, *storage]
            subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
            walls.append(time.perf_counter() - began)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        yield f"| {' '.join(command)} | {min(walls):.2f} | {min(cpus):.2f} |"


class Errands:
    """Stands in for a run: so many jobs that no worker can do, since their data are nowhere."""

    def __init__(self, jobs: int) -> None:
        self.returned: list[float] = []
        self._left = jobs
        self._given = 0
        self._experiment = make_experiment(tasks={"kind": "permuted", "dataset": "mnist", "count": 2}).to_json()

    @property
    def over(self) -> bool:
        return len(self.returned) == self._left

    def next_job(self) -> StackJob | None:
        if self._given == self._left:
            return None
        self._given += 1
        cell = Cell(0, (0.001, 0.001, 0.001), 0.001)
        return StackJob(self._given, 0, 0, (cell,), (), (200, 100), "d" * 64, self._experiment)

    def take(self, job_id: int, result: Any) -> None:  # noqa: ARG002
        self.returned.append(time.perf_counter())

    def lost(self, job_id: int, reason: str, **_: Any) -> None:
        raise RuntimeError(f"job {job_id} was lost: {reason}")

    def progress(self, job_id: int, progress: Any) -> None:
        """None of them gets that far."""


def ray_rows(workers: list[int], jobs: int) -> Iterator[str]:
    from search.backends.tune import Tune
    from search.worker import WorkerSettings

    yield "| workers | s to the first result | ms a job after 20 |"
    yield "| --- " * 3 + "|"
    for count in workers:
        errands, pool = Errands(jobs), Pool(count, "cpu", 1, 0)
        with tempfile.TemporaryDirectory() as folder:
            backend, began = Tune(None), time.perf_counter()
            try:
                backend.start(pool, WorkerSettings(folder, folder, "cpu", 1))
                backend.execute(errands)
            finally:
                backend.close()
        first = errands.returned[0] - began
        each = 1000 * (errands.returned[-1] - errands.returned[20]) / (jobs - 21)
        yield f"| {count} | {first:.1f} | {each:.1f} |"


@contextmanager
def database(url: str | None, name: str) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder, open_store(url or f"sqlite:///{folder}/{name}.db", folder) as store:
        yield store


def show(rows: Iterator[str]) -> None:
    for row in rows:
        print(row, flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=["status", "driver", "writes", "ray"])
    parser.add_argument("--url", help="of an empty database on a server")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200)
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("optuna", "sqlalchemy", "ray"))
    print(f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
    if "driver" in arguments.parts:
        show(driver_rows([(10, 100, 20, 6), (100, 1000, 5, 6), (100, 1000, 20, 6)]))
    if "ray" in arguments.parts:
        show(ray_rows([2, 8], arguments.jobs))
    if {"status", "writes"} & set(arguments.parts):
        with database(arguments.url, "scale") as store:
            empty = None
            if "writes" in arguments.parts:
                empty = write(store, "in-the-empty-one")
                store.delete("in-the-empty-one")
            record(store, make_experiment())
            copy(store, arguments.runs - 1)
            if "status" in arguments.parts:
                url = arguments.url or f"sqlite:///{store.database.path}"
                show(status_rows(url, arguments.rounds))
            if empty is not None:
                show(write_rows(empty, write(store, "in-the-full-one")))


if __name__ == "__main__":
    main()
