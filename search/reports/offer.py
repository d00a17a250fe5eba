"""What machines offer a run: how many workers fit on each, and what would be idle."""

from collections.abc import Iterator, Sequence
from typing import Any

from search.experiment import Experiment
from search.grid import cells
from search.machine import Node, Pool, fitting
from search.text import number, plural

__all__ = ["idle_warnings", "offer"]


def offer(pool: Pool, nodes: Sequence[Node], jobs: int) -> dict[str, Any]:
    """The workers, machine by machine.

    Args:
        jobs: How many jobs a run has at once, at the most.
    """
    left, found = pool.workers, list[dict[str, Any]]()
    for node in nodes:
        room = fitting(node, pool.cpu, pool.gpu)
        used = min(left, room)
        left -= used
        found.append(
            {
                "name": node.name,
                "cores": node.cpus,
                "gpus": node.gpus,
                "slots": room,
                "workers": used,
                "idle_cores": max(0, node.cpus - used * pool.cpu),
                "idle_gpus": round(node.gpus - used * pool.gpu, 6),
            }
        )
    return {
        "slots": sum(node["slots"] for node in found),
        "jobs": jobs,
        "idle": max(0, pool.workers - jobs),
        "nodes": found,
    }


def idle_warnings(experiment: Experiment, pool: Pool, offered: dict[str, Any]) -> Iterator[str]:
    """Where workers or parts of GPUs would have nothing to do, and where there are fewer slots than workers."""
    gpu, workers, slots = pool.gpu, pool.workers, offered["slots"]
    sharing = int(1 / gpu + 1e-9) if 0 < gpu < 1 else 0
    if sharing and abs(sharing * gpu - 1) > 1e-6:
        left = number(round(1 - sharing * gpu, 6))
        yield (
            f"worker.gpu is {number(gpu)}: a GPU has room for {plural(sharing, 'worker')}, and {left} of it stays "
            f"idle; give a share whose inverse is a whole number, such as {number(round(1 / sharing, 6))}"
        )
    if offered["idle"]:
        stacks = offered["jobs"] // experiment.replicas
        first = cells(experiment, 0)[0]
        most = max(len(cells(experiment, task, first)) for task in range(min(2, experiment.tasks.count)))
        smaller = "worker.cells forms smaller stacks, " if stacks < most else ""
        yield (
            f"{plural(offered['idle'], 'worker')} of {workers} would be idle: a task has at most "
            f"{plural(stacks, 'stack')}, and there {'is' if experiment.replicas == 1 else 'are'} "
            f"{plural(experiment.replicas, 'replica')}; {smaller}more replicas have more"
        )
    if workers > slots and gpu == 0:
        yield f"workers is {workers}, but the cores are enough for {slots} at a time"
