"""A run from start to end: checks, lease, backend, signals."""

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from search.dashboard.noting import Notes, complete
from search.errors import BadInput, SearchError
from search.experiment import Experiment, differences
from search.fork import check_records, check_tensors, copy_tasks
from search.gc import surplus
from search.machine import Needs, Pool
from search.names import check_run_name
from search.own_code import folders
from search.run import Run
from search.signals import Signals
from search.snapshot import Event
from search.store import AttemptRow, RunRow, Store, Watch
from search.versions import begun_threads, changes, describe
from search.view import View
from search.writer import Writer

if TYPE_CHECKING:
    from search.backends.live import LiveBackend

__all__ = ["BackendName", "run_experiment"]

BackendName = Literal["tune", "inline"]

_GRACE = 4.0
"""Seconds from a signal to the end of the process, whatever still runs."""

_POLL = 0.1


def run_experiment(
    store: Store,
    experiment: Experiment,
    *,
    name: str,
    backend: BackendName = "tune",
    address: str | None = None,
    data_dir: str | None = None,
    allow_missing: bool = False,
    take_over: bool = False,
    watch: Watch | None = None,
    view: View,
) -> None:
    """Run an experiment to its end, or continue the run of that name; a finished one is left as it is.

    The first SIGINT, SIGTERM or SIGHUP gives back the jobs that run, releases the lease, prints the command that
    continues and ends the process with 130, 143 or 129 within 5 seconds: by ``os._exit``, since neither training nor
    Ray can be interrupted. A second one leaves at once.

    A forked one (see :mod:`search.fork`) is given its first tasks before anything is trained.

    Args:
        store: Where the records are.
        experiment: Resolved.
        name: Of the run.
        backend: ``"tune"``: workers of Ray Tune; ``"inline"``: one job after another in this process.
        address: Of a Ray cluster that runs; None: one of our own on this machine.
        data_dir: Where data sets lie.
        allow_missing: Commit without cells that were lost more often than the retries allow.
        take_over: Take the lease of a driver that is known to be gone without waiting for its end.
        watch: At this run, if it was begun before.
        view: Told what happens; entered, and in the end left, by who calls.

    Raises:
        BadInput: The name cannot be one, the data are missing, or the run of that name is another: nothing was started.
        Held: Another live driver has the run.
        SearchError: Why the run stopped; its row keeps the reason.
    """
    check_run_name(name)
    attempt = _Attempt(
        store=store,
        experiment=experiment,
        name=name,
        kind=backend,
        address=address,
        data_dir=data_dir,
        allow_missing=allow_missing,
        take_over=take_over,
        watch=watch,
        view=view,
    )
    executor = ThreadPoolExecutor(1, thread_name_prefix="driver")
    # On a thread of its own: this one, the main one, stays free to see signals, whatever the other waits for.
    with Signals(attempt.kill) as signals:
        future = executor.submit(attempt.run)
        while not wait((future,), _POLL).done and signals.received is None:
            pass
        if signals.received is not None:
            attempt.interrupt()
            wait((future,), _GRACE - 1.0)
            _leave(attempt, attempt.farewell, signals.exit_code)
    executor.shutdown()
    error = future.exception()
    if attempt.abandoned and isinstance(error, SearchError):
        _leave(attempt, f"clnp-search: {error}", error.exit_code)
    if attempt.abandoned and error is not None:
        _leave(attempt, "".join(traceback.format_exception(error)).rstrip(), 1)
    if error is not None:
        raise error


def _leave(attempt: "_Attempt", text: str, code: int) -> NoReturn:
    """End the process without waiting for the threads and processes that still work on jobs.

    Who reads what it says may be gone, as ``| tee`` is after the same Ctrl-C.
    """
    attempt.view.__exit__(None, None, None)
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)
    attempt.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


@dataclass(eq=False, kw_only=True)
class _Attempt:
    """One driver's try at a run."""

    store: Store
    experiment: Experiment
    name: str
    kind: BackendName
    address: str | None
    data_dir: str | None
    allow_missing: bool
    take_over: bool
    watch: Watch | None
    view: View
    interrupted: bool = False
    known: bool = False
    """Whether the database has the run: only then can it be resumed."""
    backend: "LiveBackend | None" = None

    @property
    def abandoned(self) -> bool:
        """Whether the backend left jobs running."""
        return self.backend is not None and self.backend.stop.is_set()

    @property
    def farewell(self) -> str:
        """What a person who interrupted it is told."""
        if self.known:
            return f"interrupted; continue with: {self.command}"
        return "interrupted before anything was started; the same command starts it"

    @property
    def command(self) -> str:
        """What continues this run. A URL whose password is not shown cannot be given: its option is only named."""
        words = ["clnp-search", "resume", self.name]
        if self.store.database.path != Path("clnp-search.db").absolute():
            words += ["--storage", "…" if "***" in self.store.url else self.store.url]
        for option, value in (("--data-dir", self.data_dir), ("--address", self.address)):
            words += [option, value] if value is not None else []
        words += ["--backend", "inline"] if self.kind == "inline" else []
        words += ["--allow-missing"] if self.allow_missing else []
        return " ".join(word if word == "…" else shlex.quote(word) for word in words)

    def interrupt(self) -> None:
        """Ask for the end. Called from another thread."""
        self.interrupted = True
        self.store.database.hurry()
        if self.backend is not None:
            self.backend.stop.set()

    def kill(self) -> None:
        """End what the backend started, at once."""
        if self.backend is not None:
            self.backend.kill()

    def run(self) -> None:
        """Check, take the run, and work on it until it is over."""
        row = self.store.run(self.name)
        self._refuse_held()
        self._resolve()
        if row is not None:
            self.known = True
            # What can be told without the data is told before they are read.
            self._refuse_other(row, row.data)
            if row.state == "finished" and not self._goes_on(row):
                self.view.note(f"run {self.name} is finished already")
                complete(self.store, self.name, tell=self.view.note)
                return
        check_records(self.store, self.experiment, self.name, None)
        data = self._check_data(row)
        with self._make_backend() as backend:
            before = self.store.attempts(self.name)
            pool = backend.form_pool(self.experiment, begun=begun_threads(before[-1].versions if before else None))
            # Workers and backend too: the stacks of later tasks go by them.
            versions = {
                **describe("ray", "optuna"),
                "device": pool.device,
                "threads": str(pool.cpu),
                "workers": str(pool.workers),
                "backend": self.kind,
            }
            with self.store.take(
                self.name,
                experiment_json=self.experiment.to_json(),
                data=data,
                versions=versions,
                watch=self.watch,
                take_over=self.take_over,
                wait=self.view.note,
                layers=self.experiment.outline.layer_names,
            ) as writer:
                self.known = True
                self._check_again(writer, data)
                self._tell_changes(writer, before, versions)
                if self._copy(writer):
                    self._work(backend, writer, pool)
                else:
                    writer.release("interrupted")

    def _refuse_held(self) -> None:
        """Before anything that takes long.

        Raises:
            Held: Another live driver has the run.
        """
        self.watch = self.watch or self.store.watch(self.name)
        if self.watch is not None:
            self.watch.settle()

    def _resolve(self) -> None:
        """What the file alone does not say of network and tasks.

        Raises:
            BadInput: They cannot be used: nothing was started.
        """
        if not self.experiment.plain:
            from search.building import resolve

            self.experiment = resolve(self.experiment, self.data_dir, self._code)

    @property
    def _code(self) -> tuple[str, ...]:
        """Where a person's own functions are looked for."""
        return folders(self.experiment.code)

    @property
    def _needs(self) -> Needs:
        """What every node of a cluster must have."""
        functions = [kind for kind in (self.experiment.model.kind, self.experiment.tasks.kind) if ":" in kind]
        modules = tuple(kind.partition(":")[0] for kind in functions)
        return Needs(
            self.store.place(self.name),
            prepared=self.store.keeps_tensors(self.name),
            datasets=self.experiment.tasks.datasets,
            data_dir=self.data_dir,
            modules=modules,
            code=self._code if modules else (),
        )

    @contextlib.contextmanager
    def _make_backend(self) -> "Iterator[LiveBackend]":
        """The backend, which may begin to import Ray; closed in the end."""
        if self.kind == "tune":
            from search.backends.tune import Tune

            backend: LiveBackend = Tune(self.address, needs=self._needs, note=self.view.note)
        else:
            if self.address is not None:
                raise BadInput(f"--address {self.address}: the inline backend joins no cluster; leave one of them out")
            from search.backends.inline import Inline

            backend = Inline()
        self.backend = backend
        if self.interrupted:
            backend.stop.set()
        try:
            yield backend
        except SearchError:
            raise
        except Exception:
            backend.stop.set()  # a bug: nobody takes in what still runs, which may be hours
            raise
        finally:
            backend.close()

    def _check_data(self, row: RunRow | None) -> str:
        """The SHA-256 of the data.

        Raises:
            BadInput: It cannot be read, or the run of that name is another.
        """
        from search.data import data_sha256

        data = data_sha256(self.experiment, self.data_dir, self._code)
        if row is not None:
            self._refuse_other(row, data)
        check_records(self.store, self.experiment, self.name, data)
        check_tensors(self.store, self.experiment, self.name)
        return data

    def _refuse_other(self, row: RunRow, data: str) -> None:
        found = differences(Experiment.from_json(row.experiment), self.experiment, row.data, data)
        if found:
            lines = "\n".join(f"  {line}" for line in found)
            raise BadInput(
                f"run {self.name} is there and is another; change it back, or give --name NEW for a new one:\n{lines}"
            )

    def _goes_on(self, row: RunRow) -> bool:
        """Whether a finished run has something to do: more to learn, or other tensors to keep."""
        old, new = Experiment.from_json(row.experiment), self.experiment
        return (old.tasks.count, old.replicas, old.keep) != (new.tasks.count, new.replicas, new.keep)

    def _check_again(self, writer: Writer, data: str) -> None:
        """Once the lease is taken nobody else changes the run; before, another driver may have."""
        row = self.store.run(self.name)
        if row is None:
            raise BadInput(f"run {self.name} was deleted just now")
        self._refuse_other(row, data)
        # Of a fork the ledger has what its origin was run with; the origin may have been made anew since.
        self.experiment = self.experiment.with_origin(Experiment.from_json(row.experiment).origin)
        if row.experiment != self.experiment.to_json():
            gone = surplus(self.experiment, self.store.history(self.name))
            writer.update_run(self.experiment.to_json(), surplus=gone)

    def _tell_changes(self, writer: Writer, before: list[AttemptRow], versions: dict[str, str]) -> None:
        """Say and record what differs from the last attempt: bits may differ with it."""
        found = changes(before[-1].versions, versions) if before else []
        if found:
            text = f"since the last attempt: {'; '.join(found)}"
            writer.note(text)
            self.view.note(text)

    def _copy(self, writer: Writer) -> bool:
        """Give a forked run what it begins with; False where it was interrupted before all of it was there.

        Raises:
            SearchError: Why it cannot be had.
        """
        try:
            return copy_tasks(self.store, writer, self.experiment, note=self.view.note, stop=lambda: self.interrupted)
        except SearchError as error:
            with contextlib.suppress(SearchError):
                writer.finish("stopped", str(error))
            raise

    def _work(self, backend: "LiveBackend", writer: Writer, pool: Pool) -> None:
        """Have the jobs done, and write down how the run ended.

        Raises:
            SearchError: Why it stopped.
        """
        from search.worker import WorkerSettings

        where = (self.data_dir, self._code)
        settings = WorkerSettings(writer.artifacts.location, self.data_dir, pool.device, pool.cpu, self._code, pool.gpu)
        backend.start(pool, settings)
        from search.building import build_sequence  # torch, which takes as long as it takes Ray's processes to start

        notes = Notes(self.store, writer, tell=self.view.note, hurried=lambda: self.interrupted)

        def told(event: Event) -> None:
            self.view.event(event)
            notes.told(event)

        history = self.store.history(self.name)
        run = Run(
            self.experiment.with_gpu(pool.gpu),
            writer,
            history,
            data=lambda replica, task: build_sequence(self.experiment, replica, *where).sha256(task),
            workers=pool.workers,
            allow_missing=self.allow_missing,
            on_event=told,
        )
        self.view.watch(self.name, run.snapshot)
        with notes:
            try:
                backend.execute(run)
            finally:
                run.give_back()
        if run.stopped is not None:
            # The error that stopped the run is worth more than one of writing it down.
            with contextlib.suppress(SearchError):
                writer.finish("stopped", str(run.stopped))
            raise run.stopped
        if run.finished:
            writer.finish("finished")
        elif self.interrupted:
            writer.release("interrupted")
