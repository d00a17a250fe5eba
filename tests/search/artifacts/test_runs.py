"""Whole runs whose tensors lie in a folder or in a bucket, through faults too."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import search.building
from search.artifacts import Artifacts
from search.audit import verify
from search.driver import run_experiment
from search.errors import BadInput
from search.experiment import Experiment
from search.records import Provenance
from search.snapshot import Event
from search.store import Store, open_store

PLAIN: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [24, 16]},
    "grid": {"alpha": [1e-4, 1e-3], "learning_rate": [0.01, 1e-7]},
    "training": {"epochs": 1},
    "rule": {"margin": 20},
    "worker": {"gpu": 0},
}
"""Of its four cells two are candidates: the others learn nothing."""


class Noting:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[Event] = []

    def __enter__(self) -> "Noting":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def view() -> Noting:
    search.building.forget()
    return Noting()


@pytest.fixture
def store(sqlite_url: str, location: str) -> Iterator[Store]:
    with open_store(sqlite_url, location) as store:
        yield store


def run(store: Store, view: Noting, **changes: Any) -> Artifacts:
    experiment = Experiment.model_validate({**PLAIN, **changes})
    run_experiment(store, experiment, name="small", backend="inline", view=view)
    row = store.run("small")
    assert row is not None
    return Artifacts(row.artifacts)


def records(store: Store) -> Any:
    """But for when and where they came about."""
    history, nowhere = store.history("small"), Provenance((), "", 0, {})

    def bare(record: Any) -> Any:
        return replace(record, provenance=nowhere, started=0.0, ended=0.0)

    cells = {place: {i: bare(one) for i, one in cells.items()} for place, cells in history.cells.items()}
    return history.openings, cells, {place: bare(one) for place, one in history.commits.items()}


def kept(store: Store, keep: str) -> set[str]:
    """What has to be there of committed tasks."""
    found = set()
    for place, commit in store.history("small").commits.items():
        cells = store.history("small").cells[place]
        which = {"winners": {commit.winner.index}, "candidates": set(commit.candidates), "all": set(cells)}[keep]
        assert commit.winner.index in which
        found |= {commit.artifact, *(cells[index].artifact for index in which)}
    return {artifact for artifact in found if artifact}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The records of a run in a folder to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with open_store(f"sqlite:///{folder / 'store.db'}") as store:
        run(store, Noting())
        return records(store)


def test_where_tensors_lie_changes_no_record(store: Store, location: str, view: Noting, undisturbed: Any) -> None:
    """Promise 3. The run is continued where it is, without being told again where that is."""
    run(store, view, tasks={"count": 1})
    with open_store(store.url) as again:
        artifacts = run(again, view)
        assert records(again) == undisturbed
        assert set(artifacts.list()) == kept(again, "winners")
        assert artifacts.location.startswith(f"{location}/small-")
        assert verify(again, "small")["sound"]
        assert again.delete("small").artifacts == 4
    assert not artifacts.exists()
    assert view.notes == []


@pytest.mark.parametrize("keep", ["winners", "candidates", "all"])
def test_what_is_kept(store: Store, view: Noting, keep: str) -> None:
    artifacts = run(store, view, keep=keep, tasks={"count": 1})
    assert set(artifacts.list()) == kept(store, keep)
    assert len(artifacts.list()) == {"winners": 2, "candidates": 3, "all": 5}[keep]
    assert verify(store, "small")["sound"]


@pytest.mark.parametrize("location", ["folder", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_keeping_less_later_gives_up_what_was_kept_and_keeping_more_brings_nothing_back(
    store: Store, view: Noting
) -> None:
    """Of a run that is finished, of all its tasks; a stopped one: the same code before its first job."""
    for keep, there in (("all", "all"), ("candidates", "candidates"), ("winners", "winners"), ("all", "winners")):
        artifacts = run(store, view, keep=keep)
        assert set(artifacts.list()) == kept(store, there)
        row = store.run("small")
        assert row is not None
        assert row.experiment["keep"] == keep
        assert verify(store, "small")["sound"]
    attempts = len(store.attempts("small"))
    run(store, view, keep="all")
    assert len(store.attempts("small")) == attempts, "nothing is left to do"


@pytest.fixture
def outage(gate: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The server goes away before the so many-th upload of a run, and comes back after a while."""
    put = Artifacts.put

    def arrange(number: int) -> None:
        puts = 0

        def break_off(self: Artifacts, data: bytes) -> str:
            nonlocal puts
            puts += 1
            if puts == number:
                gate.close_door((503, "SlowDown"))
                threading.Timer(2.5, gate.open_door).start()
            return put(self, data)

        monkeypatch.setattr(Artifacts, "put", break_off)

    return arrange


@pytest.mark.parametrize(
    "upload", [pytest.param(3, id="of a cell"), pytest.param(5, id="of a commit", marks=pytest.mark.slow)]
)
def test_a_server_that_is_away_loses_nothing_that_was_trained(
    s3: str, sqlite_url: str, outage: Callable[[int], None], view: Noting, undisturbed: Any, upload: int
) -> None:
    """One line an outage; no job is lost, and the records are those of a run to which nothing happened."""
    outage(upload)
    with open_store(sqlite_url, s3) as store:
        run(store, view)
        assert records(store) == undisturbed
        assert store.history("small").losses == []
    (told,) = [event.text for event in view.events if event.kind == "worker waits"]
    assert f"artifacts in {s3}/small-" in told
    assert told.endswith("Service Unavailable); waiting for it, for 10 min 00 s at most")
    assert [event for event in view.events if event.kind == "job lost"] == view.notes == []


@pytest.mark.slow
def test_the_driver_waits_too(
    s3: str, sqlite_url: str, gate: Any, view: Noting, monkeypatch: pytest.MonkeyPatch, undisturbed: Any
) -> None:
    """When it removes what was given up."""
    remove, seen = Artifacts.remove, []

    def break_off(self: Artifacts, sha256: str) -> bool:
        if not seen:
            gate.close_door()
            threading.Timer(2.5, gate.open_door).start()
        seen.append(sha256)
        return remove(self, sha256)

    monkeypatch.setattr(Artifacts, "remove", break_off)
    told: list[str] = []
    with open_store(sqlite_url, s3, on_outage=told.append) as store:
        run(store, view)
        assert records(store) == undisturbed
    assert len(told) == 1
    assert "closes the connection" in told[0]


def test_a_place_that_cannot_be_used_is_refused_before_there_is_a_run(s3: str, sqlite_url: str, view: Noting) -> None:
    """Promise 8."""
    with open_store(sqlite_url, "s3://other/prefix") as store:
        with pytest.raises(BadInput, match=r"^artifacts cannot be written in s3://other/prefix: there is no bucket"):
            run(store, view)
        assert store.runs() == []


@pytest.mark.slow
def test_tensors_that_went_from_a_folder_to_a_bucket(
    s3: str, sqlite_url: str, tmp_path: Path, view: Noting, undisturbed: Any
) -> None:
    """Somebody copies them; before that the run is not continued there."""
    with open_store(sqlite_url, str(tmp_path / "here")) as store:
        artifacts = run(store, view, tasks={"count": 1})
    with open_store(sqlite_url, s3) as store:
        with pytest.raises(
            BadInput, match=r"the tensors of run small are in .*here.*; copy that folder to s3://bucket/"
        ):
            run(store, view)
        there = Artifacts(f"{s3}/{Path(artifacts.location).name}")
        for sha256 in artifacts.list():
            there.put(artifacts.get(sha256))
        assert run(store, view).location == there.location
        assert records(store) == undisturbed
        assert verify(store, "small")["sound"]
