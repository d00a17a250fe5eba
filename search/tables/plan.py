"""What an experiment would do."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from search.tables.common import alpha_cells, fit, forked, grid, indent, pairs
from search.tables.status import run_block
from search.text import MANY, number, numbers, pace_text, plural, size, units

__all__ = ["plan"]


def plan(report: Mapping[str, Any]) -> RenderableType:
    """What would be done: cells, stacks, workers, disk, what is held already, and what to think twice about."""
    layers = report["layers"]
    parts: list[RenderableType] = [
        Text.assemble((report["run"], "bold"), f": {report['description']}" if report["description"] else ""),
        indent(pairs(_shape(report))),
        Text(),
    ]
    for part in report["grids"]:
        tasks = f"task {part['first']}" if part["first"] == part["last"] else f"tasks {part['first']} to {part['last']}"
        parts.append(Text(f"the grid of {tasks}", style="bold"))
        if isinstance(part["cells"], str):
            parts += [Text(f"  one cell: {part['cells']}"), Text()]
            continue
        alpha = [f">α\n{layer}" for layer in layers] if fit(layers, MANY) else [">\nα"]
        table = grid(">\ncell", *alpha, ">learning\nrate", ">\nstack")
        stack = {cell: place for place, members in enumerate(part["stacks"], start=1) for cell in members}
        for cell in part["cells"]:
            values = (*alpha_cells(cell, alpha), number(cell["learning_rate"]))
            table.add_row(str(cell["cell"]), *values, str(stack[cell["cell"]]))
        parts += [indent(table), Text()]
    if len(report["offer"]["nodes"]) > 1 or report["workers"]["gpu"]:
        parts += [Text("the machines", style="bold"), indent(_machines(report["offer"])), Text()]
    if report["held"] is not None:
        parts += [Text("the database holds", style="bold"), *map(indent, run_block(report["held"])), Text()]
    parts += [Text(f"run refuses this: {line}", style="red") for line in report["refused"]]
    if report["refused"]:
        parts.append(Text("give the changed experiment another --name", style="red"))
    parts += [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(*parts)


def _shape(report: Mapping[str, Any]) -> Mapping[str, str]:
    workers, disk = report["workers"], report["disk"]
    trials = sum(part["count"] * (part["last"] - part["first"] + 1) for part in report["grids"]) * report["replicas"]
    each = _share(workers["gpu"]) if workers["gpu"] else plural(workers["threads"], "thread")
    held = report["storage"] or "no database yet"
    return {
        "tasks": f"{report['count']} of {report['tasks']}, {plural(report['replicas'], 'replica')}{forked(report)}",
        "network": f"{_network(report)}, {report['head']} head, {report['weights']:,} weights",
        "growth": _growth(report),
        "trials": f"{trials:,} of {plural(report['epochs'], 'epoch')} each{_training(report['training'])}",
        "validation": f"{report['validation']:,} samples",
        "rule": f"{_rule(report)}, sparsity by {report['sparsity']}",
        **({} if report["fine_tuning"] is None else {"fine-tuning": _fine_tuning(report["fine_tuning"])}),
        "workers": f"{workers['count']}, each with {each} on {workers['device']}{_room(workers)}",
        "disk": (
            f"at most {size(disk['trial'])} a trial, {size(disk['task'])} while a task is open; at the end "
            f"{size(disk['kept'])} (keep: {disk['keep']}), of it {size(disk['commits'])} in commits, "
            f"and {size(disk['database'])} in the database"
        ),
        "database": held if report["held"] else f"{held}: nothing under this name",
    }


def _room(workers: Mapping[str, Any]) -> str:
    """What stacks go by: what a GPU holds, and how long their steps take."""
    pace, parts = workers["pace"], list[str]()
    if workers["measures"]:
        if not workers["gpu"]:
            return ", which trains cells as stacks if that is faster: that is measured first"
        return ", which trains as many cells at once as its memory holds if that is faster: both are measured first"
    if workers["gpu"] and workers["cells"] is not None:
        parts.append(f", which trains {plural(workers['cells'], 'cell')} at once at the most")
    if pace is not None:
        parts.append(f"; {pace_text(pace['members'], pace['times'], gains=pace['gains'])}")
    return "".join(parts)


def _share(gpu: float) -> str:
    return plural(int(gpu), "GPU") if gpu >= 1 else f"{number(gpu)} of a GPU"


def _machines(offered: Mapping[str, Any]) -> RenderableType:
    """How many workers fit where, how many there will be, and what is left over beside them."""
    columns = ("machine", ">\ncores", ">\nGPUs", ">room for\nworkers", ">\nworkers", ">idle\ncores", ">idle\nGPUs")
    table = grid(*columns)
    for node in offered["nodes"]:
        counts = (node["cores"], node["gpus"], node["slots"], node["workers"], node["idle_cores"])
        table.add_row(node["name"], *map(str, counts), number(node["idle_gpus"]))
    return table


def _network(report: Mapping[str, Any]) -> str:
    """Its sizes from the samples to the classes; of many groups their number and sum."""
    shape, units = " × ".join(map(str, report["shape"])), list(report["units"].values())
    if len(units) <= MANY:
        sizes = "-".join(map(str, (shape, *units, report["classes"])))
    else:
        sizes = f"{shape} to {report['classes']} classes, {sum(units):,} units in {len(units)} groups"
    return sizes if report["network"] == "mlp" else f"{report['network']}: {sizes}"


def _growth(report: Mapping[str, Any]) -> str:
    grow, most = report["grow"], list(report["units_at_most"].values())
    if grow is None:
        return "none, the size is fixed"
    by = plural(int(grow["by"]), "unit") if grow["by"] >= 1 else f"{number(100 * grow['by'])} % of its first width"
    units = numbers(most) if len(most) <= MANY else f"{sum(most):,}"
    groups = "" if len(most) <= MANY else f" in {len(most)} groups"
    return f"by {by}, of a group with fewer than {grow['below']} free: at most {units} units{groups} at the end"


def _training(asked: Mapping[str, Any]) -> str:
    """What of training is off unless it is asked for."""
    patience = "" if asked["patience"] is None else f" (patience {asked['patience']:,})"
    stopping = f", early stopping{patience}" if asked["early_stopping"] else ""
    halving = (
        f", halving after epoch {' and '.join(map(str, asked['halving']))} ({number(asked['halving_margin'])} %)"
        if asked["halving"]
        else ""
    )
    products = "" if asked["precision"] == "float32" else f", {asked['precision']} products"
    return f"{stopping}{halving}{products}" + (f", norm α {number(asked['norm_alpha'])}" if asked["norm_alpha"] else "")


def _rule(report: Mapping[str, Any]) -> str:
    by_layer = ", θ by layer" if report["theta_scale"] == "layers" else ""
    if report["rule"] == "margin":
        return f"margin {_margin(report['margin'])} %{by_layer}"
    found = report["budget"]
    text = f"budget for {plural(found['tasks'], 'task')}, floor {number(found['floor'])} %{by_layer}"
    if found["most"] is None:
        return text
    return f"{text}, new units of task {found['task']} at most {units(list(found['most'].values()))}"


def _fine_tuning(asked: Mapping[str, Any]) -> str:
    """How a winner is trained again, and its own margin in place of the rule's."""
    values = asked["alpha"] if isinstance(asked["alpha"], list) else [asked["alpha"]]
    alpha = ", ".join(map(number, values))
    if len(values) > MANY:
        alpha = f"{number(min(values))} – {number(max(values))} in {len(values)} layers"
    rounds = f"{'at most ' if asked['rounds'] > 1 else ''}{plural(asked['rounds'], 'round')}"
    text = f"{rounds} of {plural(asked['epochs'], 'epoch')} at {number(asked['learning_rate'])}, α {alpha}"
    margin = "" if asked["margin"] is None else f", pruned at a margin of {_margin(asked['margin'])} % instead"
    return f"{text}{margin}"


def _margin(margin: float | list[float]) -> str:
    return ", ".join(map(number, margin)) if isinstance(margin, list) else number(margin)
