"""A person's own network and tasks through the whole command line: from its folder, from another, and on Ray."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.building import forget
from search.cli import main

ROOT = Path(__file__).parents[2]

CODE = """
import torch
from torch import nn
from clnp.tasks import Split, from_function

class Net(nn.Module):
    def __init__(self, shape, classes, width):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.output = nn.Linear(width, classes)
    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.output(self.flatten(self.pool(self.relu(x + self.branch(x)))))

def tasks(count, seed, validation):
    def make(index, test):
        draw = torch.Generator().manual_seed(2 * index + test)
        y = torch.arange(60) % 3
        x = 0.1 * torch.rand(60, 3, 6, 6, generator=draw)
        x[torch.arange(60), (y + index) % 3] += 1
        return Split(x, y)
    return from_function(make, count=count, seed=seed, validation=validation, classes=3)
"""

EXPERIMENT: dict[str, Any] = {
    "name": "own",
    "tasks": {"kind": "myown:tasks", "count": 2},
    "model": {"kind": "myown:Net", "options": {"width": 12}},
    "validation": 0.2,
    "grid": {"alpha": [0.001], "learning_rate": [0.01, 0.02]},
    "training": {"epochs": 12, "batch_size": 8},
    "rule": {"margin": 10},
    "worker": {"gpu": 0, "cells": 1},
    "workers": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    forget()
    sys.modules.pop("myown", None)
    home = tmp_path / "home"
    home.mkdir()
    (home / "myown.py").write_text(CODE)
    (home / "own.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return home


def command(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "search", *arguments],
        cwd=at,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command in this process, as new: to import torch takes longer than what it does. Exit code and errors."""

    def call(*arguments: str, at: Path) -> tuple[int, str]:
        forget()
        sys.modules.pop("myown", None)
        monkeypatch.chdir(at)
        return main(list(arguments)), capsys.readouterr().err

    return call


def test_it_runs_from_anywhere_and_is_read_without_torch(
    folder: Path, tmp_path: Path, inside: Callable[..., tuple[int, str]]
) -> None:
    """The folder of the experiment file is where its code is looked for; who resumes needs neither file nor folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    storage = ["--storage", f"sqlite:///{tmp_path / 'own.db'}"]
    first = command("run", str(folder / "own.yaml"), "--backend", "inline", *storage, at=elsewhere)
    assert first.returncode == 0, first.stderr
    assert "0 of 1 old fingerprints changed" in first.stdout
    code, said = inside("run", str(folder / "own.yaml"), "--backend", "inline", *storage, at=folder)
    assert (code, "run own is finished already" in said) == (0, True), said

    program = (
        "import sys; from search.cli import main\n"
        "for name in ('status', 'show', 'replay'):\n"
        "    extra = ['--margin', '5'] if name == 'replay' else []\n"
        "    assert main([name, 'own', *extra, *sys.argv[1:]]) == 0\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *storage], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stderr.strip() == "[]"
    assert "stem" in done.stdout
    assert "branch" in done.stdout, "weights are of layers, units are of groups"

    more = ["run", str(folder / "own.yaml"), "--set", "tasks.count=3", "--backend", "inline"]
    export = ["export", "own", "--task", "2", "--to", "two.safetensors"]
    for words, at in (
        (more, ROOT),
        (["resume", "own", "--backend", "inline"], elsewhere),
        (["verify", "own"], elsewhere),
        (export, elsewhere),
    ):
        code, said = inside(*words, *storage, at=at)
        assert code == 0, said
    assert (elsewhere / "two.safetensors").exists()

    folder.rename(tmp_path / "moved")
    gone = command("verify", "own", *storage, at=elsewhere)
    assert gone.returncode == 2
    assert re.search(rf"there is no module myown; looked for in {folder}, {elsewhere} and among", gone.stderr)
    code, said = inside("verify", "own", *storage, at=tmp_path / "moved")
    assert code == 0, said


def test_the_workers_of_ray_find_it(folder: Path, tmp_path: Path) -> None:
    storage = ["--storage", f"sqlite:///{tmp_path / 'own.db'}"]
    done = command("run", str(folder / "own.yaml"), *storage, at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 commits, 0 of 1 old fingerprints changed" in done.stdout


def test_nothing_is_made_of_what_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Promise 8: no file, no table, no run."""
    file = str(folder / "own.yaml")
    for name in ("run", "plan"):
        database = tmp_path / f"{name}.db"
        extra = ["--backend", "inline"] if name == "run" else []
        where = ["--storage", f"sqlite:///{database}", *extra]
        assert main([name, file, "--set", "model.kind=myown:Gone", *where]) == 2
        assert f"model.kind: myown:Gone: myown ({folder / 'myown.py'}) has no Gone" in capsys.readouterr().err
        assert not database.exists()


def test_plan_shows_network_and_tasks(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", f"sqlite:///{tmp_path / 'none.db'}"]
    assert main(["plan", str(folder / "own.yaml"), *storage]) == 0
    out = capsys.readouterr().out
    assert "2 of myown:tasks" in out
    assert "myown:Net: 3 × 6 × 6-12-3, single head" in out
    assert main(["plan", str(folder / "own.yaml"), "--resolved", "--format", "json", *storage]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert not {"outline", "code"} & set(resolved)
    again = folder / "again.yaml"
    again.write_text(yaml.safe_dump(resolved))
    assert main(["plan", str(again), *storage]) == 0


LOUD = """
print("imported")

class Loud(Net):
    def __init__(self, shape, classes, width):
        print("made a network")
        super().__init__(shape, classes, width)
    def forward(self, x):
        print("traced")
        return super().forward(x)

def loud(count, seed, validation):
    print("made tasks")
    def make(index, test):
        print("made samples")
        return quiet.samples(index, test=test)
    quiet = tasks(count, seed, validation)
    return from_function(make, count=count, seed=seed, validation=validation, classes=3)
"""


def test_what_own_code_prints_goes_to_standard_error(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output is the command's: its JSON stays JSON."""
    (folder / "myown.py").write_text(CODE + LOUD)
    own = ["--set", "model.kind=myown:Loud", "--set", "tasks.kind=myown:loud"]
    storage = ["--storage", f"sqlite:///{tmp_path / 'own.db'}"]
    said = ("imported", "made a network", "traced", "made tasks", "made samples")
    for name, extra in (("plan", []), ("run", ["--backend", "inline"])):
        forget()
        sys.modules.pop("myown", None)
        assert main([name, str(folder / "own.yaml"), *own, *extra, "--format", "json", *storage]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)
        assert set(said) <= set(err.splitlines())


@pytest.mark.parametrize("code", [0, 7])
def test_own_code_that_exits_ends_the_command_as_bad_input(
    folder: Path, tmp_path: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 8: not with its own exit code and without a word."""
    (folder / "myown.py").write_text(f"import sys\n{CODE}\nsys.exit({code})\n")
    storage = ["--storage", f"sqlite:///{tmp_path / 'own.db'}"]
    assert main(["run", str(folder / "own.yaml"), "--backend", "inline", *storage]) == 2
    said = capsys.readouterr().err
    assert f"importing myown raised SystemExit: {code} ({folder / 'myown.py'}, line" in said
    assert "mend it; the same command goes on" in said


@pytest.mark.parametrize("where", ["module", pytest.param("function", marks=pytest.mark.slow)])
def test_own_code_may_import_torchvision(folder: Path, tmp_path: Path, where: str) -> None:
    """Beside a CPU build of torch too, whose operators torchvision's wheel does not load."""
    line = "from torchvision.models import resnet; assert resnet.BasicBlock"
    if where == "module":
        text = f"{line}\n{CODE}"
    else:
        text = CODE.replace("        super().__init__()\n", f"        super().__init__()\n        {line}\n", 1)
    (folder / "myown.py").write_text(text)
    storage = ["--storage", f"sqlite:///{tmp_path / 'own.db'}"]
    done = command("plan", str(folder / "own.yaml"), *storage, at=tmp_path)
    assert done.returncode == 0, done.stderr
