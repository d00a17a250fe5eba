"""The page of a run: whole, escaped, and allowed to fetch nothing."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import search.figures.report
from search.backends.simulated import World
from search.cli import main
from search.experiment import Experiment, Origin
from search.figures.page import SECTIONS, page
from search.figures.words import commit_table, facts, headline
from search.reports.common import Known
from search.sections import Rule
from search.text import theta


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


def with_origin(known: Known, run: str, count: int, **rule: object) -> Known:
    """The run as a fork of one that had another rule."""
    keys = {**known.experiment.to_json(), "rule": rule, "training": {"epochs": 9}}
    other = Experiment.model_validate({key: value for key, value in keys.items() if key in Experiment.model_fields})
    return replace(known, experiment=known.experiment.with_origin(Origin(run, count, other)))


def test_the_page_of_a_fork_tells_the_rules_apart(simulate: Callable[..., Known]) -> None:
    """The copied tasks were not decided by the fork's own rule, nor trained as its own are."""
    known = with_origin(simulate(replicas=1), "base", 2, kind="budget", tasks=4)
    said = facts(known)
    assert said["rule"].startswith("from task 3 on: margin: ")
    assert said["tasks 1 to 2, from base"].startswith("budget: the most accurate whose new units fit")
    assert said["tasks 1 to 2, from base"].endswith("; trained for 9 epochs of adam, batches of 32")
    header, rows = commit_table(known, 0)
    assert header[-1] == "remarks"
    assert [row[-1] for row in rows] == ["copied from base", "copied from base", ""]


def test_the_page_of_a_fork_of_a_fork(simulate: Callable[..., Known]) -> None:
    known = simulate(replicas=1)
    middle = with_origin(known, "base", 1, kind="budget", tasks=4).experiment
    known = replace(known, experiment=known.experiment.with_origin(Origin("middle", 2, middle)))
    said = facts(known)
    assert [key for key in said if ", from " in key] == ["task 1, from base", "task 2, from middle"]
    assert said["task 1, from base"].startswith("budget: ")
    assert said["task 2, from middle"].startswith("margin: ")
    assert [row[-1] for row in commit_table(known, 0)[1]] == ["copied from base", "copied from middle", ""]


def test_the_threshold_is_that_of_the_units_beside_it(made_up: Known) -> None:
    """After fine-tuning the last round's, in the unit that the rule has."""
    records = made_up.commits(0)
    record = next(record for record in records if record.rounds[-1].theta != record.point.theta)
    header, rows = commit_table(made_up, 0)
    assert rows[record.task][header.index("θ")] == theta(record.rounds[-1].theta, digits=4)
    layers = made_up.experiment.model_copy(update={"rule": Rule(margin=3.0, theta="layers")})
    rows = commit_table(replace(made_up, experiment=layers), 0)[1]
    assert rows[record.task][header.index("θ")].endswith(" × layer's mean activity")
    for tuned, text in ((None, "fine-tuning diverged"), (0, "fine-tuning gained nothing")):
        worse = replace(record, rounds=(replace(record.rounds[0], tuned=tuned),))
        history = replace(made_up.history, commits={(0, record.task): replace(worse, task=0)})
        assert commit_table(replace(made_up, history=history), 0)[1][0][-1] == text


def test_training_says_all_that_was_asked_for(simulate: Callable[..., Known]) -> None:
    asked = {"epochs": 4, "optimizer": "sgd", "momentum": 0.9, "early_stopping": True, "patience": 3}
    known = simulate(stop_after=1, training=asked)
    late = {"norm_alpha": 1e-5, "halving": (1, 2), "halving_margin": 5.0, "precision": "bf16"}
    training = known.experiment.training.model_copy(update=late)  # α is of networks that have BatchNorm
    experiment = known.experiment.model_copy(update={"training": training})
    assert facts(replace(known, experiment=experiment))["training"] == (
        "4 epochs of sgd, momentum 0.9, α of BatchNorm 1e-5, batches of 32, the epoch of best validation accuracy is "
        "kept, ended after 3 epochs without a better one, halving after epoch 1 and 2 (more than 5 points behind), "
        "bf16 products"
    )


def test_a_run_that_stopped_is_not_called_open(simulate: Callable[..., Known], made_up: Known) -> None:
    reason = "replica 1, task 1: nothing\nreplica 2, task 1: nothing"
    known = simulate(world=World(classes=1))
    known = replace(known, row=replace(known.row, state="stopped", reason=reason))
    text = own(page(known))
    assert "the run has stopped: what is shown below is the task that it stopped at." in text
    assert "that is open" not in text
    assert "white-space: pre-line" in re.search(r"\ndd \{.*", text)[0]  # else the reasons are one line
    assert f"stopped: {reason}" in text
    row = replace(made_up.row, state="stopped")
    assert headline(replace(made_up, row=row)) == "The run has stopped: 3 tasks committed, 6 commits."


def test_growth_is_not_explained_by_reuse(simulate: Callable[..., Known], made_up: Known) -> None:
    known = simulate(replicas=1, grow={"by": 4, "below": 32})
    assert facts(known)["growth"].endswith("; hidden1 grew from 32 to 36, hidden2 from 24 to 32 units")
    text = own(page(known))
    assert "Growth holds a line back or lowers it" in text
    assert "one whose features later tasks use again" not in text
    assert "one whose features later tasks use again" in own(page(made_up))


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 7])
def test_any_number_of_panels_stands_one_above_the_other_on_a_narrow_screen(
    simulate: Callable[..., Known], groups: int
) -> None:
    """The last row of panels may have fewer than the others: what is not drawn has no axes."""
    known = simulate(model={"hidden": [40] * groups}, tasks={"count": 1}, replicas=1, grid={"alpha": [1e-3]})
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page(known), re.DOTALL)
    narrow = json.loads(data)["figures"]["units"]["narrow"]
    assert len([key for key in narrow if key.startswith("xaxis")]) == groups
    tops = [note["y"] for note in narrow["annotations"]]
    assert len(tops) == groups
    assert tops == sorted(tops, reverse=True)


def test_remarks_may_wrap(made_up: Known) -> None:
    assert '<th class="remarks">remarks</th>' in own(page(made_up))


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
