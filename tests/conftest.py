"""What holds for every test."""

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # not at the top: tests of what imports no torch are quicker without it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch sees none")
