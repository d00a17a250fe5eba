"""Reports as tables for people: a dictionary in, something rich can print out."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search.text import clock, duration, members, number, percent, plural, size, theta

__all__ = [
    "TABLES",
    "deleted",
    "experiments",
    "final",
    "grid",
    "plan",
    "print_table",
    "replay",
    "show",
    "status",
    "verify",
]

_UNFOLDED = 10_000
"""Columns where the output is no terminal: nothing is folded."""


def print_table(table: RenderableType, stream: TextIO) -> None:
    """Print it in the width of the terminal; into a pipe or a file as wide as it is, without colours."""
    if stream.isatty():
        Console(file=stream, highlight=False).print(table)
        return
    console = Console(file=io.StringIO(), width=_UNFOLDED, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def grid(*columns: str) -> Table:
    """A plain table with a header; a column named with ``>`` in front is aligned to the right, with ``~`` may fold."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.lstrip(">~"), justify=justify, no_wrap=not column.startswith("~"), overflow="fold")
    return table


def experiments(report: Mapping[str, Any]) -> RenderableType:
    """The shipped experiments, a line each."""
    table = grid("experiment", "~what it is")
    for entry in report["experiments"]:
        table.add_row(entry["experiment"], entry["description"])
    return table


def final(report: Mapping[str, Any]) -> RenderableType:
    """The tasks of every replica, its accuracy matrix, and the verdict on what is old."""
    parts: list[RenderableType] = []
    for replica in report["replicas"]:
        parts += [
            _title(report["run"], _of("replica", replica["replica"], len(report["replicas"]))),
            _tasks(report, replica),
        ]
        if len(replica["matrix"]) > 1:
            parts += [Text(), Text("test accuracy in %, measured again after each commit", style="bold")]
            parts.append(_matrix(replica["matrix"]))
        parts.append(Text())
    return Group(*parts, *map(Text, _missing(report)), _verdict(report))


def _tasks(report: Mapping[str, Any], replica: Mapping[str, Any]) -> Table:
    layers, tasks = report["layers"], replica["tasks"]
    alpha = _alpha_columns(tasks)
    units = (f">{layer}\nnew, left" for layer in layers)
    table = grid(">\ntask", *alpha, ">learning\nrate", ">\nθ", ">\nvalidation", ">\ntest", *units)
    for task in tasks:
        table.add_row(
            str(task["task"]),
            *_alpha(task, alpha),
            number(task["learning_rate"]),
            theta(task["theta"], digits=4),
            percent(task["validation"]["accuracy"]),
            percent(task["test"]["accuracy"]),
            *(f"{task['claimed'][layer]}, {task['free'][layer]:>3}" for layer in layers),
        )
    return table


def _alpha_columns(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """One column for α where every cell has the same for all layers, else one a layer."""
    found = [cell["alpha"] for cell in cells]
    if not found or all(len(set(alpha.values())) == 1 for alpha in found):
        return [">\nα"]
    return [f">α\n{layer}" for layer in found[0]]


def _alpha(cell: Mapping[str, Any], columns: list[str]) -> list[str]:
    return [number(value) for value in cell["alpha"].values()][: len(columns)]


def _matrix(matrix: list[list[Mapping[str, Any]]]) -> Table:
    table = grid("after task", *(f">task {task}" for task in range(1, len(matrix) + 1)))
    for task, row in enumerate(matrix, start=1):
        table.add_row(str(task), *(f"{100 * entry['accuracy']:.2f}" for entry in row))
    return table


def _missing(report: Mapping[str, Any]) -> Iterable[str]:
    for replica in report["replicas"]:
        for task in replica["tasks"]:
            if task["missing"]:
                place = f"replica {replica['replica']}, task {task['task']}"
                yield f"{place} was committed without {members(task['missing'])}, lost too often"


def _verdict(report: Mapping[str, Any]) -> Text:
    commits = sum(len(replica["tasks"]) for replica in report["replicas"])
    text = Text(f"{plural(commits, 'commit')}")
    wanted = report["count"] * len(report["replicas"])
    if commits < wanted:
        text.append(f" of {wanted}")
    changed = f", {report['changed']} of {report['fingerprints']} old fingerprints changed"
    text.append(changed, style="bold red" if report["changed"] else "")
    if report["accuracy"] is not None:
        spread = "" if report["deviation"] is None else f" ± {percent(report['deviation'])} over the replicas"
        text.append(f", mean test accuracy {percent(report['accuracy'])}{spread}")
    return text


def _title(name: str, rest: str) -> Text:
    return Text.assemble((name, "bold"), f", {rest}" if rest else "")


def _of(word: str, index: int, count: int) -> str:
    return f"{word} {index} of {count}"


def status(report: Mapping[str, Any]) -> RenderableType:
    """How far runs are: a block each."""
    if not report["runs"]:
        return Text(f"no run in {report['storage']} yet; clnp-search run quickstart makes one")
    blocks: list[RenderableType] = []
    for run in report["runs"]:
        blocks += [*_run(run), Text()]
    return Group(*blocks[:-1])


def _run(run: Mapping[str, Any]) -> list[RenderableType]:
    shape = f"{run['count']} tasks of {run['dataset']}, {run['head']} head, {plural(len(run['replicas']), 'replica')}"
    parts: list[RenderableType] = [_title(run["run"], f"{run['state']}: {shape}")]
    if run["reason"]:
        parts.append(Text(run["reason"]))
    table = grid(">replica", "task", "cells", *(f">{layer} free" for layer in run["units"]), "~test accuracy, %")
    for replica in run["replicas"]:
        table.add_row(
            str(replica["replica"]),
            "all committed" if replica["task"] is None else f"{replica['task']} of {run['count']}",
            _cells(replica["cells"]),
            *(f"{replica['free'][layer]} of {units}" for layer, units in run["units"].items()),
            "  ".join(f"{100 * test['accuracy']:.2f}" for test in replica["test"]) or "–",
        )
    parts.append(_indent(table))
    if run["running"]:
        parts.append(_indent(_jobs(run)))
    return [*parts, *(_indent(Text(line)) for line in _remarks(run))]


def _cells(cells: Mapping[str, int] | None) -> str:
    if cells is None:
        return "–"
    extra = [f"{cells[word]} {word}" for word in ("diverged", "running") if cells[word]]
    return f"{cells['finished']} of {cells['total']}" + (f" ({', '.join(extra)})" if extra else "")


def _jobs(run: Mapping[str, Any]) -> Table:
    table = grid("job", ">replica", ">task", "worker", ">epoch", ">validation", "since")
    for job in run["running"]:
        what = "commit" if job["kind"] == "commit" else members(job["cells"])
        accuracy = "" if job["accuracy"] is None else percent(job["accuracy"])
        place = (str(job["replica"]), str(job["task"]))
        table.add_row(what, *place, job["worker"] or "–", str(job["epoch"]), accuracy, clock(job["started"]))
    return table


def _remarks(run: Mapping[str, Any]) -> Iterable[str]:
    holder = run["holder"]
    if run["seconds_left"] is not None:
        yield f"about {duration(run['seconds_left'])} left, from the mean durations so far"
    if holder is not None and holder["live"]:
        yield f"driven by process {holder['pid']} on {holder['host']} since {clock(holder['since'])}"
    elif holder is not None:
        yield f"left by process {holder['pid']} on {holder['host']}, which is gone: clnp-search resume {run['run']}"
    last = run["last_attempt"]
    if last is not None:
        ended = f"{last['outcome']} at {clock(last['ended'])}" if last["ended"] else "not ended"
        yield f"{plural(run['attempts'], 'attempt')}, the last began at {clock(last['started'])}: {ended}"
    yield from run["notes"]


def show(report: Mapping[str, Any]) -> RenderableType:
    """One commit explained, in the order in which it came about."""
    place = f"{_of('replica', report['replica'], report['replicas'])}, {_of('task', report['task'], report['count'])}"
    parts: list[RenderableType] = [_title(report["run"], place), _indent(_facts(report)), Text()]
    parts += [Text("the grid of the task", style="bold"), _trials(report), Text()]
    units = grid("layer", ">claimed", ">free", ">units")
    for layer in report["layers"]:
        counts = (report["claimed"][layer], report["free"][layer], report["units"][layer])
        units.add_row(layer, *map(str, counts))
    parts += [Text("units", style="bold"), units, Text(), Text("where it comes from", style="bold"), _origin(report)]
    return Group(*parts)


def _facts(report: Mapping[str, Any]) -> Table:
    candidates = [trial for trial in report["trials"] if trial["candidate"]]
    alpha = ", ".join(f"{layer} {number(value)}" for layer, value in report["alpha"].items())
    sparsest = "fewest new units" if report["sparsity"] == "units" else "most weights left free"
    facts = {
        "best accuracy": f"{_score(report['best'])}, unpruned, over the whole grid",
        "cut line": f"{_score(report['needed'])}, at a margin of {number(report['margin'])} %",
        "candidates": f"{len(candidates)} of {plural(len(report['trials']), 'cell')} reach it unpruned",
        "winner": f"cell {report['cell']}, the candidate with the {sparsest}",
        "α": alpha,
        "learning rate": number(report["learning_rate"]),
        "θ": theta(report["theta"]),
        "validation": f"{_score(report['validation'])}, before pruning {_score(report['unpruned'])}",
        "test": _score(report["test"]),
    }
    if not report["explained"]:
        facts["note"] = "the records give another winner now; verify says whether anything is damaged"
    return _pairs(facts)


def _trials(report: Mapping[str, Any]) -> Table:
    layers = report["layers"]
    alpha = _alpha_columns(report["trials"])
    claimed = [f">{layer}\nnew" for layer in layers]
    table = grid(">\ncell", *alpha, ">learning\nrate", ">\nunpruned", ">\nθ", ">\npruned", *claimed, "~")
    for trial in report["trials"]:
        head = (str(trial["cell"]), *_alpha(trial, alpha), number(trial["learning_rate"]))
        pruned = trial["pruned"]
        unpruned = "" if trial["unpruned"] is None else percent(trial["unpruned"]["accuracy"])
        if pruned is None:
            why = f"diverged: {trial['diverged']}" if trial["diverged"] else "below the cut line"
            table.add_row(*head, unpruned, "", "", *("" for _ in layers), why, style="dim")
            continue
        point = (theta(pruned["theta"], digits=4), percent(pruned["accuracy"]), *map(str, pruned["claimed"].values()))
        table.add_row(
            *head, unpruned, *point, "winner" if trial["winner"] else "", style="bold" if trial["winner"] else ""
        )
    return table


def _origin(report: Mapping[str, Any]) -> RenderableType:
    origin, trained = report["provenance"], report["trained"]
    facts = {
        "fingerprint": report["fingerprint"],
        "tensors": f"{report['artifact']} ({size(report['size'])})",
        "trained": f"in a stack of {members(trained['stack'])}" if trained else "not recorded",
        "device": f"{origin['device']}, {plural(origin['threads'], 'thread')}",
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        "committed": f"{clock(report['ended'])}, in {duration(report['ended'] - report['started'])}",
    }
    lines = [Text(f"had to differ: {line}", style="yellow") for line in report["differed"]]
    return Group(_pairs(facts), *lines)


def replay(report: Mapping[str, Any]) -> RenderableType:
    """What the rule would have picked at another margin."""
    layers = report["layers"]
    parts: list[RenderableType] = []
    for replica in report["replicas"]:
        freed = (f">{layer}\nfreed" for layer in layers)
        pick = (">\ncell", ">\nθ", ">would be\ncell", ">\nθ", ">\nvalidation", ">\ncost")
        table = grid(">\ntask", ">margin\nwas", *pick, *freed, "\n")
        for task in replica["tasks"]:
            was, now = task["committed"], task["winner"]
            table.add_row(
                str(task["task"]),
                number(task["margin"]),
                str(was["cell"]),
                theta(was["theta"], digits=4),
                str(now["cell"]),
                theta(now["theta"], digits=4),
                percent(task["accuracy"]),
                f"{task['cost']:+d}" if task["cost"] else "0",
                *(f"{count:+d}" if count else "0" for count in task["freed"].values()),
                task["outcome"],
                style="dim" if task["outcome"] == "given the history" else "",
            )
        title = (
            f"{_of('replica', replica['replica'], len(report['replicas']))} at a margin of {number(report['margin'])}"
        )
        parts += [_title(report["run"], title), _indent(table), Text()]
    text = (
        "cost: validation samples that the pick has right fewer than the commit; freed: units that it claims fewer. "
        "Exact up to the first task that differs; the tasks after it are given the history."
    )
    return Group(*parts, Text(text, style="dim"))


def verify(report: Mapping[str, Any]) -> RenderableType:
    """The verdict in a line, what is wrong before it."""
    problems = [Text(problem, style="red") for problem in report["problems"]]
    return Group(*problems, *map(Text, report["remarks"]), Text(report["verdict"], style="bold"))


def deleted(report: Mapping[str, Any]) -> RenderableType:
    """What went."""
    counts = (
        plural(report["studies"], "Optuna study").replace("studys", "studies"),
        plural(report["rows"], "ledger row"),
        plural(report["artifacts"], "artifact"),
    )
    return Text(f"{report['run']} is deleted: {', '.join(counts)}")


def _score(score: Mapping[str, Any]) -> str:
    return f"{percent(score['accuracy'])} ({score['correct']} of {score['total']})"


def _pairs(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _indent(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, 2), expand=False)


def plan(report: Mapping[str, Any]) -> RenderableType:
    """What would be done: cells, stacks, workers, disk, what is held already, and what to think twice about."""
    layers = report["layers"]
    parts: list[RenderableType] = [
        _title(report["run"], report["description"]),
        _indent(_pairs(_shape(report))),
        Text(),
    ]
    for part in report["grids"]:
        tasks = f"task {part['first']}" if part["first"] == part["last"] else f"tasks {part['first']} to {part['last']}"
        parts.append(Text(f"the grid of {tasks}", style="bold"))
        if isinstance(part["cells"], str):
            parts += [Text(f"  one cell: {part['cells']}"), Text()]
            continue
        table = grid(">\ncell", *(f">α\n{layer}" for layer in layers), ">learning\nrate", ">\nstack")
        stack = {cell: place for place, members in enumerate(part["stacks"], start=1) for cell in members}
        for cell in part["cells"]:
            values = map(number, (*cell["alpha"].values(), cell["learning_rate"]))
            table.add_row(str(cell["cell"]), *values, str(stack[cell["cell"]]))
        parts += [_indent(table), Text()]
    if report["held"] is not None:
        parts += [Text("the database holds", style="bold"), *map(_indent, _run(report["held"])), Text()]
    parts += [Text(f"run refuses this: {line}", style="red") for line in report["refused"]]
    if report["refused"]:
        parts.append(Text("give the changed experiment another --name", style="red"))
    parts += [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(*parts)


def _shape(report: Mapping[str, Any]) -> Mapping[str, str]:
    workers, disk = report["workers"], report["disk"]
    trials = sum(part["count"] * (part["last"] - part["first"] + 1) for part in report["grids"]) * report["replicas"]
    widths = "-".join(map(str, (report["inputs"], *report["units"].values(), report["classes"])))
    each = "a GPU" if workers["gpu"] else plural(workers["threads"], "thread")
    held = report["storage"] or "no database yet"
    return {
        "tasks": f"{report['count']} of {report['dataset']}, {plural(report['replicas'], 'replica')}",
        "network": f"{widths}, {report['head']} head, {report['weights']:,} weights",
        "trials": f"{trials:,} of {plural(report['epochs'], 'epoch')} each",
        "validation": f"{report['validation']:,} samples",
        "rule": f"margin {_margin(report['margin'])} %, sparsity by {report['sparsity']}",
        "workers": f"{workers['count']}, each with {each} on {workers['device']}",
        "disk": (
            f"at most {size(disk['trial'])} a trial, {size(disk['task'])} while a task is open; at the end "
            f"{size(disk['kept'])} (keep: {disk['keep']}), of it {size(disk['commits'])} in commits, "
            f"and {size(disk['database'])} in the database"
        ),
        "database": held if report["held"] else f"{held}: nothing under this name",
    }


def _margin(margin: float | list[float]) -> str:
    return ", ".join(map(number, margin)) if isinstance(margin, list) else number(margin)


TABLES: Mapping[str, Callable[[Mapping[str, Any]], RenderableType]] = {
    "deleted": deleted,
    "experiments": experiments,
    "final": final,
    "plan": plan,
    "replay": replay,
    "show": show,
    "status": status,
    "verify": verify,
}
"""The table of each report."""
