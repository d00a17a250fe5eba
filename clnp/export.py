"""A committed task's sub-network with its input transform, in files that are used without this project.

==================  ====================================================================================================
file                what it is
==================  ====================================================================================================
``.safetensors``    the tensors and, as JSON beside them, the architecture; :func:`load` gives the saved bits back
``.onnx``           ONNX, for onnxruntime and others: input ``x`` float32 ``[batch, *shape]``, output ``logits``
``.pt2``            for ``torch.export.load``: input float32 ``[batch, *shape]``, batches of any size
==================  ====================================================================================================

Of these, only the first is ever read here: it can hold no code.
"""

import copy
import io
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clnp.architecture import as_safetensors, read_safetensors
from clnp.exported import Exported, UnsupportedExport, classes_of

__all__ = ["Exported", "UnsupportedExport", "load", "save"]


def save(exported: Exported, path: str | Path) -> None:
    """Write ``exported`` in the format that the ending of ``path`` names; a file that stands there is replaced.

    The file appears whole or not at all.

    Raises:
        UnsupportedExport: The ending is none of the three, the sub-network has modules that an architecture file
            cannot name, it gives no ``[n, classes]`` for samples of the transform's shape, or ONNX packages are absent.
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise UnsupportedExport(
            f"{path.name!r} ends in none of {', '.join(_ENCODERS)}; the ending chooses the format that is written"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist; make it first")
    own = copy.deepcopy(exported).cpu().eval().requires_grad_(False)
    _write(path, encode(own, classes_of(own)))


def load(path: str | Path) -> Exported:
    """The network that :func:`save` wrote to a ``.safetensors`` file, on the CPU, in evaluation mode.

    It is built from a fixed table of modules; nothing in the file is run.

    Raises:
        Damaged: The file is not one that :func:`save` wrote; the message says what is wrong with it.
        FileNotFoundError: There is no such file.
    """
    return read_safetensors(Path(path))


def _program(exported: Exported) -> "torch.export.ExportedProgram":
    import torch.export  # a second to import, as all below

    example = torch.zeros(2, *exported.transform.shape)
    program = torch.export.export(exported, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of the machine that wrote it
    return program


def _as_pt2(exported: Exported, _classes: int) -> bytes:
    with _silent():
        import torch.export

        file = io.BytesIO()
        torch.export.save(_program(exported), file)
    return file.getvalue()


def _as_onnx(exported: Exported, _classes: int) -> bytes:
    onnx = _import_onnx()
    with _silent():
        import torch.onnx

        program = torch.onnx.export(
            _program(exported), dynamo=True, input_names=["x"], output_names=["logits"], verbose=False
        )
    if program is None:
        raise UnsupportedExport("torch.onnx.export gave no program")
    onnx.checker.check_model(program.model_proto, full_check=True)
    data: bytes = program.model_proto.SerializeToString()
    return data


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx.export needs it and would say so late
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript"):
            raise
        raise UnsupportedExport(
            f"an .onnx file needs the package {error.name}, which is not installed: "
            "pip install 'clnp-search[export]', or write .safetensors or .pt2"
        ) from error
    return onnx


@contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings that torch gives about its own deprecated parts; its errors and other warnings stay."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


_ENCODERS = {".safetensors": as_safetensors, ".onnx": _as_onnx, ".pt2": _as_pt2}
