"""The command line, in this process and on real data; where imports matter, in a process of its own."""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from search.cli import main
from search.store import open_store

ROOT = Path(__file__).parents[2]

EXPERIMENT = {
    "name": "small",
    "tasks": {"count": 2},
    "model": {"hidden": [24, 24]},
    "replicas": 2,
    "grid": {"alpha": [0.0003, 0.001], "learning_rate": [0.01]},
    "training": {"epochs": 3},
    "rule": {"margin": 3.0},
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _no_storage_variable(monkeypatch):
    monkeypatch.delenv("CLNP_SEARCH_STORAGE", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run that was made by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    storage = f"sqlite:///{folder / 'small.db'}"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = main(["run", write(folder), "--backend", "inline", "--storage", storage])
    assert code == 0, err.getvalue()
    return folder, storage, out.getvalue(), err.getvalue()


@pytest.fixture
def storage(finished):
    return finished[1]


def test_run_ends_with_its_tables_and_tells_its_events_on_stderr(finished):
    _, _, out, err = finished
    assert out.count("measured again after each commit") == 2
    assert "4 commits, 0 of 2 old fingerprints changed" in out
    assert err.count("task committed") == 4
    assert err.splitlines()[-1].endswith("run finished: all tasks are committed: 2 in each replica")


def test_a_finished_run_prints_its_table_again(finished, storage, capsys):
    folder, _, out, _ = finished
    assert main(["run", str(folder / "experiment.yaml"), "--backend", "inline", "--storage", storage]) == 0
    assert capsys.readouterr().out == out
    assert main(["resume", "small", "--backend", "inline", "--storage", storage]) == 0
    assert capsys.readouterr().out == out


COMMANDS = {
    "experiments": ["experiments"],
    "plan": ["plan", "quickstart"],
    "status": ["status", "small"],
    "show": ["show", "small", "--task", "2", "--replica", "2"],
    "replay": ["replay", "small", "--margin", "0.5"],
    "verify": ["verify", "small"],
    "gc": ["gc", "small"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_reports_are_tables_or_json_and_change_nothing(finished, storage, capsys, name):
    folder = finished[0]
    before = contents(folder)
    assert main([*COMMANDS[name], "--storage", storage]) == 0
    table = capsys.readouterr().out
    assert main([*COMMANDS[name], "--storage", storage, "--format", "json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert table.strip()
    assert not table.lstrip().startswith("{")
    assert contents(folder) == before


def test_plan_starts_and_writes_nothing(tmp_path, monkeypatch, capsys):
    """Nothing is there afterwards that was not there before, the database least of all."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path)
    before = contents(tmp_path)
    for options in ([], ["--resolved"], ["--schema"], ["--set", "tasks.count=9", "replicas=3"], ["--name", "other"]):
        assert main(["plan", file, *options]) == 0
    assert contents(tmp_path) == before
    assert "no database yet" in capsys.readouterr().out


def test_plan_finds_the_database_by_the_url_that_status_prints(finished, storage, tmp_path, capsys):
    """What a URL cannot hold as it is stands in it with a %."""
    folder = tmp_path / "a@b 100%"
    folder.mkdir()
    shutil.copy(storage.removeprefix("sqlite:///"), folder / "small.db")
    url = f"sqlite:///{quote(str(folder / 'small.db'))}"
    assert main(["status", "--storage", url]) == 0
    assert "1 finished" in capsys.readouterr().out
    assert main(["plan", str(finished[0] / "experiment.yaml"), "--storage", url, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["held"]["state"] == "finished"


def test_plan_refuses_a_database_that_run_would_refuse(tmp_path, capsys):
    file, storage = write(tmp_path), f"sqlite:///{tmp_path / 'nowhere' / 'small.db'}"
    for command in (["plan", file], ["run", file, "--backend", "inline"]):
        assert main([*command, "--storage", storage]) == 2
        assert f"the folder {tmp_path / 'nowhere'} does not exist; make it" in capsys.readouterr().err


def test_plan_resolved_is_an_experiment_file_again(tmp_path, capsys):
    assert main(["plan", write(tmp_path), "--resolved"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(first)
    assert main(["plan", str(tmp_path / "resolved.yaml"), "--resolved"]) == 0
    assert capsys.readouterr().out == first
    assert main(["plan", str(tmp_path / "resolved.yaml"), "--resolved", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(first)


def test_plan_schema_needs_no_experiment(capsys):
    assert main(["plan", "--schema"]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)
    assert main(["plan"]) == 2


def test_verify_of_a_sound_run_is_one_line(storage, capsys):
    """Promise 1."""
    assert main(["verify", "small", "--storage", storage]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing old has changed by a bit: 4 commits, 6 fingerprints, 6 test scores re-measured")
    assert out.count("\n") == 1


def test_verify_of_a_damaged_run_ends_with_3(finished, tmp_path, capsys):
    storage, commit = damaged_copy(finished, tmp_path)
    assert main(["verify", "small", "--storage", storage]) == 3
    out = capsys.readouterr().out
    assert f"{commit}.safetensors is damaged" in out
    assert "2 problems" in out.splitlines()[-1]


def test_a_run_that_needs_a_damaged_artifact_ends_with_3(finished, tmp_path, capsys):
    """The message names the file and what can be recovered."""
    storage, commit = damaged_copy(finished, tmp_path)
    file = write(tmp_path, tasks={"count": 3})
    assert main(["run", file, "--backend", "inline", "--storage", storage]) == 3
    err = capsys.readouterr().err
    assert f"{commit}.safetensors" in err
    assert "Put back a copy of the file" in err


def copied(finished, folder: Path) -> str:
    shutil.copytree(finished[0], folder, dirs_exist_ok=True)
    return f"sqlite:///{folder / 'small.db'}"


def damaged_copy(finished, folder: Path) -> tuple[str, str]:
    storage = copied(finished, folder)
    with open_store(storage, create=False) as store:
        commit = store.history("small").commits[0, 0].artifact
        path = Path(store.run("small").artifacts) / f"{commit}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    return storage, commit


def test_a_network_that_is_full_ends_with_the_table_of_what_it_learnt(tmp_path, capsys):
    full = {"model": {"hidden": [8, 4]}, "tasks": {"count": 9}, "replicas": 1, "rule": {"margin": 0.1}}
    run = ["run", write(tmp_path, **full), "--backend", "inline", "--storage", f"sqlite:///{tmp_path / 'full.db'}"]
    assert main(run) == 5
    first = capsys.readouterr()
    assert "commits of 9, 0 of " in first.out.splitlines()[-1]
    assert "replica stopped: no free unit left in hidden2: all 4 are owned" in first.err
    assert "run stopped: 1 of 1 replica cannot go on" in first.err
    assert first.err.count("--name") == 2, "what could be done, with its two --name, is said once"
    assert main(run) == 5
    assert capsys.readouterr().out == first.out
    assert main([*run, "--format", "json"]) == 5
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_who_reads_no_table_is_told_the_exit_code_still(tmp_path, gone):
    """Buffered, as Python has it where nothing else is said, what is written fails when it ends."""
    full = {"model": {"hidden": [8, 4]}, "tasks": {"count": 9}, "replicas": 1, "rule": {"margin": 0.1}}
    run = ["run", write(tmp_path, **full), "--backend", "inline", "--storage", f"sqlite:///{tmp_path / 'full.db'}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    there, here = os.pipe()
    os.close(there)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {gone: here}
    ended = subprocess.run(
        [sys.executable, "-m", "search", *run], env=environment, cwd=ROOT, text=True, check=False, **streams
    )
    os.close(here)
    assert ended.returncode == 5
    said = ended.stdout if gone == "stderr" else ended.stderr
    assert ("commits of 9" if gone == "stderr" else "no free unit left in hidden2") in said
    assert "Traceback" not in said
    assert "Exception" not in said


def test_a_run_that_learnt_nothing_has_no_table(tmp_path, capsys):
    file = write(tmp_path, grid={"alpha": [10.0], "learning_rate": [0.01]}, replicas=1)
    assert main(["run", file, "--backend", "inline", "--storage", f"sqlite:///{tmp_path / 'none.db'}"]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert "no more than always naming the most frequent class" in said.err


def test_tasks_and_replicas_may_grow(finished, tmp_path, capsys):
    storage = copied(finished, tmp_path)
    file = write(tmp_path, tasks={"count": 3})
    assert main(["run", file, "--backend", "inline", "--storage", storage, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(replica["tasks"]) for replica in report["replicas"]] == [3, 3]
    assert report["changed"] == 0


def test_a_fork_is_made_continued_and_planned(finished, tmp_path, capsys):
    storage = copied(finished, tmp_path)
    file = write(tmp_path, tasks={"count": 2}, rule={"margin": 5})
    options = [file, "--from", "small", "--task", "1", "--name", "bold", "--storage", storage, "--format", "json"]
    assert main(["plan", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["origin"] == "forked from small after task 1"
    assert [(grid["first"], grid["last"]) for grid in report["grids"]] == [(2, 2)]
    assert main(["run", *options, "--backend", "inline"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(["delete", "small", "--yes", "small", "--storage", storage]) == 0
    capsys.readouterr()
    assert main(["run", *options, "--backend", "inline"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert main(["resume", "bold", "--storage", storage, "--format", "json", "--backend", "inline"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert main(["verify", "bold", "--storage", storage]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "small"], "--from needs --task T: a fork begins with the first T tasks of run NAME"),
        (["--task", "1"], "--task needs --from NAME: a fork begins with the first T tasks of run NAME"),
        (["--from", "small", "--task", "1"], "--from small: this is the new run's own name"),
        (["--from", "small", "--task", "3", "--name", "new"], "has committed 2 tasks, and --task is 3"),
    ],
)
def test_what_cannot_be_forked_ends_with_2(finished, storage, capsys, options, said):
    """Promise 8."""
    before = contents(finished[0])
    file = str(finished[0] / "experiment.yaml")
    for command in (["run", file, "--backend", "inline"], ["plan", file]):
        assert main([*command, *options, "--storage", storage]) == 2
        assert said in capsys.readouterr().err
    assert contents(finished[0]) == before


def test_a_fork_needs_a_database(tmp_path, capsys):
    storage = f"sqlite:///{tmp_path / 'none.db'}"
    for command in ("plan", "run"):
        fork = [command, write(tmp_path), "--from", "other", "--task", "1", "--storage", storage]
        assert main(fork) == 2
        assert "--from other: no run is called that" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_an_option_that_is_none_gets_the_usage_of_its_command(capsys):
    wanted = {"--fromat": "did you mean --format?", "--zzz": "clnp-search status --help says what it takes"}
    for option, hint in wanted.items():
        with pytest.raises(SystemExit, match="2"):
            main(["status", option, "json"])
        said = capsys.readouterr().err
        assert said.startswith("usage: clnp-search status ")
        assert said.endswith(f"clnp-search status: error: unrecognized arguments: {option}; {hint}\n")


def test_delete_asks_for_the_name(finished, tmp_path, monkeypatch, capsys):
    delete = ["delete", "small", "--storage", copied(finished, tmp_path)]
    before = contents(tmp_path)
    for typed in ("", "yes\n", "Small\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert main(delete) == 2
        wanted = f"'{typed.strip()}' is not 'small'" if typed else "nothing was typed, and nothing was deleted"
        assert wanted in capsys.readouterr().err
    assert main([*delete, "--yes", "other"]) == 2
    assert contents(tmp_path) == before
    assert "nothing was deleted" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("small\n"))
    assert main(delete) == 0
    assert capsys.readouterr().out.startswith("small is deleted: 4 Optuna studies, ")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_delete_says_that_the_tensors_may_be_on_a_share_that_is_away(finished, tmp_path, monkeypatch, capsys):
    delete = ["delete", "small", "--storage", copied(finished, tmp_path)]
    (tmp_path / "clnp-search-artifacts").rename(tmp_path / "away")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(delete) == 2
    assert "is not there; if it is on a share that is away, its tensors stay there." in capsys.readouterr().err


# Sequences of images


IMAGES = {
    "model": {"hidden": [160, 160]},
    "head": "multi",
    "validation": 0.3,
    "replicas": 1,
    "grid": {"alpha": [0.0001], "learning_rate": [0.002]},
    "training": {"epochs": 12, "batch_size": 4},
    "rule": {"margin": 10},
}
SPLIT_CIFAR = {**IMAGES, "tasks": {"kind": "split-cifar", "count": 2, "order": "shuffled"}}


def test_split_cifar_runs_and_is_verified(small_cifar, tmp_path, capsys):
    """On files of the real format, through torchvision's own loaders."""
    storage, data = f"sqlite:///{tmp_path / 'a.db'}", ["--data-dir", str(small_cifar)]
    file = write(tmp_path, **SPLIT_CIFAR)
    assert main(["run", file, *data, "--backend", "inline", "--storage", storage, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["changed"] == 0
    assert len(report["replicas"][0]["tasks"]) == 2
    assert main(["verify", "small", *data, "--storage", storage]) == 0
    assert main(["status", "small", "--storage", storage]) == 0
    assert "2 tasks of cifar-10 and cifar-100, multi head" in capsys.readouterr().out


def test_the_plan_of_data_that_are_absent_is_made_and_warns(tmp_path, monkeypatch, capsys):
    """The run is refused, with what to do, before anything starts."""
    nowhere = ["--data-dir", str(tmp_path / "nowhere")]
    narrow = {"kind": "split-cifar-narrow"}
    file = write(tmp_path, **{**SPLIT_CIFAR, "tasks": {"kind": "split-cifar", "count": 11}, "model": narrow})
    assert main(["plan", file, *nowhere, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tasks"], report["count"], report["shape"]) == ("cifar-10 and cifar-100", 11, [3, 32, 32])
    assert re.search(r"CIFAR-10 is not in .*nowhere.*CIFAR-100 is not in", report["warnings"][-1], re.DOTALL)
    message = r"CIFAR-10 is not in .*: data_batch_1 is missing. Get it with\n  python -c .*download\('cifar-10', "
    refused(tmp_path, monkeypatch, capsys, ["run", file, "--backend", "inline", *nowhere], message)


def test_a_batch_file_that_is_another_is_refused(small_cifar, tmp_path, monkeypatch, capsys):
    """Promise 7: it is not unpickled."""
    (small_cifar / "cifar-100-python" / "meta").write_bytes(b"cos\nabort\n(tR.")  # would end this process
    run = ["run", write(tmp_path, **SPLIT_CIFAR), "--backend", "inline", "--data-dir", str(small_cifar)]
    refused(tmp_path, monkeypatch, capsys, run, r"meta is not the file of CIFAR-100: its MD5 is .*get it again with")


def test_the_network_of_an_inverted_task_answers_raw_images(small_mnist, tmp_path, capsys):
    """What the file holds turns black into white itself: its answers are right as often as the run's were."""
    from clnp.export import load
    from clnp.tasks.vision import read_images

    storage, data = f"sqlite:///{tmp_path / 'a.db'}", ["--data-dir", str(small_mnist)]
    file = write(tmp_path, **{**IMAGES, "tasks": {"kind": "views", "count": 5}})
    assert main(["run", file, *data, "--backend", "inline", "--storage", storage, "--format", "json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["replicas"][0]["tasks"]
    for task in (3, 5):  # MNIST by a quarter turn, and inverted
        path = tmp_path / f"{task}.safetensors"
        assert main(["export", "small", "--task", str(task), "--to", str(path), *data, "--storage", storage]) == 0
        images, labels = read_images("mnist", small_mnist, test=True)
        found = load(path)(images.reshape(-1, 1, 28, 28)).argmax(1)
        assert int((found == labels).sum()) == tasks[task - 1]["test"]["correct"]


# Where the database is named


def test_the_storage_option_comes_first_then_the_file_then_the_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = {}
    for name in ("option", "file", "variable", "clnp-search"):
        named[name] = f"sqlite:///{tmp_path / name}.db"
        (tmp_path / f"{name}.db").touch()
    (tmp_path / "url").write_text(named["file"] + "\nnot this line\n")
    options = ["--storage-file", "url", "--storage", named["option"]]
    for found in ("option", "file", "variable", "clnp-search"):
        if found == "file":
            options = options[:2]
        elif found == "variable":
            options = []
            monkeypatch.setenv("CLNP_SEARCH_STORAGE", named["variable"])
        elif found == "clnp-search":
            monkeypatch.delenv("CLNP_SEARCH_STORAGE")
        assert main(["status", *options]) == 2
        assert f"{found}.db holds no runs" in capsys.readouterr().err


# Bad input: a message of its own, exit code 2, nothing written


BAD_EXPERIMENTS = {
    "unknown key": ({"replica": 3}, r"replica is not a known key; did you mean replicas\?"),
    "wrong type": ({"replicas": "two"}, r'replicas is "two"; '),
    "empty grid": ({"grid": {"alpha": [], "learning_rate": [0.01]}}, r"grid.alpha is \[\]; "),
    "duplicate cells": ({"grid": {"alpha": [0.1, 0.1], "learning_rate": [0.01]}}, "makes? the same cells"),
    "negative alpha": ({"grid": {"alpha": [-1.0], "learning_rate": [0.01]}}, "negative"),
    "infinite alpha": ({"grid": {"alpha": [float("inf")], "learning_rate": [0.01]}}, "finite"),
    "learning rate": (
        {"grid": {"alpha": [0.1], "learning_rate": [0]}},
        r"learning_rate\[0\] is 0; give a number above 0",
    ),
    "margin below 0": ({"rule": {"margin": -1}}, r"rule.margin is -1; "),
    "margin above 100": ({"rule": {"margin": 101}}, r"rule.margin is 101; "),
    "alpha list": (
        {"grid": {"alpha": [[0.1, 0.2]], "learning_rate": [0.01]}},
        "one for each of hidden1, hidden2, output",
    ),
    "run name": ({"name": "../up"}, "'?.*../up.*beginning with a letter or digit"),
}


@pytest.mark.parametrize("case", BAD_EXPERIMENTS)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_bad_experiment(tmp_path, monkeypatch, capsys, case, command):
    """Promise 8."""
    changes, message = BAD_EXPERIMENTS[case]
    refused(tmp_path, monkeypatch, capsys, [command, write(tmp_path, **changes)], message)


BAD_COMMANDS = {
    "no such experiment": (["run", "quickstar"], "neither a file nor a shipped experiment; did you mean quickstart"),
    "run name": (["run", "quickstart", "--name", "a b"], "'a b' cannot name a run"),
    "set": (["run", "quickstart", "--set", "training.epoch=1"], "did you mean training.epochs"),
    "data missing": (["run", "permuted-mnist-small", "--data-dir", "nowhere"], "nowhere"),
    "unknown driver": (["run", "quickstart", "--storage", "oracle://u:secret@h/d"], "unknown driver 'oracle'"),
    "not a URL": (["status", "--storage", "u:secret@h"], "is not a database URL"),
    "no database": (["status"], "there is no database at"),
    "no folder": (["run", "quickstart", "--storage", "sqlite:///nowhere/a.db"], "does not exist"),
    "no storage file": (["status", "--storage-file", "nowhere"], "--storage-file nowhere: No such file"),
    "empty storage file": (["status", "--storage-file", os.devnull], "its first line is empty"),
    "artifacts in a file": (["run", "quickstart", "--artifacts", "experiment.yaml"], "this is a file; give a folder"),
    "no such GPU": (["run", "quickstart", "--set", "worker.gpu=1"], "a worker needs 1 core and 1 GPU; found: "),
    "margin": (["replay", "small", "--margin", "x"], "there is no database at"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_bad_command(tmp_path, monkeypatch, capsys, case):
    """Promise 8."""
    arguments, message = BAD_COMMANDS[case]
    write(tmp_path)
    err = refused(tmp_path, monkeypatch, capsys, arguments, message)
    assert "secret" not in err


def refused(folder, monkeypatch, capsys, arguments: list[str], message: str) -> str:
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clnp-search: ")
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert contents(folder) == before
    return str(err)


def test_another_experiment_under_the_same_name(finished, storage, tmp_path, capsys):
    file = write(tmp_path, seed=7)
    before = contents(finished[0])
    assert main(["run", file, "--backend", "inline", "--storage", storage]) == 2
    err = capsys.readouterr().err
    assert "seed: was 0, is 7" in err
    assert "--name NEW" in err
    assert contents(finished[0]) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "other"],
        ["show", "other"],
        ["replay", "other", "--margin", "1"],
        ["verify", "other"],
        ["report", "other", "--to", "nowhere"],
        ["delete", "other"],
        ["gc", "other"],
    ],
)
def test_an_unknown_run(storage, capsys, arguments):
    assert main([*arguments, "--storage", storage]) == 2
    assert "no run is called 'other'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "run"])
def test_an_empty_name_is_not_the_experiments(command, tmp_path, monkeypatch, capsys):
    """An unset variable of a script would else continue the run that has it."""
    monkeypatch.chdir(tmp_path)
    assert main([command, write(tmp_path), "--name", ""]) == 2
    assert "'' cannot name a run" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["experiment.yaml"]


def test_an_experiment_after_set_is_told_where_it_belongs(tmp_path, capsys):
    """``--set`` takes all that follows it."""
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--set", "training.epochs=1", write(tmp_path)])
    assert "experiment.yaml: give path.to.key=value, and EXPERIMENT before --set" in capsys.readouterr().err


def test_a_report_to_an_empty_name_is_refused(tmp_path, monkeypatch, capsys):
    """An unset variable of a script would else fill the current folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", "small", "--to", ""]) == 2
    assert "--to is empty; give a folder, such as reports, or . for the current one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_starts_does_not_inherit_the_variable(finished, monkeypatch, capsys):
    """Promise 6: Ray's workers, which are started with this environment, get no credentials."""
    _, storage, *_ = finished
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", storage)
    assert main(["resume", "small"]) == 0
    assert "CLNP_SEARCH_STORAGE" not in os.environ


def test_what_a_run_starts_does_not_inherit_the_password(finished, monkeypatch, capsys):
    """Promise 6: nor what PostgreSQL's own programs take the password from."""
    _, storage, *_ = finished
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    assert main(["resume", "small", "--storage", storage]) == 0
    assert "PGPASSWORD" not in os.environ


def test_a_password_is_never_printed(monkeypatch, capsys):
    """Passwords in URLs are never printed."""
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", "postgresql+psycopg://user:s3cret@127.0.0.1:1/none")
    monkeypatch.setattr("search.whereabouts._SHORT", 0.1)
    assert main(["status"]) == 1
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    assert "127.0.0.1" in err


def test_an_argument_that_is_not_understood_ends_with_2(capsys):
    for arguments in (["frobnicate"], ["show"], ["replay", "small"], ["status", "--format", "xml"], []):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage: clnp-search" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["", "experiments", "plan", "run", "resume", "status", "show", "replay", "verify", "export", "report", "delete"],
)
def test_every_command_has_help_with_an_example(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"] if name else ["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"\n  clnp-search {name or 'run quickstart'}" in out
    assert "--storage" in out or not name


# What is imported


_PROGRAM = """
import sys
from search.cli import main
for arguments in {commands!r}:
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    heavy = [name for name in ("torch", "torchvision", "ray") if name in sys.modules]
    print(arguments[0], code, heavy, file=sys.stderr)
"""


def in_process(*commands: list[str]) -> list[str]:
    """What each command, in a process of their own, came to and had imported by then."""
    program = [sys.executable, "-c", _PROGRAM.format(commands=commands)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    return done.stderr.splitlines()


def test_what_only_reads_records_imports_no_torch_and_no_ray(storage, tmp_path):
    commands = [[*COMMANDS[name], "--storage", storage] for name in ("experiments", "status", "show", "replay")]
    commands.append(["report", "small", "--to", str(tmp_path), "--storage", storage])
    assert in_process(*commands) == ["experiments 0 []", "status 0 []", "show 0 []", "replay 0 []", "report 0 []"]


def test_help_imports_no_torch_and_no_ray_and_is_there_at_once():
    """Start-up in CPU time, since the machine may be busy: the best of three."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = in_process(["run", "--help"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert lines == ["run 0 []"]
    assert min(times) < 0.5


def test_python_does_not_look_through_all_modules_once_more_at_the_end():
    """A second after every run. What is registered first is called last."""
    program = (
        "import atexit, gc; atexit.register(lambda: print('left out', gc.get_freeze_count() > 10_000)); "
        "from search.cli import main; main(['experiments'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("left out True\n")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "search", "--version"], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.startswith("clnp-search ")


def test_a_reader_that_goes_away_is_no_error(storage):
    program = f"{sys.executable} -m search experiments --format json | true"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
