"""The paper's networks as plain :class:`torch.nn.Sequential`."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp"]


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """The multi-layer perceptron of Sec. 3.1 (there 784-2000-2000-10).

    ::

        [batch, inputs] → hidden1 → relu1 → hidden2 → relu2 → … → output → [batch, classes]

    Args:
        inputs: Features of a sample.
        hidden: Units of each hidden layer, from the input on.
        classes: Classes of a task.

    Raises:
        ValueError: There is no hidden layer, or a width is not at least 1.
    """
    widths = (inputs, *hidden, classes)
    if not hidden:
        raise ValueError("hidden is empty; give the width of at least one hidden layer")
    if min(widths) < 1:
        raise ValueError(
            f"inputs, hidden and classes are {inputs}, {list(hidden)} and {classes}; each must be at least 1"
        )
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, width) in enumerate(zip(widths, hidden, strict=False), start=1):
        modules[f"hidden{number}"] = nn.Linear(before, width)
        modules[f"relu{number}"] = nn.ReLU()
    modules["output"] = nn.Linear(hidden[-1], classes)
    return nn.Sequential(modules)
