"""What the driver makes of a cluster's nodes: their names, their answers, what is done when one goes. No Ray runs."""

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.tune.utils.object_cache import _ObjectCache

from search.backends import probing
from search.backends.joining import reach
from search.backends.nodes import Nodes, _Probe, read_nodes
from search.backends.tune import Tune
from search.errors import BadInput, Unavailable
from search.experiment import Experiment
from search.machine import Needs, Node, Pool
from search.memory import MemoryBook
from search.run import Run
from search.worker import WorkerSettings

TOKEN = f"{'0' * 64}.safetensors.{'1' * 32}"

NewRun = Callable[..., Run]
Small = Callable[..., Experiment]


def listed(name: str, host: str, address: str = "10.0.0.1", *, alive: bool = True, **resources: float) -> Any:
    """As ``ray.nodes()`` says it."""
    where = {"NodeManagerHostname": host, "NodeManagerAddress": address, "NodeManagerPort": 4711}
    return {"NodeID": name, "Alive": alive, "Resources": resources, **where}


@pytest.fixture
def nodes(tmp_path: Any) -> Any:
    """Nothing is asked: what nodes say is made up by the tests."""
    said: list[str] = []
    made = Nodes("127.0.0.1:1", Needs(str(tmp_path)), Pool(2, "cpu", 2, 0), None, said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def test_nodes_have_names_that_tell_them_apart() -> None:
    found = read_nodes(
        [
            listed("aaaaaaaa11", "a", CPU=4.0, GPU=1.0),
            listed("bbbbbbbb11", "b", "10.0.0.2", CPU=2.0),
            listed("cccccccc11", "b", "10.0.0.2"),
            listed("dddddddd11", "d", alive=False, CPU=8.0),
            listed("eeeeeeee11", "10.0.0.5", "10.0.0.5"),
        ]
    )
    assert found == [
        Node(4, 1, "a (10.0.0.1)", "aaaaaaaa11", "10.0.0.1:4711"),
        Node(2, 0, "b (10.0.0.2) bbbbbbbb", "bbbbbbbb11", "10.0.0.2:4711"),
        Node(0, 0, "b (10.0.0.2) cccccccc", "cccccccc11", "10.0.0.2:4711"),
        Node(0, 0, "10.0.0.5", "eeeeeeee11", "10.0.0.5:4711"),
    ]


def test_a_node_like_the_driver_is_used(nodes: Any) -> None:
    assert nodes._judge({"versions": probing.describe((), ()), "devices": [], "answer": "token"}) is None


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"torch": "2.12.0"}, r"has torch 2\.12\.0, here 2\..*; bits depend on it"),
        ({"clnp-search": "0.0.9", "code": "abc"}, r"clnp-search 0\.0\.9, here .*; clnp-search's code abc, here"),
        ({"torch": "not installed"}, r"lacks torch; install what this machine has: python 3.*, ray 2.*, torch 2"),
        ({"clnp-search": "not installed", "code": "absent"}, r"lacks clnp-search; install"),
    ],
)
def test_a_node_of_other_versions_is_refused(nodes: Any, changed: dict[str, str], match: str) -> None:
    """Promise 8: bits depend on them."""
    problem = nodes._judge({"versions": {**probing.describe((), ()), **changed}, "devices": []})
    assert re.search(match, problem.why)
    assert not problem.passes


def test_a_node_that_sees_other_artifacts_is_refused(nodes: Any) -> None:
    found = probing.look(nodes._expected, nodes._needs.artifacts, f".{TOKEN}.tmp", None, (), ())
    assert "is not there; give --artifacts a folder that all nodes share" in nodes._judge(found).why
    assert not nodes._judge(found).passes


@pytest.fixture
def late(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A node that came while the run was on its way; looks once, and has it answer what it is given."""
    node = Node(4, 0, "late", "late", "127.0.0.1:1")
    tokens: dict[str, str] = {}
    monkeypatch.setattr("search.backends.nodes.read_nodes", lambda: [node])
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, timeout))

    def ask(node: Node, token: str) -> None:
        nodes.asked.append(token)
        nodes._probes[node.id] = _Probe(node, "reference", 300)

    def look(answer: Callable[[str], Any]) -> None:
        monkeypatch.setattr("ray.get", lambda _: answer(nodes.asked[-1]))
        nodes._look(tokens)

    nodes.asked = []
    monkeypatch.setattr(nodes, "_ask", ask)
    return look


def answering(nodes: Any) -> Callable[[str], Any]:
    return lambda token: probing.look(nodes._expected, nodes._needs.artifacts, token, None, (), ())


def test_a_late_node_is_asked_again_where_its_reason_passes(
    nodes: Any, late: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that answers one error is no reason to leave a node idle for weeks."""

    def away(*_: object, **__: object) -> None:
        raise Unavailable("artifacts cannot be read: SlowDown")

    def fails(_: str) -> Any:
        raise RayTaskError("look", "", OSError("no room"))

    now = time.monotonic()
    monkeypatch.setattr("search.backends.nodes.time.monotonic", lambda: now)
    with monkeypatch.context() as patch:
        patch.setattr("search.backends.nodes.leave", away)
        late(answering(nodes))
    now += 5.1
    with monkeypatch.context() as patch:
        patch.setattr("search.artifacts.probe.answer", away)
        late(answering(nodes))
    late(answering(nodes))
    assert len(nodes.asked) == 1, "it is left in peace for a while"
    now += 10.1
    late(fails)
    now += 10.1
    late(answering(nodes))
    assert (len(nodes.asked), nodes.usable) == (2, ()), "for longer each time"
    now += 10.1
    late(answering(nodes))
    assert nodes.usable == ("late",)
    assert nodes.said == [
        "node late: artifacts cannot be read: SlowDown; the run goes on without it and asks it again",
        "node late joined: 2 workers more",
    ]


def test_a_start_that_an_outage_keeps_from_asking_tells_one(
    nodes: Any, late: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the same command tries again; beside a node that lacks something it is bad input."""
    wanting = {"versions": nodes._expected, "devices": [], "problem": "SlowDown", "passes": True}
    monkeypatch.setattr("ray.get", lambda _: wanting)
    with pytest.raises(Unavailable, match="node late: SlowDown\nThe same command tries again"):
        nodes.admit(lambda: False)
    wanting["passes"] = False
    with pytest.raises(BadInput, match="node late: SlowDown"):
        nodes.admit(lambda: False)


def test_a_start_that_is_told_to_stop_watches_nothing(
    small: Small, late: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node still says then would be an answer to nothing."""
    monkeypatch.setattr("search.backends.cluster.Cluster.join", lambda _: "127.0.0.1:1")
    monkeypatch.setattr(Nodes, "_ask", lambda self, node, _: self._probes.update({node.id: _Probe(node, None, 300)}))
    backend = Tune("127.0.0.1:1", needs=Needs(str(tmp_path)))
    backend.stop.set()
    backend._join(small(), None)
    assert backend._nodes is not None
    assert backend._nodes._thread is None
    backend.close()
    assert list(tmp_path.iterdir()) == []


def test_a_late_node_that_lacks_something_is_not_asked_again(nodes: Any, late: Callable[..., None]) -> None:
    for _ in range(2):
        late(lambda _: {"versions": {**nodes._expected, "torch": "2.12.0"}, "devices": []})
        nodes._pauses.clear()
    assert len(nodes.asked) == 1
    assert nodes.said[0].endswith("bits depend on it: install the same there; the run goes on without it")


def test_slots_are_those_of_the_nodes_that_are_left(nodes: Any) -> None:
    nodes._usable = {"a": Node(4, 0, "a", "a"), "b": Node(3, 0, "b", "b")}
    assert (nodes.usable, nodes.slots) == (("a", "b"), 3)
    nodes._most = 2
    assert nodes.slots == 2
    nodes._drop(["a"])
    assert (nodes.usable, nodes.slots, nodes.gone) == (("b",), 1, {"a"})
    nodes._drop(["b"])
    assert nodes.said == ["node a is gone: 1 worker left", "node b is gone: 0 workers left; the run waits for a node"]


def test_whether_a_node_fell_is_asked_of_itself(nodes: Any) -> None:
    """Ray takes ten seconds or more to find out; the job need not wait, and is nobody's fault."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()
        address = f"127.0.0.1:{port.getsockname()[1]}"
        nodes._usable = {"a": Node(4, 0, "a", "a", address)}
        assert not nodes.fell("a")
        assert not nodes.fell("unknown")
    assert nodes.fell("a")
    assert nodes.fell("a")
    assert nodes.gone == {"a"}


@pytest.mark.parametrize("address", ["head", "head:", "head:port", ":6379", "head:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """Promise 8."""
    with pytest.raises(BadInput, match="host:port"):
        reach(address)


def test_where_nothing_listens_nothing_is_waited_for() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="connection refused"):
            reach(f"127.0.0.1:{port.getsockname()[1]}")


def test_a_job_whose_node_went_is_not_counted(small: Small, new_run: NewRun) -> None:
    """However often: neither the stack falls apart nor the run stops."""
    book = MemoryBook()
    run = new_run(small(retries=1), book)
    first = run.next_job()
    assert first is not None
    job = first
    for _ in range(5):
        run.lost(job.id, "its node went", blame=False)
        again = run.next_job()
        assert again is not None
        assert again.cells == first.cells
        job = again
    assert run.stopped is None
    assert not book.losses
    assert [one.state for one in book.jobs.values()] == ["given back"] * 5 + ["out"]


class Controller:
    """Of Tune what the scheduler uses."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.failed: list[str] = []
        self._staged_trials: set[Any] = set()
        self._actor_cache = _ObjectCache()

    def stop_trial(self, trial: Any) -> None:
        self.stopped.append(trial.trial_id)
        self._actor_cache.cache_object(trial.placement_group_factory, trial.trial_id)

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        assert "node" in str(exception)
        self.failed.append(trial.trial_id)

    def _unstage_trial_with_resources(self, trial: Any) -> None:
        self._staged_trials.remove(trial)


class FakeTrial(SimpleNamespace):
    placement_group_factory: Any = None

    def __hash__(self) -> int:
        return id(self)

    def update_resources(self, request: Any) -> None:
        self.placement_group_factory = request


def test_what_is_parked_on_a_node_that_went_is_dropped(nodes: Any) -> None:
    """Its worker is handed to nobody, and trials that wait for one, there perhaps, go out again."""
    from search.backends.hooks import Exchange, Parking

    nodes._usable = {"a": Node(4, 0, "a", "a"), "b": Node(4, 0, "b", "b")}
    exchange, controller = Exchange(), Controller()
    parking = Parking(exchange, Pool(2, "cpu", 2, 0), nodes)
    trials = {name: FakeTrial(trial_id=name, status="PENDING") for name in ("1", "2", "3", "4", "5")}
    for name in ("1", "2", "3"):
        parking.on_trial_add(controller, trials[name])
        assert trials[name].placement_group_factory.bundles == [{"CPU": 2.0}]
        trials[name].status = "RUNNING"
    for name, node in (("1", "a"), ("2", "b"), ("3", "a")):
        parking.on_trial_result(controller, trials[name], {"node": node})
        parking.on_trial_result(controller, trials[name], {"result": "", "node": node})
    parking.on_trial_add(controller, trials["4"])  # to take over the worker of 1
    assert parking.node_of["4"] == "a"
    assert trials["4"].placement_group_factory is trials["1"].placement_group_factory
    controller._staged_trials.add(trials["4"])
    nodes._drop(["a"])
    parking.choose_trial_to_run(controller)
    assert sorted(controller.failed) == ["1", "3"]
    assert controller.stopped == ["4"]
    assert parking.withdrawn == {"4"}
    assert not controller._staged_trials
    parking.on_trial_add(controller, trials["5"])
    assert parking.waking  # the worker of 2 is still there
    parking.choose_trial_to_run(controller)
    assert controller.stopped == ["4", "2"]


def test_a_job_that_comes_while_no_node_may_be_used_goes_out_again(nodes: Any, settings: WorkerSettings) -> None:
    """Ray raises for such a request, which would end the run; and it is not counted against the job's cells."""
    from search.backends.hooks import Delivery, Ended, Exchange, Jobs, Parking

    exchange, controller = Exchange(), Controller()
    parking = Parking(exchange, Pool(2, "cpu", 2, 0), nodes)
    jobs = Jobs(exchange, settings, parking)
    jobs.of["1"] = 7
    trial = FakeTrial(trial_id="1", status="PENDING")
    parking.on_trial_add(controller, trial)
    assert trial.placement_group_factory is None
    for _ in range(2):
        parking.choose_trial_to_run(controller)
    assert controller.stopped == ["1"]
    Delivery(exchange, jobs, parking).on_trial_complete(0, [], trial)
    assert exchange.events.get_nowait() == Ended(7, "a node went before it had a worker", blame=False)


def test_a_worker_is_passed_on_while_others_wait_for_new_ones(nodes: Any) -> None:
    """After a node came there are requests of two kinds; Tune would end the worker and start another: 5 to 10 s."""
    from search.backends.hooks import Exchange, Parking

    controller = Controller()
    parking = Parking(Exchange(), Pool(2, "cpu", 2, 0), nodes)
    nodes._usable = {"a": Node(2, 0, "a", "a")}
    old, starting, new = (FakeTrial(trial_id=name, status="PENDING") for name in ("old", "starting", "new"))
    parking.on_trial_add(controller, old)
    old.status = "RUNNING"
    nodes._usable["b"] = Node(2, 0, "b", "b")
    parking.on_trial_add(controller, starting)
    assert starting.placement_group_factory != old.placement_group_factory
    controller._actor_cache.increase_max(starting.placement_group_factory)
    parking.on_trial_result(controller, old, {"result": "", "node": "a"})
    parking.on_trial_add(controller, new)
    parking.choose_trial_to_run(controller)
    assert controller._actor_cache.pop_cached_object(new.placement_group_factory) == "old"
    assert controller._actor_cache.total_max_objects == 1


def test_devices_that_differ_are_said_once(nodes: Any) -> None:
    nodes._devices = {"a": ["cpu AVX512"], "b": ["cpu AVX512", "cuda A"]}
    nodes._compare_devices()
    assert nodes.said == []
    nodes._devices["c"] = ["cpu AVX2"]
    nodes._compare_devices()
    nodes._compare_devices()
    (line,) = nodes.said
    assert line.startswith("the nodes differ: a has cpu AVX512; c has cpu AVX2")
