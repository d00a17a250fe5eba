"""Experiment files: found, read, changed by ``--set``, and refused with every problem at once."""

import difflib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from search.errors import BadInput
from search.yaml_file import Document, Path, Problem, read_value, read_yaml, show_path

__all__ = ["read", "shipped_names", "validated"]

Kind = TypeVar("Kind", bound=BaseModel)
_Tree = dict[str, "_Tree | None"]


class _Free(dict[str, "_Tree | None"]):
    """The keys of a section that takes any."""


def read(source: str, sets: Sequence[str], kind: type[Kind]) -> Kind:
    """Read a shipped experiment or a file into ``kind``; see :func:`search.experiment.read_experiment`."""
    text, name = _read(source)
    document = read_yaml(text, name)
    if document.value is None and not document.problems:
        document.value = {}
    for change in sets:
        _change(document, change, kind)
    if isinstance(document.value, dict) and "name" not in document.value:
        document.value["name"] = FilePath(source).stem
        document.places["name",] = "the file's name"
    return _validated(document, name, kind)


def validated(data: object, name: str, kind: type[Kind]) -> Kind:
    """``data`` as ``kind``, called ``name`` in messages.

    Raises:
        BadInput: Something in it is wrong; everything that is, is listed.
    """
    return _validated(Document(data), name, kind)


def shipped_names() -> list[str]:
    """The names of the experiments that ship with the package."""
    return sorted(_shipped_files())


def _shipped_files() -> dict[str, Traversable]:
    folder = resources.files("search") / "experiments"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _read(source: str) -> tuple[str, str]:
    files = _shipped_files()
    if source in files:
        return files[source].read_text(encoding="utf-8"), f"shipped experiment {source}"
    try:
        return FilePath(source).read_bytes().decode("utf-8-sig"), source
    except FileNotFoundError:
        near = difflib.get_close_matches(source, files, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the shipped experiments are {', '.join(sorted(files))}"
        raise BadInput(f"{source} is neither a file nor a shipped experiment; {hint}") from None
    except IsADirectoryError:
        raise BadInput(f"{source} is a folder; give an experiment file or the name of a shipped one") from None
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{source} is not text in UTF-8 (byte {error.start}); save it as that") from error


def _change(document: Document, change: str, kind: type[BaseModel]) -> None:
    where = f"--set {change}"
    written, equals, value = change.partition("=")
    path: Path = tuple(written.strip().split("."))
    if not equals or not all(path):
        raise BadInput(f"{where}: give path.to.key=value, such as training.epochs=3")
    if str(document.places.get(path, "")).startswith("--set"):
        raise BadInput(f"{where}: {show_path(path)} is set twice; keep one")
    _check_known(path, where, _tree(kind))
    if not isinstance(document.value, dict):
        return  # refused with the file
    place: dict[Any, Any] = document.value
    for depth, part in enumerate(path[:-1], start=1):
        inner = place.get(part)
        if inner is None:
            inner = place[part] = {}
        if not isinstance(inner, dict):
            above = show_path(path[:depth])
            raise BadInput(f"{where}: {above} is {_show(inner)}, which has no keys; set {above} as a whole")
        place = inner
    place[path[-1]] = read_value(value, where)
    document.places = {one: line for one, line in document.places.items() if one[: len(path)] != path}
    document.places[path] = where


def _check_known(path: Path, where: str, known: _Tree) -> None:
    tree: _Tree | None = known
    for depth, part in enumerate(path):
        if tree is None:
            above = show_path(path[:depth])
            raise BadInput(f"{where}: {above} is a single value, without keys; give {above}=value")
        if isinstance(tree, _Free):
            return
        if part not in tree:
            raise BadInput(f"{where}: {_unknown(path[: depth + 1], known)}")
        tree = tree[str(part)]


def _validated(document: Document, name: str, kind: type[Kind]) -> Kind:
    problems = list(document.problems)
    unread = {problem.path for problem in problems}
    try:
        experiment = kind.model_validate(document.value)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["input"] is not None or details["loc"] not in unread:
                problems.append(_problem(details, _tree(kind), document))
    else:
        if not problems:
            return experiment
    raise BadInput(_refusal(name, document, problems))


def _problem(details: Mapping[str, Any], known: _Tree, document: Document) -> Problem:
    path: Path = details["loc"]
    changed = any(place.startswith("--set") for place in document.places.values())
    if details["type"] == "extra_forbidden":
        return Problem(path, _unknown(path, known))
    if details["type"] == "model_type":
        mend = f"give a section with keys: {', '.join(_keys(path, known))}"
    else:
        mend = details["ctx"]["mend"]
    if details["type"] == "given" and changed:
        mend += f", or --set {show_path(path)}=null"
    if details["input"] is None and document.places and path not in document.places:
        return Problem(path, f"{show_path(path)} is not given; {mend}")
    return Problem(path, f"{show_path(path)} is {_show(details['input'])}; {mend}")


def _refusal(name: str, document: Document, problems: Sequence[Problem]) -> str:
    lines = []
    for problem in problems:
        place = document.place(problem.path)
        lines.append(f"{place}: {problem.text}" if place else problem.text)
    if len(lines) == 1:
        return f"{name}, {lines[0]}" if document.places else f"{name}: {lines[0]}"
    return "\n  ".join([f"{name} has {len(lines)} problems:", *lines])


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _unknown(path: Path, tree: _Tree) -> str:
    """What to say of an unknown key: the nearest of its neighbours, else the nearest anywhere, else all neighbours."""
    key = str(path[-1]).lower()
    neighbours = _keys(path[:-1], tree)
    close = difflib.get_close_matches(key, neighbours, n=1, cutoff=0.75)
    known = [(*path[:-1], one) for one in close]
    if not known:
        paths = list(_paths(tree))
        nearest = difflib.get_close_matches(key, {str(one[-1]) for one in paths}, n=1, cutoff=0.7)
        known = [one for one in paths if one[-1] in nearest]
    hint = f"did you mean {' or '.join(map(show_path, known))}?" if known else f"known here: {', '.join(neighbours)}"
    return f"{show_path(path)} is not a known key; {hint}"


def _keys(path: Path, tree: _Tree | None) -> list[str]:
    for part in path:
        tree = (tree or {}).get(str(part))
    return list(tree or {})


def _paths(tree: _Tree, above: Path = ()) -> Iterator[Path]:
    for key, inner in tree.items():
        yield (*above, key)
        yield from _paths(inner or {}, (*above, key))


def _tree(model: type[BaseModel]) -> _Tree:
    """The keys of a section, each with those of the section it holds, if it does."""
    tree: _Tree = {}
    for key, field in model.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        # As an annotation an alias such as Options comes within Annotated.
        free = any(typing.get_origin(kind) is dict for one in kinds for kind in (one, *typing.get_args(one)))
        tree[key] = _tree(inner[0]) if inner else _Free() if free else None
    return tree
