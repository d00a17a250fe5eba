"""How the products of a training step are computed: float32, or less where that is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["PRECISIONS", "Precision", "products"]

Precision = Literal["float32", "tf32", "bf16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
"""As torch is set; factors of 10 bits, with the range of a float32; factors and results of 7 bits. What is summed
within a product, the parameters, their gradients and steps are float32 with each.

As torch sets itself, a float32 product has all digits, but convolutions on a GPU have factors of 10 bits as long as
``torch.backends.cudnn.allow_tf32`` is true, in training and in all that is measured. A search's workers turn it off.
"""


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it, matrix products and convolutions round their factors as told; with float32, as outside of it.

    Of training alone: mean activities, scans and all that is recorded of a network are computed outside of it.
    """
    if precision == "bf16":
        # Without the cache: it would keep the weights of the first step for as long as this lasts.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
        return
    if precision == "float32":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
