"""The files of docker/ as their readers see them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.backends.cluster import prepare

# Ray reads it when it is imported, once for all tests of a process.
prepare(own=False)

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


class Unset(Exception):
    """A variable that must be set is not."""


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """What Compose makes of ``$$``, ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` in every text."""

    def put(match: re.Match[str]) -> str:
        dollar, name, kind, rest = match.groups()
        if dollar:
            return "$"
        found = environment.get(name, "")
        if not found and kind == "?":
            raise Unset(f"{name}: {rest}")
        return found or (rest if kind == "-" else "")

    if isinstance(value, str):
        return _VARIABLE.sub(put, value)
    if isinstance(value, dict):
        return {key: interpolate(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, environment) for each in value]
    return value


@pytest.fixture(scope="session")
def read_compose() -> Callable[..., dict[str, Any]]:
    """Reads a compose file by its name: as it is written, or with what an environment puts into it."""

    def read(name: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        file = yaml.safe_load((DOCKER / name).read_text())
        read: dict[str, Any] = file if environment is None else interpolate(file, environment)
        return read

    return read


@pytest.fixture
def secrets() -> dict[str, str]:
    """What has to be set."""
    return {"POSTGRES_PASSWORD": "p@ss/w{o}rd%", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
