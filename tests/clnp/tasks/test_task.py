import torch

from clnp.tasks import Encoded, Split, Transform


def test_a_split_goes_to_a_device_and_its_samples_to_a_dtype() -> None:
    split = Split(torch.randn(3, 2), torch.tensor([0, 1, 2]))
    moved = split.to("cpu", torch.float64)
    assert moved.x.dtype == torch.float64
    assert torch.equal(moved.x, split.x.double())
    assert torch.equal(moved.y, split.y)
    assert moved.y.dtype == torch.int64
    assert split.to("cpu").x is split.x


def test_a_split_is_equal_to_itself_alone() -> None:
    """As tensors' comparison has no one answer."""
    split = Split(torch.randn(3, 2), torch.tensor([0, 1, 2]))
    assert split == split
    assert split != split.part(slice(3))


def test_a_split_of_bytes_is_the_split_of_their_floats() -> None:
    """Wherever it goes, in whatever parts."""
    raw, y = torch.randint(0, 256, (6, 4), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    transform = Transform(torch.tensor([2, 0, 3, 1]), 255.0, (1, 2, 2))
    whole, expected = Split(transform.encode(raw), y), Split(x=transform(raw), y=y)
    places = torch.tensor([3, 0, 3])
    for found, floats in (
        (whole, expected),
        (whole.to("cpu", torch.float64), expected.to("cpu", torch.float64)),
        (whole.part(places), Split(expected.x[places], y[places])),
        (whole.part(slice(2, 5)).to("cpu", torch.float64), Split(expected.x[2:5].double(), y[2:5])),
        (whole.decoded(), expected),
    ):
        assert len(found) == len(floats)
        assert found.x.dtype == floats.x.dtype
        assert torch.equal(found.x, floats.x)
        assert torch.equal(found.y, floats.y)
    assert isinstance(whole.to("cpu").part(places).samples, Encoded)
    assert isinstance(whole.decoded().samples, torch.Tensor)
    assert expected.decoded().x is expected.x
