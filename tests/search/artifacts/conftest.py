"""A gate before the store of objects: it is away for a while, or answers with errors, when a test says so."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from search.artifacts import Artifacts

_ANSWER = (
    "HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
)
_BODY = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


class Gate:
    """Passes connections on to a server.

    Attributes:
        answer: (status, code) to answer every request with instead, or None.
        closed: Whether to end every connection without a word.
        cut_after: Bytes of an answer after which a connection ends, or None.
        seen: Requests so far that were not passed on.
    """

    def __init__(self, host: str, port: int) -> None:
        self.answer: tuple[int, str] | None = None
        self.closed = False
        self.cut_after: int | None = None
        self.seen = 0
        self._server = (host, port)
        self._live: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close_door(self, answer: tuple[int, str] | None = None) -> None:
        """From now on every request fails: without a word, or with this answer."""
        self.answer, self.closed = answer, answer is None
        self._cut()

    def open_door(self) -> None:
        self.answer, self.closed = None, False
        self._cut()

    def mend(self) -> bool:
        self.cut_after = None
        return True

    def end(self) -> None:
        self._listener.close()
        self._cut()

    def _cut(self) -> None:
        for each in list(self._live):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._live.add(client)
        with client, contextlib.suppress(OSError):
            if self.closed:
                self.seen += 1
            elif self.answer is not None:
                self._tell(client, *self.answer)
            else:
                self._pass(client)
        self._live.discard(client)

    def _tell(self, client: socket.socket, status: int, code: str) -> None:
        asked = client.recv(65536)
        if asked:
            self.seen += 1
            body = "" if asked.startswith(b"HEAD") else _BODY.format(code=code, message="told to")
            client.sendall((_ANSWER.format(status=status, size=len(body)) + body).encode())

    def _pass(self, client: socket.socket) -> None:
        with socket.create_connection(self._server) as server:
            self._live.add(server)
            back = threading.Thread(target=_pump, args=(server, client, self.cut_after), daemon=True)
            back.start()
            _pump(client, server, None)
            back.join()
            self._live.discard(server)


def _pump(source: socket.socket, target: socket.socket, most: int | None) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while (most is None or passed < most) and (data := source.recv(4096)):
            passed += len(data)
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def module_gate(s3_environment: dict[str, str]) -> Iterator[Gate]:
    """One for all tests of a module: a client of boto3 for another address takes half a second."""
    url = urlsplit(s3_environment["AWS_ENDPOINT_URL"])
    assert url.hostname is not None
    assert url.port is not None
    gate = Gate(url.hostname, url.port)
    yield gate
    gate.end()


@pytest.fixture
def gate(s3: str, module_gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Stands before the server of ``s3``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", module_gate.url)
    module_gate.seen = 0
    yield module_gate
    module_gate.open_door()


@pytest.fixture
def artifacts(location: str) -> Artifacts:
    return Artifacts(location)


@pytest.fixture
def fill_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes every file that is written find no room, or room again."""
    import errno
    import os

    sync, full = os.fsync, False

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def fill(now: bool) -> None:
        nonlocal full
        full = now

    monkeypatch.setattr(os, "fsync", fsync)
    return fill
