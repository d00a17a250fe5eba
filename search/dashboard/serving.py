"""``dashboard``: Optuna's dashboard over a database of runs, to look at and to write notes in."""

import errno
import ipaddress
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna_dashboard import wsgi

from search.dashboard.reading import Shelf, asked, open_storage
from search.errors import BadInput, SearchError, Unavailable
from search.signals import Signals
from search.store import Store

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["is_loopback", "serve", "serving"]

_POLL = 0.1

_LAST_PORT = 65535

_PATIENCE = 60.0
"""Seconds after which a client that sends or takes nothing is left."""

_STUDY = re.compile(r"/(?:api/studies|artifacts|csv)/(\d+)(?:/.*)?")
_NOTE = re.compile(r"/api/studies/\d+(?:/\d+)?/note")

_READS = (
    "this dashboard is for reading, and for notes: clnp-search alone changes a run's studies, trials and tensors, and "
    "`clnp-search delete NAME` removes a run"
)


def serve(store: Store, *, host: str, port: int, name: str | None = None, tell: Callable[[str], None]) -> int:
    """Serve until a signal ends it, and return the exit code that goes with that.

    Args:
        host: An address of this machine. On another one than loopback everybody who reaches it may look and write
            notes: there is no password.
        port: 0: one that is free.
        name: Of a run: its studies alone are listed.
        tell: Told where it is.

    Raises:
        BadInput: The address cannot be had, or no run has this name.
    """
    # Before anything is served: the first one asks for an orderly end.
    with Signals() as signals, serving(store, host=host, port=port, name=name) as address:
        tell(address)
        done = threading.Event()
        while signals.received is None:
            done.wait(_POLL)
        return signals.exit_code


@contextmanager
def serving(store: Store, *, host: str = "127.0.0.1", port: int = 0, name: str | None = None) -> Iterator[str]:
    """A dashboard that is served meanwhile, in threads; gives its address."""
    _log(store)
    storage = open_storage(store, name)
    app = wsgi(storage, artifact_store=Shelf(store))
    app.catchall = False  # else it answers errors without a word of them
    server = _server(host, port)
    server.set_app(_Front(app, host))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL,), name="dashboard", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/dashboard"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        storage.remove_session()
        storage.engine.dispose()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Front:
    """Lets through what reads, and notes; says whose study is asked for; answers errors in words."""

    def __init__(self, app: "WSGIApplication", host: str) -> None:
        self._app = app
        self._local = is_loopback(host)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path, method = str(environ.get("PATH_INFO", "")), environ["REQUEST_METHOD"]
        if self._local and not is_loopback(_host_of(environ)):
            # A page elsewhere may name this address as its own host, and its scripts would read what is here.
            return _answer(start_response, HTTPStatus.FORBIDDEN, path, f"this is not {_host_of(environ)}")
        if method not in ("GET", "HEAD") and not (method == "PUT" and _NOTE.fullmatch(path)):
            return _answer(start_response, HTTPStatus.FORBIDDEN, path, _READS)
        found = _STUDY.fullmatch(path)
        asked.set(int(found[1]) if found else None)
        try:
            return self._app(environ, start_response)
        except Unavailable as error:
            return _answer(start_response, HTTPStatus.SERVICE_UNAVAILABLE, path, str(error))
        except SearchError as error:
            return _answer(start_response, HTTPStatus.INTERNAL_SERVER_ERROR, path, str(error))


def _host_of(environ: "WSGIEnvironment") -> str:
    """The host that a request names, without its port."""
    return re.sub(r":\d+$", "", str(environ.get("HTTP_HOST", ""))).strip("[]")


def _answer(start_response: "StartResponse", status: HTTPStatus, path: str, text: str) -> Iterable[bytes]:
    """A refusal or an error: as the dashboard's page reads it, or as text where a person asked."""
    api = path.startswith("/api/")
    body = (json.dumps({"reason": text}) if api else text).encode()
    kind = "application/json" if api else "text/plain; charset=utf-8"
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers, sys.exc_info())
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: the pages ask for several things at once, and one may take long."""

    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        # That of the base class asks a name server who this host is.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away as they like."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not written down."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server(host: str, port: int) -> _Server:
    """
    Raises:
        BadInput: The address cannot be had.
    """
    if not 0 <= port <= _LAST_PORT:
        raise BadInput(f"--port {port}: give a number from 0 to {_LAST_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        kind = _Server6 if family == socket.AF_INET6 else _Server
        return kind((host, port), _Handler)
    except (socket.gaierror, UnicodeError):
        raise BadInput(f"--host {host}: no such host is known; give an address of this machine") from None
    except OSError as error:
        raise BadInput(_unusable(host, port, error)) from None


def _unusable(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; end what listens there, or give another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine has no such address; 127.0.0.1 is its own, 0.0.0.0 means all it has"
    return f"port {port} of {host} cannot be had: {error.strerror}; give another --port"


def _log(store: Store) -> None:
    """The dashboard logs an error that it answers with its whole traceback: here in one line, without a password."""

    class Line(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"clnp-search: {store.database.redact(record.getMessage())}", file=sys.stderr)

    logger = logging.getLogger("optuna_dashboard")
    logger.handlers, logger.propagate = [Line(logging.WARNING)], False
