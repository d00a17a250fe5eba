"""YAML as experiment files use it."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search.errors import BadInput
from search.yaml_file import read_value, read_yaml, show_path

DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e-7", 1e-7),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1e3", -1000.0),
        ("+2", 2),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", -math.inf),
        # text, in YAML 1.2
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_value(text, "file")
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number() -> None:
    read = read_value(".nan", "file")
    assert isinstance(read, float)
    assert math.isnan(read)


class Quoting(yaml.SafeDumper):
    """Writes text in quotes: PyYAML leaves out those that YAML 1.1 can do without, as in ``1e5``."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@settings(deadline=None)
@given(DATA)
@example({"1e5": ["1e5", "0o7", "true", ""], "é\x7f": 1e16})
def test_what_is_written_is_read(data: Any) -> None:
    assert read_value(yaml.dump(data, Dumper=Quoting), "file") == data


def test_every_path_has_its_line() -> None:
    document = read_yaml("a: 1\nb:\n  c:\n    - 2\n    - {d: 3}\n", "file")
    assert document.place(("a",)) == "line 1"
    assert document.place(("b", "c")) == "line 3"
    assert document.place(("b", "c", 1, "d")) == "line 5"
    assert document.place(("b", "c", 1, "unknown", 7)) == "line 5"


def test_duplicate_keys_are_named_with_both_lines() -> None:
    document = read_yaml("a: {x: 1}\nb: 1\na: 2\nc:\n  b: 1\n  b: 2\n  b: 3\n", "file")
    assert [problem.text for problem in document.problems] == [
        "a stands twice, on lines 1 and 3; keep one of them",
        "c.b stands twice, on lines 5 and 6; keep one of them",
        "c.b stands twice, on lines 5 and 7; keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system [echo]", "a has the tag"),
        ("a: !!python/name:os.system", "a has the tag"),
        ("a: !!set {x, y}", "a has the tag"),
        ("a: !!timestamp 2024-01-01", "a has the tag"),
        ("a: !!int many", "a is 'many', not a number that can be read"),
        ("a: !!float ''", "a is '', not a number that can be read"),
        (f"a: {'9' * 5000}", "not a number that can be read"),
        ("a: &b [1, *b]", "a[1] contains itself"),
        ("[1, 2]: 3", "a key of the file is not text"),
    ],
)
def test_data_that_is_not_plain_is_a_problem(text: str, problem: str) -> None:
    """Promise 7: nothing that is read can run code."""
    assert any(problem in one.text for one in read_yaml(text, "file").problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3", "file, line 2, column 2: this is not YAML: "),
        ("a: b: c", "file, line 1, column 5: this is not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "file, line 2, column 1: this is not YAML: "),
        ("a: \0", "file: this is not YAML: "),
        ("a: *b", "file, line 1, column 4: this is not YAML: found undefined alias"),
        ("[" * 5000, "file: nested too deeply to be read"),
    ],
)
def test_what_is_not_yaml_is_refused_where_it_stops(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_yaml(text, "file")
    assert str(caught.value).startswith(message)


def test_aliases_are_values_of_their_own() -> None:
    value: Any = read_value("a: &x [1e-5]\nb: *x", "file")
    assert value == {"a": [1e-5], "b": [1e-5]}
    assert value["a"] is not value["b"]


def test_paths_read_as_in_python() -> None:
    assert show_path(("grid", "alpha", 1, 0)) == "grid.alpha[1][0]"
    assert show_path(()) == "the file"
