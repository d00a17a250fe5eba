"""A person's own functions: found by ``module:function``, called, and refused in words that say what to mend."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from search.errors import BadInput

__all__ = ["call", "find", "folders", "said"]

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
        module = _import(module_name, code)
    except ModuleNotFoundError as error:
        if error.name is None or not _leads_to(module_name, error.name):
            raise BadInput(f"{where}: importing {module_name} raised {said(error)}") from error
        raise BadInput(
            f"{where}: there is no module {error.name}; looked for in {_list(code)} and among the installed packages. "
            f"Put {error.name.partition('.')[0]}.py there, or give another module:function"
        ) from error
    except Exception as error:
        raise BadInput(f"{where}: importing {module_name} raised {said(error)}{_at(error, code)}") from error
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
    module = importlib.import_module(name)
    file = getattr(sys.modules[package], "__file__", None)
    for folder in code:
        if file is not None and Path(file).is_relative_to(folder):
            _imported[package] = folder
            break
    return module


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
        return function(**arguments)
    except Exception as error:
        raise BadInput(f"{where} raised {said(error)}{_at(error, code)}") from error


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


def said(error: BaseException) -> str:
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
