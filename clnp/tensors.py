"""Tensors as bytes and back: safetensors, which cannot hold code, under their SHA-256."""

import hashlib
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from clnp.errors import Damaged

__all__ = ["decode", "encode", "sha256"]


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors in the safetensors format; the same names and values give the same bytes, on whatever device."""
    # Cloned, since the format refuses tensors that share memory and two views of one parameter are nothing unusual.
    own = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    data: bytes = safetensors.torch.save(own)
    return data


def decode(data: bytes) -> dict[str, Tensor]:
    """The tensors in ``data``, on the CPU.

    Raises:
        Damaged: ``data`` is not in the safetensors format, whole.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise Damaged(
            f"{len(data)} bytes with SHA-256 {sha256(data)} are not a whole safetensors file: {error}"
        ) from error
    return tensors


def sha256(data: bytes) -> str:
    """The SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
