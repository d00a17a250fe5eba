"""Networks and tasks from an experiment: a person's own are found, checked and refused before anything starts."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import search.building
import search.own_code
from clnp.models import mlp
from clnp.network import Network
from clnp.tasks import split, split_cifar, validation_count, views
from search.building import build_network, build_sequence, build_task, forget, grown, resolve
from search.data import data_sha256
from search.errors import BadInput
from search.experiment import Experiment, differences, read_experiment
from search.own_code import folders

NETS = """
import torch
from torch import nn

def tiny(shape, classes, *, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], width), nn.ReLU(),
                         nn.Linear(width, classes))

def normed(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, classes))

class Residual(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem, self.branch, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.flatten, self.output = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.output(self.flatten(self.pool(self.relu(x + self.branch(x)))))

class Models:
    @staticmethod
    def residual(classes):
        return Residual(classes)

SIZE = 3

def recurrent(shape, classes):
    return nn.Sequential(nn.LSTM(8, 4), nn.Linear(4, classes))

def raises(shape):
    raise KeyError("a width is missing")

def exits():
    raise SystemExit(0)

class Exits(nn.Module):
    def forward(self, x):
        raise SystemExit(4)

def nothing():
    return {"no": "module"}

def fixed():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def few(shape):
    return tiny(shape, 7)
"""

TASKS = """
import torch
from clnp.tasks import Split, from_function

def images(count, seed, validation, *, classes=3, samples=40, short=False):
    def make(index, test):
        draw = torch.Generator().manual_seed(index + (1000 if test else 0))
        y = torch.arange(samples) % classes
        return Split(torch.rand(samples, 1, 8, 8, generator=draw) + y.view(-1, 1, 1, 1), y)
    return from_function(make, count=2 if short else count, seed=seed, validation=validation, classes=classes)

def nothing(count, seed, validation):
    return [1, 2, 3]

def where(count, seed, validation, data_dir):
    raise RuntimeError(f"nothing in {data_dir}")

class Broken:
    count, shape, classes = 5, (1, 8, 8), 3
    def __init__(self, **changes):
        self.__dict__.update(changes)
    def task(self, index):
        raise OSError("disk on fire")
    def sha256(self, index):
        return 7
    def transform(self, index):
        return None

def broken(count, seed, validation, **changes):
    return Broken(**changes)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    forget()
    (tmp_path / "mynets.py").write_text(NETS)
    (tmp_path / "mytasks.py").write_text(TASKS)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before


@pytest.fixture
def read(folder: Path) -> Callable[..., Experiment]:
    """An experiment of a file in the folder of the code."""

    def read(**sections: Any) -> Experiment:
        plain = {"tasks": {"kind": "split", "classes": 2, "count": 2}, "grid": {"alpha": [1e-3]}}
        file = folder / "mine.yaml"
        file.write_text(json.dumps({**plain, **sections}))
        return read_experiment(str(file))

    return read


def resolved(experiment: Experiment) -> Experiment:
    return resolve(experiment, None, folders(experiment.code))


# ── What is known before the first task ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tasks", [{}, {"kind": "split", "classes": 2}, {"dataset": "mnist"}])
def test_an_outline_of_the_file_alone_is_that_of_the_network(tasks: dict[str, Any]) -> None:
    """What is computed without torch is what torch would say."""
    experiment = Experiment.model_validate({"tasks": tasks, "model": {"hidden": [20, 7, 5]}})
    outline, network = experiment.outline, build_network(experiment)
    assert outline.layer_names == tuple(layer.name for layer in network.layers)
    assert tuple((group.name, group.units) for group in outline.groups) == tuple(
        (group.name, group.units) for group in network.groups
    )
    assert [layer.source for layer in outline.layers] == [layer.source for layer in network.layers]
    assert outline.weights == sum(layer.units * layer.fan_in for layer in network.layers)
    assert outline.entries == sum(
        entry.numel() for entry in mlp(outline.shape, [20, 7, 5], outline.classes).parameters()
    )
    network.check_shape(outline.shape)


@pytest.mark.parametrize("tasks", [{}, {"kind": "split", "classes": 2}])
def test_an_outline_counts_the_samples_of_the_first_task(tasks: dict[str, Any]) -> None:
    experiment = Experiment.model_validate({"tasks": tasks})
    task = build_sequence(experiment, 0).task(0)
    assert (experiment.outline.train, experiment.outline.validation) == (len(task.train), len(task.validation))
    assert experiment.outline.shape == build_sequence(experiment, 0).shape


def test_the_paper_s_network_is_outlined_by_torch() -> None:
    made = {"kind": "split-cifar-narrow", "width": 0.125}
    experiment = Experiment.model_validate({"model": made, "tasks": {"kind": "split", "classes": 2}})
    assert not experiment.plain
    with pytest.raises(RuntimeError, match="not known yet"):
        _ = experiment.outline
    outline = resolve(experiment).outline
    assert outline.group_names == ("conv1", "conv2", "conv3", "conv4", "dense1")
    assert outline.widths == (4, 4, 8, 8, 64)
    assert outline.layer_names == (*outline.group_names, "output")
    assert outline.last == 4


def test_an_outline_survives_json(read: Callable[..., Experiment]) -> None:
    """Records are read without torch: the outline travels in the experiment's JSON."""
    experiment = resolved(read(model={"kind": "mynets:Models.residual"}))
    again = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert again == experiment
    assert again.outline == experiment.outline
    assert "outline" not in experiment.to_file()
    with pytest.raises(BadInput, match="the recorded experiment: the recorded outline cannot be read"):
        Experiment.from_json({**experiment.to_json(), "outline": {"shape": "x"}})


def test_layers_and_groups_differ_in_a_residual_network(read: Callable[..., Experiment]) -> None:
    outline = resolved(read(model={"kind": "mynets:Models.residual"})).outline
    assert outline.layer_names == ("stem", "branch", "output")
    assert outline.group_names == ("stem",)
    assert [layer.group for layer in outline.layers] == ["stem", "stem", None]


def test_the_grid_must_fit_the_layers(read: Callable[..., Experiment]) -> None:
    with pytest.raises(BadInput, match=r"grid.alpha\[0\] is \[1.0, 2.0\]; give one value, or 3: one for each of stem"):
        resolved(read(model={"kind": "mynets:Models.residual"}, grid={"alpha": [[1, 2]]}))


def test_the_same_architecture_is_the_same_run_wherever_its_code_lies(
    read: Callable[..., Experiment], folder: Path
) -> None:
    """Where the code lies is no part of a run's identity; what the network computes is."""
    one = resolved(read(model={"kind": "mynets:tiny"}))
    other = one.with_code("/elsewhere")
    assert differences(one, other, "d", "d") == []
    assert one.code == str(folder)
    (folder / "mynets.py").write_text(NETS.replace("nn.ReLU()", "nn.GELU()"))
    sys.modules.pop("mynets")
    forget()
    changed = resolved(read(model={"kind": "mynets:tiny"}))
    (line,) = differences(one, changed, "d", "d")
    assert line.startswith("architecture: was")
    with pytest.raises(BadInput, match=r"mynets:tiny gives another network than the run began with: .* --name"):
        build_network(one, folders(one.code))


def test_code_of_the_same_name_in_two_folders_is_kept_apart(read: Callable[..., Experiment], tmp_path: Path) -> None:
    wide = resolved(read(model={"kind": "mynets:tiny"}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mynets.py").write_text(NETS.replace("width=8", "width=5"))
    narrow = resolve(wide.with_code(str(other)), None, (str(other),))
    assert (wide.outline.widths, narrow.outline.widths) == ((8,), (5,))


def test_code_is_kept_apart_from_another_whose_import_failed(
    read: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package stays imported where a module in it is not found."""
    monkeypatch.setattr(search.own_code, "_imported", {})
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    with pytest.raises(BadInput, match=r"no module mynets.deep"):
        resolved(read(model={"kind": "mynets.deep:net"}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mynets.py").write_text(NETS.replace("width=8", "width=5"))
    narrow = resolve(read(model={"kind": "mynets:tiny"}).with_code(str(other)), None, (str(other),))
    assert narrow.outline.widths == (5,)


def test_options_are_keyword_arguments(read: Callable[..., Experiment]) -> None:
    tasks = {"kind": "mytasks:images", "count": 3, "options": {"classes": 4, "samples": 60}}
    experiment = resolved(read(model={"kind": "mynets:tiny", "options": {"width": 11}}, tasks=tasks))
    assert experiment.outline.widths == (11,)
    assert (experiment.outline.classes, experiment.outline.shape) == (4, (1, 8, 8))
    assert (experiment.outline.train, experiment.outline.validation) == (54, 6)
    code = folders(experiment.code)
    sequence = build_sequence(experiment, 0, None, code)
    assert data_sha256(experiment, None, code) == sequence.sha256(0) != sequence.sha256(1)
    assert torch.equal(build_task(experiment, 0, 1, None, code).train.x, sequence.task(1).train.x)


def test_growth_keeps_what_is_there() -> None:
    network = Network(mlp(6, [4, 3], 2))
    assert grown(network, (4, 3)) is network
    assert [group.units for group in grown(network, (4, 5)).groups] == [4, 5]
    for wrong in ((4, 2), (4,)):
        with pytest.raises(ValueError, match="the records say that the network had"):
            grown(network, wrong)


@pytest.mark.parametrize("tasks", [{"order": "shuffled"}, {}])
def test_split_cifar_is_that_of_the_method(small_cifar: Path, tasks: dict[str, Any]) -> None:
    experiment = Experiment.model_validate({"tasks": {"kind": "split-cifar", "count": 3, **tasks}, "seed": 5})
    data = str(small_cifar)
    made = split_cifar(count=3, seed=6, validation=0.1, data_dir=data, order=tasks.get("order", "label"))
    found = build_sequence(experiment, 1, data)
    assert [found.sha256(index) for index in range(3)] == [made.sha256(index) for index in range(3)]
    assert torch.equal(build_task(experiment, 1, 2, data).train.x, made.task(2).train.x)


def test_views_and_shuffled_classes_are_those_of_the_method(small_mnist: Path) -> None:
    data = str(small_mnist)
    given: dict[str, Any] = {"seed": 0, "validation": 0.1, "data_dir": data}
    for tasks, made in (
        ({"kind": "views", "count": 5}, views(count=5, **given)),
        (
            {"kind": "split", "dataset": "mnist", "classes": 2, "count": 5, "order": "shuffled"},
            split("mnist", classes=2, count=5, order="shuffled", **given),
        ),
    ):
        found = build_sequence(Experiment.model_validate({"tasks": tasks}), 0, data)
        assert [found.sha256(index) for index in range(5)] == [made.sha256(index) for index in range(5)]


@pytest.mark.parametrize("tasks", [{"kind": "split-cifar", "count": 11}, {"kind": "views", "count": 16}])
@pytest.mark.parametrize("kind", ["split-cifar-narrow", "split-cifar-wide"])
def test_the_paper_s_networks_fit_the_sequences_of_images(tasks: dict[str, Any], kind: str) -> None:
    """Without the data: a plan needs none."""
    experiment = resolve(Experiment.model_validate({"tasks": tasks, "model": {"kind": kind, "width": 0.1}}))
    assert experiment.outline.shape == experiment.task_sizes(0)[0].shape
    assert experiment.outline.validation == validation_count(0.1, experiment.task_sizes(0)[0].train)


def test_a_map_too_small_is_refused() -> None:
    wide = Experiment.model_validate({"model": {"kind": "split-cifar-wide"}, "tasks": {"kind": "split", "classes": 2}})
    with pytest.raises(BadInput, match=r"split-cifar-wide: shape is \(1, 8, 8\), a map of 8 × 8; .* at least 23 × 23"):
        resolve(wide)


# ── What is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

MODELS = {
    "nowhere:net": "there is no module nowhere; looked for in {folder}, .* the installed packages. Put nowhere.py",
    "mynets.deep:net": "there is no module mynets.deep; looked for in",
    "mynets:absent": r"mynets \({folder}/mynets.py\) has no absent; define it there",
    "mynets:SIZE": "mynets:SIZE is a int, which cannot be called; name a function",
    "mynets:raises": r"mynets:raises raised KeyError: 'a width is missing' \({folder}/mynets.py, line \d+\)",
    "mynets:nothing": "mynets:nothing returned a dict; return a torch.nn.Module",
    "mynets:recurrent": "mynets:recurrent: .*LSTM",
    "mynets:fixed": r"mynets:fixed: layer '0' cannot read \[1, 8, 8\]",
    "mynets:few": "it ends with 7 logits, and a task has 2 classes; let them be as many",
    "broken_on_import:net": r"importing broken_on_import raised ZeroDivisionError: division by zero \(.*line 1\)",
    "imports_absent:net": "importing imports_absent raised ModuleNotFoundError: No module named 'absent_package' "
    r"\({folder}/imports_absent.py, line 1\); install absent_package, or put absent_package.py beside imports_absent$",
    "exits_on_import:net": r"importing exits_on_import raised SystemExit: 3 \(.*line 1\); mend it; the same",
    "mynets:exits": r"mynets:exits raised SystemExit: 0 \({folder}/mynets.py, line \d+\); mend it; the same .*$",
    "mynets:Exits": r"mynets:Exits raised SystemExit: 4 \({folder}/mynets.py, line \d+\); mend it; the same .*$",
    "not_python:net": "importing not_python raised SyntaxError",
}


@pytest.mark.parametrize(("kind", "problem"), MODELS.items(), ids=MODELS.keys())
def test_a_network_of_one_s_own_is_refused_with_where_and_why(
    read: Callable[..., Experiment], folder: Path, kind: str, problem: str
) -> None:
    """Promise 8: before anything starts, with what was found and how to mend it."""
    (folder / "broken_on_import.py").write_text("1 / 0")
    (folder / "imports_absent.py").write_text("import absent_package")
    (folder / "exits_on_import.py").write_text("raise SystemExit(3)")
    (folder / "not_python.py").write_text("def (")
    with pytest.raises(BadInput, match=f"^model.kind: {kind}.*" if "{" not in problem else "^model.kind") as caught:
        resolved(read(model={"kind": kind}))
    assert caught.value.exit_code == 2
    with pytest.raises(BadInput, match=problem.format(folder=folder)):
        raise caught.value


def test_options_that_do_not_fit_are_refused(read: Callable[..., Experiment]) -> None:
    with pytest.raises(BadInput, match=r"takes \(shape, classes, \*, width=8\) and is called with .*depth.*unexpected"):
        resolved(read(model={"kind": "mynets:tiny", "options": {"depth": 3}}))
    with pytest.raises(BadInput, match="options has classes, which the experiment gives itself; leave it out"):
        resolved(read(model={"kind": "mynets:tiny", "options": {"classes": 3}}))


def test_a_batch_of_one_is_refused_before_training(read: Callable[..., Experiment]) -> None:
    experiment = read(
        model={"kind": "mynets:normed"}, tasks={"kind": "mytasks:images", "count": 1}, training={"batch_size": 5}
    )
    with pytest.raises(BadInput, match=r"training.batch_size: of 36 training samples in batches of 5 the last .* 1"):
        resolved(experiment)


def test_a_batch_of_one_in_a_later_replica_is_refused_before_training(read: Callable[..., Experiment]) -> None:
    """Each replica's seed draws which classes a task has, and they are not equally large."""
    tasks = {"kind": "split", "classes": 2, "count": 2, "order": "shuffled"}
    sizes = [read(tasks=tasks).task_sizes(replica) for replica in range(2)]
    trains = [{one.train - validation_count(0.1, one.train) for one in each} for each in sizes]
    samples = min(trains[1] - trains[0])
    batch = {"batch_size": next(size for size in range(20, 300) if samples % size == 1 and _whole(trains[0], size))}
    assert resolved(read(model={"kind": "mynets:normed"}, tasks=tasks, training=batch)).replicas == 1
    with pytest.raises(BadInput, match=f"training.batch_size: of {samples} training samples in batches of"):
        resolved(read(model={"kind": "mynets:normed"}, tasks=tasks, training=batch, replicas=2))


def _whole(trains: set[int], batch: int) -> bool:
    return all(samples % batch != 1 for samples in trains)


BROKEN = {
    "nothing": ({}, "returned a list without shape, classes, task, sha256, transform; return a clnp.tasks.Sequence"),
    "where": ({}, "raised RuntimeError: nothing in None"),
    "images": ({"short": True}, "made 2 tasks when count=5 were asked for; give a smaller tasks.count"),
    "broken": ({}, r"transform of task 1 is a NoneType; give a clnp.tasks.Transform"),
    "broken ": ({"shape": [1, 0]}, r"shape is \[1, 0\]; give the sizes of one sample"),
    "broken  ": ({"classes": 1}, "classes is 1; give a whole number of at least 2"),
    "broken   ": ({"count": 0}, "options has count, which the experiment gives itself"),
    "broken    ": ({"task": 3}, r"without task\(\); return a clnp.tasks.Sequence"),
}


@pytest.mark.parametrize(("name", "found"), BROKEN.items(), ids=BROKEN.keys())
def test_tasks_of_one_s_own_are_refused_with_why(
    read: Callable[..., Experiment], name: str, found: tuple[dict[str, Any], str]
) -> None:
    """Promise 8."""
    options, problem = found
    with pytest.raises(BadInput, match=problem) as caught:
        resolved(read(tasks={"kind": f"mytasks:{name.strip()}", "options": options}))
    assert str(caught.value).startswith(f"tasks.kind: mytasks:{name.strip()}")


SPLITS = {
    "x = x.double()": r"x is torch.float64 \[4, 1, 8, 8\]; give torch.float32 \[n, 1, 8, 8\]",
    "x = torch.zeros(4, 64)": r"x is torch.float32 \[4, 64\]; give torch.float32 \[n, 1, 8, 8\]",
    "x = None": "train split is a SimpleNamespace; give a clnp.tasks.Split of tensors",
    "y = torch.zeros(3, dtype=torch.int64)": r"y is torch.int64 \[3\]; give torch.int64 \[4\]",
    "y = torch.zeros(4)": r"y is torch.float32 \[4\]; give torch.int64 \[4\]",
    "y = torch.tensor([0, 1, 2, 3])": "y goes from 0 to 3; with 3 classes it is 0 to 2",
    "raise OSError('disk on fire')": r"raised OSError: disk on fire \({folder}/handmade.py, line \d+\); mend it",
    "raise SystemExit(5)": r"raised SystemExit: 5 \({folder}/handmade.py, line \d+\); mend it; the same command .*$",
}

HAND_MADE = """
import torch
from types import SimpleNamespace
from clnp.tasks import Transform

class Mine:
    count, shape, classes = 5, (1, 8, 8), 3
    @property
    def train(self):
        x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        CHANGE
        return SimpleNamespace(x=x, y=y)
    validation = train
    def open_test(self):
        return self.train
    def task(self, index):
        return self
    def sha256(self, index):
        return str(index)
    def transform(self, index):
        return Transform(None, 1.0, self.shape)

def make(count, seed, validation):
    return Mine()
"""


def test_a_count_of_one_s_own_that_raises_is_refused_with_why(read: Callable[..., Experiment], folder: Path) -> None:
    """Promise 8: a property is a person's code too."""
    (folder / "handmade.py").write_text(
        "class Mine:\n    @property\n    def count(self):\n        raise OSError('no index')\n"
        "def make(count, seed, validation):\n    return Mine()\n"
    )
    with pytest.raises(BadInput, match=r"^tasks.kind: handmade:make raised OSError: no index \(.*line 4\); mend it"):
        resolved(read(tasks={"kind": "handmade:make"}))


@pytest.mark.parametrize("kind", ["split-cifar-narrow", "split-cifar-wide"])
@pytest.mark.parametrize("width", [1e300, 1000, 100.5])
def test_a_network_beyond_any_memory_is_refused_before_it_is_built(kind: str, width: float) -> None:
    """Promise 8."""
    model, tasks = {"kind": kind, "width": width}, {"kind": "split", "classes": 2}
    with pytest.raises(
        BadInput, match=rf"^model.width is {re.escape(str(float(width)))}; give at most 100: 1 is"
    ) as caught:
        resolve(Experiment.model_validate({"model": model, "tasks": tasks}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            RuntimeError("alloc_cpu: can't allocate memory: error 12\nframe #0: c10"),
            "alloc_cpu: .* memory: error 12; give",
        ),
        (OverflowError("too large"), "too large; give a smaller one$"),
        (MemoryError(), "MemoryError; give a smaller one$"),
    ],
)
def test_a_network_that_memory_does_not_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    """Promise 8: in a line, without torch's own trace."""

    def build(**_: object) -> None:
        raise error

    monkeypatch.setitem(search.building._TABLES, "split-cifar-narrow", build)
    model, tasks = {"kind": "split-cifar-narrow", "width": 20}, {"kind": "split", "classes": 2}
    forget()
    with pytest.raises(
        BadInput, match=rf"^model.width is 20.0, and model.kind: split-cifar-narrow cannot be .*{text}"
    ) as caught:
        resolve(Experiment.model_validate({"model": model, "tasks": tasks}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "problem"), SPLITS.items(), ids=SPLITS.keys())
def test_samples_of_one_s_own_are_refused_with_why(
    read: Callable[..., Experiment], folder: Path, change: str, problem: str
) -> None:
    """Promise 8."""
    (folder / "handmade.py").write_text(HAND_MADE.replace("CHANGE", change))
    with pytest.raises(BadInput, match=problem.replace("{folder}", str(folder))) as caught:
        resolved(read(tasks={"kind": "handmade:make"}))
    assert str(caught.value).startswith("tasks.kind: handmade:make, task 1, train split")
    (folder / "handmade.py").write_text(HAND_MADE.replace("CHANGE", ""))


def test_what_fails_in_a_later_task_is_named(read: Callable[..., Experiment], folder: Path) -> None:
    (folder / "late.py").write_text(
        "from mytasks import *\n"
        "def make(count, seed, validation):\n"
        "    def samples(index, test):\n"
        "        if index: raise ValueError('only the first is here')\n"
        "        return Split(torch.ones(40, 1, 8, 8), torch.arange(40) % 2)\n"
        "    return from_function(samples, count=count, seed=seed, validation=validation)\n"
    )
    experiment = resolved(read(tasks={"kind": "late:make"}))
    sequence = build_sequence(experiment, 0, None, folders(experiment.code))
    with pytest.raises(BadInput, match="late:make, sha256 of task 2 raised ValueError: only the first is here"):
        sequence.sha256(1)
