"""From an experiment to what a worker holds: its network, its tasks, and the network as the last commit left it."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from torch import nn

from clnp.commit import fingerprint, restore
from clnp.errors import Damaged, UnsupportedNetwork
from clnp.graph import Layer, Node, Plain
from clnp.growth import grow
from clnp.models import mlp, split_cifar_narrow, split_cifar_wide
from clnp.network import Head, Network
from clnp.tasks import permuted, split, split_cifar, validation_count, views
from clnp.tasks.task import Sequence as Tasks
from clnp.tasks.task import Task
from clnp.tensors import decode
from clnp.training import check_batches
from search import own_code, sections
from search.artifacts import Artifacts
from search.errors import BadInput, Damage
from search.experiment import Experiment
from search.outline import GroupSize, LayerSize, Outline, architecture_of
from search.own_tasks import guarded
from search.records import Committed
from search.text import up_to

__all__ = [
    "assemble",
    "assembled",
    "build_network",
    "build_sequence",
    "build_task",
    "forget",
    "grown",
    "resolve",
    "without_commit",
]

_WIDEST = 100
"""How many times the paper's widths a network may have: hundreds of GB of weights."""

_TABLES = {"split-cifar-narrow": split_cifar_narrow, "split-cifar-wide": split_cifar_wide}


def resolve(experiment: Experiment, data_dir: str | None = None, code: Sequence[str] = ()) -> Experiment:
    """The experiment with its outline known: network and tasks are built once, where the file alone does not say.

    Args:
        data_dir: Where data sets lie.
        code: The folders in which a person's own functions are looked for.

    Raises:
        BadInput: A function of one's own is not found, raises, or returns something else than it should; the network
            cannot be used, or does not fit the tasks, the grid or the batches.
    """
    if experiment.plain:
        return experiment
    if experiment.tasks.own:
        sequence = build_sequence(experiment, 0, data_dir, code)
        sequence.transform(0)
        first = sequence.task(0)
        shape, classes = sequence.shape, sequence.classes
        train, validation = len(first.train), len(first.validation)
        trained = {train}
    else:
        first_sizes = experiment.task_sizes(0)[0]
        shape, classes = first_sizes.shape, first_sizes.classes
        validation = validation_count(experiment.validation, first_sizes.train)
        train, trained = first_sizes.train - validation, _trained(experiment)
    network = _network(experiment.model.model_dump_json(), shape, classes, experiment.head, tuple(code))
    where = f"model.kind: {experiment.model.kind}"
    try:
        network.check_shape(shape)
        if network.output.units != classes:
            raise UnsupportedNetwork(
                f"it ends with {network.output.units} logits, and a task has {classes} classes; let them be as many"
            )
    except UnsupportedNetwork as error:
        raise BadInput(f"{where}: {error}") from error
    for samples in sorted(trained):
        try:
            check_batches(network, shape, samples, experiment.training.batch_size)
        except ValueError as error:
            raise BadInput(f"training.batch_size: {error}") from error
    return experiment.with_outline(_outline(network, shape, classes, train, validation))


def _trained(experiment: Experiment) -> set[int]:
    """How many samples the training splits have, of any task of any replica."""
    replicas = range(experiment.replicas) if experiment.tasks.order == "shuffled" else (0,)
    found = {sizes.train for replica in replicas for sizes in experiment.task_sizes(replica)}
    return {samples - validation_count(experiment.validation, samples) for samples in found}


def build_network(experiment: Experiment, code: Sequence[str] = ()) -> Network:
    """The network of an experiment before its first task.

    Raises:
        BadInput: A function of one's own is not found, raises, or returns another network than the run began with.
    """
    outline = experiment.outline
    model = experiment.model.model_dump_json()
    network = _network(model, outline.shape, outline.classes, experiment.head, tuple(code))
    found = outline.architecture if experiment.plain else _architecture(network)
    if found != outline.architecture:
        raise BadInput(
            f"model.kind: {experiment.model.kind} gives another network than the run began with: its architecture is "
            f"{found[:12]}…, and was {outline.architecture[:12]}…; bring the old code back, or give a new run another "
            f"--name"
        )
    return network.copy()


def build_sequence(
    experiment: Experiment, replica: int, data_dir: str | None = None, code: Sequence[str] = ()
) -> Tasks:
    """The tasks of a replica (from 0), whose seed is the experiment's plus its number.

    Raises:
        DataUnavailable: The data set is absent, or not the known one.
        BadInput: A function of one's own is not found, raises, or returns something else than tasks.
    """
    return _sequence(*_which(experiment, replica, data_dir, code))


def build_task(
    experiment: Experiment, replica: int, index: int, data_dir: str | None = None, code: Sequence[str] = ()
) -> Task:
    """One task of :func:`build_sequence`; its data are kept for who asks next."""
    return _task(*_which(experiment, replica, data_dir, code), index)


def assemble(
    experiment: Experiment, commits: Sequence[Committed], artifacts: Artifacts, code: Sequence[str] = ()
) -> Network:
    """The network as the last of these commits left it, on the CPU: owned entries, everything else 0.

    Args:
        commits: All commits of a replica so far, in order.

    Raises:
        Damage: An artifact is missing or does not hash to its name.
        Damaged: It does not fit the network, or its task's fingerprint is not the recorded one.
    """
    return _add(build_network(experiment, code), commits, artifacts)


def _add(network: Network, commits: Sequence[Committed], artifacts: Artifacts) -> Network:
    """Put commits back, in place or, where the network grew between them, on a copy."""
    for committed in commits:
        network = grown(network, committed.widths)
        restore(network, decode(_commit_of(committed, artifacts)))
        found = fingerprint(network, committed.task)
        if found != committed.fingerprint:
            raise Damaged(
                f"task {committed.task + 1}: restored from artifact {committed.artifact} its fingerprint is {found}, "
                f"but the ledger says {committed.fingerprint}"
            )
    return network


def _commit_of(committed: Committed, artifacts: Artifacts) -> bytes:
    try:
        return artifacts.get(committed.artifact, recovery=without_commit(committed.task))
    except Damage as error:
        raise Damage(f"the tensors of the commit of task {committed.task + 1}: {error}") from None


def without_commit(task: int) -> str:
    """What is whole without the tensors of a commit, and how they come back where there is no copy."""
    needs = "Every task of this replica needs it"
    if task:
        whole = up_to(task, "task", verb=True)
        needs = f"In this replica {whole} whole without it, task {task + 1} and all later ones need it"
    return (
        f"{needs}. Scores, staircases and winners are in the database: status, show and replay work. Without a copy "
        "the tensors come back only by training again: clnp-search run ... --name NEW"
    )


def assembled(
    experiment: Experiment, commits: Sequence[Committed], artifacts: Artifacts, code: Sequence[str] = ()
) -> Network:
    """As :func:`assemble`, kept for who asks next: copy it before it is changed.

    Only what was committed since the last time is read: a worker has nearly all of it from the task before.
    """
    keys = [
        (_Key(experiment), tuple(commits[:count]), artifacts.location, tuple(code))
        for count in range(len(commits), -1, -1)
    ]
    if keys[0] not in _ASSEMBLED:
        known = next((key for key in keys if key in _ASSEMBLED), None)
        if known is None:
            network = assemble(experiment, commits, artifacts, code)
        else:
            network = _add(_ASSEMBLED[known].copy(), commits[len(known[1]) :], artifacts)
        while len(_ASSEMBLED) >= _KEPT:
            del _ASSEMBLED[next(iter(_ASSEMBLED))]
        _ASSEMBLED[keys[0]] = network
    return _ASSEMBLED[keys[0]]


def grown(network: Network, widths: Sequence[int]) -> Network:
    """The network with so many units in each group (Sec. 4): itself where it has them already.

    Raises:
        Damaged: It has more, or other groups.
    """
    now = {group.name: group.units for group in network.groups}
    if len(now) != len(widths) or any(wanted < units for wanted, units in zip(widths, now.values(), strict=False)):
        raise Damaged(f"the records say that the network had {list(widths)} units, but it has {list(now.values())}")
    extra = {name: wanted - units for (name, units), wanted in zip(now.items(), widths, strict=True) if wanted > units}
    return grow(network, extra) if extra else network


def forget() -> None:
    """Drop what is kept: networks, tasks and their data."""
    for cached in (_network, _sequence, _task):
        cached.cache_clear()
    _ASSEMBLED.clear()


def _which(
    experiment: Experiment, replica: int, data_dir: str | None, code: Sequence[str]
) -> tuple[str, int, float, str | None, tuple[str, ...]]:
    tasks = experiment.tasks.model_dump_json()
    return tasks, experiment.seed + replica, experiment.validation, data_dir, tuple(code)


# All are bounded, since a worker lives as long as its run. Two tasks' splits at a time are what two interleaved
# replicas use.
@lru_cache(maxsize=8)
def _sequence(tasks: str, seed: int, validation: float, data_dir: str | None, code: tuple[str, ...]) -> Tasks:
    asked = sections.Tasks.model_validate_json(tasks)
    given: dict[str, Any] = {"count": asked.count, "seed": seed, "validation": validation}
    if asked.own:
        where = "tasks.kind"
        offered = {"data_dir": data_dir}
        made = own_code.call(asked.kind, where, code, options=asked.options or {}, given=given, offered=offered)
        return guarded(made, f"{where}: {asked.kind}", asked.count, code)
    given |= {"samples": asked.samples, "data_dir": data_dir}
    if asked.kind == "views":
        return views(**given)
    if asked.kind == "split-cifar":
        return split_cifar(order=asked.order or "label", **given)
    if asked.kind == "split":
        return split(str(asked.dataset), classes=asked.classes or 0, order=asked.order or "label", **given)
    return permuted(str(asked.dataset), **given)


@lru_cache(maxsize=2)
def _task(tasks: str, seed: int, validation: float, data_dir: str | None, code: tuple[str, ...], index: int) -> Task:
    return _sequence(tasks, seed, validation, data_dir, code).task(index)


@lru_cache(maxsize=2)
def _network(model: str, shape: tuple[int, ...], classes: int, head: Head, code: tuple[str, ...]) -> Network:
    asked = sections.Model.model_validate_json(model)
    where = f"model.kind: {asked.kind}"
    module = _module(asked, shape, classes, code, where)
    if not isinstance(module, nn.Module):
        raise BadInput(f"{where} returned a {type(module).__name__}; return a torch.nn.Module")
    try:
        # A person's forward runs when it is traced.
        return own_code.within(lambda: Network(module, head=head)) if asked.own else Network(module, head=head)
    except UnsupportedNetwork as error:
        raise BadInput(f"{where}: {error}") from error
    except SystemExit as error:
        raise own_code.raised(where, error, code) from error


def _module(model: sections.Model, shape: tuple[int, ...], classes: int, code: tuple[str, ...], where: str) -> Any:
    if model.own:
        offered = {"shape": shape, "classes": classes}
        return own_code.call(model.kind, "model.kind", code, options=model.options or {}, given={}, offered=offered)
    width = model.width or 1.0
    key, value = ("hidden", list(model.hidden or ())) if model.kind == "mlp" else ("width", width)
    if not width <= _WIDEST:
        raise BadInput(f"model.width is {width}; give at most {_WIDEST}: 1 is the paper's network")
    try:
        if model.kind == "mlp":
            return mlp(shape, model.hidden or (), classes)
        return _TABLES[model.kind](shape=shape, classes=classes, width=width)
    except ValueError as error:
        raise BadInput(f"{where}: {error}; choose tasks whose samples fit, or another network") from error
    except (RuntimeError, OverflowError, MemoryError) as error:
        # The first line is torch's word; what follows it is its own C++.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"model.{key} is {value}, and {where} cannot be built: {first}; give a smaller one") from error


class _Key:
    """An experiment as a key: equal where the network before its first task is the same."""

    def __init__(self, experiment: Experiment) -> None:
        self._same = (experiment.model.model_dump_json(), experiment.outline.architecture, experiment.head)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._same == other._same

    def __hash__(self) -> int:
        return hash(self._same)


_KEPT = 4

_ASSEMBLED: dict[tuple[_Key, tuple[Committed, ...], str, tuple[str, ...]], Network] = {}
"""Without the artifacts that they were read from: these refer to a job."""


def _outline(network: Network, shape: tuple[int, ...], classes: int, train: int, validation: int) -> Outline:
    return Outline(
        shape=tuple(shape),
        classes=classes,
        layers=tuple(
            LayerSize(
                layer.name,
                layer.units * layer.fan_in,
                layer.source,
                None if layer is network.output else layer.group,
            )
            for layer in network.layers
        ),
        groups=tuple(GroupSize(group.name, group.units) for group in network.groups),
        entries=sum(map(_entries, network.layers)) + sum((4 if one.affine else 2) * one.units for one in network.norms),
        head=_entries(network.output),
        train=train,
        validation=validation,
        architecture=_architecture(network),
    )


def _entries(layer: Layer) -> int:
    return layer.units * (layer.fan_in + layer.bias)


def _architecture(network: Network) -> str:
    return architecture_of([_described(node) for node in network.graph.nodes])


def _described(node: Node) -> list[object]:
    """A node in plain data: what bits depend on."""
    op = node.op
    if isinstance(op, Plain):
        what: object = [op.kind.__name__, [[name, repr(value)] for name, value in op.arguments]]
    else:
        what = [type(op).__name__, asdict(op)]
    return [node.name, what, list(node.inputs), node.group]
