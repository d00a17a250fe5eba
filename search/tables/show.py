"""One commit explained."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.tables.common import (
    alpha_cells,
    alpha_columns,
    forked,
    grid,
    indent,
    of,
    pairs,
    score,
    theta_cell,
    theta_column,
    title,
    unit_cells,
    unit_columns,
)
from search.text import clock, duration, members, number, percent, plural, size, theta

__all__ = ["show"]


def show(report: Mapping[str, Any]) -> RenderableType:
    """One commit explained, in the order in which it came about."""
    place = f"{of('replica', report['replica'], report['replicas'])}, {of('task', report['task'], report['count'])}"
    parts: list[RenderableType] = [title(report["run"], place + forked(report)), indent(_facts(report)), Text()]
    parts += [Text("the grid of the task", style="bold"), _trials(report), Text()]
    if report["rounds"]:
        parts += [Text("fine-tuning", style="bold"), _rounds(report), Text()]
    parts += [Text("units", style="bold"), _units(report), Text()]
    parts += [Text("weights", style="bold"), _weights(report), Text()]
    parts += [Text("where it comes from", style="bold"), _origin(report)]
    return Group(*parts)


def _rounds(report: Mapping[str, Any]) -> Table:
    """The winner pruned and trained again, round by round."""
    claimed = unit_columns(report["layers"], "new")
    column = theta_column([report["theta_scale"]])
    table = grid(">\nround", column, *claimed, ">\npruned", ">\ntrained again", "\nkept")
    for one in report["rounds"]:
        tuned = "diverged" if one["tuned"] is None else percent(one["tuned"]["accuracy"])
        cut = theta_cell(one["theta"], report["theta_scale"], column)
        cells = (cut, *unit_cells(one["claimed"]), percent(one["pruned"]["accuracy"]), tuned)
        table.add_row(str(one["round"]), *cells, "trained again" if one["better"] else "as it was pruned")
    return table


def _units(report: Mapping[str, Any]) -> Table:
    """What the task claimed, used again of earlier tasks and left, group by group."""
    table = grid("units of", ">claimed", ">reused", ">free", ">in all")
    for group in report["usage"]["groups"]:
        counts = (group["claimed"], group["reused"], group["free"], report["units"][group["name"]])
        table.add_row(group["name"], *(f"{count:,}" for count in counts))
    return table


def _weights(report: Mapping[str, Any]) -> Table:
    """The three classes of weights, and how much of what is new builds on what is old."""
    table = grid("weights of", ">active", ">free", ">interference", ">new units' input from old ones")
    for layer in report["usage"]["layers"]:
        share = "–" if layer["old_share"] is None else percent(layer["old_share"])
        counts = (layer["active"], layer["free"], layer["interference"])
        table.add_row(layer["name"], *(f"{count:,}" for count in counts), share)
    return table


def _facts(report: Mapping[str, Any]) -> Table:
    gone = [trial["cell"] for trial in report["trials"] if trial["dropped"]]
    candidates = [trial for trial in report["trials"] if trial["candidate"]]
    values = report["alpha"]
    alpha = ", ".join(f"{layer} {number(value)}" for layer, value in values.items())
    if len(values) > 1 and len(set(values.values())) == 1:
        alpha = f"{number(next(iter(values.values())))} in every layer"
    by_layer = report["theta_scale"] == "layers"
    facts = {
        "best accuracy": f"{score(report['best'])}, unpruned, over {'what is left of ' if gone else ''}the whole grid",
        "cut line": f"{score(report['needed'])}, at a {_limit(report)} of {number(report['margin'])} %",
        "candidates": f"{len(candidates)} of {plural(len(report['trials']), 'cell')} reach it unpruned",
        "winner": f"cell {report['cell']}, {report['why']}",
        "α": alpha,
        "learning rate": number(report["learning_rate"]),
        "θ (× layer's mean activity)" if by_layer else "θ": theta(report["theta"]) + _which_round(report),
        "validation": _validation(report),
        "test": score(report["test"]),
    }
    if gone:
        facts["not complete"] = _not_complete(report, gone)
    if not report["explained"]:
        facts["note"] = "the records give another winner now; verify says whether anything is damaged"
    return pairs(facts)


def _not_complete(report: Mapping[str, Any], gone: Sequence[int]) -> str:
    """What the grid lacks, and what follows from that."""
    which = f"{len(gone):,} of {plural(len(report['trials']), 'cell')} ({members(gone)})"
    return f"{which} dropped by halving before the end; replay goes up to {number(report['halving']['margin'])} %"


def _which_round(report: Mapping[str, Any]) -> str:
    """Of the thresholds of several rounds, the one that left the units that were committed."""
    return f", in round {len(report['rounds'])} of fine-tuning" if len(report["rounds"]) > 1 else ""


def _validation(report: Mapping[str, Any]) -> str:
    """What was committed, and whether fine-tuning has a part in it."""
    committed, before = score(report["validation"]), f"before pruning {score(report['unpruned'])}"
    if not report["rounds"]:
        return f"{committed}, {before}"
    if any(one["better"] for one in report["rounds"]):
        return f"{committed} after fine-tuning, {before}"
    why = "diverged" if all(one["tuned"] is None for one in report["rounds"]) else "gained nothing"
    return f"{committed}, {before}; fine-tuning {why}: committed as it was pruned"


def _limit(report: Mapping[str, Any]) -> str:
    return "margin" if report["budget"] is None else "floor"


def _trials(report: Mapping[str, Any]) -> Table:
    alpha = alpha_columns(report["trials"])
    claimed = unit_columns(report["layers"], "new")
    column = theta_column([report["theta_scale"]])
    table = grid(">\ncell", *alpha, ">learning\nrate", ">\nunpruned", column, ">\npruned", *claimed, "~")
    for trial in report["trials"]:
        head = (str(trial["cell"]), *alpha_cells(trial, alpha), number(trial["learning_rate"]))
        pruned = trial["pruned"]
        unpruned = "" if trial["unpruned"] is None else percent(trial["unpruned"]["accuracy"])
        if pruned is None:
            why = f"diverged: {trial['diverged']}" if trial["diverged"] else "below the cut line"
            if gone := trial["dropped"]:
                why = f"dropped after epoch {gone['epoch']} with {percent(gone['correct'] / gone['total'])}"
            table.add_row(*head, unpruned, "", "", *("" for _ in claimed), why, style="dim")
            continue
        cut = theta_cell(pruned["theta"], report["theta_scale"], column)
        point = (cut, percent(pruned["accuracy"]), *unit_cells(pruned["claimed"]))
        marks = [word for word, holds in (("winner", trial["winner"]), ("over budget", pruned["over_budget"])) if holds]
        table.add_row(*head, unpruned, *point, ", ".join(marks), style="bold" if trial["winner"] else "")
    return table


def _origin(report: Mapping[str, Any]) -> RenderableType:
    origin, trained = report["provenance"], report["trained"]
    facts = {
        "fingerprint": report["fingerprint"],
        "tensors": f"{report['artifact']} ({size(report['size'])})",
        "trained": f"in a stack of {members(trained['stack'])}" if trained else "not recorded",
        "device": f"{origin['device']}, {plural(origin['threads'], 'thread')}",
        "precision": f"{origin['precision']} products in training",
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        "committed": f"{clock(report['ended'])}, in {duration(report['ended'] - report['started'])}",
    }
    if origin["precision"] == "float32":
        del facts["precision"]
    lines = [Text(f"had to differ: {line}", style="yellow") for line in report["differed"]]
    return Group(pairs(facts), *lines)
