"""``export``: the file answers as the canonical evaluator does, and what cannot be written is refused."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
import yaml

import search.export
from clnp.evaluation import logits
from clnp.export import UnsupportedExport, load
from clnp.subnetwork import subnetwork
from clnp.tasks.base import read_samples
from search.artifacts import Artifacts
from search.building import assemble, build_sequence
from search.cli import main
from search.experiment import Experiment
from search.records import Committed
from search.store import open_store

EXPERIMENT = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [24, 24]},
    "replicas": 2,
    "grid": {"alpha": [0.001], "learning_rate": [0.01]},
    "training": {"epochs": 3},
    "rule": {"margin": 3.0},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    storage = f"sqlite:///{folder / 'small.db'}"
    assert main(["run", str(folder / "experiment.yaml"), "--backend", "inline", "--storage", storage]) == 0
    return folder


@pytest.fixture
def storage(made: Path) -> str:
    return f"sqlite:///{made / 'small.db'}"


@pytest.mark.parametrize(("task", "replica"), [(1, 1), (2, 2)])
def test_the_file_gives_the_canonical_evaluator_s_answers(
    storage: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: int, replica: int
) -> None:
    """With the task's permutation and scaling in it: raw pixels in, logits out, bit for bit."""
    file = tmp_path / "task.safetensors"
    where = ["--storage", storage, "--format", "json"]
    assert main(["export", "small", "--task", str(task), "--replica", str(replica), "--to", str(file), *where]) == 0
    report = json.loads(capsys.readouterr().out)
    with open_store(storage, create=False) as store:
        row, history = store.run("small"), store.history("small")
    assert row is not None
    experiment = Experiment.from_json(row.experiment)
    records = [history.commits[replica - 1, one] for one in range(task)]
    assert report["fingerprint"] == records[-1].fingerprint
    assert report["size"] == file.stat().st_size
    assert report["units"] == {f"hidden{layer + 1}": units for layer, units in enumerate(used(records))}
    commits = [Committed(one.task, one.artifact, one.fingerprint, one.widths) for one in records]
    network = assemble(experiment, commits, Artifacts(row.artifacts))
    raw = read_samples("digits", test=True).x
    x = build_sequence(experiment, replica - 1).task(task - 1).open_test().x
    assert torch.equal(logits(load(file), raw.float()), logits(subnetwork(network, task - 1), x))


def used(records: list) -> tuple[int, ...]:
    """Units that the last of these tasks is computed from: of the last hidden layer its own alone (single head)."""
    return sum(record.claimed[0] for record in records), records[-1].claimed[1]


def test_it_says_in_a_line_what_was_written(storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "task.pt2"
    assert main(["export", "small", "--task", "1", "--to", str(file), "--storage", storage]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file} (")
    assert "task 1 of small, replica 1, as torch.export" in line
    assert "units of 24 + 24, fingerprint checked" in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["other", "--task", "1", "--to", "x.onnx"], "no run is called 'other'"),
        (["small", "--task", "3", "--to", "x.onnx"], "--task 3: run 'small' has tasks 1 to 2"),
        (["small", "--task", "0", "--to", "x.onnx"], "--task 0: run 'small' has tasks 1 to 2"),
        (["small", "--task", "1", "--replica", "3", "--to", "x.onnx"], "--replica 3: run 'small' has replicas 1 to 2"),
        (["small", "--task", "1", "--to", "x.pkl"], "--to x.pkl: the ending chooses the format; give one of .safete"),
        (["small", "--task", "1", "--to", "no/x.onnx"], "--to no/x.onnx: the folder no does not exist; make it"),
        (["small", "--task", "1", "--to", "folder.onnx"], "--to folder.onnx is a folder; give the path of a file"),
    ],
)
def test_bad_input_is_refused(
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    """Promise 8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    assert main(["export", *arguments, "--storage", storage]) == 2
    assert problem in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_folder_that_may_not_be_written_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody
) -> None:
    database = shutil.copytree(made, tmp_path / "copy") / "small.db"
    for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]:
        path.chmod(0o777)
    (tmp_path / "closed").mkdir(mode=0o555)
    as_nobody()
    file = tmp_path / "closed" / "task.onnx"
    assert main(["export", "small", "--task", "1", "--to", str(file), "--storage", f"sqlite:///{database}"]) == 2
    assert f"no permission to write in {tmp_path / 'closed'}; give another path" in capsys.readouterr().err


def test_a_missing_package_is_said(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(*_: object) -> None:
        raise UnsupportedExport("an .onnx file needs the package onnx, which is not installed: pip install …")

    monkeypatch.setattr(search.export, "save", save)
    file = tmp_path / "task.onnx"
    assert main(["export", "small", "--task", "1", "--to", str(file), "--storage", storage]) == 2
    assert f"--to {file}: an .onnx file needs the package onnx" in capsys.readouterr().err


def test_a_task_that_is_not_committed_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = shutil.copytree(made, tmp_path / "copy") / "small.db"
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM clnp_commits WHERE task = 1")
    connection.close()
    arguments = ["--to", str(tmp_path / "x.onnx"), "--storage", f"sqlite:///{database}"]
    assert main(["export", "small", "--task", "2", *arguments]) == 2
    assert "task 2 is not committed yet; task 1 is" in capsys.readouterr().err


def test_nothing_is_written_of_what_is_damaged(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fingerprint is checked first."""
    database = shutil.copytree(made, tmp_path / "copy") / "small.db"
    with sqlite3.connect(database) as connection:
        (text,) = connection.execute("SELECT record FROM clnp_commits WHERE task = 0 AND replica = 0").fetchone()
        record = json.loads(text)
        record["fingerprints"][0] = "0" * 64
        connection.execute("UPDATE clnp_commits SET record = ? WHERE task = 0 AND replica = 0", (json.dumps(record),))
    connection.close()
    file = tmp_path / "x.safetensors"
    assert main(["export", "small", "--task", "2", "--to", str(file), "--storage", f"sqlite:///{database}"]) == 3
    assert f"the ledger says {'0' * 64}" in capsys.readouterr().err
    assert not file.exists()


def test_other_data_are_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = shutil.copytree(made, tmp_path / "copy") / "small.db"
    with sqlite3.connect(database) as connection:
        (text,) = connection.execute("SELECT record FROM clnp_openings WHERE task = 0 AND replica = 0").fetchone()
        changed = json.dumps({**json.loads(text), "data": "0" * 64})
        connection.execute("UPDATE clnp_openings SET record = ? WHERE task = 0 AND replica = 0", (changed,))
    connection.close()
    arguments = ["--to", str(tmp_path / "x.onnx"), "--storage", f"sqlite:///{database}"]
    assert main(["export", "small", "--task", "1", *arguments]) == 2
    assert "the data are other than the run's" in capsys.readouterr().err
