"""A person's own tasks behind a guard: what they raise or return amiss is refused with the task it is of."""

from collections import abc
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch

from clnp.tasks.task import Sequence, Split, Task
from clnp.tasks.transform import Transform
from search.errors import BadInput
from search.own_code import raised, within

__all__ = ["guarded"]

Result = TypeVar("Result")

_VALUES = ("count", "shape", "classes")
_METHODS = ("task", "sha256", "transform")


def guarded(sequence: Any, where: str, count: int, code: abc.Sequence[str] = ()) -> Sequence:
    """What a person's function returned, as a sequence of at least ``count`` tasks.

    Args:
        where: What names the function, for messages.
        code: The folders of the person's code, for messages.

    Raises:
        BadInput: It is no :class:`clnp.tasks.Sequence`, or too short.
    """
    missing, values = _checked(where, code, lambda: _parts(sequence))
    if missing:
        raise BadInput(
            f"{where} returned {_kind(sequence)} without {', '.join(missing)}; return a clnp.tasks.Sequence, such as "
            f"clnp.tasks.from_function makes"
        )
    found, shape, classes = values
    if not isinstance(shape, tuple | list) or not shape or not all(_is_size(size, 1) for size in shape):
        raise BadInput(f"{where}: shape is {shape!r}; give the sizes of one sample, such as (64,) or (3, 32, 32)")
    if not _is_size(classes, 2):
        raise BadInput(f"{where}: classes is {classes!r}; give a whole number of at least 2")
    if not _is_size(found, 1):
        raise BadInput(f"{where}: count is {found!r}; give a whole number of at least 1")
    if found < count:
        raise BadInput(
            f"{where} made {found} tasks when count={count} were asked for; give a smaller tasks.count, or let the "
            f"function make as many as its argument count says"
        )
    return _Guarded(sequence, where, found, tuple(shape), classes, code)


def _parts(sequence: Any) -> tuple[list[str], list[Any]]:
    """What a sequence lacks, and its ``count``, ``shape`` and ``classes``: properties may be a person's code too."""
    missing = [name for name in (*_VALUES, *_METHODS) if not hasattr(sequence, name)]
    missing += [f"{name}()" for name in _METHODS if name not in missing and not callable(getattr(sequence, name))]
    return missing, [] if missing else [getattr(sequence, name) for name in _VALUES]


def _is_size(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _checked(what: str, code: abc.Sequence[str], work: Callable[[], Result]) -> Result:
    try:
        return within(work)
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise raised(what, error, code) from error


def _fields(split: Any) -> tuple[Any, Any, Any]:
    return split, getattr(split, "x", None), getattr(split, "y", None)


class _Guarded:
    def __init__(
        self,
        sequence: Any,
        where: str,
        count: int,
        shape: tuple[int, ...],
        classes: int,
        code: abc.Sequence[str],
    ) -> None:
        self.count = count
        self.shape = shape
        self.classes = classes
        self._sequence = sequence
        self._where = where
        self._code = code

    def task(self, index: int) -> Task:
        what = f"{self._where}, task {index + 1}"
        task = _checked(what, self._code, lambda: self._sequence.task(index))
        return _GuardedTask(task, what, self.shape, self.classes, self._code)

    def sha256(self, index: int) -> str:
        what = f"{self._where}, sha256 of task {index + 1}"
        found = _checked(what, self._code, lambda: self._sequence.sha256(index))
        if not isinstance(found, str) or not found:
            raise BadInput(f"{what} is {found!r}; give a hash over samples, splits and transform as text")
        return found

    def transform(self, index: int) -> Transform:
        what = f"{self._where}, transform of task {index + 1}"
        found = _checked(what, self._code, lambda: self._sequence.transform(index))
        if not isinstance(found, Transform):
            raise BadInput(f"{what} is {_kind(found)}; give a clnp.tasks.Transform")
        return found


class _GuardedTask:
    def __init__(self, task: Any, what: str, shape: tuple[int, ...], classes: int, code: abc.Sequence[str]) -> None:
        self._task = task
        self._what = what
        self._shape = shape
        self._classes = classes
        self._code = code

    @cached_property
    def train(self) -> Split:
        return self._split("train", lambda: self._task.train)

    @cached_property
    def validation(self) -> Split:
        return self._split("validation", lambda: self._task.validation)

    def open_test(self) -> Split:
        return self._split("test", lambda: self._task.open_test())

    def _split(self, name: str, read: Callable[[], Any]) -> Split:
        what = f"{self._what}, {name} split"
        split, x, y = _checked(what, self._code, lambda: _fields(read()))
        if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
            raise BadInput(f"{what} is {_kind(split)}; give a clnp.tasks.Split of tensors x and y")
        if x.dtype != torch.float32 or tuple(x.shape[1:]) != self._shape:
            raise BadInput(
                f"{what}: x is {x.dtype} {list(x.shape)}; give torch.float32 [n, {', '.join(map(str, self._shape))}]"
            )
        if y.dtype != torch.int64 or y.shape != x.shape[:1] or not len(y):
            raise BadInput(f"{what}: y is {y.dtype} {list(y.shape)}; give torch.int64 [{max(1, len(x))}]")
        if not 0 <= int(y.min()) <= int(y.max()) < self._classes:
            raise BadInput(
                f"{what}: y goes from {int(y.min())} to {int(y.max())}; with {self._classes} classes it is 0 to "
                f"{self._classes - 1}"
            )
        return split if isinstance(split, Split) else Split(x, y)
