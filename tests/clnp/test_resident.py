"""Data stay bytes while a stack trains: the same bits as from floats, and no floats of a whole training split."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clnp import training
from clnp.activity import mean_activity
from clnp.models import mlp
from clnp.network import Network
from clnp.ownership import with_free
from clnp.tasks.task import Split
from clnp.tasks.transform import Transform
from clnp.thresholds import staircase
from clnp.training import Member, Settings, open_task, train

KINDS = ("dense", "flattened", "averaged", "after", "flat")


def task(shape: tuple[int, ...], count: int, *, inverted: bool = False) -> tuple[Split, Split]:
    """Splits of bytes: noise over one pattern a class."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 128, (3, *shape), generator=draw)
    y = torch.randint(3, (count,), generator=draw)
    raw = (patterns[y] + torch.randint(0, 128, (count, *shape), generator=draw)).to(torch.uint8)
    order = torch.randperm(raw[0].numel(), generator=draw)
    held = count // 4
    samples = Transform(order, 255.0, shape, inverted).encode(raw)
    return Split(samples[held:], y[held:]), Split(samples[:held], y[:held])


@pytest.mark.parametrize("limit", [0, 2**29], ids=["prefix computed", "prefix kept"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("head", "committed"), [("multi", 0), ("single", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_train_bit_for_bit_as_their_floats(
    make_any: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    head: str,
    committed: int,
    dtype: torch.dtype,
    limit: int,
) -> None:
    """And are scanned so: what is old and what reads the samples themselves, with masks of Dropout."""
    monkeypatch.setattr(training, "PREFIX_BYTES", limit)
    network, shape = make_any(kind, committed + 1, head=head, committed=committed, dtype=dtype)
    opened = open_task(network, seed=0)
    members = [Member((0.001,) * len(opened.layers), rate) for rate in (0.01, 0.03)]
    parts = task(shape, 60, inverted=committed > 0)
    settings = Settings(epochs=2, batch_size=16)
    found = train(opened, *parts, members, settings, seed=0)
    expected = train(opened, *(part.decoded() for part in parts), members, settings, seed=0)
    for one, other in zip(found, expected, strict=True):
        assert one.epochs == other.epochs
        assert one.free.keys() == other.free.keys()
        assert all(torch.equal(value, other.free[name]) for name, value in one.free.items())
    trained, (data, validation) = with_free(opened, found[0].free), parts
    activity = mean_activity(trained, data.samples)
    for name, means in mean_activity(trained, data.x).items():
        assert torch.equal(activity[name], means)
    assert staircase(trained, activity, validation) == staircase(trained, activity, validation.decoded())


class Floats(TorchDispatchMode):
    """The most floats that a tensor had which was made within it."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and each.is_floating_point()]
        self.most = max([self.most, *(each.untyped_storage().nbytes() // each.itemsize for each in made)])
        return result


@pytest.mark.parametrize("shape", [(40,), (1, 5, 8), (5, 8)], ids=["features", "maps", "images"])
def test_no_floats_of_a_whole_training_split_are_made(shape: tuple[int, ...]) -> None:
    """Neither by training, which reads batches, nor by the mean activity. Where they are made, the count sees it.

    A network may begin with a Flatten.
    """
    opened = open_task(Network(mlp(shape, [6, 5], 3), head="multi"), seed=0)
    data, validation = task(shape, 6000)
    with Floats() as made:
        (found,) = train(opened, data, validation, [Member((0.0,) * 3, 0.01)], Settings(1, 64), seed=0)
        mean_activity(with_free(opened, found.free), data.samples)
    assert made.most < len(data) * 40 // 3
    with Floats() as made:
        data.decoded()
    assert made.most >= len(data) * 40
