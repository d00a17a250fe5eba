"""The nodes of a cluster that a run joined: each is asked before its first job, and watched as nodes come and go."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from search.artifacts.probe import leave, settle
from search.backends import probing
from search.backends.courier import Courier
from search.backends.joining import reach
from search.delivered import pack
from search.errors import BadInput, SearchError, Unavailable
from search.machine import Needs, Node, Pool, fitting
from search.text import first_line, plural, size

__all__ = ["Nodes", "read_nodes"]

_BRINGING = 600.0
"""Seconds that the data may take to a node."""

_LOOK = 0.5
"""Seconds between looks at which nodes there are."""

_HEAD = 20.0
"""Seconds that the head may be away."""

_ANSWER = 2.0
"""Seconds that a node on which a worker was lost may take to accept a connection."""

_QUIET = 15.0
"""Seconds after which a person is told what is waited for."""

_PATIENCE = 300.0
"""Seconds that a node may take to answer: its first worker process has to start."""

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
"""Seconds until a node is asked again that could not be used for a reason that passes: doubled each time."""


@dataclass(slots=True)
class _Probe:
    """What a node was asked and has not answered yet; with its ``answer``: it is being given the data."""

    node: Node
    reference: Any
    patience: float
    answer: Mapping[str, Any] | None = None
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why a node cannot be used, and whether time may mend it."""

    why: str
    passes: bool


@dataclass(frozen=True, slots=True)
class _Pause:
    """When a node may be asked again, by the monotonic clock, after how many seconds, and whether it is told why."""

    until: float
    seconds: float
    told: bool = False


class Nodes:
    """Which nodes workers may be on: those that have what is needed, and are alive.

    :meth:`admit` asks all that are there; :meth:`watch` then looks in the background, and asks those that come. A node
    that lacks something then is left alone; one that could not be asked, or could not reach the artifacts, is asked
    again.

    Args:
        head: Its ``host:port``.
        needs: What every node must have.
        pool: What a worker has: a node on which none fits is not asked.
        most: How many workers there may be at most, or None.
        note: Told, a line each, which nodes came and went, and why one is not used.
    """

    def __init__(self, head: str, needs: Needs, pool: Pool, most: int | None, note: Callable[[str], None]) -> None:
        self.lost: Unavailable | None = None
        """Why the cluster cannot be used any more."""
        self._head = head
        self._needs = needs
        self._pool = pool
        self._most = most
        self._note = note
        self._lock = threading.Lock()
        self._usable: dict[str, Node] = {}
        self._gone: set[str] = set()
        self._refused: set[str] = set()
        self._pauses: dict[str, _Pause] = {}
        self._probes: dict[str, _Probe] = {}
        self._devices: dict[str, list[str]] = {}
        self._kinds = 1
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        parcel = pack(needs.datasets, needs.data_dir)
        self._courier = None if parcel is None else Courier(parcel)
        self._expected = probing.describe(needs.modules, needs.code)

    @property
    def delivered(self) -> str | None:
        """The name under which data are brought to nodes, or None."""
        return None if self._courier is None else self._courier.parcel.name

    @property
    def usable(self) -> tuple[str, ...]:
        """The ids of the nodes that workers may be on, in order."""
        with self._lock:
            return tuple(sorted(self._usable))

    @property
    def slots(self) -> int:
        """How many workers may be on them."""
        with self._lock:
            room = sum(map(self._fits, self._usable.values()))
        return room if self._most is None else min(room, self._most)

    @property
    def gone(self) -> frozenset[str]:
        """The ids of those that workers were on, and that are there no longer."""
        with self._lock:
            return frozenset(self._gone)

    def admit(self, stop: Callable[[], bool]) -> list[Node]:
        """Ask every node that is there, wait for the answers, and return those that may be used.

        Args:
            stop: Whether to give up.

        Raises:
            BadInput: A node lacks something, or artifacts cannot be written.
            Unavailable: A node does not answer, or the place of the artifacts cannot be reached.
        """
        found = read_nodes()
        token = leave(self._needs.artifacts, prepared=self._needs.prepared)
        for node in found:
            if self._fits(node):
                self._ask(node, token)
        answers: dict[str, Mapping[str, Any]] = {}
        problems: dict[str, _Problem] = {}
        began, told = time.monotonic(), False
        while self._probes and not stop():
            self._collect(answers, problems)
            if self._probes and not told and time.monotonic() - began > _QUIET:
                told = True
                waited = ", ".join(probe.node.name for probe in self._probes.values())
                self._note(f"waiting for what these nodes have to say: {waited}")
            time.sleep(0.02)
        problems |= self._settle(token, answers)
        there = {node.id for node in read_nodes()} if problems else set[str]()
        problems = {each: found for each, found in problems.items() if each in there}  # one that went lacks nothing
        if problems:
            names = {node.id: node.name for node in found}
            text = "\n".join(_grouped([(names[each], problem.why) for each, problem in problems.items()]))
            if all(problem.passes for problem in problems.values()):
                raise Unavailable(f"{text}\nThe same command tries again")
            raise BadInput(text)
        with self._lock:
            self._usable = {node.id: node for node in found if node.id in answers}
        self._devices = {node.name: answers[node.id]["devices"] for node in found if node.id in answers}
        self._compare_devices()
        return list(self._usable.values())

    def watch(self) -> None:
        """Look in the background from now on, until :meth:`close`."""
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)
        self._thread.start()

    def fell(self, node: str) -> bool:
        """Whether a node on which a worker was lost is down itself: Ray takes ten seconds or more to find out."""
        with self._lock:
            known = self._usable.get(node)
            if node in self._gone:
                return True
        if known is None or _answers(known):
            return False
        self._drop([node])
        return True

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(_LOOK * 4)

    def _fits(self, node: Node) -> int:
        return fitting(node, self._pool.cpu, self._pool.gpu)

    def _watch(self) -> None:
        from ray.exceptions import RayError

        tokens: dict[str, str] = {}
        away = None
        while not self._end.wait(_LOOK):
            try:
                reach(self._head)
            except Unavailable as error:
                if away is None:
                    away = time.monotonic()
                    self._note(f"the head of the cluster at {self._head} does not answer; waiting {_HEAD:.0f} s for it")
                # Ray itself ends the process a minute after its head went, without a word.
                if time.monotonic() - away > _HEAD:
                    self.lost = error
                    return
                continue
            away = None
            try:
                self._look(tokens)
            except (RayError, RuntimeError, OSError):
                continue  # Ray does not answer for the moment: what was so stays so

    def _look(self, tokens: dict[str, str]) -> None:
        """Once: what went, what came, and what those say that were asked."""
        there = {node.id: node for node in read_nodes()}
        self._drop([each for each in self.usable if each not in there])
        for each, node in there.items():
            if each in self._gone and _answers(node):
                with self._lock:
                    self._gone.discard(each)  # it was only out of reach
            known = each in self._gone or each in self._usable or each in self._refused or each in self._probes
            early = each in self._pauses and time.monotonic() < self._pauses[each].until
            if not known and not early and self._fits(node):
                try:
                    tokens[each] = leave(self._needs.artifacts, prepared=True)
                except SearchError:
                    self._put_off(each)
                    continue
                self._ask(node, tokens[each])
        names = {each: probe.node for each, probe in self._probes.items()}
        answers: dict[str, Mapping[str, Any]] = {}
        problems: dict[str, _Problem] = {}
        self._collect(answers, problems)
        for each in [*answers, *problems]:
            one = {each: answers[each]} if each in answers else {}
            try:
                problems |= self._settle(tokens.pop(each), one)
            except SearchError as error:
                problems[each] = _Problem(str(error), passes=True)  # the driver's own look at the artifacts
        for each, problem in problems.items():
            if each in there:
                self._leave_out(names[each], problem)
        for each in answers.keys() - problems.keys():
            self._pauses.pop(each, None)
            with self._lock:
                self._usable[each] = names[each]
            self._devices[names[each].name] = answers[each]["devices"]
            self._note(f"node {names[each].name} joined: {plural(self._fits(names[each]), 'worker')} more")
            self._compare_devices()

    def _leave_out(self, node: Node, problem: _Problem) -> None:
        """The run goes on without a node: for good, or until it is asked again. Of several tries the first is told."""
        known = self._pauses.get(node.id)
        told = problem.passes and known is not None and known.told
        if problem.passes:
            self._put_off(node.id, told=True)
        else:
            self._refused.add(node.id)
        if not told:
            again = " and asks it again" if problem.passes else ""
            self._note(f"{_grouped([(node.name, problem.why)])[0]}; the run goes on without it{again}")

    def _put_off(self, node: str, *, told: bool = False) -> None:
        known = self._pauses.get(node)
        seconds = _FIRST_PAUSE if known is None else min(2 * known.seconds, _LONGEST_PAUSE)
        told = told or (known is not None and known.told)
        self._pauses[node] = _Pause(time.monotonic() + seconds, seconds, told)

    def _drop(self, lost: Sequence[str]) -> None:
        for each in lost:
            with self._lock:
                node = self._usable.pop(each, None)
                self._gone.add(each)
            if node is None:
                continue
            left = self.slots
            waits = "" if left else "; the run waits for a node"
            self._note(f"node {node.name} is gone: {plural(left, 'worker')} left{waits}")

    def _ask(self, node: Node, token: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        needs = self._needs
        pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
        cloudpickle: Any = ray.cloudpickle
        cloudpickle.register_pickle_by_value(probing)
        try:
            task = ray.remote(probing.look).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
            data = None if self._courier is None else (asdict(self._courier.parcel), needs.data_dir)
            reference = task.remote(self._expected, needs.artifacts, token, data, needs.modules, needs.code)
        finally:
            cloudpickle.unregister_pickle_by_value(probing)
        self._probes[node.id] = _Probe(node, reference, _PATIENCE)

    def _collect(self, answers: dict[str, Mapping[str, Any]], problems: dict[str, _Problem]) -> None:
        """What has come back since, by the node's id."""
        import ray
        from ray.exceptions import RayError

        for each, probe in list(self._probes.items()):
            if not ray.wait([probe.reference], timeout=0)[0]:
                if time.monotonic() - probe.began > probe.patience:
                    del self._probes[each]
                    why = f"did not answer within {probe.patience:.0f} s; see that Ray's workers start there"
                    problems[each] = _Problem(why, passes=True)
                continue
            del self._probes[each]
            try:
                found = ray.get(probe.reference)
            except RayError as error:
                # Of a task that raised, Ray's own words are its frames.
                cause = getattr(error, "cause", None)
                if isinstance(cause, SearchError):
                    problems[each] = _Problem(str(cause), passes=isinstance(cause, Unavailable))
                else:
                    problems[each] = _Problem(f"cannot run a task: {first_line(str(cause or error))}", passes=True)
                continue
            if probe.answer is not None:
                self._note_data(probe.node, brought=bool(found))
                answers[each] = probe.answer
            elif problem := self._judge(found):
                problems[each] = problem
            elif self._courier is None or found["data"]:
                answers[each] = found
            else:
                self._probes[each] = _Probe(probe.node, self._courier.send(each), _BRINGING, found)
        if self._courier is not None and not any(probe.answer for probe in self._probes.values()):
            self._courier.rest()

    def _note_data(self, node: Node, *, brought: bool) -> None:
        if brought and self._courier is not None:
            self._note(f"node {node.name} was given the data: {size(self._courier.parcel.size)}")

    def _judge(self, found: Mapping[str, Any]) -> _Problem | None:
        """What is wrong with a node that says this, or None."""
        theirs, ours = found["versions"], self._expected
        differ = [key for key in ours if theirs.get(key) != ours[key]]
        if not differ:
            return _Problem(found["problem"], found["passes"]) if "problem" in found else None
        absent = [key for key in differ if theirs.get(key) in ("not installed", "absent")]
        if absent and absent[0] != "code":
            what = " and ".join(key for key in absent if key != "code")
            return _Problem(f"lacks {what}; install what this machine has: {_versions(ours)}", passes=False)
        named = "; ".join(f"{_word(key)} {theirs.get(key)}, here {ours[key]}" for key in differ)
        return _Problem(f"has {named}; bits depend on it: install the same there", passes=False)

    def _settle(self, token: str, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, _Problem]:
        """Node → what is wrong with what it wrote."""
        problems = settle(self._needs.artifacts, token, {each: str(answers[each]["answer"]) for each in answers})
        return {
            each: _Problem(line.replace(each, "it"), passes=False)
            for each in answers
            for line in problems
            if each in line
        }

    def _compare_devices(self) -> None:
        """Bits may differ between kinds of devices: said, and recorded with every trial."""
        kinds: dict[tuple[str, ...], str] = {}
        for name, devices in self._devices.items():
            kinds.setdefault(tuple(one for one in devices if one.startswith(self._pool.device)), name)
        if len(kinds) > self._kinds:
            self._kinds = len(kinds)
            said = "; ".join(f"{name} has {', '.join(devices)}" for devices, name in kinds.items())
            self._note(f"the nodes differ: {said}. Trials of one task may come from different kinds of devices")


def read_nodes(listed: Iterable[Mapping[str, Any]] | None = None) -> list[Node]:
    """The nodes that are alive; those of one name are told apart by their ids.

    Args:
        listed: As ``ray.nodes()`` gives them; None: that.
    """
    import ray

    found = []
    for each in ray.nodes() if listed is None else listed:  # type: ignore[no-untyped-call]
        if each["Alive"]:
            resources = each["Resources"]
            host, address = each["NodeManagerHostname"], each["NodeManagerAddress"]
            name = host if host == address else f"{host} ({address})"
            cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            found.append(Node(cpus, gpus, name, each["NodeID"], f"{address}:{each['NodeManagerPort']}"))
    names = [node.name for node in found]
    return [replace(node, name=f"{node.name} {node.id[:8]}") if names.count(node.name) > 1 else node for node in found]


def _answers(node: Node) -> bool:
    host, _, port = node.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except OSError:
        return False
    return True


def _grouped(problems: Sequence[tuple[str, str]]) -> list[str]:
    """A line for all nodes with the same problem."""
    by_reason: dict[str, list[str]] = {}
    for name, why in problems:
        by_reason.setdefault(why, []).append(name)
    return [f"node{'s' if len(names) > 1 else ''} {', '.join(names)}: {why}" for why, names in by_reason.items()]


def _word(key: str) -> str:
    return "clnp-search's code" if key == "code" else key


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {versions[key]}" for key in ("python", "ray", "torch", "clnp-search"))
