import torch

from clnp.tasks.task import Split


def test_a_split_goes_to_a_device_and_its_samples_to_a_dtype() -> None:
    split = Split(torch.randn(3, 2), torch.tensor([0, 1, 2]))
    moved = split.to("cpu", torch.float64)
    assert moved.x.dtype == torch.float64
    assert torch.equal(moved.x, split.x.double())
    assert torch.equal(moved.y, split.y)
    assert moved.y.dtype == torch.int64
    assert split.to("cpu").x is split.x
