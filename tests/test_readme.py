"""What the README says is so."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

from search.options import read_options

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_library_example_forgets_nothing() -> None:
    """Promise 1. The printed numbers are those of one machine; that no task's ever change holds on every one."""
    (example,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    found = [re.fullmatch(r"(\d) \[(.*)\] \[(.*)\]", line) for line in done.stdout.splitlines()]
    rows = [(match[2].split(", "), match[3].split(", ")) for match in found if match]
    assert len(rows) == 3
    for before, after in itertools.pairwise(rows):
        for old, new in zip(before, after, strict=True):
            assert new[: len(old)] == old
            assert len(new) == len(old) + 1
    assert min(int(right) for right in rows[-1][0]) > 240


def test_every_command_in_the_table_exists() -> None:
    named = re.findall(r"^\| `clnp-search (.*?)` \|", README, re.MULTILINE)
    assert len(named) == 9
    for command in named:
        words = (
            re.sub(r"[\[\]]", "", command).replace("--task T", "--task 1").replace("--margin M", "--margin 1").split()
        )
        assert read_options(words).command == words[0]


def test_the_experiment_file_is_accepted(tmp_path: Path) -> None:
    from search.experiment import read_experiment

    (text,) = blocks("yaml")
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert read_experiment(str(file)).name == "mine"
