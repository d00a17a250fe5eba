"""The dashboard: what it gives out, what it refuses, and what it never shows."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.cli import main
from search.dashboard.noting import complete
from search.dashboard.reading import Shelf, open_storage
from search.dashboard.serving import serving
from search.errors import BadInput
from search.store import Store, open_store

ROOT = Path(__file__).parents[3]


def listed(fetch: Any, address: str) -> list[str]:
    return [study["study_name"] for study in json.loads(fetch(address, "/api/studies").text)["study_summaries"]]


def test_it_shows_studies_with_note_figure_and_files(
    store: Store, with_tensors: Callable[[Store], str], fetch: Any
) -> None:
    """And no password anywhere: of what it answers all is looked through."""
    with_tensors(store)
    complete(store, "run", tell=lambda _: None)
    with serving(store) as address:
        assert fetch(address, "/").status == 302
        assert "<html" in fetch(address, "/dashboard").text
        assert listed(fetch, address) == ["run/replica-0/task-00"]
        detail = fetch(address, "/api/studies/1")
        study = json.loads(detail.text)
        assert " wins**" in study["note"]["body"]
        assert [one["id"] for one in study["plotly_graph_objects"]] == ["accuracy-units"]
        assert len(study["trials"]) == 4
        assert "**Winner**" in study["trials"][0]["note"]["body"]
        files = {one["filename"]: one["artifact_id"] for one in study["artifacts"]}
        assert set(files) == {"run-replica1-task1-commit.safetensors", "run-replica1-task1-winner-unpruned.safetensors"}
        for name, sha256 in files.items():
            found = fetch(address, f"/artifacts/1/{sha256}")
            assert found.status == 200
            assert (b"what was committed" if "commit" in name else b"what the winner was") in found.data
        paths = ("/dashboard", "/api/meta", "/api/studies", "/api/studies/1", "/csv/1", "/api/studies/9", "/nowhere")
        answers = [
            fetch(address, path).text for path in (*paths, "/api/studies/1/param_importances", "/artifacts/1/aa")
        ]
    secret = str(store.database._address.password or "")
    assert not [text for text in answers if "PASSWORD" in text or (secret and secret in text)]


def test_it_answers_as_optuna_s_own_storage_would(store: Store, learn: Any) -> None:
    """Of a list names and directions, of one study all."""
    from search.dashboard.reading import asked

    learn(store)
    complete(store, "run", tell=lambda _: None)
    theirs = {study._study_id: study for study in store.database.rdb_storage().get_all_studies()}
    ours = open_storage(store)
    assert [(one._study_id, one.study_name, one.directions) for one in ours.get_all_studies()] == [
        (one._study_id, one.study_name, one.directions) for one in theirs.values()
    ]
    for study_id, study in theirs.items():
        asked.set(study_id)
        (one,) = ours.get_all_studies()
        assert (one.study_name, one.user_attrs, one.system_attrs) == (
            study.study_name,
            study.user_attrs,
            study.system_attrs,
        )
    asked.set(None)


def test_the_list_of_one_run(learnt: Store, learn: Any, fetch: Any) -> None:
    learn(learnt, name="run-2", tasks={"count": 1})
    with serving(learnt, name="run") as address:
        assert listed(fetch, address) == ["run/replica-0/task-00", "run/replica-0/task-01"]
    with serving(learnt) as address:
        assert len(listed(fetch, address)) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/studies"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/trials/1/user-attrs"),
        ("POST", "/api/artifacts/1"),
        ("DELETE", f"/api/artifacts/1/{'a' * 64}"),
        ("POST", "/incompatible-rdb-schema"),
    ],
)
def test_it_changes_nothing(learnt: Store, fetch: Any, method: str, path: str) -> None:
    """Promise 6: one writer."""
    with serving(learnt) as address:
        answer = fetch(address, path, method, "{}")
        assert answer.status == 403
        assert "`clnp-search delete NAME` removes a run" in answer.text
        assert len(listed(fetch, address)) == 2


def test_a_person_writes_notes(learnt: Store, fetch: Any) -> None:
    with serving(learnt) as address:
        assert fetch(address, "/api/studies/1/note", "PUT", '{"version": 1, "body": "mine"}').status == 204
        assert json.loads(fetch(address, "/api/studies/1").text)["note"]["body"] == "mine"


def test_nothing_is_put_on_the_shelf_or_taken_away(learnt: Store) -> None:
    shelf = Shelf(learnt)
    with pytest.raises(BadInput, match="nothing is added here"):
        shelf.write("a", None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a commit needs it"):
        shelf.remove("a")


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap", "remove"])
def test_a_damaged_file_is_named_and_not_given_out(
    empty: Store, with_tensors: Callable[[Store], str], fetch: Any, harm: str
) -> None:
    folder = Path(with_tensors(empty))
    complete(empty, "run", tell=lambda _: None)
    with serving(empty) as address:
        first, other = (one["artifact_id"] for one in json.loads(fetch(address, "/api/studies/1").text)["artifacts"])
        path = folder / f"{first}.safetensors"
        data = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            bad = {"flip": b"x" + data[1:], "cut": data[:-1], "empty": b""}
            path.write_bytes(
                bad.get(harm) or (b"" if harm == "empty" else (folder / f"{other}.safetensors").read_bytes())
            )
        answer = fetch(address, f"/artifacts/1/{first}")
        assert answer.status == 500
        assert str(path) in answer.text
        assert "is missing" in answer.text if harm == "remove" else "is damaged" in answer.text
        assert fetch(address, f"/artifacts/1/{other}").status == 200


def test_a_page_elsewhere_reads_nothing(learnt: Store, fetch: Any) -> None:
    """It may have its own name mean this address."""
    with serving(learnt) as address:
        answer = fetch(address, "/api/studies", Host="evil.example:8080")
        assert (answer.status, "studies" in answer.text) == (403, False)
        for host in ("localhost:1", "127.0.0.1", "[::1]:8080"):
            assert fetch(address, "/api/studies", Host=host).status == 200


def test_requests_are_answered_at_the_same_time(learnt: Store, fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import search.dashboard.reading

    both = threading.Barrier(2, timeout=20)
    real = search.dashboard.reading.read_studies
    monkeypatch.setattr(search.dashboard.reading, "read_studies", lambda *a, **k: (both.wait(), real(*a, **k))[1])
    with serving(learnt) as address:
        other = threading.Thread(target=fetch, args=(address, "/api/studies"))
        other.start()
        assert fetch(address, "/api/studies").status == 200
        other.join()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no such host is known"),
        (["--port", "-1"], "--port -1: give a number from 0 to 65535"),
        (["--port", "70000"], "--port 70000: give a number from 0 to 65535"),
        (["--host", "192.0.2.1"], "this machine has no such address"),
        (["nosuch"], "no run is called 'nosuch'"),
    ],
)
def test_what_cannot_be_served_is_refused(
    learnt: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["dashboard", "--storage", learnt.url, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_refused(learnt: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["dashboard", "--storage", learnt.url, "--port", port]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"clnp-search: port {port} of 127.0.0.1 is in use; end what listens there, or give another --port"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_command_at_once(learnt: Store, fetch: Any, number: int) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "search", "dashboard", "--port", "0", "--storage", learnt.url, "--host", "0.0.0.0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            rf"{re.escape(learnt.url)} is shown at (http://0\.0\.0\.0:\d+/dashboard); Ctrl-C ends it\n", line
        )
        assert found, (line, process.stderr)
        assert len(listed(fetch, found[1])) == 2
        begin = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - begin < 20  # idle: below 1
    assert process.returncode == 128 + number
    assert err == "--host 0.0.0.0: there is no password; whoever reaches it reads all runs and writes notes\n"


def test_a_server_that_goes_away_is_told_in_one_line_without_a_password(
    postgres_url: str, learn: Any, fetch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], postgres: Any
) -> None:
    with open_store(postgres_url, str(tmp_path), patience=0.2) as store:
        learn(store, tasks={"count": 1})
        with serving(store) as address:
            assert len(listed(fetch, address)) == 1
            name = postgres_url.rpartition("/")[2]
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            answers = [fetch(address, path) for path in ("/api/studies", "/api/studies/1")]
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert [answer.status for answer in answers] == [500, 500]
            assert len(listed(fetch, address)) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "cannot be used" in said or "could not be used" in said
    assert "s3cret" not in said + "".join(answer.text for answer in answers)
