"""The command line. Every command imports what it needs when it runs: ``--help`` is there at once, and what only reads
records imports no torch and no Ray."""

import argparse
import atexit
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from clnp.errors import Damaged, DataUnavailable, NothingToCommit, UnsupportedNetwork
from search.errors import BadInput, Damage, Impossible, SearchError, Unavailable
from search.options import STORAGE_VARIABLE, read_options
from search.output import note, print_report, print_resolved, refuse, silence, spare_encoding, write, write_note
from search.whereabouts import check_lasting, open_existing, open_records

if TYPE_CHECKING:
    from search.experiment import Experiment
    from search.machine import Node
    from search.store import Store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Reports go to stdout, everything else to stderr."""
    for stream in (sys.stdout, sys.stderr):
        spare_encoding(stream)
    _collect_seldom()
    options = read_options(arguments)
    try:
        code = _COMMANDS[options.command](options)
        sys.stdout.flush()
    except SearchError as error:
        return refuse(str(error), error.exit_code)
    except (UnsupportedNetwork, DataUnavailable) as error:
        return refuse(str(error), BadInput.exit_code)
    except Damaged as error:
        return refuse(str(error), Damage.exit_code)
    except NothingToCommit as error:
        return refuse(str(error), Impossible.exit_code)
    except KeyboardInterrupt:
        return refuse("interrupted", 130)
    except BrokenPipeError:
        # The reader went away, as `| head` does.
        silence(sys.stdout)
        return 141
    return code


def _collect_seldom() -> None:
    """Have Python look for garbage less often, and not at all once more at its end.

    A run imports 2,500 modules, of whose objects none is garbage. Every 700 objects, as is Python's habit, the search
    takes a third of torch's and Ray's import; the one at the end takes another second.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def _experiments(options: argparse.Namespace) -> int:
    from search.reports.experiments import experiments

    return print_report(options, experiments())


def _plan(options: argparse.Namespace) -> int:
    from search.experiment import read_experiment, schema
    from search.reports.plan import plan

    if options.schema:
        print(json.dumps(schema(), indent=2))
        return 0
    if options.experiment is None:
        raise BadInput("plan: name an experiment, or give --schema; `clnp-search experiments` lists the shipped ones")
    experiment = read_experiment(options.experiment, options.set)
    if options.resolved:
        print_resolved(options, experiment)
        return 0
    name = _run_name(options, experiment)
    nodes = _nodes(options.address)
    store = open_existing(options)
    if store is None:
        experiment = _forked(options, None, experiment, name)
        return print_report(options, plan(experiment, name, store=None, data_dir=options.data_dir, nodes=nodes))
    with store:
        experiment = _forked(options, store, experiment, name)
        return print_report(options, plan(experiment, name, store=store, data_dir=options.data_dir, nodes=nodes))


def _run_name(options: argparse.Namespace, experiment: "Experiment") -> str:
    """An empty one is a slip, such as of a shell's variable, and no wish for the experiment's."""
    return experiment.name if options.name is None else str(options.name)


def _nodes(address: str | None) -> "list[Node] | None":
    """The nodes of a cluster, which is only read; None without one."""
    if address is None:
        return None
    from search.backends.cluster import look

    return look(address)


def _run(options: argparse.Namespace) -> int:
    from search.experiment import read_experiment
    from search.names import check_run_name

    experiment = read_experiment(options.experiment, options.set)
    name = check_run_name(_run_name(options, experiment))
    with open_records(options, create=True) as store:
        check_lasting(options, store, name)
        return _drive(options, store, _forked(options, store, experiment, name), name)


def _forked(options: argparse.Namespace, store: "Store | None", experiment: "Experiment", name: str) -> "Experiment":
    """The experiment, begun with the tasks of another run where ``--from`` and ``--task`` say so."""
    run, tasks = options.origin, options.task
    if run is None and tasks is None:
        return experiment
    if run is None or tasks is None:
        found, other = ("--task", "--from NAME") if run is None else ("--from", "--task T")
        raise BadInput(f"{found} needs {other}: a fork begins with the first T tasks of run NAME")
    from search.fork import with_origin

    return with_origin(store, experiment, name, run, tasks)


def _resume(options: argparse.Namespace) -> int:
    from search.reports.common import read_run

    with open_records(options, create=False) as store:
        known = read_run(store, options.name)
        return _drive(options, store, known.experiment, options.name)


def _status(options: argparse.Namespace) -> int:
    with open_records(options, create=False) as store:
        if options.name is None:
            from search.reports.overview import overview

            return print_report(options, overview(store), "overview")
        from search.reports.status import status

        return print_report(options, status(store, options.name))


def _show(options: argparse.Namespace) -> int:
    from search.reports.show import show

    with open_records(options, create=False) as store:
        return print_report(options, show(store, options.name, task=options.task, replica=options.replica))


def _replay(options: argparse.Namespace) -> int:
    from search.reports.replay import replay

    with open_records(options, create=False) as store:
        return print_report(options, replay(store, options.name, options.margin))


def _verify(options: argparse.Namespace) -> int:
    from search.audit import verify

    with open_records(options, create=False) as store:
        report = verify(
            store, options.name, data_dir=options.data_dir, note=note if sys.stderr.isatty() else lambda _: None
        )
    print_report(options, report)
    return 0 if report["sound"] else Damage.exit_code


def _export(options: argparse.Namespace) -> int:
    from search.export import export

    with open_records(options, create=False) as store:
        made = export(
            store,
            options.name,
            task=options.task,
            file=options.to,
            replica=options.replica,
            data_dir=options.data_dir,
        )
    return print_report(options, made)


def _report(options: argparse.Namespace) -> int:
    from search.figures.report import report

    if not options.to:
        raise BadInput("--to is empty; give a folder, such as reports, or . for the current one")
    with open_records(options, create=False) as store:
        return print_report(options, report(store, options.name, options.to))


def _submit(options: argparse.Namespace) -> int:
    from search.database import PASSWORD_VARIABLE
    from search.jobs.submission import Submission, pack

    package = pack(
        Submission(
            experiment=options.experiment,
            sets=tuple(options.set),
            name=options.name,
            origin=options.origin,
            task=options.task,
            storage=options.storage,
            storage_file=options.storage_file,
            data_dir=options.data_dir,
            artifacts=options.artifacts,
            allow_missing=options.allow_missing,
            take_over=options.take_over,
        )
    )
    from search.jobs.commands import connect, submit, wait

    for variable in (STORAGE_VARIABLE, PASSWORD_VARIABLE):
        if variable in os.environ:
            note(f"{variable} of this shell is not sent: anybody on the cluster could read it; the head's own counts")
    client = connect(options.address)
    report, begin = submit(client, package)
    if options.follow or options.wait:
        note(f"run {package.name} is submitted; Ctrl-C leaves it running")
        report |= wait(client, package.name, begin, write_note if options.follow else None)
    print_report(options, report)
    return report["exit_code"] or 0


def _logs(options: argparse.Namespace) -> int:
    from search.jobs.commands import connect, logs

    logs(connect(options.address), options.name, write, on=options.follow)
    return 0


def _stop(options: argparse.Namespace) -> int:
    from search.jobs.commands import connect, stop

    return print_report(options, stop(connect(options.address), options.name))


def _list(options: argparse.Namespace) -> int:
    from search.jobs.commands import connect, list_jobs

    return print_report(options, list_jobs(connect(options.address)))


def _dashboard(options: argparse.Namespace) -> int:
    with open_records(options, create=False) as store:
        if options.name is not None:
            store.find(options.name)

        from search.dashboard.serving import is_loopback, serve

        if not is_loopback(options.host):
            note(f"--host {options.host}: there is no password; whoever reaches it reads all runs and writes notes")

        def tell(address: str) -> None:
            json_line = json.dumps({"storage": store.url, "address": address})
            print(json_line if options.format == "json" else f"{store.url} is shown at {address}; Ctrl-C ends it")
            sys.stdout.flush()

        return serve(store, host=options.host, port=options.port, name=options.name, tell=tell)


def _delete(options: argparse.Namespace) -> int:
    name = options.name
    with open_records(options, create=False) as store:
        row = store.find(name)
        if options.yes is None:
            if store.is_away(row):
                note(f"{row.artifacts} is not there; if it is on a share that is away, its tensors stay there.")
            note(f"This removes run {name} for good: its studies, its rows and the tensors in {row.artifacts}.")
            print("Type the run's name to go on: ", end="", file=sys.stderr, flush=True)
        typed = sys.stdin.readline().strip() if options.yes is None else options.yes
        if not typed:
            raise BadInput(f"nothing was typed, and nothing was deleted; without a terminal: --yes {name}")
        if typed != name:
            raise BadInput(f"{typed!r} is not {name!r}: nothing was deleted")
        removed = store.delete(name)
    report = {"run": name, "studies": removed.studies, "rows": removed.rows, "artifacts": removed.artifacts}
    return print_report(options, report, "deleted")


def _gc(options: argparse.Namespace) -> int:
    from search.gc import collect, survey

    with open_records(options, create=False) as store:
        sure = options.yes
        if not sure:
            report = survey(store, options.name)
            if report["files"] and options.format == "table" and sys.stdin.isatty():
                print_report(options, report)
                print("Type yes to remove them: ", end="", file=sys.stderr, flush=True)
                sure = sys.stdin.readline().strip() == "yes"
                if not sure:
                    note("nothing was removed")
                    return 0
        if sure:
            report = collect(store, options.name)
    print_report(options, report)
    return Unavailable.exit_code if any(run["unreachable"] for run in report["runs"]) else 0


def _drive(options: argparse.Namespace, store: "Store", experiment: "Experiment", name: str) -> int:
    # The imports that follow take a while, in which the holder of a lease renews it.
    watch = store.watch(name)

    from search.database import PASSWORD_VARIABLE
    from search.driver import run_experiment
    from search.reports.final import final
    from search.view import open_view

    # The store has read them; what this process starts, Ray's workers among it, would inherit them.
    for variable in (STORAGE_VARIABLE, PASSWORD_VARIABLE):
        os.environ.pop(variable, None)
    try:
        with open_view(sys.stderr) as view:
            store.database.on_outage = view.note
            run_experiment(
                store,
                experiment,
                name=name,
                backend=options.backend,
                address=options.address,
                data_dir=options.data_dir,
                allow_missing=options.allow_missing,
                take_over=options.take_over,
                watch=watch,
                view=view,
            )
    except Impossible:
        _print_committed(options, store, name)
        raise
    return print_report(options, final(store, name), "final")


def _print_committed(options: argparse.Namespace, store: "Store", name: str) -> None:
    """What a run that stopped has come to: a sequence that is to fill its network ends so. Why it stopped is worth more
    than whatever keeps this from being shown."""
    from search.reports.final import final

    try:
        report = final(store, name)
        if report["accuracy"] is not None:
            print_report(options, report, "final")
            sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except SearchError as error:
        note(f"what was committed cannot be shown: {error}")


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "experiments": _experiments,
    "plan": _plan,
    "run": _run,
    "resume": _resume,
    "status": _status,
    "show": _show,
    "replay": _replay,
    "verify": _verify,
    "export": _export,
    "report": _report,
    "submit": _submit,
    "logs": _logs,
    "stop": _stop,
    "list": _list,
    "dashboard": _dashboard,
    "delete": _delete,
    "gc": _gc,
}
