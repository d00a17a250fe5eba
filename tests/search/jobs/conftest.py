"""A small experiment, and no variable that says where databases and clusters are."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.backends.cluster import prepare

# Ray reads it when it is imported, once for all tests of a process.
prepare(own=False)

PLAIN: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [40, 30]},
    "grid": {"alpha": [1e-3], "learning_rate": [0.005, 0.01]},
    "training": {"epochs": 2},
    "rule": {"margin": 3},
    "worker": {"gpu": 0},
    "workers": 1,
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLNP_SEARCH_STORAGE", "PGPASSWORD", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plain() -> dict[str, Any]:
    """A small experiment on the digits, as its file holds it."""
    return dict(PLAIN)


@pytest.fixture
def file(tmp_path: Path, plain: dict[str, Any]) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path
