"""The experiment file: read exactly, refused clearly, and compared by what makes a run the same."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clnp.tasks import class_counts, validation_count
from search.errors import BadInput
from search.experiment import Experiment, differences, read_experiment, schema, shipped

ISSUE = """
name: permuted-mnist
tasks: {kind: permuted, dataset: mnist, count: 10}
model: {kind: mlp, hidden: [2000, 2000]}
head: single                     # or multi
validation: 0.1                  # share of the training set held out
seed: 0                          # replica r uses seed + r
replicas: 5
grid:
  alpha: [[1.0e-7, 1.0e-5, 1.0e-6], 1.0e-5]   # each entry: one value, or one a layer
  learning_rate: [0.001, 0.002]
  after_first: {alpha: [[1.0e-7, 1.0e-5, 1.0e-6]], learning_rate: [0.002]}
training: {epochs: 20, batch_size: 256, optimizer: adam, early_stopping: false}
rule: {kind: margin, margin: 0.05, sparsity: units, theta: shared}
workers: auto
worker: {cpu: 1, gpu: auto, cells: auto}
retries: 2
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def written(text: str, *sets: str) -> Experiment:
        file = tmp_path / "file.yaml"
        file.write_text(text)
        return read_experiment(str(file), sets)

    return written


def refused(read: Any, text: str, *sets: str) -> str:
    with pytest.raises(BadInput) as caught:
        read(text, *sets)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "pydantic" not in message
    assert "http" not in message
    return re.sub(r"^\S*file\.yaml", "file.yaml", message)


# ── What is read ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_documented_file_is_read_as_it_stands(read: Any) -> None:
    experiment = read(ISSUE)
    assert experiment.name == "permuted-mnist"
    assert experiment.grid.alpha == ((1e-7, 1e-5, 1e-6), 1e-5)
    assert experiment.grid.after_first.learning_rate == (0.002,)
    assert experiment.outline.layer_names == ("hidden1", "hidden2", "output")
    assert experiment.outline.widths == (2000, 2000)
    assert experiment.outline.weights == 784 * 2000 + 2000 * 2000 + 2000 * 10
    assert experiment.outline.validation == 6000
    assert experiment.keep == "winners"
    assert experiment.margin(0) == Fraction(1, 20)


def test_every_key_has_a_default_and_a_description(read: Any) -> None:
    assert read("") == read("{}") == Experiment(name="file")

    whole = schema()
    for section in (whole, *whole["$defs"].values()):
        for key, one in section["properties"].items():
            assert one.get("description") or whole["$defs"][one["$ref"].split("/")[-1]]["description"], key
            assert "default" in one, key


def test_the_schema_describes_what_is_written() -> None:
    whole = schema()
    assert json.loads(json.dumps(whole)) == whole
    assert set(whole["properties"]) == set(Experiment().to_json())
    assert whole["additionalProperties"] is False


def test_numbers_are_those_of_yaml_1_2(read: Any) -> None:
    experiment = read("grid: {alpha: [1e-5, 0], learning_rate: [2e-3]}")
    assert experiment.grid.alpha == (1e-5, 0.0)
    assert experiment.grid.learning_rate == (0.002,)


def test_the_name_is_the_file_s_where_it_has_none(read: Any, tmp_path: Path) -> None:
    assert read("seed: 1").name == "file"
    odd = tmp_path / "two words.yaml"
    odd.write_text("seed: 1")
    with pytest.raises(BadInput, match='the file\'s name: name is "two words"; use 1 to 100 letters'):
        read_experiment(str(odd))


def test_after_first_is_a_grid_or_winner_or_nothing(read: Any) -> None:
    assert read("grid: {after_first: winner}").grid.after_first == "winner"
    assert read("grid: {after_first: null}").grid.after_first is None
    experiment = read("grid: {alpha: [0.1], after_first: {learning_rate: [1]}}")
    assert experiment.grid.axes(0) == ((0.1,), (0.005, 0.01))
    assert experiment.grid.axes(1) == ((0.1,), (1.0,))


# ── What is refused: each line a mistake, and all that is said of it ──────────────────────────────────────────────────

NUMBER_OR_LIST = "give a number of at least 0, or a list of them, one a layer"
THREE = "give one value, or 3: one for each of hidden1, hidden2, output"
LEARNING_RATE = "give a number above 0"
PERCENT = "a margin is 0 to 100 percentage points: give a number of them, or a list with one a task"
SHARE = "give a share of the training set, above 0 and below 1"
ALPHAS = "give a list of α values (each one number, or a list with one a layer), at least one"
UNITS = "give a share of the first width, above 0 and below 1, or a whole number of units, 100,000 at most"
CLASSES = "give how many classes each task of a split has, at least 2"
GPUS = "give auto, 0, a share of one GPU such as 0.5, or a whole number of them"
EPOCHS = "give rising whole numbers of at least 1, such as [5, 10]"
MISTAKES = {
    # unknown keys
    "taks: {}": "taks is not a known key; did you mean tasks?",
    "grid: {alhpa: [1]}": "grid.alhpa is not a known key; did you mean grid.alpha?",
    "epochs: 3": "epochs is not a known key; did you mean training.epochs or fine_tuning.epochs?",
    "kind: mlp": "kind is not a known key; did you mean tasks.kind or model.kind or rule.kind?",
    "training: {Batch-Size: 3}": "training.Batch-Size is not a known key; did you mean training.batch_size?",
    "worker: {zzz: 3}": "worker.zzz is not a known key; known here: cpu, gpu, cells",
    "grid: {after_first: {margin: 1}}": "grid.after_first.margin is not a known key; did you mean rule.margin or "
    "fine_tuning.margin?",
    # wrong types
    "name: [a]": "name is [\"a\"]; use 1 to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit",
    "name: a b": "name is \"a b\"; use 1 to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit",
    "description: 3": "description is 3; give text; put it in quotes if it reads as something else",
    "tasks: 5": "tasks is 5; give a section with keys: kind, dataset, classes, order, samples, count, options",
    "training:": "training is null; give a section with keys: epochs, batch_size, optimizer, momentum, "
    "weight_decay, norm_alpha, early_stopping, patience, halving, halving_margin, precision",
    "tasks: {count: many}": 'tasks.count is "many"; give a whole number of at least 1',
    "tasks: {count: 2.0}": "tasks.count is 2.0; give a whole number of at least 1",
    "tasks: {count: true}": "tasks.count is true; give a whole number of at least 1",
    "tasks: {dataset: minst}": 'tasks.dataset is "minst"; give digits, mnist, fashion-mnist, cifar-10 or cifar-100',
    "model: {hidden: 400}": "model.hidden is 400; give a list of widths, one a hidden layer, at least one",
    "head: both": 'head is "both"; give single or multi',
    "head: [single]": 'head is ["single"]; give single or multi',
    "training: {early_stopping: no}": 'training.early_stopping is "no"; give true or false',
    "workers: all": 'workers is "all"; give auto, or a whole number of at least 1',
    "worker: {gpu: yes}": f'worker.gpu is "yes"; {GPUS}',
    "grid: {after_first: loser}": 'grid.after_first is "loser"; '
    "give winner, or a section with alpha, learning_rate or both; leave it out for the same grid",
    "grid: {alpha: [[[1]]]}": f"grid.alpha[0] is [[1]]; {NUMBER_OR_LIST}",
    "grid: {alpha: ['1e-5']}": f'grid.alpha[0] is "1e-5"; {NUMBER_OR_LIST}',
    "grid: {learning_rate: [[0.1]]}": f"grid.learning_rate[0] is [0.1]; {LEARNING_RATE}",
    "grid: {learning_rate: [true]}": f"grid.learning_rate[0] is true; {LEARNING_RATE}",
    "grid: {alpha: [false]}": f"grid.alpha[0] is false; {NUMBER_OR_LIST}",
    "rule: {margin: small}": 'rule.margin is "small"; give a number of them, or a list with one a task',
    # empty grids
    "grid: {alpha: []}": f"grid.alpha is []; {ALPHAS}",
    "grid: {alpha: 1e-5}": f"grid.alpha is 1e-05; {ALPHAS}",
    "grid: {learning_rate: []}": "grid.learning_rate is []; give a list of learning rates, at least one",
    "grid: {after_first: {alpha: []}}": f"grid.after_first.alpha is []; {ALPHAS}",
    # cells that repeat
    "grid: {alpha: [1e-5, 0.00001]}": "grid.alpha[1] is 1e-05; it makes the same cells as entry [0]; keep one of them",
    "grid: {alpha: [1, 2, [1, 1, 1]]}": "grid.alpha[2] is [1.0, 1.0, 1.0]; it makes the same cells as entry [0]; "
    "keep one of them",
    "grid: {alpha: [0, -0.0]}": "grid.alpha[1] is 0.0; it makes the same cells as entry [0]; keep one of them",
    "grid: {learning_rate: [1, 1.0]}": "grid.learning_rate[1] is 1.0; it makes the same cells as entry [0]; "
    "keep one of them",
    "grid: {after_first: {learning_rate: [1, 1]}}": "grid.after_first.learning_rate[1] is 1.0; it makes the same cells "
    "as entry [0]; keep one of them",
    # values out of range
    "grid: {alpha: [-1e-5]}": f"grid.alpha[0] is -1e-05; a negative α would make weights grow: {NUMBER_OR_LIST}",
    "grid: {alpha: [[0, -1, 0]]}": "grid.alpha[0] is [0, -1, 0]; a negative α would make weights grow: "
    + NUMBER_OR_LIST,
    "grid: {alpha: [.nan]}": f"grid.alpha[0] is NaN; that is not a finite number: {NUMBER_OR_LIST}",
    "grid: {alpha: [[1, .inf, 1]]}": "grid.alpha[0] is [1, Infinity, 1]; that is not a finite number: "
    + NUMBER_OR_LIST,
    "grid: {alpha: [1e999]}": f"grid.alpha[0] is Infinity; that is not a finite number: {NUMBER_OR_LIST}",
    "grid: {learning_rate: [0]}": f"grid.learning_rate[0] is 0; {LEARNING_RATE}",
    "grid: {learning_rate: [-1e-3]}": f"grid.learning_rate[0] is -0.001; {LEARNING_RATE}",
    "grid: {learning_rate: [.inf]}": "grid.learning_rate[0] is Infinity; that is not a finite number: " + LEARNING_RATE,
    "rule: {margin: -0.1}": f"rule.margin is -0.1; {PERCENT}",
    "rule: {margin: 100.5}": f"rule.margin is 100.5; {PERCENT}",
    "rule: {margin: .nan}": f"rule.margin is NaN; that is not a finite number: {PERCENT.split(': ')[1]}",
    "validation: 0": f"validation is 0; {SHARE}",
    "validation: 1": f"validation is 1; {SHARE}",
    "validation: 1e-9": "validation is 1e-09; of 1500 samples it must leave some for training and some for validation",
    "tasks: {count: 0}": "tasks.count is 0; give a whole number of at least 1",
    "replicas: 0": "replicas is 0; give a whole number of at least 1",
    "seed: -1": "seed is -1; give a whole number of at least 0",
    f"seed: {2**63}": f"seed is {2**63}; it is too large: give one below 2**63",
    "retries: -1": "retries is -1; give a whole number of at least 0",
    "model: {hidden: []}": "model.hidden is []; give a list of widths, one a hidden layer, at least one",
    "model: {hidden: [3, 0]}": "model.hidden[1] is 0; give a whole number of at least 1",
    "training: {epochs: 0}": "training.epochs is 0; give a whole number of at least 1",
    "training: {optimizer: sgd, momentum: 1}": "training.momentum is 1; give a number from 0 up to, not including, 1",
    "training: {halving: 5}": f"training.halving is 5; {EPOCHS}",
    "training: {halving: [5, x]}": f'training.halving is [5, "x"]; {EPOCHS}',
    "training: {halving: [0, 5]}": f"training.halving is [0, 5]; {EPOCHS}",
    "training: {halving_margin: 5}": "training.halving_margin is 5; it does nothing without halving: leave it out, or "
    "give halving: [5, 10], say",
    "training: {halving: [5], halving_margin: 101}": "training.halving_margin is 101; give 0 to 100 percentage points",
    "training: {halving: [5, 5]}": f"training.halving is [5, 5]; they do not rise: {EPOCHS}",
    "training: {epochs: 10, halving: [5, 10]}": "training.halving is [5, 10]; of 10 epochs (training.epochs) some must "
    "be left after the last of them",
    "training: {early_stopping: true, patience: 0}": "training.patience is 0; give a whole number of at least 1",
    "worker: {gpu: -1}": f"worker.gpu is -1; {GPUS}",
    "worker: {gpu: 1.5}": f"worker.gpu is 1.5; {GPUS}",
    "worker: {cells: 0}": "worker.cells is 0; give auto, or a whole number of at least 1",
    "keep: none": 'keep is "none"; give winners, candidates or all',
    # values that do not fit one another
    "grid: {alpha: [[1, 2]]}": f"grid.alpha[0] is [1.0, 2.0]; {THREE}",
    "grid: {alpha: [[]]}": f"grid.alpha[0] is []; {THREE}",
    "{model: {hidden: [9]}, grid: {alpha: [[1, 2, 3]]}}": "grid.alpha[0] is [1.0, 2.0, 3.0]; give one value, or 2: one "
    "for each of hidden1, output",
    "grid: {after_first: {alpha: [[1, 2]]}}": f"grid.after_first.alpha[0] is [1.0, 2.0]; {THREE}",
    "rule: {margin: [1, 2]}": "rule.margin is [1.0, 2.0]; give one value, or one for each of the 5 tasks, not 2",
    "fine_tuning: {margin: [1, 2]}": "fine_tuning.margin is [1.0, 2.0]; give one value, or one for each of the 5 "
    "tasks, not 2",
    "{rule: {kind: budget, tasks: 9}, fine_tuning: {margin: 1}}": "fine_tuning.margin is 1.0; the budget rule has "
    "floor instead: leave it out",
    "{rule: {kind: budget, tasks: 9}, fine_tuning: {rounds: 2}}": "fine_tuning.rounds is 2; the budget rule prunes "
    "once, to what fits: leave it out",
    "fine_tuning: {alpha: [1, 2]}": f"fine_tuning.alpha is [1.0, 2.0]; {THREE}",
    "fine_tuning: {alpha: -1}": f"fine_tuning.alpha is -1; a negative α would make weights grow: {NUMBER_OR_LIST}",
    "fine_tuning: {learning_rate: 0}": f"fine_tuning.learning_rate is 0; {LEARNING_RATE}",
    "fine_tuning: {epochs: 0}": "fine_tuning.epochs is 0; give a whole number of at least 1",
    "fine_tuning: {rounds: 0}": "fine_tuning.rounds is 0; give a whole number of at least 1",
    "training: {momentum: 0.9}": "training.momentum is 0.9; adam has no momentum: leave it out, or give optimizer: sgd",
    "training: {patience: 3}": "training.patience is 3; it does nothing without early_stopping: leave it out, or give "
    "early_stopping: true",
    # keys that belong to another kind
    "model: {kind: resnet}": 'model.kind is "resnet"; give mlp, split-cifar-narrow, split-cifar-wide, or a function of '
    "your own as module:function",
    "tasks: {kind: 'a b:c'}": 'tasks.kind is "a b:c"; give permuted, split, split-cifar, views, or a function of your '
    "own as module:function",
    "model: {kind: split-cifar-wide, hidden: [3]}": "model.hidden is [3]; it belongs to kind: mlp: leave it out",
    "model: {kind: 'nets:make', hidden: [3]}": "model.hidden is [3]; it belongs to kind: mlp: leave it out",
    "model: {width: 0.5}": "model.width is 0.5; it belongs to split-cifar-narrow and split-cifar-wide: leave it out",
    "model: {kind: split-cifar-narrow, width: 0}": "model.width is 0; give a number above 0",
    "model: {options: {a: 1}}": 'model.options is {"a": 1}; it belongs to a function of your own (kind: '
    "module:function): leave it out",
    "model: {kind: 'nets:make', options: [1]}": "model.options is [1]; give a section whose keys are names of the "
    "function's arguments",
    "model: {kind: 'nets:make', options: {a-b: 1}}": 'model.options is {"a-b": 1}; give a section whose keys are names '
    "of the function's arguments",
    "model: {kind: 'nets:make', options: {a: [.inf]}}": 'model.options is {"a": [Infinity]}; a number in it is not '
    "finite; give one that is, or text",
    "tasks: {kind: 'mine:make', dataset: mnist}": 'tasks.dataset is "mnist"; your function brings its own data: '
    "leave it out",
    "tasks: {classes: 2}": "tasks.classes is 2; it belongs to kind: split: leave it out",
    "tasks: {options: {}}": "tasks.options is {}; it belongs to a function of your own (kind: module:function): "
    "leave it out",
    "tasks: {kind: split}": f"tasks.classes is not given; {CLASSES}",
    "tasks: {kind: split, classes: null}": f"tasks.classes is null; {CLASSES}",
    "tasks: {kind: split, classes: 1}": f"tasks.classes is 1; {CLASSES}",
    "tasks: {kind: split, classes: x}": f'tasks.classes is "x"; {CLASSES}',
    "tasks: {kind: split, classes: 4}": "tasks.count is 5; 5 tasks of 4 classes need 20, but digits has 10; "
    "with 4 a task there can be 2 tasks",
    "tasks: {kind: split, dataset: cifar-100, classes: 10, order: shuffled, count: 11}": "tasks.count is 11; 11 tasks "
    "of 10 classes need 110, but cifar-100 has 100; with 10 a task there can be 10 tasks",
    "tasks: {kind: split-cifar, count: 12}": "tasks.count is 12; 12 tasks are cifar-10 and 11 splits of 10 classes, "
    "which need 110, but cifar-100 has 100; there can be 11 tasks",
    "tasks: {kind: views, count: 17}": "tasks.count is 17; 17 tasks need as many views, but of mnist and fashion-mnist "
    "there are 16: each in four directions, as it is and inverted; there can be 16 tasks",
    "tasks: {kind: split-cifar, dataset: cifar-10}": 'tasks.dataset is "cifar-10"; split-cifar is made from cifar-10 '
    "and cifar-100: leave it out",
    "tasks: {kind: views, dataset: digits}": 'tasks.dataset is "digits"; views is made from mnist and fashion-mnist: '
    "leave it out",
    "tasks: {kind: split-cifar, classes: 10}": "tasks.classes is 10; it belongs to kind: split: leave it out",
    "tasks: {kind: views, classes: 10}": "tasks.classes is 10; it belongs to kind: split: leave it out",
    "tasks: {order: label}": 'tasks.order is "label"; it belongs to kind: split and kind: split-cifar: leave it out',
    "tasks: {kind: views, order: shuffled}": 'tasks.order is "shuffled"; it belongs to kind: split and kind: '
    "split-cifar: leave it out",
    "tasks: {kind: 'mine:make', order: label}": 'tasks.order is "label"; it belongs to kind: split and kind: '
    "split-cifar: leave it out",
    "tasks: {kind: split, classes: 2, order: random}": 'tasks.order is "random"; give label or shuffled',
    "tasks: {kind: views, options: {}}": "tasks.options is {}; it belongs to a function of your own (kind: "
    "module:function): leave it out",
    "tasks: {kind: split-cifar}\nvalidation: 0.0001": "validation is 0.0001; of 5000 samples it must leave some for "
    "training and some for validation",
    "tasks: {kind: split, classes: 2, order: shuffled}\nvalidation: 0.001": "validation is 0.001; of 294 samples it "
    "must leave some for training and some for validation",
    "tasks: {kind: split, classes: 2, count: 6}": "tasks.count is 6; 6 tasks of 2 classes need 12, but digits has 10; "
    "with 2 a task there can be 5 tasks",
    "training: {precision: half}": 'training.precision is "half"; give float32, tf32 or bf16',
    "training: {norm_alpha: 0.1}": "training.norm_alpha is 0.1; mlp has no BatchNorm: leave it out",
    "training: {norm_alpha: -1}": "training.norm_alpha is -1; give a number of at least 0",
    "training: {weight_decay: 0.1}": "training.weight_decay is 0.1; adam has no decoupled decay: leave it out, or give "
    "optimizer: adamw",
    "training: {optimizer: adamw, momentum: 0.9}": "training.momentum is 0.9; adamw has no momentum: leave it out, or "
    "give optimizer: sgd",
    "training: {optimizer: adamw, weight_decay: -1}": "training.weight_decay is -1; give a number of at least 0",
    "grow: {by: 1.5}": f"grow.by is 1.5; {UNITS}",
    "grow: {by: 0}": f"grow.by is 0; {UNITS}",
    "grow: {by: 100001}": f"grow.by is 100001; {UNITS}",
    "grow: {by: 2000000000}": f"grow.by is 2000000000; {UNITS}",
    "grow: {by: 1e30}": f"grow.by is 1e+30; {UNITS}",
    "grow: {below: 0}": "grow.below is 0; give a whole number of at least 1",
    "grow: 3": "grow is 3; give a section with keys: by, below",
    # the writing
    "seed: 1\nseed: 2": "seed stands twice, on lines 1 and 2; keep one of them",
    "seed: !!python/name:os.system": "seed has the tag tag:yaml.org,2002:python/name:os.system; write the plain value",
    "[]": "the file is []; give a section with keys: name, description, tasks, model, head, validation, seed, "
    "replicas, grid, training, rule, fine_tuning, grow, workers, worker, retries, keep",
}


@pytest.mark.parametrize(("text", "problem"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_with_what_was_found_and_how_to_mend_it(read: Any, text: str, problem: str) -> None:
    """Promise 8: bad input is refused before anything starts."""
    assert refused(read, text) in (f"file.yaml, line 1: {problem}", f"file.yaml, line 2: {problem}")


def test_the_line_is_that_of_the_key(read: Any) -> None:
    assert refused(read, "grid:\n  alpha:\n    - 1\n    - -1\n").startswith("file.yaml, line 4: grid.alpha[1] is -1;")
    assert refused(read, "# a remark\n\ntasks:\n  cuont: 3\n").startswith("file.yaml, line 4: tasks.cuont is not")


def test_all_problems_of_a_file_are_listed(read: Any) -> None:
    text = """
        taks: {}
        model: {hidden: [8, 8]}
        grid:
          alpha: [[1, 2], 3, 3]
          learning_rate: [1, 1]
        training: {epochs: 0, epochs: 5, momentum: 0.5}
        rule: {margin: [1]}
        worker: {cpu: none}
    """
    assert refused(read, text).splitlines() == [
        "file.yaml has 9 problems:",
        "  line 7: training.epochs stands twice, on lines 7 and 7; keep one of them",
        f"  line 5: grid.alpha[0] is [1.0, 2.0]; {THREE}",
        "  line 5: grid.alpha[2] is 3.0; it makes the same cells as entry [1]; keep one of them",
        "  line 6: grid.learning_rate[1] is 1.0; it makes the same cells as entry [0]; keep one of them",
        "  line 7: training.epochs is 0; give a whole number of at least 1",
        "  line 7: training.momentum is 0.5; adam has no momentum: leave it out, or give optimizer: sgd",
        "  line 8: rule.margin is [1.0]; give one value, or one for each of the 5 tasks, not 1",
        '  line 9: worker.cpu is "none"; give auto, or a whole number of at least 1',
        "  line 2: taks is not a known key; did you mean tasks?",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["auto", "winner", "adam", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alpha", "cpu", "x"]), inner),
    max_leaves=4,
)
KEYS = [(key,) for key in schema()["properties"]] + [
    (key, inner)
    for key, kind in [
        ("tasks", "Tasks"),
        ("model", "Model"),
        ("grid", "Grid"),
        ("training", "Training"),
        ("rule", "Rule"),
        ("worker", "Worker"),
        ("grow", "Grow"),
    ]
    for inner in [*schema()["$defs"][kind]["properties"], "x"]
]


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(KEYS), value=JSON)
@example(path=("seed",), value=10**400)
@example(path=("grid", "alpha"), value=[10**400])
def test_any_value_anywhere_is_taken_or_refused_in_our_own_words(path: tuple[str, ...], value: Any) -> None:
    data: Any = value
    for key in reversed(path):
        data = {key: data}
    said = refusal(data)
    if said is None:
        experiment = Experiment.from_json(data)
        assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment
    else:
        assert re.match(rf"the recorded experiment(: {path[0]}| has \d+ problems:\n  {path[0]})", said)
        assert not re.search("pydantic|http|Input|should|type=", said)


def refusal(data: Any) -> str | None:
    try:
        Experiment.from_json(data)
    except BadInput as error:
        return str(error)
    return None


# ── Where it is read from ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shipped_experiment_is_read_by_its_name() -> None:
    for name in shipped():
        assert read_experiment(name).name == name


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"quikstart is neither a file nor a shipped experiment; did you mean quickstart\?"
    ):
        read_experiment("quikstart")
    with pytest.raises(BadInput, match=r"the shipped experiments are .*quickstart"):
        read_experiment(str(tmp_path / "absent.yaml"))
    with pytest.raises(BadInput, match="is a folder; give an experiment file"):
        read_experiment(str(tmp_path))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("description: é".encode("latin-1"))
    with pytest.raises(BadInput, match=r"is not text in UTF-8 \(byte 13\)"):
        read_experiment(str(latin))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "marked.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 3")
    assert read_experiment(str(file)).seed == 3


# ── --set ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_set_changes_any_key_with_a_value_in_yaml(read: Any) -> None:
    experiment = read(
        ISSUE,
        "grid.alpha=[1e-5, [0, 1e-3, 0]]",
        "training.early_stopping=true",
        "grid.after_first.alpha=[1e-4]",
        "worker.gpu=0.5",
        "name=other",
        "tasks={dataset: digits}",
        "description=a=b",
    )
    assert experiment.grid.alpha == (1e-5, (0.0, 1e-3, 0.0))
    assert experiment.training.early_stopping is True
    assert experiment.grid.after_first.alpha == (1e-4,)
    assert experiment.grid.after_first.learning_rate == (0.002,)
    assert experiment.worker.gpu == 0.5
    assert experiment.name == "other"
    assert (experiment.tasks.dataset, experiment.tasks.count) == ("digits", 5)
    assert experiment.description == "a=b"


def test_set_changes_a_single_option(read: Any) -> None:
    experiment = read("model: {kind: 'nets:make', options: {depth: 3}}", "model.options.width=0.5", "grow.by=2")
    assert experiment.model.options == {"depth": 3, "width": 0.5}
    assert (experiment.grow.by, experiment.grow.below) == (2, 1)


def test_the_keys_of_a_kind_have_the_defaults_of_that_kind(read: Any) -> None:
    assert read("").model.hidden == (128, 128)
    assert read("model: {kind: split-cifar-wide}").model.width == 1.0
    assert read("tasks: {kind: split, classes: 2}").tasks.dataset == "digits"
    own = read("{tasks: {kind: 'mine:make'}, model: {kind: 'a.b:c.d'}}")
    assert (own.tasks.dataset, own.tasks.classes, own.model.hidden, own.model.width) == (None, None, None, None)


def test_the_folder_of_the_file_is_known_where_its_code_matters(read: Any, tmp_path: Path) -> None:
    assert read("").code is None
    assert read("model: {kind: 'nets:make'}").code == str(tmp_path)
    assert read_experiment("quickstart", ["model={kind: 'nets:make'}"]).code is None


def test_set_makes_the_sections_it_needs(read: Any) -> None:
    assert read("grid: {after_first: null}", "grid.after_first.alpha=[7]").grid.after_first.alpha == (7.0,)
    assert read("", "training.epochs=3").training.epochs == 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("training", "give path.to.key=value, such as training.epochs=3"),
        ("=3", "give path.to.key=value, such as training.epochs=3"),
        ("training..epochs=3", "give path.to.key=value, such as training.epochs=3"),
        ("training.epoch=3", "training.epoch is not a known key; did you mean training.epochs?"),
        ("trainign.epochs=3", "trainign is not a known key; did you mean training?"),
        ("training.epochs.x=3", "training.epochs is a single value, without keys; give training.epochs=value"),
        ("grid.alpha.0=3", "grid.alpha is a single value, without keys; give grid.alpha=value"),
        (
            "grid.after_first.alpha=[1]",
            'grid.after_first is "winner", which has no keys; set grid.after_first as a whole',
        ),
        ("workers={a: 1, a: 2}", "a stands twice, on lines 1 and 1; keep one of them"),
    ],
)
def test_a_set_that_leads_nowhere_is_refused(read: Any, change: str, problem: str) -> None:
    assert refused(read, "grid: {after_first: winner}", change) == f"--set {change}: {problem}"


def test_a_set_that_is_not_yaml_is_refused(read: Any) -> None:
    assert refused(read, "", "workers=[1").startswith("--set workers=[1, line 1, column 3: this is not YAML: ")


def test_the_same_key_set_twice_is_refused(read: Any) -> None:
    assert refused(read, "", "seed=1", "seed=2") == "--set seed=2: seed is set twice; keep one"


def test_a_wrong_value_is_traced_to_its_set(read: Any) -> None:
    message = refused(read, "seed: 1", "seed=-1")
    assert message == "file.yaml, --set seed=-1: seed is -1; give a whole number of at least 0"
    assert refused(read, "seed: -1").startswith("file.yaml, line 1: seed is -1;")


def test_what_a_set_kind_does_not_take_can_be_taken_away_by_another_set(read: Any) -> None:
    file = "rule:\n  margin: 1\ntasks: {dataset: digits, count: 2}"
    assert refused(read, file, "rule.kind=budget").splitlines() == [
        "file.yaml has 2 problems:",
        "  line 2: rule.margin is 1; the budget rule has floor instead: leave it out, or --set rule.margin=null",
        "  line 1: rule.tasks is not given; give for how many tasks the units are to last, such as 25",
    ]
    assert refused(read, file, "tasks.kind=views").endswith("leave it out, or --set tasks.dataset=null")
    read(file, "rule.kind=budget", "rule.tasks=9", "rule.margin=null", "tasks.kind=views", "tasks.dataset=null")


# ── Margins ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.decimals(0, 100, places=4))
def test_a_margin_is_the_decimal_that_was_written(margin: Any) -> None:
    experiment = Experiment.from_json(yaml.safe_load(f"rule: {{margin: {margin:f}}}"))
    assert experiment.margin(0) == Fraction(margin)


def test_fine_tuning_has_a_margin_of_its_own(read: Any) -> None:
    """Sec. 3.2: a winner that is fine-tuned is pruned further; without one, at the rule's."""
    for text, margins in (
        ("{rule: {margin: 2}, fine_tuning: {}}", (2, 2)),
        ("{rule: {margin: 2}, fine_tuning: {margin: 4}, tasks: {count: 2}}", (4, 4)),
        ("{rule: {margin: 2}, fine_tuning: {margin: [4, 0.1]}, tasks: {count: 2}}", (4, Fraction(1, 10))),
        ("{rule: {kind: budget, tasks: 9, floor: 3}, fine_tuning: {}}", (3, 3)),
    ):
        experiment = read(text)
        assert (experiment.margin(0), experiment.margin(1)) == margins
        assert Experiment.from_json(experiment.to_json()) == experiment


def test_margins_are_one_a_task_where_they_are_a_list(read: Any) -> None:
    experiment = read("{tasks: {count: 2}, rule: {margin: [1e-5, 0.1, 7]}}")
    assert [experiment.margin(task) for task in (0, 1)] == [Fraction(1, 100_000), Fraction(1, 10)]


# ── What makes a run the same ─────────────────────────────────────────────────────────────────────────────────────────

DATA = "0" * 64
ALPHA = st.floats(0, 1e3)
RATES = st.floats(1e-9, 10)


def axes(layers: int) -> st.SearchStrategy[dict[str, Any]]:
    alpha = ALPHA | st.lists(ALPHA, min_size=layers, max_size=layers)

    def key(entry: float | list[float]) -> tuple[float, ...]:
        return tuple(entry) if isinstance(entry, list) else (entry,) * layers

    return st.fixed_dictionaries(
        {
            "alpha": st.lists(alpha, min_size=1, max_size=3, unique_by=key),
            "learning_rate": st.lists(RATES, min_size=1, max_size=3, unique=True),
        }
    )


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    layers = draw(st.integers(2, 4))
    count = draw(st.integers(1, 4))
    percent = st.floats(0, 100)
    data = {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        "description": draw(st.text(max_size=10)),
        "tasks": {"dataset": draw(st.sampled_from(["digits", "mnist", "fashion-mnist"])), "count": count},
        "model": {"hidden": draw(st.lists(st.integers(1, 5000), min_size=layers - 1, max_size=layers - 1))},
        "head": draw(st.sampled_from(["single", "multi"])),
        "validation": draw(st.floats(0.01, 0.99)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "replicas": draw(st.integers(1, 9)),
        "grid": draw(axes(layers)) | {"after_first": draw(st.none() | st.just("winner") | axes(layers))},
        "training": draw(
            st.just({"optimizer": "sgd", "momentum": 0.9}) | st.just({"early_stopping": True, "patience": 3})
        ),
        "rule": {"margin": draw(percent | st.lists(percent, min_size=count, max_size=6))},
        "worker": {"gpu": draw(st.just("auto") | st.floats(0, 1)), "cells": draw(st.just("auto") | st.integers(1, 9))},
    }
    return Experiment.from_json(data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(experiments())
def test_json_gives_back_the_same_experiment(experiment: Experiment) -> None:
    text = json.dumps(experiment.to_json(), allow_nan=False)
    again = Experiment.from_json(json.loads(text))
    assert again == experiment
    assert json.dumps(again.to_json()) == text
    assert differences(experiment, again, DATA, DATA) == []


BASE: dict[str, Any] = {"tasks": {"count": 3}, "replicas": 2, "rule": {"margin": [1.0, 2.0, 3.0]}}


def changed(**changes: Any) -> list[str]:
    return differences(Experiment.from_json(BASE), Experiment.from_json(BASE | changes), DATA, DATA)


@pytest.mark.parametrize(
    "free",
    [
        {"name": "other"},
        {"description": "other"},
        {"workers": 7},
        {"worker": {"cpu": 2, "gpu": 0, "cells": 3}},
        {"retries": 9},
        {"keep": "all"},
        {"grow": {"by": 3}},
    ],
)
def test_these_are_free_to_change(free: dict[str, Any]) -> None:
    assert changed(**free) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tasks": {"count": 3, "dataset": "mnist"}}, 'tasks.dataset: was "digits", is "mnist"'),
        ({"model": {"hidden": [128, 64]}}, "model.hidden: was [128, 128], is [128, 64]"),
        ({"head": "multi"}, 'head: was "single", is "multi"'),
        ({"validation": 0.2}, "validation: was 0.1, is 0.2"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"training": {"epochs": 31}}, "training.epochs: was 30, is 31"),
        ({"rule": {"margin": [1.0, 2.5, 3.0]}}, "rule.margin: was [1.0, 2.0, 3.0], is [1.0, 2.5, 3.0]"),
        ({"rule": {"margin": 1}}, "rule.margin: was [1.0, 2.0, 3.0], is 1.0"),
        (
            {"rule": {"margin": BASE["rule"]["margin"], "sparsity": "weights"}},
            'rule.sparsity: was "units", is "weights"',
        ),
        ({"replicas": 1}, "replicas: was 2, is 1; it can only grow"),
        ({"tasks": {"count": 2}}, "tasks.count: was 3, is 2; it can only grow"),
    ],
)
def test_these_are_not(changes: dict[str, Any], line: str) -> None:
    assert changed(**changes) == [line]


def test_the_grid_is_compared_in_its_order() -> None:
    lines = changed(grid={"learning_rate": [0.01, 0.005]})
    assert lines == ["grid.learning_rate: was [0.005, 0.01], is [0.01, 0.005]"], "after_first was never set"
    lines = changed(grid={"learning_rate": [0.01], "after_first": {"learning_rate": [0.02]}})
    assert [line.partition(":")[0] for line in lines] == ["grid.learning_rate", "grid.after_first"]
    assert changed(grid={"after_first": "winner"})[0].endswith(' is "winner"')


@pytest.mark.parametrize("after_first", [None, {"alpha": [[1, 2, 3, 4]]}])
def test_over_other_layers_alpha_is_compared_as_it_was_written(after_first: Any) -> None:
    """α is spread over more layers there: no change that a person made."""
    assert changed(model={"hidden": [64]}) == ["model.hidden: was [128, 128], is [64]"]
    changes = {"model": {"hidden": [9, 9, 9]}, "grid": {"alpha": [1, 2], "after_first": after_first}}
    lines = changed(**changes)
    assert [line.partition(":")[0] for line in lines] == [
        "model.hidden",
        "grid.alpha",
        *(["grid.after_first"] if after_first else []),
    ]
    assert lines[1] == "grid.alpha: was [0.0005, 0.001, 0.002], is [1.0, 2.0]"


@pytest.mark.parametrize("hidden", [[128, 128], [128, 128, 128]])
def test_another_network_of_the_same_keys_is_refused_in_words(hidden: list[int]) -> None:
    """Such as when a function of one's own was changed: no key of the file says so."""
    kind = {"model": {"kind": "nets:make"}, "grid": {"alpha": [1e-3]}}
    was, now = (
        Experiment.from_json(kind).with_outline(replace(Experiment.from_json(plain).outline, architecture=digits * 4))
        for plain, digits in (({}, "0123456789abcdef"), ({"model": {"hidden": hidden}}, "fedcba9876543210"))
    )
    assert differences(was, was, DATA, DATA) == []
    assert differences(was, now, DATA, DATA) == [
        "architecture: was 0123456789ab, is fedcba987654: the network that model.kind (nets:make) gives is another one "
        "now; bring the old code back, or give the new run another --name"
    ]


def test_another_data_set_is_another_run() -> None:
    experiment = Experiment()
    assert differences(experiment, experiment, "a", "b") == ['data: was "a", is "b"']


def test_tasks_replicas_and_margins_may_grow() -> None:
    assert changed(replicas=3, tasks={"count": 5}, rule={"margin": [1.0, 2.0, 3.0, 4.0, 5.0]}) == []
    even = Experiment(rule={"margin": 2})  # type: ignore[arg-type]
    longer = Experiment(rule={"margin": [2, 2, 2, 2, 2, 9]}, tasks={"count": 6})  # type: ignore[arg-type]
    assert differences(even, longer, DATA, DATA) == []
    assert differences(longer, even, DATA, DATA) == ["tasks.count: was 6, is 5; it can only grow"]


def test_two_ways_to_write_the_same_are_the_same() -> None:
    grid = {"alpha": [1e-5], "learning_rate": [1]}
    spread = {"alpha": [[1e-5] * 3], "learning_rate": [1.0], "after_first": grid}
    one, other = (Experiment.from_json({"grid": written}) for written in (grid, spread))
    assert one != other
    assert differences(one, other, DATA, DATA) == []


TASKS: dict[str, dict[str, Any]] = {
    "permuted": {},
    "split": {"kind": "split", "classes": 2},
    "shuffled": {"kind": "split", "classes": 2, "order": "shuffled"},
    "split-cifar": {"kind": "split-cifar", "count": 11},
    "shuffled split-cifar": {"kind": "split-cifar", "order": "shuffled"},
    "views": {"kind": "views", "count": 16},
}


@pytest.mark.parametrize("name", TASKS)
def test_json_gives_back_the_tasks_of_every_kind(name: str) -> None:
    experiment = Experiment.from_json({"tasks": TASKS[name]})
    again = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert again == experiment
    assert again.outline == experiment.outline
    assert differences(experiment, again, DATA, DATA) == []


@pytest.mark.parametrize("tasks", [TASKS["permuted"], TASKS["split"], {"kind": "mine:make"}])
def test_a_run_from_before_classes_had_an_order_goes_on(tasks: dict[str, Any]) -> None:
    """Its record has no such key, and classes came as their labels do."""
    now = Experiment.from_json({"tasks": tasks}).with_outline(Experiment().outline)
    record = json.loads(json.dumps(now.to_json()))
    del record["tasks"]["order"]
    before = Experiment.from_json(record)
    assert before == now
    assert differences(before, now, DATA, DATA) == []


def test_another_order_of_classes_is_another_run() -> None:
    label, shuffled = (Experiment.from_json({"tasks": TASKS[name]}) for name in ("split", "shuffled"))
    assert differences(label, shuffled, DATA, DATA) == ['tasks.order: was "label", is "shuffled"']


def test_tasks_say_what_they_are_made_from() -> None:
    titles = {name: Experiment.from_json({"tasks": tasks}).tasks.title for name, tasks in TASKS.items()}
    assert titles == {
        "permuted": "digits",
        "split": "digits",
        "shuffled": "digits",
        "split-cifar": "cifar-10 and cifar-100",
        "shuffled split-cifar": "cifar-10 and cifar-100",
        "views": "mnist and fashion-mnist",
    }
    own = Experiment.from_json({"tasks": {"kind": "mine:make"}}).tasks
    assert (own.title, own.datasets) == ("mine:make", ())


def test_the_outline_of_a_sequence_of_images_is_that_of_its_first_task() -> None:
    for name, shape, train in (("split-cifar", (3, 32, 32), 50_000), ("views", (1, 28, 28), 60_000)):
        outline = Experiment.from_json({"tasks": TASKS[name]}).outline
        assert (outline.shape, outline.classes) == (shape, 10)
        assert (outline.train, outline.validation) == (train * 9 // 10, train // 10)


def test_the_sizes_of_shuffled_tasks_are_those_of_a_replica_s_seed() -> None:
    experiment = Experiment.from_json({"tasks": TASKS["shuffled"], "seed": 4, "replicas": 3})
    sizes = [experiment.task_sizes(replica) for replica in range(3)]
    assert len(set(sizes)) == 3
    assert sizes[2] == Experiment.from_json({"tasks": TASKS["shuffled"], "seed": 6}).task_sizes(0)
    assert experiment.outline.train + experiment.outline.validation == sizes[0][0].train


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
@pytest.mark.parametrize("most", [False, True])
@given(classes=st.integers(2, 9), data=st.data(), seed=st.integers(0, 2**20))
def test_a_share_that_is_taken_splits_the_shuffled_tasks_of_every_seed(
    dataset: str, most: bool, classes: int, data: st.DataObject, seed: int
) -> None:
    """Promise 8: replicas that are added later meet no task that cannot be split."""
    tasks = {"kind": "split", "dataset": dataset, "classes": classes, "order": "shuffled", "count": 10 // classes}
    counts = sorted(class_counts(dataset, test=False))
    # Shares that split some of the tasks that there can be and not the smaller ones.
    share = 0.50001 / data.draw(st.integers(sum(counts[:classes]) - 9, sum(counts[-classes:])))
    try:
        experiment = Experiment.from_json({"tasks": tasks, "validation": 1 - share if most else share, "seed": seed})
    except BadInput:
        return
    for sizes in experiment.task_sizes(0):
        assert 0 < validation_count(experiment.validation, sizes.train) < sizes.train


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().seed = 1


# ── What it costs to import ───────────────────────────────────────────────────────────────────────────────────────────


def test_experiments_and_grids_need_no_torch_and_no_ray() -> None:
    code = (
        "import sys; from search.experiment import Experiment, read_experiment, shipped;"
        "from search.advice import warnings; from search.grid import cells, stacks;"
        "one = read_experiment('quickstart'); shipped();"
        "stacks(one, cells(one, 0), workers=2); warnings(one); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "ray", "sklearn", "optuna", "sqlalchemy", "numpy"} & set(done.stdout.split())


def test_a_budget_is_part_of_what_makes_a_run_the_same() -> None:
    rule = {"kind": "budget", "tasks": 9, "floor": 2.0}
    one, same = (Experiment.from_json({"rule": given}) for given in (rule, {"kind": "budget", "tasks": 9}))
    assert differences(one, same, DATA, DATA) == []
    for change, line in (
        ({"floor": 1.5}, "rule.floor: was 2.0, is 1.5"),
        ({"tasks": 8}, "rule.tasks: was 9, is 8"),
    ):
        assert differences(one, Experiment.from_json({"rule": {**rule, **change}}), DATA, DATA) == [line]
    assert differences(one, Experiment(), DATA, DATA) == [
        'rule.kind: was "budget", is "margin"',
        "rule.margin: was null, is 1.0",
        "rule.tasks: was 9, is null",
        "rule.floor: was 2.0, is null",
    ]
    longer = Experiment.from_json({"rule": rule, "tasks": {"count": 9}})
    assert differences(one, longer, DATA, DATA) == [], "a run may be given more tasks"
