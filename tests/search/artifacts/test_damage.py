"""A changed artifact is found and named by everybody who reads it."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import search.building
from search.artifacts import Artifacts
from search.audit import verify
from search.driver import run_experiment
from search.errors import Damage
from search.experiment import Experiment
from search.export import export
from search.fork import with_origin
from search.names import artifact_file
from search.reports.replay import replay
from search.reports.show import show
from search.reports.status import status
from search.store import Store, open_store
from search.view import Lines, open_view

PLAIN: dict[str, Any] = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [48, 40]},
    "grid": {"alpha": [1e-3], "learning_rate": [0.01]},
    "training": {"epochs": 2},
    "rule": {"margin": 20},
    "worker": {"gpu": 0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, finished: two tasks of digits."""
    folder = tmp_path_factory.mktemp("finished")
    with open_store(f"sqlite:///{folder / 'store.db'}", str(folder / "artifacts")) as store:
        drive(store, "small")
    return folder


@pytest.fixture
def store(finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A copy of it, to be damaged; its artifacts moved into a bucket where a test asks for one."""
    shutil.copytree(finished, tmp_path / "copy")
    search.building.forget()
    with open_store(f"sqlite:///{tmp_path / 'copy' / 'store.db'}", create=False) as store:
        if request.node.callspec.params["where"] == "s3":
            place = request.getfixturevalue("s3")
            row = store.run("small")
            assert row is not None
            there = Artifacts(f"{place}/{Path(row.artifacts).name}")
            for path in Path(row.artifacts).iterdir():
                there.put(path.read_bytes())
            shutil.rmtree(row.artifacts)
            execute(store, f"UPDATE clnp_runs SET artifacts = '{place}'")
        yield store


def drive(store: Store, name: str, **changes: Any) -> None:
    experiment = Experiment.model_validate({**PLAIN, **changes})
    with open_view(io.StringIO()) as view:
        assert isinstance(view, Lines)
        run_experiment(store, experiment, name=name, backend="inline", view=view)


def execute(store: Store, statement: str) -> None:
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(statement)


# Who reads: each names the artifact that it is to find damaged, and reads it.


def train(store: Store) -> None:
    drive(store, "small", tasks={"count": 3})


def commit(store: Store) -> None:
    """The winner's tensors of a task that is not committed yet."""
    execute(store, "DELETE FROM clnp_commits WHERE task = 1")
    execute(store, "UPDATE clnp_runs SET state = 'open'")
    drive(store, "small")


def fork(store: Store) -> None:
    origin = with_origin(store, Experiment.model_validate({**PLAIN, "tasks": {"count": 3}}), "new", "small", 2)
    with open_view(io.StringIO()) as view:
        run_experiment(store, origin, name="new", backend="inline", view=view)


def cut_out(store: Store) -> None:
    export(store, "small", task=2, file=str(store.database.path) + ".safetensors")


def check(store: Store) -> None:
    """Who finds damage reports it, with exit code 3 in the end."""
    report = verify(store, "small")
    if not report["sound"]:
        raise Damage("\n".join(report["problems"]))


READERS: dict[str, tuple[Callable[[Store], None], str, str]] = {
    "verify": (check, "commit", "replica 1, task 2, the tensors of the commit: "),
    "verify the winner": (check, "winner", "replica 1, task 2, the tensors of cell 0: "),
    "export": (cut_out, "commit", "the tensors of the commit of task 2: "),
    "fork": (fork, "winner", "run small cannot be forked after task 2: replica 1, task 2, the tensors of cell 0: "),
    "training": (train, "commit", "replica 1, task 3: the tensors of the commit of task 2: "),
    "commit": (commit, "winner", "replica 1, task 2: the tensors of cell 0: "),
}

DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "flipped": lambda data, _: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data, _: data[: len(data) // 2],
    "empty": lambda *_: b"",
    "swapped": lambda _, other: other,
    "missing": lambda *_: None,
}


def damage(store: Store, which: str, how: str) -> str:
    """Change an artifact of task 2, and say where it lies."""
    row, history = store.run("small"), store.history("small")
    assert row is not None
    artifacts = Artifacts(row.artifacts)
    chosen, other = history.commits[0, 1].artifact, history.cells[0, 1][0].artifact
    assert other is not None
    if which == "winner":
        chosen, other = other, chosen
    data, others = artifacts.get(chosen), artifacts.get(other)
    changed = DAMAGES[how](data, others)
    if changed is None:
        artifacts.remove(chosen)
    else:
        artifacts.vault.write(artifact_file(chosen), changed)
    if how == "swapped":
        artifacts.vault.write(artifact_file(other), data)
    return f"{artifacts.location}/{artifact_file(chosen)}"


def cases() -> list[Any]:
    """All of them on a folder, one of each kind on a bucket: the rest takes the same way."""
    quick = {("s3", reader, how) for reader, how in zip(READERS, [*DAMAGES, "flipped"], strict=True)}
    quick |= {("folder", reader, how) for reader in ("verify", "training", "commit") for how in DAMAGES}
    quick |= {("folder", reader, "flipped") for reader in READERS}
    return [
        pytest.param(where, reader, how, marks=[] if (where, reader, how) in quick else pytest.mark.slow)
        for where in ("folder", "s3")
        for reader in READERS
        for how in DAMAGES
    ]


@pytest.mark.parametrize(("where", "reader", "how"), cases())
def test_damage_is_found_and_named(store: Store, where: str, reader: str, how: str) -> None:
    """Exit code 3: which file or object, of which task, and how it is mended."""
    read, which, place = READERS[reader]
    path = damage(store, which, how)
    with pytest.raises(Damage) as caught:
        read(store)
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith(place) and path in line]
    assert f"{path} is {'missing' if how == 'missing' else 'damaged'}" in line
    assert "Put back a copy of the file" in line
    assert Damage.exit_code == 3


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_what_is_not_damaged_is_read(store: Store, where: str) -> None:
    """The readers above read what they should."""
    for read in (check, cut_out, fork, commit, train):
        read(store)


@pytest.mark.parametrize("where", ["folder"])
def test_what_needs_no_artifact_reads_none(store: Store, where: str) -> None:
    row = store.run("small")
    assert row is not None
    assert Artifacts(row.artifacts).discard() == 4
    assert status(store, "small")
    assert show(store, "small")
    assert replay(store, "small", "0")
