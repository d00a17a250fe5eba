"""What a Ray of our own, for one driver on one machine, leaves out of its start. Import Ray before.

Ray has no options for it, so names of its own mean something else for a while. A version that has not got these starts
later, and not otherwise.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["few_processes", "ready_workers"]


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """While Ray starts: without what serves people and other machines.

    These are the autoscaler's monitor, the monitor of logs, the dashboard's server, which comes without its pages too,
    and the dashboard's part in the node's agent. Each imports Ray or more, and Ray waits for most of them: 2 of 5 s of
    the start on two cores, and 1 s of the end.
    """
    try:
        from ray._private import node, parameter, utils
    except ImportError:
        yield
        return
    full = parameter.RayParams

    def params(*args: Any, **kwargs: Any) -> Any:
        made: Any = full(*args, **kwargs)
        made.no_monitor, made.include_log_monitor = True, False
        return made

    with (
        _instead(parameter, "RayParams", params),
        _instead(node.Node, "start_api_server", lambda *_, **__: None),
        _instead(utils, "get_dashboard_dependency_error", lambda: ImportError("nobody looks at this Ray")),
    ):
        yield


@contextlib.contextmanager
def ready_workers() -> Iterator[None]:
    """While Tune runs: on the workers that Ray has begun to start for us, which have imported what a job needs.

    Tune would give its workers an environment, if only of a variable for a library that is not used here, and Ray would
    start others for that: 2 s later. What Tune passes on in it they have inherited.
    """
    try:
        from ray.tune.execution import class_cache
    except ImportError:
        yield
        return
    with _instead(class_cache, "DEFAULT_ENV_VARS", {}), _instead(class_cache, "ENV_VARS_TO_PROPAGATE", set()):
        yield


@contextlib.contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Something else under a name, where there is that name."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
