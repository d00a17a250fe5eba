"""The paper's networks: every row of their tables against what was built."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp.models import mlp, split_cifar_narrow, split_cifar_wide

Row = tuple[str, ...]
HEADER = ("layer", "channels", "kernel", "stride", "padding", "dropout", "out shape")

# Tables 2 and 3 as the paper prints them: channels, kernel, stride, padding, dropout. "Conv 6" is the output layer.
TABLE_2 = [
    ("input", "3", "", "", "", ""),
    ("conv1", "32", "3", "1", "1", ""),
    ("conv2", "32", "3", "1", "1", ""),
    ("pool1", "", "3", "2", "1", "0.25"),
    ("conv3", "64", "3", "1", "1", ""),
    ("conv4", "64", "3", "1", "1", ""),
    ("pool2", "", "3", "2", "1", "0.25"),
    ("dense1", "512", "", "", "", "0.5"),
    ("output", "10", "", "", "", ""),
]
TABLE_3 = [
    ("input", "3", "", "", "", ""),
    ("conv1", "128", "3", "1", "1", ""),
    ("conv2", "256", "3", "2", "0", ""),
    ("conv3", "512", "3", "1", "0", ""),
    ("conv4", "1024", "3", "2", "1", ""),
    ("conv5", "2048", "3", "1", "0", ""),
    ("output", "10", "3", "1", "0", ""),
    ("average", "", "", "", "", ""),
]
BUILDERS = [(split_cifar_narrow, TABLE_2), (split_cifar_wide, TABLE_3)]


def rows(model: nn.Sequential, shape: tuple[int, ...]) -> list[Row]:
    """What the modules say of themselves and give when they run: a row a layer with weights or pool."""
    found: list[list[str]] = [["input", str(shape[0]), "", "", "", "", ", ".join(map(str, shape))]]
    x = torch.zeros(1, *shape)
    for name, module in model.eval().named_children():
        x = module(x)
        if isinstance(module, nn.Dropout):
            found[-1][5] = str(module.p)
        elif isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            sizes = [_number(module.kernel_size), _number(module.stride), _number(module.padding)]
            channels = str(module.out_channels) if isinstance(module, nn.Conv2d) else ""
            found.append([name, channels, *sizes, "", ""])
        elif isinstance(module, nn.Linear):
            found.append([name, str(module.out_features), "", "", "", "", ""])
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            found.append([name, "", "", "", "", "", ""])
        if name == found[-1][0]:
            found[-1][6] = ", ".join(map(str, x.shape[1:]))
    return [tuple(row) for row in found]


def _number(size: Any) -> str:
    return str(size[0] if isinstance(size, tuple) else size)


def docstring_rows(builder: Callable[..., nn.Sequential]) -> list[Row]:
    lines = [line[4:] for line in (builder.__doc__ or "").splitlines()]
    rules = [number for number, line in enumerate(lines) if line.startswith("===")]
    starts = [i for i, sign in enumerate(lines[rules[0]]) if sign == "=" and lines[rules[0]][i - 1 : i] != "="]

    def cells(line: str) -> Row:
        return tuple(line[i:j].strip() for i, j in zip(starts, [*starts[1:], None], strict=True))

    assert cells(lines[rules[0] + 1]) == HEADER
    return [cells(line) for line in lines[rules[1] + 1 : rules[2]]]


def kinds(model: nn.Sequential) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_children()]


@pytest.mark.parametrize(("builder", "table"), BUILDERS)
def test_every_row_of_the_papers_table_is_built(builder: Callable[..., nn.Sequential], table: list[Row]) -> None:
    built = rows(builder(), (3, 32, 32))
    assert [row[:6] for row in built] == table
    assert docstring_rows(builder) == built


def test_the_narrow_network_is_a_plain_sequential_in_the_order_of_the_table() -> None:
    model = split_cifar_narrow()
    assert type(model) is nn.Sequential
    assert kinds(model) == [
        ("conv1", "Conv2d"),
        ("relu1", "ReLU"),
        ("conv2", "Conv2d"),
        ("relu2", "ReLU"),
        ("pool1", "MaxPool2d"),
        ("dropout1", "Dropout"),
        ("conv3", "Conv2d"),
        ("relu3", "ReLU"),
        ("conv4", "Conv2d"),
        ("relu4", "ReLU"),
        ("pool2", "MaxPool2d"),
        ("dropout2", "Dropout"),
        ("flatten", "Flatten"),
        ("dense1", "Linear"),
        ("relu5", "ReLU"),
        ("dropout3", "Dropout"),
        ("output", "Linear"),
    ]
    assert model.get_parameter("dense1.weight").shape == (512, 4096)  # Table 2, and not the 2,304 of Ref. [20]


def test_the_wide_network_is_a_plain_sequential_in_the_order_of_the_table() -> None:
    model = split_cifar_wide(width=1 / 128)
    assert type(model) is nn.Sequential
    assert kinds(model) == [
        *(
            (f"{name}{number}", kind)
            for number in range(1, 6)
            for name, kind in (("conv", "Conv2d"), ("norm", "BatchNorm2d"), ("relu", "ReLU"))
        ),
        ("output", "Conv2d"),
        ("average", "AdaptiveAvgPool2d"),
        ("flatten", "Flatten"),
    ]


def test_the_numbers_of_parameters_are_those_of_the_tables() -> None:
    def conv(inputs: int, units: int) -> int:
        return 9 * inputs * units + units

    narrow = {name: sum(p.numel() for p in m.parameters()) for name, m in split_cifar_narrow().named_children()}
    assert {name: count for name, count in narrow.items() if count} == {
        "conv1": 896,
        "conv2": 9248,
        "conv3": 18_496,
        "conv4": 36_928,
        "dense1": 2_097_664,
        "output": 5130,
    }
    # Sec. 3.2: most of them are concentrated in the dense layer (there 95 %).
    assert narrow["dense1"] / sum(narrow.values()) > 0.95
    wide = sum(p.numel() for p in split_cifar_wide().parameters())
    chain = [3, 128, 256, 512, 1024, 2048, 10]
    assert wide == sum(map(conv, chain, chain[1:])) + 2 * sum(chain[1:-1])


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 40),
    across=st.integers(1, 40),
    classes=st.integers(1, 12),
    width=st.sampled_from([1e-6, 0.05, 0.1]),
    training=st.booleans(),
)
def test_the_narrow_network_takes_any_map(
    channels: int, height: int, across: int, classes: int, width: float, training: bool
) -> None:
    model = split_cifar_narrow(shape=(channels, height, across), classes=classes, width=width).train(training)
    assert model(torch.zeros(2, channels, height, across)).shape == (2, classes)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 48),
    across=st.integers(1, 48),
    classes=st.integers(1, 12),
    width=st.sampled_from([1e-6, 0.01]),
    training=st.booleans(),
)
def test_the_wide_network_takes_every_map_that_its_convolutions_leave_a_pixel_of(
    height: int, across: int, classes: int, width: float, training: bool
) -> None:
    shape = (2, height, across)
    if min(height, across) < 23:
        with pytest.raises(ValueError, match=f"a map of {height} × {across}; the convolutions need at least 23 × 23"):
            split_cifar_wide(shape=shape, classes=classes, width=width)
    else:
        model = split_cifar_wide(shape=shape, classes=classes, width=width).train(training)
        assert model(torch.zeros(2, *shape)).shape == (2, classes)


def test_a_map_refused_is_one_the_convolutions_cannot_take() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        split_cifar_wide(width=0.01).eval()(torch.zeros(1, 3, 22, 23))


@pytest.mark.parametrize("width", [1e-9, 0.03, 0.5])
@pytest.mark.parametrize(("builder", "table"), BUILDERS)
def test_width_scales_every_hidden_layer_and_no_other(
    builder: Callable[..., nn.Sequential], table: list[Row], width: float
) -> None:
    for row, full in zip(rows(builder(width=width), (3, 32, 32)), table, strict=True):
        hidden = full[1] and row[0] not in ("input", "output")
        assert row[1] == (str(max(1, round(int(full[1]) * width))) if hidden else full[1])
        assert (row[0], row[2:6]) == (full[0], full[2:6])


def test_a_network_can_be_wider_than_the_papers() -> None:
    assert [row[1] for row in rows(split_cifar_narrow(width=1.5), (3, 32, 32)) if row[1]] == (
        ["3", "48", "48", "96", "96", "768", "10"]
    )


@pytest.mark.parametrize("builder", [split_cifar_narrow, split_cifar_wide])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (32, 32)}, r"shape is \(32, 32\); give \(channels, height, width\), each at least 1"),
        ({"shape": (0, 32, 32)}, r"shape is \(0, 32, 32\); give"),
        ({"shape": (3, 32, 0)}, r"shape is \(3, 32, 0\); give"),
        ({"classes": 0}, "classes is 0; a task has at least 1"),
        ({"width": 0.0}, "width is 0.0; give a finite number above 0"),
        ({"width": float("nan")}, "width is nan; give"),
        ({"width": float("inf")}, "width is inf; give"),
    ],
)
def test_what_makes_no_network_is_refused(
    builder: Callable[..., nn.Sequential], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        builder(**changes)


def test_mlp_is_a_plain_sequential_with_named_layers() -> None:
    model = mlp(784, [100, 50], 10)
    assert type(model) is nn.Sequential
    assert [name for name, _ in model.named_children()] == ["hidden1", "relu1", "hidden2", "relu2", "output"]
    assert model(torch.zeros(3, 784)).shape == (3, 10)
    assert model.get_parameter("hidden2.weight").shape == (50, 100)


def test_mlp_takes_the_shape_of_a_sample() -> None:
    torch.manual_seed(0)
    flat = mlp(784, [20], 10)
    torch.manual_seed(0)
    model = mlp((1, 28, 28), [20], 10)
    assert kinds(model) == [("flatten", "Flatten"), ("hidden1", "Linear"), ("relu1", "ReLU"), ("output", "Linear")]
    x: Tensor = torch.rand(3, 1, 28, 28)
    assert torch.equal(model(x), flat(x.flatten(1)))
    assert kinds(mlp((784,), [20], 10)) == kinds(flat)  # a shape of one size is that size


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((784, [], 10), "hidden is empty"),
        ((784, [100, 0], 10), r"784, \[100, 0\] and 10; each must be at least 1"),
        ((784, [100], 0), "each must be at least 1"),
        ((0, [100], 10), r"0, \[100\] and 10; each must be at least 1"),
        (((1, 0, 28), [100], 10), r"\(1, 0, 28\), \[100\] and 10; each must be at least 1"),
        (((), [100], 10), r"\(\), \[100\] and 10; each must be at least 1"),
    ],
)
def test_mlp_refuses_widths_that_make_no_network(widths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(*widths)
