"""The page of a run: whole, escaped, and allowed to fetch nothing."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import search.figures.report
from search.cli import main
from search.figures.page import SECTIONS, page
from search.reports.common import Known


def data(text: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found
    assert "<" not in found[1]
    return dict(json.loads(found[1]))


def own(text: str) -> str:
    """The page without plotly's script."""
    return re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.DOTALL)


def test_a_page_holds_every_figure(pages: Path) -> None:
    found = data((pages / "made-up.html").read_text(encoding="utf-8"))
    assert list(found["figures"]) == list(SECTIONS)
    assert {replica: list(tasks) for replica, tasks in found["tasks"].items()} == {
        "1": ["1", "2", "3"],
        "2": ["1", "2", "3"],
    }


def test_what_a_person_wrote_is_text(pages: Path) -> None:
    text = own((pages / "made-up.html").read_text(encoding="utf-8"))
    assert "window.bad" in text
    assert "<script>window.bad" not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 2


def test_a_page_may_fetch_nothing(pages: Path) -> None:
    """No address but those that a person wrote, as text, and a policy that forbids to fetch any."""
    text = own((pages / "made-up.html").read_text(encoding="utf-8")).replace("http://127.0.0.1/x", "")
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text
    for word in ("connect-src", "*", "'self'"):
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        assert policy
        assert word not in policy[1]


def test_the_head_says_what_was_run(made_up: Known, pages: Path) -> None:
    text = own((pages / "made-up.html").read_text(encoding="utf-8"))
    for said in (
        "The run is finished: 3 tasks, 6 commits.",
        "3 permuted tasks from digits",
        "mlp: hidden1 32, hidden2 24 (56 units)",
        "one output layer for all tasks (single)",
        "2, seeds 0 to 1",
        "margin: the fewest new units within 3 percentage points",
        "then fine-tuned: 20 epochs at learning rate 1e-4, 2 rounds at most",
        "Commits of replica 2",
        "hidden1 new, free",
    ):
        assert said in text, said
    record = made_up.commits(1)[2]
    assert f"({record.test.correct:,} of {record.test.total:,})" in text


def test_an_unfinished_run_has_a_page_of_what_is_there(simulate: Callable[..., Known], pages: Path) -> None:
    text = own((pages / "open.html").read_text(encoding="utf-8"))
    assert "No task is committed yet: what is shown below is the task that is open." in text
    assert not data(text)["figures"]
    assert list(data(text)["tasks"]["1"]) == ["1"]
    half = simulate(stop_after=22)
    assert 0 < len(half.history.commits) < 6
    text = own(page(half))
    assert "The run is not finished: " in text
    assert list(data(text)["figures"]) == list(SECTIONS)


def test_the_page_of_a_budget_says_its_rule(simulate: Callable[..., Known]) -> None:
    known = simulate(rule={"kind": "budget", "tasks": 3, "floor": 2.5}, grow={"by": 4}, head="multi")
    text = own(page(known))
    assert "an equal share of what is left for 3 tasks, at most 2.5 points" in text
    assert "grows by 4 units" in text
    assert "an output layer for each task (multi)" in text


# The file


def test_report_writes_one_file_and_says_which(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    arguments = ["report", "small", "--to", str(folder), "--storage", trained]
    assert main([*arguments, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    file = folder / "small.html"
    assert report == {
        "run": "small",
        "file": str(file),
        "size": file.stat().st_size,
        "replicas": 1,
        "commits": 2,
        "trials": 4,
    }
    assert [path.name for path in folder.iterdir()] == ["small.html"]
    before = file.read_bytes()
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{file} (4.9 MB): small, 1 replica, 2 commits, 4 trials\n"
    assert file.read_bytes() == before


def test_a_page_appears_whole_or_not_at_all(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk leaves the old page, and nothing beside it."""
    (tmp_path / "small.html").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search.figures.report.os, "fsync", full)
    assert main(["report", "small", "--to", str(tmp_path), "--storage", trained]) == 2
    error = capsys.readouterr().err
    assert error == f"clnp-search: --to {tmp_path} cannot be written: No space left on device; give another folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["small.html"]
    assert (tmp_path / "small.html").read_text() == "old"


def test_a_folder_that_cannot_be_written(
    trained: str, tmp_path: Path, as_nobody: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 8: one line each, nothing is written."""
    file, closed, taken = tmp_path / "file", tmp_path / "closed", tmp_path / "taken"
    file.write_text("")
    closed.mkdir()
    (taken / "small.html").mkdir(parents=True)
    closed.chmod(0o555)
    cases = {
        str(file): "is a file; give a folder",
        str(file / "in"): "a part of this path is a file; give a folder",
        str(taken): "is a folder; remove it, or give another folder",
    }
    for folder, message in cases.items():
        assert main(["report", "small", "--to", folder, "--storage", trained]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"clnp-search: --to {folder}")
        assert message in error
        assert error.count("\n") == 1
    from search.figures.report import _writable

    as_nobody()
    for folder in (closed, closed / "new"):
        with pytest.raises(search.errors.BadInput, match=r"no permission to write there|Permission denied"):
            _writable(str(folder))
    assert os.listdir(closed) == []
