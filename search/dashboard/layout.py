"""How Optuna's dashboard keeps notes, figures and files among the attributes of a study.

Its own functions do the same. They are not called, since they take 2 s to import and commit attribute by attribute;
the tests compare.
"""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["file_attributes", "figure_attributes", "note_attributes", "note_text"]

_PIECE = 2045
"""Characters of an attribute at most."""


def note_attributes(text: str, held: Mapping[str, Any], trial_id: int | None = None) -> dict[str, Any]:
    """A note in Markdown, on the study or on one of its trials, in place of one that is there.

    Args:
        held: The study's system attributes.
    """
    version = f"{_note(trial_id)}_ver"
    return {version: held.get(version, 0) + 1, **_pieces(f"{_note(trial_id)}_str:", text, held)}


def note_text(held: Mapping[str, Any], trial_id: int | None = None) -> str:
    """The note that a study, or one of its trials, carries; empty where there is none."""
    return _joined(f"{_note(trial_id)}_str:", held)


def figure_attributes(name: str, figure: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """A figure, as plotly's JSON, in place of one of that name."""
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    return _pieces(f"dashboard:plot_data:{name}:", text, held)


def file_attributes(sha256: str, name: str) -> dict[str, Any]:
    """A file of the artifact store, offered under a name."""
    meta = {"artifact_id": sha256, "filename": name, "mimetype": "application/octet-stream", "encoding": None}
    return {f"artifacts:{sha256}": json.dumps(meta)}


def _note(trial_id: int | None) -> str:
    return "dashboard:note" if trial_id is None else f"dashboard:{trial_id}:note"


def _pieces(prefix: str, text: str, held: Mapping[str, Any]) -> dict[str, Any]:
    """The text in pieces; those that a longer one left over become empty."""
    found = {f"{prefix}{at // _PIECE}": text[at : at + _PIECE] for at in range(0, len(text), _PIECE)}
    return {**dict.fromkeys((key for key in held if key.startswith(prefix)), ""), **found}


def _joined(prefix: str, held: Mapping[str, Any]) -> str:
    count = sum(key.startswith(prefix) for key in held)
    return "".join(held[f"{prefix}{place}"] for place in range(count))
