"""``gc``: what no row needs is shown, then removed; what might be needed stays."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import cli
from search.artifacts import Artifacts
from search.errors import BadInput, Unavailable
from search.experiment import Experiment
from search.gc import collect, survey
from search.names import artifact_file
from search.store import Store, open_store

EXPERIMENT = {"name": "run", "tasks": {"count": 2}, "grid": {"alpha": [1e-3], "learning_rate": [0.1, 0.2, 0.3, 0.4]}}


def experiment(keep: str) -> dict[str, Any]:
    return Experiment.model_validate({**EXPERIMENT, "keep": keep}).to_json()


@pytest.fixture
def store(sqlite_url: str, location: str) -> Iterator[Store]:
    with open_store(sqlite_url, location) as store:
        yield store


@pytest.fixture
def filled(store: Store, make: Any) -> dict[str, str]:
    """A run of four cells, the first of them committed; one artifact of each kind, by what it is."""
    return fill(store, make, "run")


def fill(store: Store, make: Any, name: str, keep: str = "candidates") -> dict[str, str]:
    with store.take(name, **{**make.take, "experiment_json": experiment(keep)}) as writer:
        put = writer.artifacts.put
        found = {what: put(f"{name} {what}".encode()) for what in ("winner", "candidate", "loser", "outcast", "commit")}
        writer.open_task(make.opening())
        for index, what in enumerate(("winner", "candidate", "loser", "outcast")):
            writer.add_cell(0, 0, make.record(index, artifact=found[what]), given_up=what == "outcast")
        writer.add_commit(make.commit(artifact=found["commit"]))
        writer.open_task(make.opening(task=1))
        writer.add_cell(0, 1, make.record(0, artifact=put(f"{name} open".encode())))
        found["open"] = put(f"{name} open".encode())
        found["orphan"] = put(f"{name} orphan".encode())
        writer.artifacts.vault.write(f".{artifact_file('0' * 64)}.{'1' * 32}.tmp", b"half")
    return found


def artifacts(store: Store, name: str = "run") -> Artifacts:
    row = store.run(name)
    assert row is not None
    return Artifacts(row.artifacts)


NEEDED = ("winner", "candidate", "commit", "open")


def test_what_no_row_needs_is_shown_and_then_removed(store: Store, filled: dict[str, str]) -> None:
    shown = survey(store)
    assert set(artifacts(store).list()) == set(filled.values()), "nothing is removed by looking"
    (run,) = shown["runs"]
    assert run["given_up"] == {"files": 2, "bytes": len("run loserrun outcast")}
    assert run["orphans"] == {"files": 1, "bytes": len("run orphan")}
    assert run["half_written"] == {"files": 1, "bytes": 4}
    assert (shown["files"], shown["bytes"], shown["removed"]) == (4, 34, False)
    assert collect(store) == {**shown, "removed": True}
    assert set(artifacts(store).list()) == {filled[what] for what in NEEDED}
    assert artifacts(store).half_written() == {}
    assert store.holder("run") is None
    again = collect(store)
    assert (again["files"], again["bytes"]) == (0, 0)
    given_up = {(0, 0, index) for index in (2, 3)}
    assert store.history("run").given_up == given_up, "a reader knows that these are gone"


@pytest.mark.parametrize(("keep", "lost"), [("winners", 3), ("candidates", 2), ("all", 1)])
def test_what_is_given_up_goes_by_what_the_run_keeps(store: Store, make: Any, keep: str, lost: int) -> None:
    fill(store, make, "run", keep)
    assert collect(store, "run")["runs"][0]["given_up"]["files"] == lost


def test_a_run_that_is_driven_is_left_alone(store: Store, make: Any, filled: dict[str, str]) -> None:
    other = fill(store, make, "other")
    with store.take("run", **make.take) as writer:
        orphan = writer.artifacts.put(b"of a job that runs")
        for report in (survey(store), collect(store)):
            skipped = {run["run"]: run["skipped"] for run in report["runs"]}
            assert skipped["run"].startswith(f"is driven by process {os.getpid()} on ")
            assert skipped["other"] is None
        assert orphan in artifacts(store).list()
        assert filled["orphan"] in artifacts(store).list()
        assert set(artifacts(store, "other").list()) == {other[what] for what in NEEDED}
    assert collect(store, "run")["runs"][0]["orphans"]["files"] == 2


def test_what_a_copy_of_the_database_may_need_stays(
    store: Store, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody goes on with a backup elsewhere: what was written since is in no row here."""
    vault, entries = artifacts(store).vault, type(artifacts(store).vault).entries

    def later(self: Any) -> Any:
        found = dict(entries(self))
        name = artifact_file(filled["orphan"])
        found[name] = type(found[name])(found[name].size, time.time() + 3600)
        return found

    monkeypatch.setattr(type(vault), "entries", later)
    (run,) = collect(store)["runs"]
    assert (run["orphans"]["files"], run["younger"]["files"]) == (0, 1)
    assert filled["orphan"] in artifacts(store).list()


def test_places_of_other_databases_are_only_named(store: Store, location: str, filled: dict[str, str]) -> None:
    foreign = Artifacts(f"{location}/theirs-0123abcd")
    foreign.put(b"theirs")
    Artifacts(f"{location}/notes").put(b"no run")
    report = collect(store)
    assert report["unknown"] == [foreign.location]
    assert len(foreign.list()) == 1
    assert collect(store, "run")["unknown"] == []


def test_a_place_that_cannot_be_reached_is_named_and_the_others_are_done(
    sqlite_url: str, s3: str, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with open_store(sqlite_url, str(tmp_path / "here")) as store:
        fill(store, make, "here")
    with open_store(sqlite_url, s3) as store:
        fill(store, make, "there")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        report = collect(store)
        found = {run["run"]: run for run in report["runs"]}
        assert found["here"]["files"] == 4
        assert found["there"]["unreachable"]
        assert "no credentials were found" in found["there"]["skipped"]
        with pytest.raises(Unavailable, match="no credentials were found"):
            survey(store, "there")
    assert cli.main(["gc", "--storage", sqlite_url, "--yes"]) == 1
    assert "left alone" in capsys.readouterr().out


def test_a_share_that_is_away_is_out_of_reach(sqlite_url: str, make: Any, tmp_path: Path) -> None:
    """What it holds is not gone; a run without tensors has nothing there."""
    with open_store(sqlite_url, str(tmp_path / "share")) as store:
        fill(store, make, "run")
        with store.take("empty", **{**make.take, "experiment_json": experiment("all")}):
            pass
        (tmp_path / "share").rename(tmp_path / "aside")
        for report in (survey(store), collect(store)):
            found = {run["run"]: run for run in report["runs"]}
            assert found["run"]["unreachable"]
            assert found["run"]["skipped"].endswith("rows name tensors in it: is it on a share that is away?")
            assert found["empty"]["skipped"] is None
        with pytest.raises(Unavailable, match="is not there, and rows name tensors in it"):
            collect(store, "run")


def test_a_run_that_is_being_deleted_is_named(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, make, "run")
    monkeypatch.setattr(Artifacts, "discard", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.delete("run")
    assert collect(store)["runs"][0]["skipped"] == "is being deleted; end that: clnp-search delete run"


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_a_name_that_is_not_there(store: Store, filled: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="no run is called 'other' in "):
        survey(store, "other")


def test_removal_that_is_cut_off_is_done_again(
    store: Store, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "remove", _interrupt)
        with pytest.raises((KeyboardInterrupt, TypeError)):
            collect(store)
    assert collect(store)["files"] == 4
    assert set(artifacts(store).list()) == {filled[what] for what in NEEDED}


# The command


class Terminal:
    """An input that is a terminal, at which something is typed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.text


@pytest.fixture
def command(sqlite_url: str, tmp_path: Path, make: Any) -> Callable[..., Artifacts]:
    """A run, and the command on it."""
    with open_store(sqlite_url, str(tmp_path / "artifacts")) as store:
        fill(store, make, "run")
        found = artifacts(store)

    def call(*words: str) -> Artifacts:
        assert cli.main(["gc", "--storage", sqlite_url, *words]) == 0
        return found

    return call


@pytest.mark.parametrize(("typed", "left"), [("yes\n", 4), ("y\n", 7), ("", 7)])
def test_it_asks_on_a_terminal(
    command: Callable[..., Artifacts], monkeypatch: pytest.MonkeyPatch, capsys: Any, typed: str, left: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert len(command().list()) == left
    output, errors = capsys.readouterr()
    assert "4 files, 34 B, to remove; --yes does it" in output
    assert ("4 files, 34 B, removed" in output) == (left == 4)
    assert "Type yes to remove them: " in errors
    assert ("nothing was removed" in errors) == (left == 7)


def test_without_a_terminal_it_only_shows(command: Callable[..., Artifacts], capsys: Any) -> None:
    assert len(command("run").list()) == 7
    assert len(command("--format", "json").list()) == 7
    shown = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert (shown["removed"], shown["files"]) == (False, 4)


def test_yes_removes_without_asking(command: Callable[..., Artifacts], capsys: Any) -> None:
    assert len(command("run", "--yes", "--format", "json").list()) == 4
    assert json.loads(capsys.readouterr().out)["removed"] is True
    command("--yes")
    assert "nothing to remove" in capsys.readouterr().out
