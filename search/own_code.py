"""A person's own functions: found by ``module:function``, called, and refused in words that say what to mend."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from search.errors import BadInput

__all__ = ["call", "find", "folders", "kept", "raised", "within"]

Result = TypeVar("Result")

_REMEDY = "mend it; the same command goes on"

_NO_OPERATOR = "operator torchvision::"
"""What torch says where torchvision's compiled operators did not load."""

_FLAGS = (
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)
"""What of ``torch.backends`` bits depend on."""

_imported: dict[str, str] = {}
"""The packages that came from a folder of somebody's code, and which."""


def folders(code: str | None) -> tuple[str, ...]:
    """Where functions are looked for: the folder of the experiment file, if there is one, then the current one."""
    found = ([] if code is None else [code]) + [str(Path.cwd())]
    return tuple(dict.fromkeys(found))


def find(name: str, key: str, code: Sequence[str]) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    The folders stay on the path of modules, first, as the folder of a script does: what the function imports when it
    runs is found too.

    Args:
        name: ``module:function``; either may have dots.
        key: The experiment's key that names it, for messages.
        code: The folders to look in, before the installed packages.

    Raises:
        BadInput: There is no such module or function, its import raises, or it cannot be called.
    """
    module_name, _, path = name.partition(":")
    where = f"{key}: {name}"
    sys.path[:] = [*code, *(folder for folder in sys.path if folder not in code)]
    try:
        module = within(lambda: _import(module_name, code))
    except ModuleNotFoundError as error:
        if error.name is None:
            raise raised(f"{where}: importing {module_name}", error, code) from error
        if not _leads_to(module_name, error.name):
            package = error.name.partition(".")[0]
            remedy = f"install {package}, or put {package}.py beside {module_name.partition('.')[0]}"
            raise raised(f"{where}: importing {module_name}", error, code, remedy) from error
        raise BadInput(
            f"{where}: there is no module {error.name}; looked for in {_list(code)} and among the installed packages. "
            f"Put {error.name.partition('.')[0]}.py there, or give another module:function"
        ) from error
    except (Exception, SystemExit) as error:
        raise raised(f"{where}: importing {module_name}", error, code) from error
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            here = getattr(module, "__file__", None) or "the running Python"
            raise BadInput(f"{where}: {module_name} ({here}) has no {path}; define it there, or name another function")
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(f"{where} is a {type(found).__name__}, which cannot be called; name a function")
    result: Callable[..., Any] = found
    return result


def _import(name: str, code: Sequence[str]) -> ModuleType:
    package = name.partition(".")[0]
    if package in _imported and _imported[package] not in code:
        # Another experiment's, of the same name: one process may see to several.
        for other in [one for one in sys.modules if one == package or one.startswith(f"{package}.")]:
            del sys.modules[other]
    # A file that was written a moment ago is not in the finders' memory of its folder.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        # A package stays imported where a module in it is not found.
        file = getattr(sys.modules.get(package), "__file__", None)
        for folder in code:
            if file is not None and Path(file).is_relative_to(folder):
                _imported[package] = folder
                break


def call(
    name: str,
    key: str,
    code: Sequence[str],
    *,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    offered: Mapping[str, Any],
) -> Any:
    """What the function returns.

    Args:
        name, key, code: As for :func:`find`.
        options: Of the experiment file: keyword arguments.
        given: Keyword arguments that it always gets.
        offered: Keyword arguments that it gets if its signature names them.

    Raises:
        BadInput: As for :func:`find`; or it does not take these arguments, or raises.
    """
    function = find(name, key, code)
    where = f"{key}: {name}"
    named = _named(function)
    arguments = {**given, **{word: value for word, value in offered.items() if word in (named or ())}}
    both = sorted(set(options) & set(arguments))
    if both:
        raise BadInput(
            f"{where}: options has {', '.join(both)}, which the experiment gives itself; leave it out of options"
        )
    arguments.update(options)
    if named is not None:
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise BadInput(
                f"{where} takes {inspect.signature(function)} and is called with {', '.join(arguments) or 'nothing'}: "
                f"{error}; change the function, or options in the experiment"
            ) from None
    try:
        return within(lambda: function(**arguments))
    except (Exception, SystemExit) as error:
        raise raised(where, error, code) from error


def within(work: Callable[[], Result]) -> Result:
    """What ``work``, which runs a person's code, returns: torch is :func:`kept`, and prints go to standard error.

    Standard output is the command's own: a line of another's would spoil its JSON. A torchvision that does not load
    beside this torch is loaded as :mod:`clnp.tasks.vision` does it, then ``work`` is begun again.
    """
    with redirect_stdout(sys.stderr), kept():
        try:
            return work()
        except RuntimeError as error:
            if _NO_OPERATOR not in str(error):
                raise
        from clnp.tasks.vision import load_torchvision

        load_torchvision()
        return work()


@contextmanager
def kept() -> Iterator[None]:
    """Leave torch's settings, which bits depend on, as they were before (Promise 3): threads, dtype, device, precision.

    The record of a job says what the worker had set; a person's code that sets something else is not heard.
    """
    # Not at the top: who reads records only needs the folders alone, and is quicker without torch.
    import torch

    # Read before: once both of torch's ways to set a precision were used, it refuses to say.
    precision, device = torch.get_float32_matmul_precision(), torch.get_default_device()
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    memory: Any = torch.utils.deterministic
    mode, filled = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    casts = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    flags = {flag: _flag(torch.backends, flag) for flag in _FLAGS}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled
        # torch cannot say whether it is on, and leaves it off by itself.
        torch.set_flush_denormal(False)
        for kind, cast in casts.items():
            torch.set_autocast_enabled(kind, cast)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_float32_matmul_precision(precision)
        for flag, value in flags.items():
            if _flag(torch.backends, flag) != value:
                owner, _, name = flag.rpartition(".")
                setattr(_flag(torch.backends, owner), name, value)


def _flag(found: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def raised(what: str, error: BaseException, code: Sequence[str], remedy: str = _REMEDY) -> BadInput:
    """The refusal of a person's code that raised: what was asked of it, the error, its line, and how to go on."""
    return BadInput(f"{what} raised {_said(error)}{_at(error, code)}; {remedy}")


def _named(function: Callable[..., Any]) -> set[str] | None:
    """The arguments that a function names; None where Python cannot tell, as of some that are written in C."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}


def _leads_to(module: str, missing: str) -> bool:
    """Whether ``missing`` is the module itself or a package on the way to it, and not something that it imports."""
    return module == missing or module.startswith(f"{missing}.")


def _said(error: BaseException) -> str:
    """An error's class and text in a line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _at(error: BaseException, code: Sequence[str]) -> str:
    """The deepest line of the person's own files that the error came through."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if any(Path(file).is_relative_to(folder) for folder in code):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        return ""
    return place


def _list(code: Sequence[str]) -> str:
    return ", ".join(code) or "no folder"
