import pytest
import torch
from torch import nn

from clnp.models import mlp


def test_mlp_is_a_plain_sequential_with_named_layers():
    model = mlp(784, [100, 50], 10)
    assert type(model) is nn.Sequential
    assert [name for name, _ in model.named_children()] == ["hidden1", "relu1", "hidden2", "relu2", "output"]
    assert model(torch.zeros(3, 784)).shape == (3, 10)
    assert model.hidden2.weight.shape == (50, 100)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((784, [], 10), "hidden is empty"),
        ((784, [100, 0], 10), r"784, \[100, 0\] and 10; each must be at least 1"),
        ((784, [100], 0), "each must be at least 1"),
    ],
)
def test_mlp_refuses_widths_that_make_no_network(widths, message):
    with pytest.raises(ValueError, match=message):
        mlp(*widths)
