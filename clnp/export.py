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
import importlib
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clnp.architecture import as_safetensors, read_safetensors
from clnp.exported import Exported, UnsupportedExport, classes_of
from clnp.files import write_whole

__all__ = ["Exported", "UnsupportedExport", "load", "save"]


def save(exported: Exported, path: str | Path) -> None:
    """Write ``exported`` in the format that the ending of ``path`` names; a file that stands there is replaced.

    The file appears whole or not at all. Before a ``.onnx`` file does, ONNX's own checker has read it and, where
    onnxruntime is installed, its answers to a few random samples have been those of ``exported``, to within 1e-4 of the
    largest logit (in half precision, to within what its numbers can tell apart). Without onnxruntime the answers are
    not compared.

    Raises:
        UnsupportedExport: The ending is none of the three, the sub-network has modules that an architecture file
            cannot name or poolings that ONNX cannot hold, it gives no ``[n, classes]`` for samples of the transform's
            shape, ONNX packages are absent, or the ONNX file would not answer as ``exported`` does.
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
    write_whole(path, encode(own, classes_of(own)))


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

    example = torch.zeros(2, *exported.transform.shape, device="cpu")
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
            _program(_pooled(exported)), dynamo=True, input_names=["x"], output_names=["logits"], verbose=False
        )
    if program is None:
        raise UnsupportedExport("torch.onnx.export gave no program")
    try:
        onnx.checker.check_model(program.model_proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedExport(
            f"the sub-network as ONNX is refused by ONNX's own checker: {error}; write .safetensors or .pt2"
        ) from error
    data: bytes = program.model_proto.SerializeToString()
    _check_answers(data, exported)
    return data


def _pooled(exported: Exported) -> Exported:
    """A copy whose poolings are :class:`_Pooling`."""
    own = copy.deepcopy(exported)
    for name, module in list(own.subnetwork.named_modules(remove_duplicate=False)):
        if type(module) is nn.AvgPool2d or (type(module) is nn.MaxPool2d and not module.return_indices):
            own.subnetwork.set_submodule(name, _Pooling(name, module))
    with torch.no_grad():
        own(torch.zeros(2, *exported.transform.shape, device="cpu"))  # what cannot be held is refused here
    return own


class _Pooling(nn.Module):
    """A pooling in the arguments that torch's exporter and ONNX understand as torch does.

    The exporter leaves ``divisor_override`` out, and ONNX counts with ``ceil_mode`` windows that torch does not: those
    that would start behind the map.
    """

    def __init__(self, name: str, pool: nn.MaxPool2d | nn.AvgPool2d) -> None:
        super().__init__()
        self.name = name
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool = self.pool
        ceil = pool.ceil_mode and self._overhangs(x)
        if isinstance(pool, nn.MaxPool2d):
            return functional.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=ceil)
        if pool.divisor_override is None:
            return functional.avg_pool2d(x, pool.kernel_size, pool.stride, pool.padding, ceil, pool.count_include_pad)
        if ceil:
            raise UnsupportedExport(
                f"the sub-network's module {self.name} has divisor_override={pool.divisor_override} and ceil_mode=True "
                f"with windows that reach over the edge of its {list(x.shape[-2:])} maps, which ONNX cannot hold; "
                "write .safetensors or .pt2"
            )
        mean = functional.avg_pool2d(x, pool.kernel_size, pool.stride, pool.padding, count_include_pad=True)
        return mean * (math.prod(_both(pool.kernel_size)) / pool.divisor_override)

    def _overhangs(self, x: Tensor) -> bool:
        """Whether ``ceil_mode`` adds windows to those that lie in the padded map.

        Raises:
            UnsupportedExport: It does on one side, and on the other ONNX would add windows that torch does not.
        """
        pool = self.pool
        added, spurious = False, False
        for size, kernel, stride, padding, dilation in zip(
            x.shape[-2:],
            _both(pool.kernel_size),
            _both(pool.stride),
            _both(pool.padding),
            _both(pool.dilation if isinstance(pool, nn.MaxPool2d) else 1),
            strict=True,
        ):
            windows, rest = divmod(size + 2 * padding - dilation * (kernel - 1) - 1 + stride, stride)
            starts_inside = windows * stride < size + padding
            added |= rest > 0 and starts_inside
            spurious |= rest > 0 and not starts_inside
        if added and spurious:
            raise UnsupportedExport(
                f"the sub-network's module {self.name} has ceil_mode=True, which adds a window on one side of its "
                f"{list(x.shape[-2:])} maps, and on the other one in ONNX but none in torch; write .safetensors or .pt2"
            )
        return added


def _both(sides: int | tuple[int, ...]) -> tuple[int, int]:
    first, last = (sides, sides) if isinstance(sides, int) else (sides[0], sides[-1])
    return first, last


_SAMPLES = 5


def _check_answers(data: bytes, exported: Exported) -> None:
    """Compare an ONNX file's answers with the network's, where onnxruntime is installed.

    Raises:
        UnsupportedExport: They differ, or onnxruntime cannot run the file.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        return
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    failures = tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it has to say is in the error
    transform = exported.transform
    drawn = torch.rand(_SAMPLES, *transform.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    raw = drawn * transform.scale
    with torch.no_grad():
        expected = exported(raw).double()
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"x": raw.numpy()})[0]).double()
    except failures as error:
        raise UnsupportedExport(
            f"the sub-network as ONNX cannot be run by onnxruntime: {error}; write .safetensors or .pt2"
        ) from error
    if found.shape != expected.shape:
        raise UnsupportedExport(
            f"the sub-network as ONNX answers {_SAMPLES} samples with {list(found.shape)}, not {list(expected.shape)}; "
            "write .safetensors or .pt2"
        )
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= max(1e-4, 8 * torch.finfo(exported.dtype).eps) * largest:
        raise UnsupportedExport(
            f"the sub-network as ONNX answers {_SAMPLES} random samples with logits that differ by {difference:.3g} "
            f"from its own, of which the largest is {largest:.3g}; write .safetensors or .pt2"
        )


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


_ENCODERS = {".safetensors": as_safetensors, ".onnx": _as_onnx, ".pt2": _as_pt2}
