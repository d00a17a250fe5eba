"""Tensors as bytes and back."""

import contextlib
import hashlib
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clnp.errors import Damaged
from clnp.tensors import decode, encode, sha256

NAMED = {
    "task": torch.tensor(3),
    "hidden1.units": torch.tensor([1, 4]),
    "hidden1.weight": torch.tensor([[-0.0, float("nan")], [float("inf"), 1e-45]]),
    "empty": torch.empty(0, 7),
    "flags": torch.tensor([True, False]),
    "double": torch.tensor([0.1], dtype=torch.float64),
}


def test_every_bit_comes_back() -> None:
    back = decode(encode(NAMED))
    assert back.keys() == NAMED.keys()
    for name, tensor in NAMED.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes()


@given(st.permutations(list(NAMED)))
def test_the_bytes_do_not_depend_on_the_order(names: list[str]) -> None:
    assert encode({name: NAMED[name] for name in names}) == encode(NAMED)


def test_views_of_one_tensor_and_parameters() -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base.T, "b": base[:, 1:3], "c": torch.nn.Parameter(base)}
    back = decode(encode(tensors))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_what_was_decoded_can_be_written() -> None:
    back = decode(encode(NAMED))
    back["double"] += 1
    assert back["double"].item() == 1.1


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(100), encode(NAMED)[:-1], encode(NAMED) + b"x"])
def test_garbage_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged, match=f"{len(data)} bytes"):
        decode(data)


def test_a_pickle_is_damaged() -> None:
    """Promise 7: nothing that is restored can run code."""
    with pytest.raises(Damaged):
        decode(pickle.dumps(NAMED))


@given(st.data())
def test_a_flipped_byte_is_either_damaged_or_another_hash(data: st.DataObject) -> None:
    whole = bytearray(encode(NAMED))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert sha256(bytes(whole)) != sha256(encode(NAMED))
    with contextlib.suppress(Damaged):
        decode(bytes(whole))


def test_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
