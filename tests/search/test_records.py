"""Records survive JSON bit for bit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clnp.forgetting import Point
from clnp.pace import Pace
from clnp.usage import LayerUse, Usage
from search.records import Cell, CellRecord, CommitRecord, Measured, Memory, Opening, dump, load

finite = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(Point, theta=st.none() | finite)
cells = st.builds(Cell, alpha=st.lists(finite).map(tuple), learning_rate=finite)
layer_uses = st.builds(LayerUse, old_share=st.none() | finite)
usages = st.builds(Usage, layers=st.lists(layer_uses, max_size=3).map(tuple))
records = st.one_of(
    cells,
    points,
    st.builds(Opening, cells=st.lists(cells, max_size=3).map(tuple)),
    st.builds(CellRecord, cell=cells, staircase=st.lists(points, max_size=3).map(tuple), started=finite, ended=finite),
    st.builds(CommitRecord, winner=cells, point=points, usage=usages, started=finite, ended=finite),
    st.builds(
        Measured,
        memory=st.none() | st.builds(Memory),
        pace=st.none() | st.builds(Pace, alone=finite, together=finite, members=st.integers()),
    ),
)


@given(records)
def test_every_record_survives_json_bit_for_bit(record: object) -> None:
    """Promise 3: the database is the only truth, so what comes back is what went in."""
    again = load(type(record), dump(record))
    assert again == record
    assert repr(again) == repr(record)


@given(finite)
def test_floats_keep_every_bit(value: float) -> None:
    again = load(Point, dump(Point(value, 0, (), 0))).theta
    assert again is not None
    assert again.hex() == value.hex()


def test_a_measurement_of_memory_alone_is_read_as_such() -> None:
    """So the version before wrote it: a run that goes on need not measure again."""
    memory = Memory(fixed=1, member=2, total=3, device="cuda")
    assert load(Measured, dump(memory)) == Measured(memory, None)
    with pytest.raises(ValidationError):
        load(Measured, "{}")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"theta": "x", "correct": 1, "claimed": [], "free_weights": 0}'])
def test_a_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        load(Point, text)


def test_a_number_that_is_not_finite_does_not_come_back_as_another() -> None:
    with pytest.raises(ValidationError):
        load(Cell, dump(Cell(0, (math.inf,), 1.0)))
