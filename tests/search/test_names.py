"""Names and keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import BadInput
from search.names import artifact_file, cell_key, check_run_name, is_run_name, study_name
from search.records import Cell


@pytest.mark.parametrize("name", ["a", "0", "permuted-mnist", "v1.2_b", "A" * 100])
def test_plain_names_are_taken(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../a", ".hidden", "-f", "_a", "a\n", "ä", "a" * 101, "a;b", "'a'", "a\0"]
)
def test_odd_names_are_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_run_name(name)
    assert str(caught.value).startswith(f"{name!r} cannot name a run: use 1 to 100 letters, digits")
    assert caught.value.exit_code == 2


@given(st.text(max_size=20))
def test_a_name_is_one_part_of_a_path_and_of_a_study_name(name: str) -> None:
    if is_run_name(name):
        assert study_name(name, 0, 3) == f"{name}/replica-0/task-03"
        assert study_name(name, 0, 3).count("/") == 2
        assert name not in (".", "..")
        assert name.isascii()


@given(
    *[
        st.builds(
            Cell,
            st.integers(0, 99),
            st.tuples(st.floats(0, 1), st.floats(0, 1)),
            st.floats(1e-9, 1),
        )
    ]
    * 2
)
def test_a_key_names_the_values_and_not_the_place(one: Cell, other: Cell) -> None:
    same = (one.alpha, one.learning_rate) == (other.alpha, other.learning_rate)
    keys = [cell_key(Cell(0, tuple(a + 0.0 for a in cell.alpha), cell.learning_rate)) for cell in (one, other)]
    assert (keys[0] == keys[1]) == same


def test_keys_and_files_read_as_documented() -> None:
    assert cell_key(Cell(3, (1e-4, 1e-3, 1e-4), 0.002)) == "alpha=0.0001,0.001,0.0001 learning_rate=0.002"
    assert artifact_file("ab" * 32) == f"{'ab' * 32}.safetensors"
