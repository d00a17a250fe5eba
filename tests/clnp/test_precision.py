import pytest
import torch

from clnp.precision import PRECISIONS, products

CPU = torch.device("cpu")


def state():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_of_it_is_left_behind(precision):
    """What is scored after training is float32, however training ended."""
    before = state()

    def fail():
        with products(precision, CPU):
            assert (state() == before) == (precision == "float32")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state() == before


def test_tf32_is_asked_for_of_products_and_convolutions():
    with products("tf32", CPU):
        assert state()[:2] == ("high", True)


def test_bf16_rounds_the_factors():
    a = torch.full((2, 2), 1 + 2**-9)
    with products("bf16", CPU):
        assert torch.equal(a @ torch.eye(2), torch.ones(2, 2).bfloat16())
    assert torch.equal(a @ torch.eye(2), a)


def test_a_weight_that_was_stepped_is_read_anew():
    """Autocast keeps casts of what needs a gradient: a whole epoch would train on its first weights."""
    weight = torch.ones(1, 2, 2, requires_grad=True)
    with products("bf16", CPU):
        torch.bmm(weight, torch.ones(1, 2, 2))
        with torch.no_grad():
            weight.zero_()
        assert not torch.bmm(weight, torch.ones(1, 2, 2)).any()
