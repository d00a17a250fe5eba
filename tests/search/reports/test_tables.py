"""Reports as tables: aligned, whole on a terminal of 80 columns, and plain in a pipe."""

import io
import os
import re
from collections import Counter
from unittest import mock

import pytest
from rich.console import Console

from search.gc import survey
from search.reports.experiments import experiments
from search.reports.final import final
from search.reports.overview import overview
from search.reports.plan import plan
from search.reports.replay import replay
from search.reports.show import show
from search.reports.status import status
from search.tables import TABLES, print_table
from search.tables.common import alpha_cells, alpha_columns, unit_cells, unit_columns

FINGERPRINT = re.compile("[0-9a-f]{64}")


def printed(table) -> str:
    stream = io.StringIO()
    print_table(table, stream)
    return stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(table, width: int = 80) -> str:
    """What a terminal of so many columns is given, without colours."""
    stream = Terminal()
    with mock.patch.dict(os.environ, COLUMNS=str(width), TERM="xterm"):
        print_table(table, stream)
    return re.sub("\x1b\\[[0-9;]*m", "", stream.getvalue())


def lost(whole: str, text: str) -> Counter[str]:
    """The characters of ``whole`` that ``text``, which may be folded and in pieces, lacks."""
    return Counter("".join(whole.split())) - Counter("".join(text.split()))


@pytest.fixture
def reports(finished, experiment):
    run = experiment()
    job = {"run": run.name, "status": "failed", "started": 1.7e9, "ended": None, "exit_code": 5, "outcome": "no unit"}
    return {
        "experiments": experiments(),
        "final": final(finished, run.name),
        "overview": overview(finished),
        "plan": plan(run, run.name, store=finished),
        "replay": replay(finished, run.name, "7"),
        "show": show(finished, run.name),
        "status": status(finished, run.name),
        "verify": {"verdict": "nothing old has changed by a bit", "problems": ["a [b] c"], "remarks": ["d"]},
        "export": {
            "run": "run",
            "replica": 1,
            "task": 2,
            "file": "task.onnx",
            "kind": "ONNX",
            "size": 1234,
            "units": {"hidden1": 8, "hidden2": 4},
            "of": {"hidden1": 32, "hidden2": 24},
            "fingerprint": "f" * 64,
        },
        "report": {"run": run.name, "file": "out/a.html", "size": 5e6, "replicas": 2, "commits": 6, "trials": 24},
        "gc": survey(finished),
        "list": {"address": "http://head:8265", "jobs": [job], "others": 2},
        "stop": {**job, "address": "http://head:8265", "asked": True, "command": "clnp-search submit a.yaml"},
        "submit": {**job, "address": "http://head:8265", "status": "running", "continues": False},
        "deleted": {"run": run.name, "studies": 6, "rows": 1, "artifacts": 0},
    }


def test_every_report_has_a_table(reports):
    assert reports.keys() == TABLES.keys()
    for name, report in reports.items():
        assert printed(TABLES[name](report)).strip()


def test_no_table_is_cut_off_at_80_columns(reports):
    for name, report in reports.items():
        text = on_terminal(TABLES[name](report))
        assert not lost(printed(TABLES[name](report)), text), name
        assert max(map(len, text.splitlines())) <= 80, name


def test_a_table_wider_than_the_terminal_comes_in_pieces(store, experiment, simulate):
    """An α cut to `1e-`, or a winner whose mark is gone, would be another result."""
    alpha = [[1e-4, 3e-4, 0.001], [3e-4, 1e-4, 0.001]]
    run = experiment(grid={"alpha": alpha, "learning_rate": [0.005, 0.01]}, tasks={"count": 12}, replicas=1)
    simulate(run)
    made = {
        "final": final(store, run.name),
        "plan": plan(run, run.name, store=store),
        "replay": replay(store, run.name, "7"),
        "show": show(store, run.name),
        "status": status(store, run.name),
    }
    for name, report in made.items():
        whole = printed(TABLES[name](report))
        for width in (80, 60):
            text = on_terminal(TABLES[name](report), width)
            assert not lost(whole, text), f"{name} at {width}"
            longest = max(len(line.rstrip()) for line in text.splitlines() if not FINGERPRINT.search(line))
            assert longest <= width, f"{name} at {width}"
    text = on_terminal(TABLES["show"](made["show"]))
    assert len(re.findall(r"(?m)^cell ", text)) == 2, "each piece begins with the first column"
    assert re.findall(r"(?m)^ +(\d) .*\bwinner *$", text) == [str(made["show"]["cell"])]
    assert on_terminal(TABLES["show"](made["show"]), 120).count("\ncell ") == 1


def test_a_network_of_many_groups_is_summed_up(store, experiment, simulate):
    """As deep as a ResNet-18, each layer with an α of its own: a column a group or layer would not be readable."""
    deep = {"hidden": [40] * 20}
    alpha = [[0.001 * (1 + layer) for layer in range(21)], 0.01]
    run = experiment(model=deep, grid={"alpha": alpha, "learning_rate": [0.001]}, replicas=1)
    simulate(run)
    made = {
        "final": final(store, run.name),
        "plan": plan(run, run.name, store=store),
        "replay": replay(store, run.name, "7"),
        "show": show(store, run.name),
        "status": status(store, run.name),
    }
    for name, report in made.items():
        text = on_terminal(TABLES[name](report))
        assert max(map(len, text.splitlines())) <= 80, name
        assert (name == "show") == ("hidden17" in text), "only show tells them one by one"
    assert "800 units in 20 groups" in printed(TABLES["plan"](made["plan"]))
    assert "0.001 – 0.021" in printed(TABLES["plan"](made["plan"]))
    free = sum(made["final"]["replicas"][0]["tasks"][-1]["free"].values())
    assert f"{free} of 800" in printed(TABLES["status"](made["status"]))


def test_long_names_are_summed_up_as_many_are():
    """Names of one's own modules: a column each would go far past 80."""
    group = "encoder.blocks.stage_1.attention.projection"
    assert unit_columns(["hidden1", "hidden2"], "new") == [">hidden1\nnew", ">hidden2\nnew"]
    assert unit_columns([group], "new") == [">units\nnew"]
    assert unit_cells({group: 3, "b": 4}) == ["7"], "as under one header"
    alpha = {"alpha": {group: 0.1, "output": 0.2}}
    assert alpha_columns([alpha]) == [">\nα"]
    assert alpha_cells(alpha, [">\nα"]) == ["0.1 – 0.2"]


def test_a_plan_folds_layers_of_long_names(experiment):
    report = plan(experiment(), "new", store=None)
    assert "hidden1" in printed(TABLES["plan"](report))
    report["layers"] = [f"encoder.blocks.{name}.attention.projection" for name in report["layers"]]
    text = printed(TABLES["plan"](report))
    assert "attention" not in text
    assert "0.01 – 0.03" in text


def test_show_tells_units_and_weights_by_class(reports):
    text = printed(TABLES["show"](reports["show"]))
    usage = reports["show"]["usage"]
    for group in usage["groups"]:
        assert re.search(rf"{group['name']} +{group['claimed']} +{group['reused']} +{group['free']} ", text)
    assert re.search(rf"output +{usage['layers'][-1]['active']:,} +0 +0 +50.00 %", text)


def test_in_a_pipe_nothing_is_folded_coloured_or_padded(reports):
    for name, report in reports.items():
        text = printed(TABLES[name](report))
        assert "\x1b" not in text, name
        assert not [line for line in text.splitlines() if line != line.rstrip()], name
    assert FINGERPRINT.search(printed(TABLES["show"](reports["show"])))


def test_the_tasks_at_the_end_of_a_run(finished, reports):
    text = printed(TABLES["final"](reports["final"]))
    commits = finished.history("made-up").commits
    assert text.count("measured again after each commit") == 2
    for record in commits.values():
        row = next(line for line in text.splitlines() if f"{100 * record.validation.accuracy:.2f} %" in line)
        assert f"{record.claimed[0]}, {record.free[0]:>3}" in row
    assert "6 commits, 0 of 6 old fingerprints changed, mean test accuracy" in text.splitlines()[-1]


def test_a_changed_fingerprint_stands_out(reports):
    report = {**reports["final"], "changed": 2}
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(TABLES["final"](report))
    assert "2 of 6 old fingerprints changed" in console.export_text(clear=False)
    assert re.search(r"\x1b\[1;31m, 2 of 6", console.export_text(styles=True))


def test_alpha_is_one_column_where_it_is_the_same_for_all_layers(store, experiment, simulate):
    simulate(experiment(grid={"alpha": [0.001], "learning_rate": [0.001]}, replicas=1))
    text = printed(TABLES["final"](final(store, "made-up")))
    assert "α" in text
    assert "output" not in text
    assert "output" in printed(TABLES["plan"](plan(experiment(), "new", store=None)))


def test_a_threshold_by_layer_is_said_to_be_a_multiple(store, experiment, simulate):
    """It looks like an activity, and is none."""
    simulate(experiment(rule={"margin": 1, "theta": "layers"}, replicas=1))
    made = {
        "final": final(store, "made-up"),
        "show": show(store, "made-up"),
        "replay": replay(store, "made-up", "1"),
        "status": status(store, "made-up"),
    }
    texts = {name: printed(TABLES[name](report)) for name, report in made.items()}
    for name in ("final", "show", "replay"):
        assert "× layer's" in texts[name]
        assert "mean: θ" in texts[name]
    assert "  θ (× layer's mean activity)   " in texts["show"]
    assert "1 replica, θ by layer\n" in texts["status"]
    scales = [made["show"]["theta_scale"], made["status"]["runs"][0]["theta_scale"]]
    scales += [task["theta_scale"] for name in ("final", "replay") for task in made[name]["replicas"][0]["tasks"]]
    assert set(scales) == {"layers"}
    for name in ("final", "replay"):
        tasks = made[name]["replicas"][0]["tasks"]
        tasks[0]["theta_scale"] = "shared"
        text = printed(TABLES[name](made[name]))
        assert "mean: θ" not in text, "a fork under two rules"
        assert len(re.findall(r"\d × mean", text)) == (1 if name == "final" else 2) * (len(tasks) - 1)


def test_show_tells_the_commit_in_order(reports):
    text = printed(TABLES["show"](reports["show"]))
    facts = ["best accuracy", "cut line", "candidates", "winner", "α", "learning rate", "θ", "validation", "test"]
    places = [text.index(f"\n  {fact}  ") for fact in facts]
    assert places == sorted(places)
    assert "diverged: not finite after epoch 1" in text


def test_verify_shows_text_as_it_is(reports):
    assert "a [b] c" in printed(TABLES["verify"](reports["verify"]))


def test_an_empty_database_says_what_to_do(store):
    assert "clnp-search run quickstart" in printed(TABLES["overview"](overview(store)))


def test_status_has_the_forecast_of_each_layer_or_of_the_first_to_be_full(store, experiment, simulate):
    """On 80 columns, for 2 layers and 5 tasks too."""
    run = experiment(tasks={"count": 5}, model={"hidden": [400, 400]}, replicas=1)
    simulate(run)
    report = status(store, run.name)
    found = report["runs"][0]["replicas"][0]["forecast"]
    text = printed(TABLES["status"](report))
    assert re.search(r"\n +replica +forecast for hidden1 +forecast for hidden2\n", text)
    assert (found["hidden1"]["full"], found["hidden2"]["full"]) == (None, None)
    wanted = {3.24: "for all 5 tasks, 3.2 more  ", 1234.5: "for all 5 tasks, 1,234 more  ", None: "for all 5 tasks  "}
    for more, text in wanted.items():
        found["hidden1"] = {**found["hidden1"], "more": more}
        assert f" 1  lasts {text}" in printed(TABLES["status"](report))
    found["hidden2"] = {**found["hidden2"], "full": 4, "more": -1.5}
    found["hidden1"] = {**found["hidden1"], "grows": True}
    text = on_terminal(TABLES["status"](report))
    assert re.search(r"\n +1 +grows before it is full +full at task 4 of 5 *\n", text)
    assert max(map(len, text.splitlines())) <= 80
    run = report["runs"][0]
    run["units"] = dict.fromkeys(("hidden1", "hidden2", "hidden3"), 9)
    for replica in run["replicas"]:
        replica["units"] = replica["free"] = run["units"]
    assert re.search(r"\n +1 +hidden2: full at task 4 of 5 *\n", on_terminal(TABLES["status"](report)))
