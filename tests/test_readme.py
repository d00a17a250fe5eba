"""What the README says is so."""

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from search.building import forget
from search.cli import main
from search.options import read_options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_library_example_forgets_nothing() -> None:
    """Promise 1. The printed numbers are those of one machine; that no task's ever change holds on every one."""
    (example,) = (block for block in blocks("python") if "def " not in block)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    found = [re.fullmatch(r"(\d) \[(.*)\] \[(.*)\]", line) for line in done.stdout.splitlines()]
    rows = [(match[2].split(", "), match[3].split(", ")) for match in found if match]
    assert len(rows) == 3
    for before, after in itertools.pairwise(rows):
        for old, new in zip(before, after, strict=True):
            assert new[: len(old)] == old
            assert len(new) == len(old) + 1
    assert min(int(right) for right in rows[-1][0]) > 240


def test_ones_own_network_and_tasks_take_under_forty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The README's own files, run as it says but for fewer epochs: it trains, grows, exports, and nothing old moves."""
    (code,) = (block for block in blocks("python") if "def " in block)
    (experiment,) = (block for block in blocks("yaml") if "mine:" in block)
    assert len(code.splitlines()) + len(experiment.splitlines()) < 40
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    for words in (
        "run mine.yaml --backend inline --set training.epochs=2 rule.margin=9",
        "run mine.yaml --backend inline --set training.epochs=2 rule.margin=9 tasks.count=3 grow.by=8 grow.below=24",
        "verify mine",
        "export mine --task 2 --to task2.onnx",
    ):
        forget()
        sys.modules.pop("mine", None)
        code_of_exit = main(words.split())
        said = "".join(capfd.readouterr())
        assert code_of_exit == 0, f"{words}:\n{said}"
        if "grow" in words:
            assert "0 of 3 old fingerprints changed" in said
            assert "units grown: stem.0 from 24 to 32" in said
    assert (tmp_path / "task2.onnx").stat().st_size > 0


def test_every_command_in_the_table_exists() -> None:
    named = re.findall(r"^\| `clnp-search (.*?)` \|", README, re.MULTILINE)
    assert len(named) == 18
    for command in named:
        words = (
            re.sub(r"[\[\]]", "", command)
            .replace("--task T", "--task 1")
            .replace("--to FILE", "--to t.onnx")
            .replace("--margin M", "--margin 1")
            .split()
        )
        assert read_options(words).command == words[0]


def test_the_commands_for_a_cluster_are_understood() -> None:
    (block,) = (block for block in blocks("sh") if "ray start" in block)
    (extras,) = re.findall(r"'\.\[(.*)\]'", block)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    words = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
    typed = [read_options(line[1:]).command for line in words if line[0] == "clnp-search"]
    assert typed == ["submit", "logs"]


def test_the_experiment_file_is_accepted(tmp_path: Path) -> None:
    from search.experiment import read_experiment

    (text,) = (block for block in blocks("yaml") if block.startswith("name: mine"))
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert read_experiment(str(file)).name == "mine"
