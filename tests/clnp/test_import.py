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
