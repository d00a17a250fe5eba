"""The kinds of value an experiment file holds, each with its own words for what is wrong with another."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from search.names import RUN_NAME_RULE, is_run_name
from search.yaml_file import Path

__all__ = [
    "Auto",
    "CLASSES",
    "Classes",
    "Count",
    "Epochs",
    "Flag",
    "Gpus",
    "LearningRate",
    "LayerAlpha",
    "Margin",
    "Momentum",
    "Natural",
    "Options",
    "OrAuto",
    "Penalty",
    "Percent",
    "RunName",
    "Share",
    "Text",
    "Units",
    "Width",
    "choice",
    "given",
    "is_own",
    "listed",
    "or_own",
    "refusal",
    "refuse",
]

Auto = Literal["auto"]


def refusal(mend: str) -> PydanticCustomError:
    """What a validator raises: ``mend`` says what to write instead. The message names the value."""
    return PydanticCustomError("mend", "{mend}", {"mend": mend})


def given(why: str) -> PydanticCustomError:
    """What a validator raises of a key that is not to be given at all: ``--set`` takes it away by null."""
    return PydanticCustomError("given", "{mend}", {"mend": f"{why}: leave it out"})


def refuse(problems: Iterable[tuple[Path, object, str]]) -> None:
    """Raise all ``(path, value found, how to mend it)`` at once, if there are any, from within a validator."""
    details = [InitErrorDetails(type=refusal(mend), loc=path, input=found) for path, found, mend in problems]
    if details:
        raise ValidationError.from_exception_data("experiment", details)


def _number(value: object, mend: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(mend)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise refusal(f"that is not a finite number: {mend}")
    return number + 0.0  # -0.0 becomes 0.0


def _real(mend: str, fits: Callable[[float], bool]) -> BeforeValidator:
    def read(value: object) -> float:
        number = _number(value, mend)
        if not fits(number):
            raise refusal(mend)
        return number

    return BeforeValidator(read)


_TOO_LARGE = 2**63


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < _TOO_LARGE


def _whole(low: int, mend: str | None = None) -> BeforeValidator:
    def read(value: object) -> object:
        if not _is_whole(value, low):
            large = isinstance(value, int) and value >= _TOO_LARGE
            otherwise = f"give a whole number of at least {low}" if mend is None else mend
            raise refusal("it is too large: give one below 2**63" if large else otherwise)
        return value

    return BeforeValidator(read)


Count = Annotated[int, Field(ge=1), _whole(1)]
Natural = Annotated[int, Field(ge=0), _whole(0)]
CLASSES = "give how many classes each task of a split has, at least 2"
"""What to write for :data:`Classes`."""
Classes = Annotated[int, Field(ge=2), _whole(2, CLASSES)]


def _epochs(value: object) -> object:
    if value is None:
        return ()
    mend = "give rising whole numbers of at least 1, such as [5, 10]"
    if not isinstance(value, list | tuple) or not all(_is_whole(one, 1) for one in value):
        raise refusal(mend)
    if any(now <= before for before, now in itertools.pairwise(value)):
        raise refusal(f"they do not rise: {mend}")
    return value


Epochs = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_epochs)]
"""Epochs at which something happens, each after the one before; none of them, or null: never."""

Share = Annotated[
    float, Field(gt=0, lt=1), _real("give a share of the training set, above 0 and below 1", lambda x: 0 < x < 1)
]
LearningRate = Annotated[float, Field(gt=0), _real("give a number above 0", lambda x: x > 0)]
Momentum = Annotated[
    float, Field(ge=0, lt=1), _real("give a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)
]
Penalty = Annotated[float, Field(ge=0), _real("give a number of at least 0", lambda x: x >= 0)]
Width = Annotated[float, Field(gt=0), _real("give a number above 0", lambda x: x > 0)]
# Far more than any layer needs: a slip of the pen would stand in an opening, which nothing takes back.
_MOST_UNITS = 100_000
Units = Annotated[
    float,
    Field(gt=0, le=_MOST_UNITS),
    _real(
        f"give a share of the first width, above 0 and below 1, or a whole number of units, {_MOST_UNITS:,} at most",
        lambda x: 0 < x < 1 or (1 <= x <= _MOST_UNITS and x.is_integer()),
    ),
]
"""Units: a share of a width, below 1, or a whole number of them."""


def _one_or_more(mend: str, wrong: str, fits: Callable[[float], bool]) -> BeforeValidator:
    def read(value: object) -> object:
        several = list(value) if isinstance(value, list | tuple) else None
        numbers = [_number(one, mend) for one in ([value] if several is None else several)]
        if not all(map(fits, numbers)):
            raise refusal(f"{wrong}: {mend}")
        return numbers[0] if several is None else numbers

    return BeforeValidator(read)


_Alpha = Annotated[float, Field(ge=0)]
LayerAlpha = Annotated[
    _Alpha | tuple[_Alpha, ...],
    _one_or_more(
        "give a number of at least 0, or a list of them, one a layer",
        "a negative α would make weights grow",
        lambda alpha: alpha >= 0,
    ),
]
"""α for all layers, or one a layer, the output layer's last."""

_Percent = Annotated[float, Field(ge=0, le=100)]
Percent = Annotated[_Percent, _real("give 0 to 100 percentage points", lambda x: 0 <= x <= 100)]
Margin = Annotated[
    _Percent | tuple[_Percent, ...],
    _one_or_more(
        "give a number of them, or a list with one a task",
        "a margin is 0 to 100 percentage points",
        lambda margin: 0 <= margin <= 100,
    ),
]


def _or_auto(value: object) -> object:
    if value != "auto" and not _is_whole(value, 1):
        raise refusal("give auto, or a whole number of at least 1")
    return value


OrAuto = Annotated[Auto | Annotated[int, Field(ge=1)], BeforeValidator(_or_auto)]


def _gpus(value: object) -> object:
    mend = "give auto, 0, a share of one GPU such as 0.5, or a whole number of them"
    if value == "auto":
        return value
    number = _number(value, mend)
    if number < 0 or (number > 1 and not number.is_integer()):
        raise refusal(mend)
    return number


Gpus = Annotated[Auto | Annotated[float, Field(ge=0)], BeforeValidator(_gpus)]


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise refusal("give true or false")
    return value


Flag = Annotated[bool, BeforeValidator(_flag)]


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise refusal("give text; put it in quotes if it reads as something else")
    return value


Text = Annotated[str, BeforeValidator(_text)]


def _run_name(value: object) -> object:
    if not isinstance(value, str) or not is_run_name(value):
        raise refusal(RUN_NAME_RULE)
    return value


RunName = Annotated[str, Field(min_length=1, max_length=100), BeforeValidator(_run_name)]


_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_own(kind: str) -> bool:
    """Whether a kind names a function of a person's own: ``module:function``."""
    return _OWN.fullmatch(kind) is not None


def or_own(*words: str) -> BeforeValidator:
    """One of these words, or ``module:function``."""

    def read(value: object) -> object:
        if not isinstance(value, str) or not (value in words or is_own(value)):
            raise refusal(f"give {', '.join(words)}, or a function of your own as module:function")
        return value

    return BeforeValidator(read)


def _options(value: object) -> object:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise refusal("give a section whose keys are names of the function's arguments")
    _check_plain(value)
    return value


def _check_plain(value: object) -> None:
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_plain(key)
            _check_plain(one)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_plain(one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise refusal("a number in it is not finite; give one that is, or text")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise refusal("give plain data: mappings, lists, text, numbers, true, false and null")


Options = Annotated[dict[str, Any], BeforeValidator(_options)]
"""What a person's own function is called with."""


def choice(options: Any) -> BeforeValidator:
    """One of the words of a ``Literal``, or of a tuple."""
    words = options if isinstance(options, tuple) else get_args(options)

    def read(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            raise refusal(f"give {words[0]}" if len(words) == 1 else f"give {', '.join(words[:-1])} or {words[-1]}")
        return value

    return BeforeValidator(read)


def listed(what: str) -> BeforeValidator:
    """A list with at least one entry."""

    def read(value: object) -> object:
        if not isinstance(value, list | tuple) or not value:
            raise refusal(f"give a list of {what}, at least one")
        return value

    return BeforeValidator(read)
