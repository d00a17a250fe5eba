"""YAML as experiment files use it: the plain data of YAML 1.2's core schema, and the line that each key stands on.

PyYAML follows YAML 1.1, where ``1e-5`` is text, ``no`` is false and of two equal keys the last wins without a word.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from search.errors import BadInput

__all__ = ["Document", "Path", "Problem", "read_value", "read_yaml", "show_path"]

Path = tuple[str | int, ...]
"""Where a value stands: keys and places in lists, from the top."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the value at ``path``."""

    path: Path
    text: str


@dataclass(slots=True)
class Document:
    """A file's data.

    Attributes:
        value: Mappings, lists, text, numbers, true, false and None.
        places: Where each path is written, e.g. ``line 3``.
        problems: What is wrong with the writing; ``value`` is then the best that can be made of it.
    """

    value: object
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """Where ``path``, or the nearest thing around it, is written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def show_path(path: Path) -> str:
    """A path as people write it, e.g. ``grid.alpha[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def read_yaml(text: str, name: str) -> Document:
    """The data of a YAML file called ``name`` in messages.

    Raises:
        BadInput: It is not YAML, or nested so deeply that it cannot be read.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        document = Document(None)
        if node is not None:
            document.value = _construct(node, (), document, frozenset())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{name}{where}: this is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{name}: this is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise BadInput(f"{name}: nested too deeply to be read") from error
    return document


def read_value(text: str, name: str) -> object:
    """A value written as YAML, such as that of a ``--set``.

    Raises:
        BadInput: It is not YAML, or a key stands twice in it.
    """
    document = read_yaml(text, name)
    for problem in document.problems:
        raise BadInput(f"{name}: {problem.text}")
    return document.value


class _Loader(yaml.BaseLoader):
    """Plain scalars become what YAML 1.2's core schema says (https://yaml.org/spec/1.2.2/#103-core-schema)."""


_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_BOOL = "tag:yaml.org,2002:bool"
_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"

for _tag, _pattern, _first in (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def _whole(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Mapping[str, Callable[[str], object]] = {
    _TEXT: str,
    _NULL: lambda _: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: _whole,
    _FLOAT: _float,
}

_TAGS: Mapping[type[yaml.Node], Collection[str]] = {
    yaml.ScalarNode: _SCALARS.keys(),
    yaml.SequenceNode: ["tag:yaml.org,2002:seq"],
    yaml.MappingNode: ["tag:yaml.org,2002:map"],
}


def _construct(node: yaml.Node, path: Path, document: Document, around: frozenset[int]) -> object:
    document.places.setdefault(path, _line(node))
    if id(node) in around:
        document.problems.append(Problem(path, f"{show_path(path)} contains itself"))
        return None
    if node.tag not in _TAGS[type(node)]:
        document.problems.append(Problem(path, f"{show_path(path)} has the tag {node.tag}; write the plain value"))
        return None
    if isinstance(node, yaml.MappingNode):
        return {
            key: _construct(value, (*path, key), document, around | {id(node)})
            for key, value in _entries(node, path, document)
        }
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(value, (*path, place), document, around | {id(node)}) for place, value in enumerate(node.value)
        ]
    try:
        return _SCALARS[node.tag](node.value)
    except ValueError:
        document.problems.append(
            Problem(path, f"{show_path(path)} is {node.value[:40]!r}, not a number that can be read")
        )
        return None


def _entries(node: yaml.MappingNode, path: Path, document: Document) -> Iterator[tuple[str, yaml.Node]]:
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            document.problems.append(Problem(path, f"a key of {show_path(path)} is not text"))
        elif key.value in first:
            name = show_path((*path, key.value))
            text = f"{name} stands twice, on lines {first[key.value]} and {line}; keep one of them"
            document.problems.append(Problem((*path, key.value), text))
        else:
            first[key.value] = line
            document.places[*path, key.value] = f"line {line}"
            yield key.value, value


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
