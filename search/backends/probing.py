"""What a node of a cluster is asked before its first job, sent there by value: nothing of ours need be installed.

Only the standard library is imported at the top, since the node may lack all else.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["describe", "look"]


def look(
    expected: Mapping[str, str], location: str, token: str, data: Any, modules: Sequence[str], code: Sequence[str]
) -> dict[str, Any]:
    """Runs on a node.

    Args:
        expected: What :func:`describe` says in the driver.
        location, token: Of the artifacts' probe.
        data: What :func:`search.delivered.holds` is given, the parcel as a dict; None where all data are bundled.
        modules, code: See :func:`describe`.

    Returns:
        ``versions``; ``devices``, what bits depend on; and, where the versions are those expected, ``answer`` of the
        artifacts' probe or ``problem`` and whether that ``passes``, and ``data``: whether the files are here.
    """
    found: dict[str, Any] = {"versions": describe(modules, code), "devices": _devices()}
    if found["versions"] != dict(expected):
        return found
    errors = importlib.import_module("search.errors")
    try:
        found["answer"] = importlib.import_module("search.artifacts.probe").answer(location, token)
        if data is not None:
            delivered = importlib.import_module("search.delivered")
            found["data"] = delivered.holds(delivered.Parcel(**data[0]), data[1])
    except errors.SearchError as error:
        found["problem"], found["passes"] = str(error), isinstance(error, errors.Unavailable)
    return found


def describe(modules: Sequence[str], code: Sequence[str]) -> dict[str, str]:
    """The versions that a worker here would run with. Imports none of them.

    Args:
        modules: Of a person's own functions, which are looked for in the folders ``code``.
    """
    found = {"python": platform.python_version()}
    for package in ("ray", "torch", "clnp-search"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["code"] = _digest([_folder("clnp"), _folder("search")])
    for module in modules:
        file = Path(*module.split(".")).with_suffix(".py")
        paths = [path for folder in code if (path := Path(folder) / file).is_file()]
        if paths:
            found[f"module {module}"] = hashlib.sha256(paths[0].read_bytes()).hexdigest()[:12]
        else:
            found[f"module {module}"] = "installed" if _folder(module.partition(".")[0]) else "absent"
    return found


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _digest(folders: Sequence[Path | None]) -> str:
    """Over every module in these folders: a version's number stays the same while it is worked on."""
    digest = hashlib.sha256()
    for folder in folders:
        if folder is None or not folder.is_dir():
            return "absent"
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _devices() -> list[str]:
    """The kind of CPU, by what torch tells apart, and the GPUs."""
    found = [f"cpu {_capability()}"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return found
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return found + sorted({f"cuda {line.strip()}" for line in listed.stdout.splitlines() if line.strip()})


def _capability() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set[str]())
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"} <= flags:
        return "AVX512"
    return "AVX2" if {"avx2", "fma"} <= flags else platform.machine()
