"""What the sequence costs: each task's test accuracy in a run beside that of the same network trained on it alone.

    python tests/benchmarks/alone.py NAME [--storage URL] [--data-dir DIR]

Alone means: the whole network, as many epochs in the same batches, no L1 and no pruning, at each learning rate that the
task's grid had; the best by validation answers the test split. The table also says how much of the fullest layer was
free when the task opened.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from clnp.evaluation import count_correct
from clnp.ownership import with_free
from clnp.subnetwork import cut
from clnp.training import Member, open_task, train
from search.building import build_network, build_sequence
from search.own_code import folders
from search.records import CommitRecord
from search.reports.common import Known, read_run
from search.store import open_store
from search.worker.work import training


def alone(known: Known, record: CommitRecord, data_dir: str | None) -> float:
    """The test accuracy of the same network trained on a task alone."""
    experiment, code = known.experiment, folders(known.experiment.code)
    task = build_sequence(experiment, record.replica, data_dir, code).task(record.task)
    opened = open_task(build_network(experiment, code), seed=experiment.seed + record.replica)
    rates = sorted({cell.learning_rate for cell in known.history.openings[record.replica, record.task].cells})
    none = (0.0,) * len(opened.layers)
    trained = train(
        opened,
        task.train,
        task.validation,
        [Member(none, rate) for rate in rates],
        replace(training(experiment), norm_alpha=0.0),
        seed=experiment.seed + record.replica,
    )
    best = max((each for each in trained if each.diverged is None), key=lambda each: each.epochs[each.epoch - 1])
    test = task.open_test()
    return count_correct(cut(with_free(opened, best.free), 0), test) / len(test)


def rows(known: Known, data_dir: str | None) -> Iterator[str]:
    """The table's lines."""
    head = ["task", "free before", "test", "alone", "difference, points", "units claimed"]
    yield " | ".join(head)
    yield " | ".join(["---"] * len(head))
    for replica in known.replicas:
        free = 1.0
        for record in known.commits(replica):
            found = alone(known, record, data_dir)
            claimed = " + ".join(map(str, record.claimed))
            name = str(record.task + 1) if len(known.replicas) == 1 else f"{record.task + 1} ({replica + 1})"
            ahead = 100 * (record.test.accuracy - found)
            yield f"{name} | {free:.0%} | {record.test.accuracy:.2%} | {found:.2%} | {ahead:+.2f} | {claimed}"
            free = min(left / units for left, units in zip(record.free, record.widths, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--storage", default="sqlite:///clnp-search.db")
    parser.add_argument("--data-dir")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with open_store(arguments.storage, create=False) as store:
        for row in rows(read_run(store, arguments.name), arguments.data_dir):
            print(f"| {row} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
