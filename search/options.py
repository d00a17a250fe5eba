"""The commands, their options and their help."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

__all__ = ["DEFAULT_STORAGE", "STORAGE_VARIABLE", "read_options"]

DEFAULT_STORAGE = "sqlite:///clnp-search.db"
STORAGE_VARIABLE = "CLNP_SEARCH_STORAGE"

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says; ``command`` is the command's name.

    Raises:
        SystemExit: 0 after ``--help`` and ``--version``, 2 with a message for arguments that are not understood.
    """
    parser, commands = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = commands[options.command]  # its usage says more than the one of all commands
        known = re.findall("--[a-z-]+", command.format_usage())
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; clnp-search {options.command} --help says what it takes"
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


_ABOUT = """
Learn a sequence of tasks with one network of fixed size and forget nothing (Continual Learning via Neural Pruning).
For every task a grid of α and learning rates is trained; of the networks within a margin of the best the one that can
be pruned furthest is committed, and the units that are left learn the next task. The database holds all state: the
same command again continues a run that was cut off.
"""

_END = """
Begin with:

  clnp-search run quickstart

Exit codes: 0 done; 1 something could not be reached for as long as the command waits, the same command continues; 2 bad
input, mostly before anything is started; 3 damage; 4 another process drives the run; 5 nothing worth committing; 130,
143 or 129 ended by Ctrl-C, SIGTERM or the closing of its terminal.
"""

_EXPERIMENTS = """
List the experiments that ship with the package, a line each. `clnp-search plan NAME --resolved` prints one in full.
"""

_PLAN = """
Say what `run` would do on this machine, or with --address on a Ray cluster: how many workers fit on each of its nodes
and what would be idle there. Nothing is started or written. Every cell is listed with one α a layer, then
the stacks in which cells train, the workers, the disk that is needed at most, and what the database holds under this
name already. Warnings say where the margin is less than one validation sample, where α looks too weak to leave room for
all tasks, and which layer would run out by what the tasks so far claimed, those that a fork begins with among them.
"""

_RUN = """
Learn the tasks of an experiment, one after another. A run of the same name continues where it was; a finished one
prints its table. Workers, retries, locations and grow may change in between, replicas and tasks may grow; anything else
is refused and needs another --name, with --from where tasks are to be kept. Functions of your own (module:function) are
looked for in the folder of the experiment file, then in the current one. A database that is away, at the start too, and
a store of tensors are waited for, 10 minutes at most. Ctrl-C gives running jobs back and says how to
continue; a second one leaves at once. At the end: the winner of every task, and every task's test accuracy measured
again after each commit.

--from NAME --task T --name NEW forks: the new run begins with copies of the first T commits of run NAME, and only the
tasks after them are trained. Network, data, seed and tasks are the same; rule, grid, training, fine-tuning and grow may
be others. NAME may still be running, and may be deleted once the copies are made.
"""

_RESUME = """
Continue a run from what the database holds: the experiment file is not needed. A run that a live process drives is left
alone (exit code 4).
"""

_STATUS = """
Say how far all runs are, in a line each: who drives which, tasks and cells done, mean test accuracy, why one stopped.
With NAME all of one: tasks and cells of every replica, what runs where and in which epoch, units left in each layer,
the time that is left by the mean durations so far, who drives it, how the last attempt ended, and which versions
changed between attempts.
"""

_SHOW = """
Explain one commit: the best accuracy of the grid and the cut line under it, every cell with the point at which it
would have been pruned, the winner with its α, learning rate and θ, its accuracies, the units claimed and free, the
fingerprint, and where it comes from, with all that had to differ.
"""

_REPLAY = """
Apply the rule at another margin to the records; nothing is trained. For every task: what would have been picked, what
it would cost in accuracy and how many units it would free. Exact up to the first task that differs; the tasks after it
are marked as given the history, since they would have trained on other free units. It is the margin rule that is
applied, also to a run that was decided by the budget rule; fine-tuning is not replayed, a task that had it is compared
as it was pruned before.
"""

_VERIFY = """
Take every commit from its bytes again: hash all artifacts, put the commits back one by one, compute every task's
fingerprint and measure its test accuracy after each. One line says whether anything old has changed by a bit; if so,
the exit code is 3 and the lines before it name what and which file.
"""

_EXPORT = """
Write a committed task's narrow network, with the permutation and scaling that its samples go through first, as a file
that is used without this package: .safetensors with its architecture, .onnx, or .pt2 for torch.export. Every
fingerprint is checked on the way.
"""

_REPORT = """
Write a run's figures as one HTML page, NAME.html, that needs no other file and no network: accuracy of every task right
after it and now, units claimed, reused and free, the accuracy matrix, and of every task its trials, its grid and what
was committed. A run that is not finished has a page of what is there.
"""

_SUBMIT = """
Have a Ray cluster run an experiment: as a job that has the run's name, whose driver runs on the head, so that this
machine may go. `--address` is the head's dashboard. The experiment file travels, and with functions of your own the
Python files beside it; paths are those of the cluster. The database is named by --storage-file, a file on the head, or
by the variable CLNP_SEARCH_STORAGE that Ray was started with there, which the workers on the head then hold too: Ray
shows a job's command and surroundings to everybody on the cluster, so no password is sent. Submitted again a run goes
on where it was; while its job runs that is refused (exit code 4). A cluster that asks for a token: RAY_AUTH_MODE=token
and RAY_AUTH_TOKEN, as for Ray itself.
"""

_LOGS = """
Print what the driver of a submitted run says: a line an event, and the final table. --follow goes on until the job has
ended; Ctrl-C ends the looking on alone.
"""

_STOP = """
End the job of a submitted run in good order: running jobs are given back, the lease is released, nothing that was
recorded is lost. Waits for the end, and says how it ended and what continues the run.
"""

_LIST = """
List the jobs of a cluster that were submitted with `clnp-search submit`: status, when they began and ended, and why
those failed that did.
"""

_GC = """
Show what no row of the ledger needs of the runs' tensors, or of one run's: those of cells that were not committed and
are not kept, those that a killed worker left without a record, and what was half written. Then remove it, once `yes` is
typed. Runs that are driven are left alone; places of runs that are not in this database are only named.
"""

_DASHBOARD = """
Serve Optuna's dashboard over the database: a study a task, with its trials, importances and plots. The study of a
committed task explains the commit in a note, shows accuracy against units with the cut line and the winner, and offers
the tensors. It is for reading, and for notes of your own; nothing else is changed through it.

There is no password: it listens on the loopback address, which this machine alone reaches. From another one: ssh -L
8080:localhost:8080 THIS-MACHINE.
"""

_DELETE = """
Remove a run for good: its Optuna studies, its ledger rows and its artifacts together. Asks for the name to be typed.
"""


def _parser() -> "tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]":
    """The parser, and the one of each command."""
    parser = argparse.ArgumentParser(prog="clnp-search", description=_ABOUT, epilog=_END, formatter_class=_Help)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add(commands, "experiments", "list the shipped experiments", _EXPERIMENTS, "experiments")
    _add_plan(commands)
    run = _add(
        commands,
        "run",
        "run an experiment, or continue it",
        _RUN,
        "run permuted-mnist-small --data-dir data --set replicas=3 workers=4\n"
        "  clnp-search run quickstart --from quickstart --task 2 --name bold --set rule.margin=2",
    )
    _add_experiment(run)
    _add_locations(run)
    resume = _add(commands, "resume", "continue a run by its name", _RESUME, "resume quickstart")
    _add_name(resume)
    _add_locations(resume)
    status = _add(commands, "status", "say how far the runs are", _STATUS, "status quickstart")
    status.add_argument("name", metavar="NAME", nargs="?", help="a run; all of them without it")
    show = _add(commands, "show", "explain one commit", _SHOW, "show quickstart --task 2 --replica 1")
    _add_name(show)
    show.add_argument("--task", type=int, metavar="T", help="from 1 (default: the last one committed)")
    show.add_argument("--replica", type=int, metavar="R", help="from 1 (default: 1)")
    replay = _add(commands, "replay", "try another margin on the records", _REPLAY, "replay quickstart --margin 0.5")
    _add_name(replay)
    replay.add_argument(
        "--margin", required=True, metavar="M", help="percentage points of validation accuracy, for the margin rule"
    )
    verify = _add(commands, "verify", "check every commit bit for bit", _VERIFY, "verify quickstart")
    _add_name(verify)
    _add_data(verify)
    export = _add(
        commands,
        "export",
        "write a task's narrow network",
        _EXPORT,
        "export quickstart --task 2 --to task-2.onnx",
    )
    _add_name(export)
    export.add_argument("--task", type=int, required=True, metavar="T", help="from 1")
    export.add_argument(
        "--to", required=True, metavar="FILE", help="where to write; its ending is .safetensors, .onnx or .pt2"
    )
    export.add_argument("--replica", type=int, metavar="R", help="from 1 (default: 1)")
    _add_data(export)
    report = _add(commands, "report", "write a run's figures as a page", _REPORT, "report quickstart --to reports")
    _add_name(report)
    report.add_argument(
        "--to", required=True, metavar="DIR", help="the folder to write NAME.html to; it is made where it is not there"
    )
    _add_jobs(commands)
    gc = _add(commands, "gc", "remove tensors that nothing needs", _GC, "gc quickstart")
    gc.add_argument("name", metavar="NAME", nargs="?", help="a run; all of them without it")
    gc.add_argument(
        "--yes", action="store_true", help="remove without asking; without it and without a terminal it is only shown"
    )
    dashboard = _add(commands, "dashboard", "serve Optuna's dashboard", _DASHBOARD, "dashboard quickstart --port 8080")
    dashboard.add_argument("name", metavar="NAME", nargs="?", help="a run; all of them without it")
    dashboard.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    dashboard.add_argument("--port", type=int, default=8080, help="its port; 0: one that is free (default: 8080)")
    delete = _add(commands, "delete", "remove a run", _DELETE, "delete quickstart")
    _add_name(delete)
    delete.add_argument("--yes", metavar="NAME", help="the name again, instead of typing it")
    return parser, commands.choices


def _add(commands: "Commands", name: str, summary: str, text: str, example: str) -> argparse.ArgumentParser:
    command = _add_bare(commands, name, summary, text, example)
    group = command.add_argument_group("records and output")
    group.add_argument(
        "--storage",
        metavar="URL",
        help="the database: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE (default: what "
        f"--storage-file names, then the variable {STORAGE_VARIABLE}, then {DEFAULT_STORAGE})",
    )
    group.add_argument(
        "--storage-file",
        metavar="FILE",
        help="a file whose first line is that URL: keeps a password out of the process list",
    )
    _add_format(group)
    return command


def _add_bare(commands: "Commands", name: str, summary: str, text: str, example: str) -> argparse.ArgumentParser:
    end = f"Example:\n\n  clnp-search {example}\n"
    return commands.add_parser(name, help=summary, description=text, epilog=end, formatter_class=_Help)


def _add_jobs(commands: "Commands") -> None:
    """The commands that speak to a cluster's job server, and to no database."""
    at = "--address http://head:8265"
    submit = _add_bare(
        commands,
        "submit",
        "run an experiment as a job on a Ray cluster",
        _SUBMIT,
        f"submit mine.yaml {at} --storage-file /etc/clnp/storage --data-dir /data --artifacts /shared/tensors",
    )
    _add_experiment(submit)
    place = submit.add_argument_group("on the cluster")
    place.add_argument("--storage-file", metavar="FILE", help="a file on the head with the database's URL")
    place.add_argument(
        "--storage", metavar="URL", help="the URL itself, without a password; a SQLite file by its absolute path"
    )
    place.add_argument("--data-dir", metavar="DIR", help="where the data sets lie, on every machine")
    place.add_argument(
        "--artifacts", metavar="PLACE", help="where tensors go: a folder that all machines share, or s3://BUCKET/PREFIX"
    )
    place.add_argument("--take-over", action="store_true", help="as in `run`")
    place.add_argument("--allow-missing", action="store_true", help="as in `run`")
    submit.add_argument("--follow", action="store_true", help="print the log until the job has ended, end as it did")
    submit.add_argument("--wait", action="store_true", help="the same without the log")
    logs = _add_bare(commands, "logs", "print what a submitted run says", _LOGS, f"logs quickstart --follow {at}")
    _add_name(logs)
    logs.add_argument("--follow", action="store_true", help="go on until the job has ended")
    stop = _add_bare(commands, "stop", "end a submitted run in good order", _STOP, f"stop quickstart {at}")
    _add_name(stop)
    found = _add_bare(commands, "list", "list the submitted runs of a cluster", _LIST, f"list {at}")
    for command in (submit, logs, stop, found):
        command.add_argument(
            "--address",
            metavar="URL",
            help="the dashboard of the cluster's head: http://HEAD:8265 (default: the variable RAY_API_SERVER_ADDRESS)",
        )
        if command is not logs:
            _add_format(command)


def _add_format(command: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    command.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")


def _add_plan(commands: "Commands") -> None:
    plan = _add(commands, "plan", "say what run would do; start nothing", _PLAN, "plan quickstart --set tasks.count=10")
    _add_experiment(plan, nargs="?")
    plan.add_argument("--resolved", action="store_true", help="print the experiment with every default instead")
    plan.add_argument(
        "--address", metavar="HOST:PORT", help="a Ray cluster: how many workers it has room for, node by node"
    )
    plan.add_argument("--schema", action="store_true", help="print the JSON schema of experiment files instead")


def _add_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="the run's name")


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", metavar="DIR", help="where the data sets lie")


def _add_experiment(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
    command.add_argument(
        "experiment", metavar="EXPERIMENT", nargs=nargs, help="a YAML file, or a shipped experiment's name"
    )
    command.add_argument("--name", help="the run's name (default: the experiment's)")
    command.add_argument(
        "--from", dest="origin", metavar="NAME", help="begin with the first tasks of the run NAME; --task says how many"
    )
    command.add_argument("--task", type=int, metavar="T", help="with --from: the last task that is copied, from 1")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=_change,
        nargs="+",
        action="extend",
        default=[],
        help="change keys of the experiment, values as in YAML: --set training.epochs=5 'grid.alpha=[1e-4, 1e-3]'",
    )
    if nargs:
        _add_data(command)


def _change(text: str) -> str:
    """What ``--set`` takes; it takes all that follows it."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text}: give path.to.key=value, and EXPERIMENT before --set")
    return text


def _add_locations(command: argparse.ArgumentParser) -> None:
    _add_data(command)
    command.add_argument(
        "--artifacts",
        metavar="PLACE",
        help="where tensors go: a folder that all workers share, or s3://BUCKET/PREFIX, with endpoint and credentials "
        "from boto3's own variables and files (default: clnp-search-artifacts beside the database)",
    )
    command.add_argument("--address", help="a Ray cluster to join (default: one of its own on this machine)")
    command.add_argument(
        "--take-over",
        action="store_true",
        help="do not wait for the end of the lease of a driver that is known to be gone; one that is seen to be alive "
        "keeps it",
    )
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="commit without cells that were lost more often than the experiment's retries allow",
    )
    command.add_argument(
        "--backend",
        choices=("tune", "inline"),
        default="tune",
        help="tune: workers of Ray Tune (default); inline: one job after the other in this process",
    )


class _Help(argparse.HelpFormatter):
    """Paragraphs are wrapped, indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [part.strip("\n") for part in text.split("\n\n")]
        filled = (part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width) for part in parts)
        return textwrap.indent("\n\n".join(filled), indent) + "\n"


class _Version(argparse.Action):
    """Looked up when it is asked for: the packages' metadata take a while to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from search.versions import package_version

        print(f"clnp-search {package_version()}")
        parser.exit()
