"""What is compiled trains as what is not; which is faster is measured, and no test."""

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clnp.models import mlp
from clnp.network import Network
from clnp.training import open_task

COMPILED = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("compiled.py"))))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, and there is none")
def test_the_compiled_step_is_the_step():
    network = open_task(Network(mlp(20, (16, 16), 10)), seed=0)
    plain, compiled = (COMPILED.Step(network, 3, 8, (20,), mode) for mode in (None, "default"))
    for _ in range(5):
        torch.testing.assert_close(compiled(), plain())


def test_table_2_without_what_the_compiler_does_not_take():
    step = COMPILED.Step(open_task(Network(COMPILED.table_2()), seed=0), 2, 2, (3, 32, 32), None)
    before = step()
    assert before.shape == (2,)
    assert (step() < before).all()
