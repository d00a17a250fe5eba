"""Seeded generators: every random draw names what it is for."""

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, purpose: str, *place: int | str) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments, e.g. ``generator(seed, "init", task, "hidden1")``.

    Drawn on the CPU and moved, numbers are the same whatever the device.
    """
    name = "/".join(map(str, (seed, purpose, *place)))
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
