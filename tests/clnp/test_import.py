import subprocess
import sys

import pytest

import clnp

HEAVY = ("torch", "numpy", "torchvision", "safetensors", "sklearn")


@pytest.mark.parametrize(
    "statement", ["import clnp", "import clnp.forgetting", "import clnp; clnp.NUMERICS, clnp.choose"]
)
def test_reading_records_needs_no_torch(statement):
    """Design: what reads records only imports no torch."""
    program = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_look_at_loaded_modules_would_see_torch():
    program = "import clnp.network, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_every_public_name_resolves_and_is_listed():
    for name in clnp.__all__:
        assert getattr(clnp, name) is not None
        assert name in dir(clnp)


def test_a_lazy_name_is_the_one_of_its_module():
    from clnp.training import train

    assert clnp.train is train


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'clnp' has no attribute 'trian'"):
        clnp.trian  # noqa: B018


def test_what_every_worker_does_first_imports_neither_scikit_learn_nor_torch_s_compiler() -> None:
    """Each would cost seconds in every process."""
    script = """
import sys
from clnp.models import mlp
from clnp.network import Network
from clnp.tasks import permuted
from clnp.training import Member, Settings, open_task, train
task = permuted("digits", count=1, seed=0, validation=0.9, samples=200).task(0)
opened = open_task(Network(mlp(64, (4,), 10)), seed=0)
train(opened, task.train, task.validation, [Member((0.0, 0.0), 0.01)], Settings(epochs=1, batch_size=32), seed=0)
print([name for name in ("sklearn", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
