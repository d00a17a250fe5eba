"""What passes by itself is waited for, and said once; what does not is said at once."""

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.artifacts import Artifacts
from search.artifacts.vault import Trouble
from search.errors import BadInput, SearchError, Unavailable

STEPS: dict[str, Callable[[Artifacts, str], Any]] = {
    "put": lambda artifacts, _: artifacts.put(b"other tensors"),
    "get": Artifacts.get,
    "size": Artifacts.size,
    "remove": Artifacts.remove,
    "list": lambda artifacts, _: artifacts.list(),
    "sweep": lambda artifacts, _: artifacts.sweep(),
    "exists": lambda artifacts, _: artifacts.exists(),
    "discard": lambda artifacts, _: artifacts.discard(),
}

ANSWERS = [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")]


def waiting(location: str, then: Callable[[], None], after: int = 2, **options: Any) -> Artifacts:
    """Artifacts at whose so many-th pause something happens; they do not really pause."""
    pauses = 0

    def pause(seconds: float) -> bool:
        nonlocal pauses
        pauses += 1
        if pauses == after:
            then()
        return True

    return Artifacts(location, pause=pause, **options)


@pytest.mark.parametrize(
    ("step", "answer"), [*((step, None) for step in STEPS), *(("put", answer) for answer in ANSWERS)], ids=str
)
def test_a_server_that_is_away_for_a_while(s3: str, gate: Any, step: str, answer: tuple[int, str] | None) -> None:
    sha256 = Artifacts(s3).put(b"tensors")
    expected = {"get": b"tensors", "size": 7, "remove": True, "list": (sha256,), "sweep": 0, "exists": True}
    gate.close_door(answer)
    found = STEPS[step](waiting(s3, gate.open_door), sha256)
    assert gate.seen >= 2
    assert step == "put" or found == {**expected, "discard": 1}[step]
    assert len(Artifacts(s3).list()) == {"put": 2, "remove": 0, "discard": 0}.get(step, 1)


def test_an_answer_that_is_cut_off(s3: str, gate: Any) -> None:
    """It is asked for again, and never taken for damage."""
    sha256 = Artifacts(s3).put(bytes(10**6))
    gate.cut_after = 5000
    assert Artifacts(s3, pause=lambda _: gate.mend()).get(sha256) == bytes(10**6)


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, fill_disk: Callable[[bool], None]) -> None:
    fill_disk(True)
    artifacts = waiting(str(tmp_path / "artifacts"), lambda: fill_disk(False))
    assert artifacts.get(artifacts.put(b"tensors")) == b"tensors"
    assert artifacts.half_written() == {}


@pytest.mark.parametrize("step", ["put", "get", "size"])
def test_a_share_that_is_away_for_a_while(tmp_path: Path, step: str) -> None:
    """Nothing is made where it should be, and nothing counts as missing."""
    share, aside = tmp_path / "artifacts", tmp_path / "aside"
    sha256 = Artifacts(str(share)).put(b"tensors")
    share.rename(aside)

    def back() -> None:
        assert not share.exists()
        aside.rename(share)

    STEPS[step](waiting(str(share), back, prepared=True), sha256)
    assert sha256 in Artifacts(str(share)).list()


def test_nothing_is_written_beside_a_share_that_is_away(tmp_path: Path) -> None:
    """Also where it went after the look whether the file is there."""
    artifacts = Artifacts(str(tmp_path / "artifacts"), prepared=True)
    with pytest.raises(Trouble, match="is it on a share that is away") as caught:
        artifacts.vault.write("name", b"tensors")
    assert caught.value.passes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        *((number, True) for number in (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT)),
        *((number, False) for number in (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG)),
    ],
    ids=str,
)
def test_which_errors_of_a_file_system_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    pauses: list[float] = []
    monkeypatch.setattr(os, "fsync", fail)
    artifacts = Artifacts(str(tmp_path), pause=lambda seconds: (pauses.append(seconds), len(pauses) < 9)[1])
    with pytest.raises(Unavailable, match=rf"\.safetensors cannot be written: {os.strerror(number)}; mend it"):
        artifacts.put(b"tensors")
    assert pauses == ([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0] if passes else [])


def test_an_outage_is_told_once_and_the_next_one_again(s3: str, gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = 0.0

    def pause(seconds: float) -> bool:
        nonlocal now
        now += seconds
        if now > 20:
            gate.open_door()
        assert artifacts.waiting in ("", *told[-1:])
        return True

    monkeypatch.setattr(time, "monotonic", lambda: now)
    artifacts = Artifacts(s3, on_wait=told.append, pause=pause)
    for outage in (1, 2):
        now = 0.0
        gate.close_door((503, "SlowDown"))
        artifacts.put(bytes([outage]))
        assert artifacts.waiting == ""
        assert len(told) == outage
    away = "the server answers s3:GetObject with 503: Service Unavailable"
    line = f"artifacts in {s3} cannot be used ({away}); waiting for it, for 1 min 00 s at most"
    assert told == [line, line]


def test_patience_ends(s3: str, gate: Any) -> None:
    gate.close_door()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=rf"{s3}/{'0' * 64}\.safetensors cannot be read for [1-4] s: .*; mend it"):
        Artifacts(s3, patience=1.0).get("0" * 64)
    assert time.monotonic() - began < 5
    with pytest.raises(Unavailable, match="cannot be read: "):
        Artifacts(s3, pause=lambda _: False).list()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ((403, "AccessDenied"), "access denied: these credentials may not s3:PutObject in bucket 'bucket'; allow"),
        ((403, "InvalidAccessKeyId"), r"the credentials are refused \(InvalidAccessKeyId: told to\); check AWS_ACC"),
        ((403, "SignatureDoesNotMatch"), r"the credentials are refused \(SignatureDoesNotMatch: told to\); check AWS_"),
        ((404, "NoSuchBucket"), "there is no bucket 'bucket'; make it, or check its name and AWS_ENDPOINT_URL"),
        ((400, "InvalidRequest"), "the server answers s3:PutObject with InvalidRequest: told to"),
        ((501, "NotImplemented"), "the server answers s3:PutObject with NotImplemented: told to"),
        ((404, "404"), "the server answers s3:PutObject with 404: told to"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_does_not_pass_is_said_at_once(s3: str, gate: Any, answer: tuple[int, str], text: str) -> None:
    """Promise 8. A bucket without permission, wrong credentials and the like: what, where, how to mend it."""
    gate.close_door(answer)
    with pytest.raises(BadInput, match=rf"^artifacts cannot be written in {s3}: {text}"):
        Artifacts(s3, pause=fail).prepare()
    assert gate.seen == 1
    with pytest.raises(SearchError) as caught:
        Artifacts(s3, pause=fail).put(b"tensors")
    assert gate.seen == 3 if answer[0] == 404 else 2
    assert "s3cret" not in str(caught.value)


def fail(_: float) -> bool:
    raise AssertionError("it waits")


@pytest.mark.parametrize("word", ["written", "listed", "read", "removed"])
def test_each_permission_is_tried(s3: str, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """One that may only read, or only write, is refused before anything starts."""
    denied = {"written": "PutObject", "listed": "ListObjectsV2", "read": "GetObject", "removed": "DeleteObject"}[word]
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    call = BaseClient._make_api_call

    def refuse(self: Any, operation: str, params: Any) -> Any:
        if operation == denied:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, operation)
        return call(self, operation, params)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    action = {"ListObjectsV2": "ListBucket"}.get(denied, denied)
    with pytest.raises(BadInput, match=rf"cannot be {word} in {s3}: access denied: .* may not s3:{action} in bucket"):
        Artifacts(s3).prepare()


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(BadInput, match="written in s3://other/a: there is no bucket 'other'; make it, or"):
        Artifacts("s3://other/a").prepare()
    with pytest.raises(Unavailable, match=r"s3://other/a/.*\.safetensors cannot be read: there is no bucket 'other'"):
        Artifacts("s3://other/a", pause=fail).get("0" * 64)


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(BadInput, match="no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACC"):
        Artifacts(s3).prepare()


@pytest.mark.parametrize("again", [False, True])
def test_a_place_that_is_away_is_waited_for(s3: str, gate: Any, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """As long as it is said, also by who begins a run."""
    gate.close_door((503, "SlowDown"))
    waiting(s3, gate.open_door).prepare(again=again)
    gate.close_door((503, "SlowDown"))
    told: list[str] = []
    now = 0.0

    def pause(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return True

    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(
        Unavailable, match=rf"^artifacts cannot be written in {s3}: the server .*; the same command con"
    ):
        Artifacts(s3, patience=30, on_wait=told.append, pause=pause).prepare(again=again)
    assert [line.rpartition("; ")[2] for line in told] == ["waiting for it, for 30 s at most"]
    assert now == pytest.approx(30)


def test_a_profile_that_is_not_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(BadInput, match=r"The config profile \(nobody\) could not be found; check AWS_ACCESS_KEY_ID"):
        Artifacts(s3).prepare()


def test_an_endpoint_that_nobody_listens_at(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its URL may hold a password, which is not printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:s3cret@{where}")
    with pytest.raises(Unavailable) as caught:
        Artifacts(s3, pause=lambda _: False).prepare()
    assert str(caught.value) == (
        f"artifacts cannot be written in {s3}: http://{where} cannot be reached (is it running, and is "
        "AWS_ENDPOINT_URL right?); the same command continues"
    )


def test_an_endpoint_that_no_name_server_knows(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong name where the place was never reached, an outage where it was."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    with pytest.raises(BadInput, match=r"http://nowhere\.invalid cannot be reached \(is it running, and is AWS_END"):
        Artifacts(s3, pause=fail).prepare()
    with pytest.raises(Unavailable):
        Artifacts(s3, pause=lambda _: False).prepare(again=True)


def test_an_endpoint_that_leads_elsewhere(s3: str, gate: Any) -> None:
    gate.close_door((301, "PermanentRedirect"))
    with pytest.raises(BadInput, match="the server leads elsewhere; give AWS_ENDPOINT_URL as it is there"):
        Artifacts(s3, pause=fail).prepare()


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 8: where the system answers that there is no such folder, such as in /proc or of an automounter."""
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: os.stat("/no/such"))
    with pytest.raises(BadInput, match="artifacts cannot be written in /proc/x: No such file or directory"):
        Artifacts("/proc/x", pause=fail).prepare()


def test_without_boto3(s3: str, child: Any) -> None:
    script = """
import sys
sys.modules["boto3"] = None
from search.artifacts import Artifacts
from search.artifacts.vault import Trouble
from search.errors import BadInput
try:
    Artifacts(sys.argv[1])
except BadInput as error:
    print(error)
"""
    output, errors = child(script, s3).communicate(timeout=60)
    assert output == f"artifacts at {s3} need boto3: pip install 'clnp-search[s3]'\n", errors


def test_a_folder_needs_no_boto3(tmp_path: Path, child: Any) -> None:
    script = """
import sys
from search.artifacts import Artifacts
from search.artifacts.vault import Trouble
Artifacts(sys.argv[1]).put(b"tensors")
print(sorted({"boto3", "botocore", "optuna", "torch", "ray"} & set(sys.modules)))
"""
    output, errors = child(script, str(tmp_path)).communicate(timeout=60)
    assert output == "[]\n", errors
