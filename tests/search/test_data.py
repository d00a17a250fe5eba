"""What the data of a run are known by."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clnp.tasks import dataset_sha256
from search.data import data_sha256
from search.errors import BadInput
from search.experiment import Experiment


def test_the_data_of_several_data_sets_are_known_by_all_of_them(small_cifar: Path) -> None:
    """However few tasks there are: more may be asked for later, and are of the same run."""
    data = str(small_cifar)

    def known(**tasks: Any) -> str:
        return data_sha256(Experiment.model_validate({"tasks": tasks}), data)

    assert known(kind="split-cifar", count=1) == known(kind="split-cifar", count=11, order="shuffled")
    one = known(kind="split", dataset="cifar-10", classes=2)
    assert one == dataset_sha256("cifar-10", data) != known(kind="split-cifar")
    assert known(dataset="cifar-100") == dataset_sha256("cifar-100", data) != known(kind="split-cifar")


def test_all_data_that_are_absent_are_named(tmp_path: Path) -> None:
    for kind, names in (("split-cifar", ("CIFAR-10 ", "CIFAR-100 ")), ("views", ("MNIST ", "Fashion-MNIST "))):
        with pytest.raises(BadInput) as caught:
            data_sha256(Experiment.model_validate({"tasks": {"kind": kind}}), str(tmp_path))
        for name in names:
            assert f"{name}is not in {tmp_path}" in str(caught.value)
        assert str(caught.value).count("Get it with\n  python -c ") == 2


FOUND_OR_REFUSED = """
import sys
from search.data import data_sha256
from search.errors import BadInput
from search.experiment import Experiment

try:
    data_sha256(Experiment.model_validate({"tasks": {"dataset": sys.argv[1]}}), sys.argv[2])
    print("found", "torch" in sys.modules)
except BadInput:
    print("refused", "torch" in sys.modules)
"""


@pytest.mark.parametrize(("dataset", "expected"), [("digits", "found False\n"), ("mnist", "refused False\n")])
def test_data_are_looked_at_without_torch(dataset: str, expected: str, tmp_path: Path) -> None:
    """Promise 8 at no cost: Ray's processes start once the data are known, and torch is imported meanwhile."""
    command = [sys.executable, "-c", FOUND_OR_REFUSED, dataset, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == expected, ended.stderr
