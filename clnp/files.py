"""Files that are there whole or not at all."""

import os
import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, sync it and put it in its place, whenever its writer or the machine stops.

    Raises:
        OSError: It cannot be written; what was at ``path`` is still there.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(16)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
