"""What the data of a run are known by. Of data sets that have files alone it is had without torch."""

import hashlib
from collections.abc import Sequence

from clnp.errors import DataUnavailable
from clnp.tasks import dataset_sha256
from search.errors import BadInput
from search.experiment import Experiment

__all__ = ["data_sha256"]


def data_sha256(experiment: Experiment, data_dir: str | None = None, code: Sequence[str] = ()) -> str:
    """What a run's data are known by: its data set's SHA-256, one over those of all, or of own tasks the first one's.

    All data sets that a kind of tasks is made from, however few tasks there are, since more may be asked for later. Of
    own tasks the first alone: making them all takes as long as it takes. Each task's own hash is written down when it
    opens, and every worker checks it.

    Raises:
        BadInput: The data are not there, or one's own function fails.
    """
    if experiment.tasks.own:
        from search.building import build_sequence

        try:
            return build_sequence(experiment, 0, data_dir, code).sha256(0)
        except DataUnavailable as error:
            raise BadInput(str(error)) from error
    found, problems = [], []
    for dataset in experiment.tasks.datasets:
        try:
            found.append(dataset_sha256(dataset, data_dir))
        except DataUnavailable as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()
