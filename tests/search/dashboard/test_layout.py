"""What we write is what the dashboard's own functions would write and read."""

import json
from typing import Any

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import get_all_artifact_meta

from search.dashboard.layout import figure_attributes, file_attributes, note_attributes, note_text


def attributes(study: optuna.Study) -> dict[str, Any]:
    return dict(study._storage.get_study_system_attrs(study._study_id))


def carry(study: optuna.Study, values: dict[str, Any]) -> None:
    for key, value in values.items():
        study._storage.set_study_system_attr(study._study_id, key, value)


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: text * 700), min_size=1, max_size=3)


@given(texts=TEXTS)
def test_a_note_is_kept_as_the_dashboard_keeps_it(texts: list[str]) -> None:
    """Longer and shorter ones one after the other: the version counts up, and nothing of an old one is left."""
    theirs, ours = optuna.create_study(), optuna.create_study()
    for text in texts:
        optuna_dashboard.save_note(theirs, text)
        carry(ours, note_attributes(text, attributes(ours)))
        assert attributes(ours) == attributes(theirs)
        assert optuna_dashboard.get_note(ours) == text == note_text(attributes(ours))


@given(texts=TEXTS)
def test_a_trial_s_note_is_kept_as_the_dashboard_keeps_it(texts: list[str]) -> None:
    theirs, ours = optuna.create_study(), optuna.create_study()
    trial, same = theirs.ask(), ours.ask()
    for text in texts:
        optuna_dashboard.save_note(trial, text)
        carry(ours, note_attributes(text, attributes(ours), same._trial_id))
        assert optuna_dashboard.get_note(same) == text == note_text(attributes(ours), same._trial_id)
    assert list(attributes(ours).values()) == list(attributes(theirs).values())


def test_a_figure_is_kept_as_the_dashboard_keeps_it() -> None:
    theirs, ours = optuna.create_study(), optuna.create_study()
    for count in (3000, 10, 800):
        figure = go.Figure({"data": [{"type": "scatter", "x": list(range(count))}], "layout": {"template": {}}})
        optuna_dashboard.save_plotly_graph_object(theirs, figure, graph_object_id="one")
        carry(ours, figure_attributes("one", json.loads(figure.to_json()), attributes(ours)))
        assert attributes(ours) == attributes(theirs)


def test_a_file_is_listed_as_optuna_lists_it() -> None:
    study = optuna.create_study()
    carry(study, file_attributes("a" * 64, "run-task1.safetensors"))
    (meta,) = get_all_artifact_meta(study)
    assert (meta.artifact_id, meta.filename, meta.encoding) == ("a" * 64, "run-task1.safetensors", None)
