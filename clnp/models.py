"""The paper's networks as plain :class:`torch.nn.Sequential`."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp", "split_cifar_narrow", "split_cifar_wide"]

_WIDE_SMALLEST = 23  # pixels a side that leave one pixel after the six convolutions: 23 → 23 → 11 → 9 → 5 → 3 → 1


def mlp(inputs: int | Sequence[int], hidden: Sequence[int], classes: int) -> nn.Sequential:
    """The multi-layer perceptron of Sec. 3.1 (there 784-2000-2000-10).

    ::

        [batch, inputs] → hidden1 → relu1 → hidden2 → relu2 → … → output → [batch, classes]
        [batch, 1, 28, 28] → flatten → hidden1 → …

    Args:
        inputs: Features of a sample, or its shape; a shape of more than one size begins with a Flatten.
        hidden: Units of each hidden layer, from the input on.
        classes: Classes of a task.

    Raises:
        ValueError: There is no hidden layer, or a width is not at least 1.
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if not hidden:
        raise ValueError("hidden is empty; give the width of at least one hidden layer")
    if not shape or min(*shape, *hidden, classes) < 1:
        raise ValueError(
            f"inputs, hidden and classes are {inputs}, {list(hidden)} and {classes}; each must be at least 1"
        )
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if len(shape) > 1:
        modules["flatten"] = nn.Flatten()
    before = math.prod(shape)
    for number, width in enumerate(hidden, start=1):
        modules[f"hidden{number}"] = nn.Linear(before, width)
        modules[f"relu{number}"] = nn.ReLU()
        before = width
    modules["output"] = nn.Linear(before, classes)
    return nn.Sequential(modules)


def split_cifar_narrow(*, shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """The narrow network for split CIFAR: Table 2 of the paper, which trains it with a head a task.

    ::

        x → (conv → relu) × 2 → pool → dropout → (conv → relu) × 2 → pool → dropout
          → flatten → dense1 → relu → dropout → output → [batch, classes]

    ========  ========  ======  ======  =======  =======  =========
    layer     channels  kernel  stride  padding  dropout  out shape
    ========  ========  ======  ======  =======  =======  =========
    input     3                                           3, 32, 32
    conv1     32        3       1       1                 32, 32, 32
    conv2     32        3       1       1                 32, 32, 32
    pool1               3       2       1        0.25     32, 16, 16
    conv3     64        3       1       1                 64, 16, 16
    conv4     64        3       1       1                 64, 16, 16
    pool2               3       2       1        0.25     64, 8, 8
    dense1    512                                0.5      512
    output    10                                          10
    ========  ========  ======  ======  =======  =======  =========

    A ReLU follows every convolution and dense1; a dropout stands after the pool or the ReLU. This is the paper's own
    table, with 4,096 inputs to dense1, and not the network of its Ref. [20], whose dense layer reads 2,304.

    Args:
        shape: Of one sample: channels, height, width. Any map fits: a pool halves it, rounded up.
        classes: Classes of a task.
        width: Every hidden layer has the table's channels times this, rounded, and at least 1.

    Raises:
        ValueError: The shape is not of three sizes of at least 1, ``classes`` is below 1, or ``width`` is not a finite
            number above 0.
    """
    channels, height, across = _checked(shape, classes, width, smallest=1)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, table in enumerate((32, 32, 64, 64), start=1):
        units = _scaled(table, width)
        modules[f"conv{number}"] = nn.Conv2d(channels, units, 3, padding=1)
        modules[f"relu{number}"] = nn.ReLU()
        channels = units
        if number % 2 == 0:
            modules[f"pool{number // 2}"] = nn.MaxPool2d(3, stride=2, padding=1)
            modules[f"dropout{number // 2}"] = nn.Dropout(0.25)
            height, across = (height + 1) // 2, (across + 1) // 2
    units = _scaled(512, width)
    modules["flatten"] = nn.Flatten()
    modules["dense1"] = nn.Linear(channels * height * across, units)
    modules["relu5"] = nn.ReLU()
    modules["dropout3"] = nn.Dropout(0.5)
    modules["output"] = nn.Linear(units, classes)
    return nn.Sequential(modules)


def split_cifar_wide(*, shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """The wide network for split CIFAR: Table 3 of the paper, which trains it with one head for all tasks.

    ::

        x → (conv → norm → relu) × 5 → output (a convolution) → average → flatten → [batch, classes]

    =======  ========  ======  ======  =======  =======  ============
    layer    channels  kernel  stride  padding  dropout  out shape
    =======  ========  ======  ======  =======  =======  ============
    input    3                                           3, 32, 32
    conv1    128       3       1       1                 128, 32, 32
    conv2    256       3       2       0                 256, 15, 15
    conv3    512       3       1       0                 512, 13, 13
    conv4    1024      3       2       1                 1024, 7, 7
    conv5    2048      3       1       0                 2048, 5, 5
    output   10        3       1       0                 10, 3, 3
    average                                              10, 1, 1
    =======  ========  ======  ======  =======  =======  ============

    BatchNorm, then a ReLU, follow convolutions 1 to 5, which have a bias as the paper names no exception; the table's
    Conv 6 is the output layer, and the average is over its whole map.

    Args:
        shape: Of one sample: channels, height, width; a map of at least 23 × 23.
        classes: Classes of a task.
        width: Every hidden layer has the table's channels times this, rounded, and at least 1.

    Raises:
        ValueError: The shape is not of three sizes, the map is too small for the six convolutions, ``classes`` is below
            1, or ``width`` is not a finite number above 0.
    """
    channels, _, _ = _checked(shape, classes, width, smallest=_WIDE_SMALLEST)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    table = ((128, 1, 1), (256, 2, 0), (512, 1, 0), (1024, 2, 1), (2048, 1, 0))
    for number, (units, stride, padding) in enumerate(table, start=1):
        units = _scaled(units, width)
        modules[f"conv{number}"] = nn.Conv2d(channels, units, 3, stride=stride, padding=padding)
        modules[f"norm{number}"] = nn.BatchNorm2d(units)
        modules[f"relu{number}"] = nn.ReLU()
        channels = units
    modules["output"] = nn.Conv2d(channels, classes, 3)
    modules["average"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    return nn.Sequential(modules)


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))


def _checked(shape: Sequence[int], classes: int, width: float, *, smallest: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; give (channels, height, width), each at least 1")
    channels, height, across = shape
    if min(height, across) < smallest:
        raise ValueError(
            f"shape is {tuple(shape)}, a map of {height} × {across}; the convolutions need at least "
            f"{smallest} × {smallest}"
        )
    if classes < 1:
        raise ValueError(f"classes is {classes}; a task has at least 1")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width is {width}; give a finite number above 0, 1 for the paper's network")
    return channels, height, across
