"""The store and its writer: what a run is continued from. Promise 3: the database is the only truth."""

import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from sqlalchemy import event, func, select, text, update

import search.writer
from search.book import Book
from search.book import History as BookHistory
from search.errors import BadInput, Damage, LeaseLost, Unavailable
from search.ledger import Cells, Openings, Table
from search.names import artifact_file
from search.records import dump
from search.store import Deleted, History, Loss, Store, open_store
from search.writer import Writer

NAME = "run/replica-0/task-00"


def _trials(writer: Writer, name: str = NAME) -> list[Any]:
    return optuna.load_study(study_name=name, storage=writer._studies._storage).trials


def test_is_what_the_state_machine_expects(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        book: Book = writer
        history: BookHistory = store.history("run")
        assert book is writer
        assert history.losses == []


def test_what_was_written_is_what_is_read(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
        for record in (make.record(0), make.record(1), make.diverged(2)):
            writer.add_cell(0, 0, record)
        writer.add_commit(make.commit())
        writer.open_task(make.opening(task=1))
        history = store.history("run")
    assert history == History(
        openings={(0, 0): make.opening(), (0, 1): make.opening(task=1)},
        cells={(0, 0): {0: make.record(0), 1: make.record(1), 2: make.diverged(2)}},
        commits={(0, 0): make.commit()},
        losses=[],
    )
    assert store.history("another") == History({}, {}, {}, [])


def test_a_run_and_its_attempts(store: Store, make: Any) -> None:
    assert store.run("run") is None
    with store.take("run", **make.take) as writer:
        for note in ("torch changed", "torch changed", "on another device"):
            writer.note(note)
        writer.finish("stopped", "a worker was lost 3 times")
    stopped = store.run("run")
    assert stopped is not None
    assert (stopped.state, stopped.reason) == ("stopped", "a worker was lost 3 times")
    assert stopped.experiment == make.take["experiment_json"]
    assert stopped.data == "d" * 64
    with suppress(RuntimeError), store.take("run", **{**make.take, "versions": {"torch": "3"}}) as writer:
        writer.update_run({"name": "run", "replicas": 3})
        raise RuntimeError
    (row,) = store.runs()
    assert (row.state, row.reason, row.experiment) == ("open", "", {"name": "run", "replicas": 3})
    assert row.created == stopped.created
    assert row.updated > stopped.updated
    first, second = store.attempts("run")
    assert (first.outcome, first.notes) == ("stopped", ("torch changed", "on another device"))
    assert (second.outcome, second.versions) == ("failed: RuntimeError", {"torch": "3"})
    assert first.ended is not None
    assert first.started <= first.ended <= second.started
    assert second.pid == os.getpid()


def test_jobs_are_rows_while_they_are_out(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        first = writer.hand_out("stack", 0, 1, (0, 1))
        second = writer.hand_out("commit", 1, 0, (2,))
        assert first != second
        writer.progress(first, "node-7", 3, 0.75)
        writer.progress(first, "node-7", 4, 0.85)  # within the same second: left out
        jobs = store.jobs("run")
        assert [(job.id, job.kind, job.replica, job.task, job.cells) for job in jobs] == [
            (first, "stack", 0, 1, (0, 1)),
            (second, "commit", 1, 0, (2,)),
        ]
        assert [(job.worker, job.epoch, job.accuracy) for job in jobs] == [("node-7", 3, 0.75), ("", 0, None)]
        writer.close_job(first, "done")
        writer.close_job(first, "lost")  # closed already
        assert [job.id for job in store.jobs("run")] == [second]
    assert store.jobs("run") == []
    assert store.history("run").losses == []


def test_losses_are_counted_until_the_run_stops(store: Store, make: Any) -> None:
    """Lost counts survive a driver's end; who continues a stopped run gets fresh retries."""
    for outcome in ("interrupted", "interrupted"):
        with store.take("run", **make.take) as writer:
            writer.close_job(writer.hand_out("stack", 0, 0, (0, 1)), "lost", "the node went away")
            writer.close_job(writer.hand_out("stack", 0, 0, (2, 3)), "given back")
            writer.release(outcome)
    writer = store.take("run", **make.take)
    assert store.history("run").losses == [Loss("stack", 0, 0, (0, 1))] * 2
    writer.finish("stopped", "lost too often")
    writer.release("stopped")
    with store.take("run", **make.take) as writer:
        assert store.history("run").losses == []
        writer.close_job(writer.hand_out("commit", 0, 0, (0,)), "lost")
        assert store.history("run").losses == [Loss("commit", 0, 0, (0,))]


def test_splits_stay_whatever_ends_the_run(store: Store, make: Any) -> None:
    """Promise 3: what had to differ is written down, and a resumed task forms the same stacks."""
    writer = store.take("run", **make.take)
    writer.close_job(writer.hand_out("stack", 0, 0, (0, 1)), "split", "out of memory")
    writer.finish("stopped", "lost too often")
    writer.release("stopped")
    history = store.history("run")
    assert history.splits == [Loss("stack", 0, 0, (0, 1))]
    assert history.losses == []


def test_a_cell_counts_once_its_trial_is_there(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
        with monkeypatch.context() as patch:
            patch.setattr(type(writer._studies), "add", lambda *_, **__: None)
            writer.add_cell(0, 0, make.record(0, correct=70))
        assert store.history("run").cells == {}
        writer.add_cell(0, 0, make.record(0))  # other bits: the first were never a trial's
        assert store.history("run").cells == {(0, 0): {0: make.record(0)}}
        optuna.delete_study(study_name=NAME, storage=writer._studies._storage)
        assert store.history("run").cells == {}


def test_adding_again_changes_nothing(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
        writer.open_task(make.opening())
        writer.add_cell(0, 0, make.record(0))
        writer.add_commit(make.commit())
        before = store.history("run")
        later = {"started": 1.0, "ended": 2.0, "provenance": replace(make.provenance, device="cuda")}
        writer.add_cell(0, 0, replace(make.record(0), **later))
        writer.add_commit(replace(make.commit(), **later))
        assert store.history("run") == before
        assert len(_trials(writer)) == 1
        with pytest.raises(Damage, match=r"task 1: cell 0 .* recorded already, with other results"):
            writer.add_cell(0, 0, make.record(0, correct=91))
        with pytest.raises(Damage, match="task 1 is committed already, with other results"):
            writer.add_commit(make.commit(1))
        with pytest.raises(Damage, match="task 1 is open already, with other"):
            writer.open_task(make.opening(cells=2))
        with pytest.raises(Damage, match="never opened"):
            writer.add_cell(0, 1, make.record(0))
        assert store.history("run") == before


def _whole_run(writer: Writer, make: Any) -> None:
    writer.open_task(make.opening())
    job = writer.hand_out("stack", 0, 0, (0, 1))
    writer.progress(job, "here", 1, 0.5)
    writer.add_cell(0, 0, make.record(0))
    writer.add_cell(0, 0, make.diverged(1))
    writer.close_job(job, "done")
    writer.note("said once")
    writer.close_job(writer.hand_out("commit", 0, 0, (0,)), "lost")
    writer.add_commit(make.commit())
    writer.update_run({"name": "run"})
    writer.finish("finished")
    writer.release("finished")


def _counts(store: Store) -> dict[str, int]:
    tables = [*Table.metadata.tables, "studies", "trials", "trial_user_attributes", "trial_values"]
    with store.database.engine.connect() as connection:
        return {table: int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()) for table in tables}


def test_an_attempt_that_begins_again_is_the_same(store: Store, make: Any) -> None:
    """As after an answer that was lost: it is not one of those that died."""
    with store.take("run", **make.take) as writer:
        writer.begin({}, artifacts=store.place("run"))
        (attempt,) = store.attempts("run")
        assert (attempt.ended, attempt.outcome) == (None, None)


def test_what_killed_workers_left_half_written_goes_with_the_next_start(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        writer.artifacts.vault.write(f".{artifact_file('0' * 64)}.{'1' * 32}.tmp", b"half")
        assert len(writer.artifacts.half_written()) == 1
    with store.take("run", **make.take) as writer:
        assert writer.artifacts.half_written() == {}


@pytest.mark.parametrize("lost", ["answer", "write"])
def test_a_commit_of_unknown_outcome_is_looked_up(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Promise 3: every fourth commit fails, done or not; the rows are the same as without."""
    _whole_run(store.take("run", **make.take), make)
    expected, history = _counts(store), store.history("run")
    store.delete("run")
    monkeypatch.setattr(random, "random", lambda: 0.0)  # Optuna's pauses
    monkeypatch.setattr(store.database, "pause", lambda _: True)
    writer = store.take("run", **make.take)
    for engine in (store.database.engine, writer._studies._storage.engine):
        chance = random.Random(7)
        _lose(engine.dialect, monkeypatch, lost, lambda chance=chance: chance.random() < 0.25)  # type: ignore[misc]
    _whole_run(writer, make)
    monkeypatch.undo()
    assert _counts(store) == expected
    assert store.history("run") == history
    assert [attempt.notes for attempt in store.attempts("run")] == [("said once",)]


@pytest.mark.parametrize("lost", ["answer", "write"])
def test_a_deletion_of_unknown_outcome_is_looked_up(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The last write takes the lease with it: that it is gone then is no other driver's doing."""
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
    monkeypatch.setattr(store.database, "pause", lambda _: True)
    delete_rows = search.writer.delete_rows
    failures = iter([True])

    def delete(*given: Any) -> int:
        _lose(store.database.engine.dialect, monkeypatch, lost, lambda: next(failures, False))
        return delete_rows(*given)

    monkeypatch.setattr(search.writer, "delete_rows", delete)
    assert store.delete("run") == Deleted(studies=1, rows=3, artifacts=0)
    monkeypatch.undo()
    assert store.runs() == []


def _lose(dialect: Any, monkeypatch: pytest.MonkeyPatch, lost: str, fail: Callable[[], bool]) -> None:
    commit = dialect.do_commit

    def losing(connection: Any) -> None:
        fails = fail()
        if not fails or lost == "answer":
            commit(connection)
        if fails:
            raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", losing)


def test_a_connection_cut_by_the_server_goes_unnoticed(
    postgres: Any, postgres_url: str, make: Any, tmp_path: Path
) -> None:
    with open_store(postgres_url, str(tmp_path)) as store, store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
        for index in range(2):
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{postgres_url.rpartition('/')[2]}'"
            )
            writer.add_cell(0, 0, make.record(index))
        assert len(_trials(writer)) == 2


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What is left is left."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("step", ["open", "delete"])
def test_what_fails_leaves_no_connection(
    postgres: Any, postgres_url: str, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Who tries again would else hold more of the server's few with each try."""
    with open_store(postgres_url, str(tmp_path)) as store:
        with store.take("run", **make.take) as writer:
            writer.open_task(make.opening())
        monkeypatch.setattr("search.store.has_tables" if step == "open" else "search.writer.delete_rows", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_store(postgres_url) if step == "open" else store.delete("run")
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{postgres_url.rpartition('/')[2]}'"
    until = time.monotonic() + 5
    with psycopg.connect(postgres.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        while connection.execute(count).fetchone() != (0,):
            assert time.monotonic() < until
            time.sleep(0.02)


KILLED = """
import os, signal, sys
from search.records import CellRecord, Opening, load
from search.store import open_store
from search.studies import Studies
url, artifacts, opening, *records = sys.argv[1:]
writer = open_store(url, artifacts).take("run", experiment_json={}, data="d", versions={})
writer.open_task(load(Opening, opening))
job = writer.hand_out("stack", 0, 0, (0, 1))
writer.add_cell(0, 0, load(CellRecord, records[0]))
Studies.add = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
writer.add_cell(0, 0, load(CellRecord, records[1]))
"""


def test_a_writer_killed_between_staircase_and_trial(
    storage_url: str,
    make_store: Callable[..., Store],
    tmp_path: Path,
    make: Any,
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    """Promise 3: what a kill leaves is what the next one goes on from; no row is left open, no cell has two trials."""
    records = [make.record(0), make.record(1)]
    process = child(KILLED, storage_url, str(tmp_path / "artifacts"), dump(make.opening()), *map(dump, records))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    store = make_store(create=False)
    assert len(store.jobs("run")) == 1
    assert store.history("run").cells == {(0, 0): {0: records[0]}}
    with store.database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(Cells)).scalar() == 2
    with store.take("run", **make.take, wait=pytest.fail) as writer:
        assert store.jobs("run") == []
        assert store.history("run").losses == []
        for record in records:
            writer.add_cell(0, 0, record)
        assert store.history("run").cells == {(0, 0): dict(enumerate(records))}
        assert [trial.state.name for trial in _trials(writer)] == ["COMPLETE"] * 2
    assert [attempt.outcome for attempt in store.attempts("run")] == ["died", "ended"]


def test_artifacts_go_when_no_row_needs_them(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        artifacts = writer.artifacts
        a, b, c, d = (artifacts.put(data) for data in (b"a", b"b", b"c", b"d"))
        for task in (0, 1):
            writer.open_task(make.opening(task=task))
        for task, index, sha256 in ((0, 0, a), (0, 1, b), (0, 2, c), (0, 3, a), (1, 0, c), (1, 1, d)):
            writer.add_cell(0, task, make.record(index, artifact=sha256))
        everything = (a, b, c, d, "0" * 64)
        writer.remove_artifacts(everything)
        assert set(artifacts.list()) == {a, b, c, d}, "no task is committed yet"
        writer.add_commit(make.commit(0))
        writer.remove_artifacts(everything)
        assert set(artifacts.list()) == {a, c, d}, "the winner's, and those of a task that is open"
        writer.add_commit(make.commit(1, task=1, artifact=c))
        writer.remove_artifacts(everything)
        assert set(artifacts.list()) == {a, c, d}, "winners' and a commit's"
        writer.remove_artifacts(())


def test_a_removal_that_was_cut_off_is_finished_by_the_next_driver(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.take("run", **make.take) as writer:
        sha256 = writer.artifacts.put(b"loser")
        writer.open_task(make.opening())
        writer.add_cell(0, 0, make.record(1, artifact=sha256))
        writer.add_commit(make.commit(0))
        monkeypatch.setattr(type(writer.artifacts), "remove", lambda *_: None)
        writer.remove_artifacts((sha256,))
        monkeypatch.undo()
        assert writer.artifacts.list() == (sha256,)
    with store.take("run", **make.take) as writer:
        assert writer.artifacts.list() == ()


def test_any_number_of_tensors_is_given_up(store: Store, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL takes 65,535 values in a query, SQLite fewer; a large run has more."""
    monkeypatch.setattr(search.writer, "_FEW", 10)
    most = []
    with store.take("run", **make.take) as writer:
        sha256 = writer.artifacts.put(b"loser")
        writer.open_task(make.opening())
        writer.add_cell(0, 0, make.record(1, artifact=sha256))
        writer.add_commit(make.commit(0))
        engine = store.database.engine
        event.listen(engine, "before_cursor_execute", lambda *given: most.append(len(given[3])))
        writer.remove_artifacts([f"{index:064x}" for index in range(95)] + [sha256])
        assert writer.artifacts.list() == ()
    assert max(most) < 20


@pytest.mark.parametrize("cut", ["before", "after"])
def test_what_a_run_keeps_is_written_with_what_that_gives_up(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Promise 3: cut off anywhere, the next driver has both or neither, and ends what was begun."""
    with store.take("run", **make.take) as writer:
        sha256 = writer.artifacts.put(b"loser")
        writer.open_task(make.opening())
        writer.add_cell(0, 0, make.record(1, artifact=sha256))
        writer.add_commit(make.commit(0))
        where = (type(writer), "_give_up") if cut == "before" else (type(writer.artifacts), "remove")
        with monkeypatch.context() as patch:
            patch.setattr(*where, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.update_run({"keep": "winners"}, surplus=[sha256])
    with store.take("run", **make.take) as writer:
        row = store.run("run")
        assert row is not None
        done = cut == "after"
        assert (row.experiment == {"keep": "winners"}) == done
        assert store.history("run").given_up == ({(0, 0, 1)} if done else set())
        assert writer.artifacts.list() == (() if done else (sha256,))


def test_runs_with_the_same_tensors_keep_their_own(store: Store, make: Any) -> None:
    for name in ("one", "two"):
        with store.take(name, **make.take) as writer:
            sha256 = writer.artifacts.put(b"tensors")
            writer.open_task(make.opening())
            writer.add_cell(0, 0, make.record(0, artifact=sha256))
    assert store.delete("one") == Deleted(studies=1, rows=4, artifacts=1)
    with store.take("two", **make.take) as writer:
        assert writer.artifacts.get(sha256) == b"tensors"
        assert store.history("two").cells == {(0, 0): {0: make.record(0, artifact=sha256)}}
    assert store.run("one") is None
    assert [run.name for run in store.runs()] == ["two"]


@pytest.mark.parametrize("step", ["studies", "artifacts", "rows"])
def test_a_deletion_that_was_cut_off_is_done_again(
    make_store: Callable[..., Store], make: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = make_store()
    for name in ("run", "running"):
        with store.take(name, **make.take) as writer:
            writer.artifacts.put(b"tensors")
            for task in range(3):
                writer.open_task(make.opening(task=task))
    where = {"studies": "search.studies.optuna.delete_study", "artifacts": "search.artifacts.Artifacts.remove"}
    monkeypatch.setattr(where.get(step, "search.writer.delete_rows"), _interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.delete("run")
    monkeypatch.undo()
    row = store.run("run")
    assert row is not None
    assert row.state == "deleting"
    with pytest.raises(BadInput, match="is being deleted; end that first: clnp-search delete run"):
        store.take("run", **make.take)
    again = make_store(create=False)
    assert again.delete("run").rows == 5
    assert again.run("run") is None
    assert not Path(row.artifacts).exists()
    assert len(store.history("running").openings) == 3
    with pytest.raises(BadInput, match=r"no run is called 'run' in .*; it holds running"):
        again.delete("run")
    with store.take("run", **make.take):
        assert store.history("run") == History({}, {}, {}, [])


def test_a_run_that_is_not_there_is_refused_with_some_that_are(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        store.take(name, **make.take).release("ended")
    monkeypatch.setattr("search.store._LISTED", 2)
    with pytest.raises(
        BadInput, match=r"no run is called 'run' in .*; it holds one, three and 1 more: clnp-search sta"
    ):
        store.find("run")
    assert store.find("one").name == "one"


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_refuses_odd_names_and_folders(
    store: Store, make_store: Callable[..., Store], make: Any, tmp_path: Path
) -> None:
    for name in ("", "a/b", "../x", "x y", "-x", "ä"):
        with pytest.raises(BadInput, match="cannot name a run"):
            store.take(name, **make.take)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="this is a file"):
        make_store(tmp_path / "file")
    with pytest.raises(BadInput, match="only folders and s3:// are supported"):
        make_store("gs://bucket")
    assert store.runs() == []


def test_tensors_that_were_moved_are_found_or_asked_for(
    store: Store, make_store: Callable[..., Store], make: Any, tmp_path: Path
) -> None:
    with store.take("run", **make.take) as writer:
        sha256 = writer.artifacts.put(b"tensors")
    row = store.run("run")
    assert row is not None
    moved = tmp_path / "elsewhere"
    with pytest.raises(BadInput, match=r"the tensors of run run are in .*; move that folder to .*elsewhere"):
        make_store(moved).take("run", **make.take)
    assert store.holder("run") is None
    moved.mkdir()
    Path(row.artifacts).rename(moved / Path(row.artifacts).name)
    with make_store(moved).take("run", **make.take) as writer:
        assert writer.artifacts.get(sha256) == b"tensors"
    with make_store(writer.artifacts.location).take("run", **make.take) as writer:
        assert writer.artifacts.get(sha256) == b"tensors"


def test_a_share_that_is_away_is_waited_for_and_not_made_anew(
    sqlite_url: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: else tensors would go beneath the place where it is mounted, and be hidden when it comes back."""
    share, aside = tmp_path / "share", tmp_path / "aside"
    with open_store(sqlite_url, str(share), patience=0.1) as store:
        with store.take("empty", **make.take) as writer:
            empty = Path(writer.artifacts.location)
        with store.take("run", **make.take) as writer:
            writer.open_task(make.opening())
            writer.add_cell(0, 0, make.record(0, artifact=writer.artifacts.put(b"tensors")))
            run = Path(writer.artifacts.location)
        share.rename(aside)
        with pytest.raises(Unavailable, match="the folder is not there: is it on a share that is away"):
            store.take("run", **make.take)
        assert not share.exists()
        with (
            open_store(sqlite_url, str(tmp_path / "elsewhere"), patience=0.1) as moved,
            pytest.raises(BadInput, match=r"the tensors of run run are in .*; move that folder to .*elsewhere"),
        ):
            moved.take("run", **make.take)

        def come_back(_: float) -> bool:
            if not share.exists():
                aside.rename(share)
            return True

        with monkeypatch.context() as patch:
            patch.setattr(store.database, "pause", come_back)
            with store.take("run", **make.take) as writer:
                assert writer.artifacts.list() == (make_sha(b"tensors"),)
        run.rename(aside)
        empty.rmdir()
        with store.take("empty", **make.take):
            assert empty.is_dir()  # nothing is lost where it was away
        assert not run.exists()


def make_sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_sqlite_file_and_the_tensors_beside_it_may_move_together(tmp_path: Path, make: Any) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with open_store(f"sqlite:///{home}/x.db") as store, store.take("run", **make.take) as writer:
        assert writer.artifacts.location.startswith(str(home / "clnp-search-artifacts" / "run-"))
        sha256 = writer.artifacts.put(b"tensors")
    home.rename(tmp_path / "new")
    with open_store(f"sqlite:///{tmp_path}/new/x.db") as store, store.take("run", **make.take) as writer:
        assert writer.artifacts.get(sha256) == b"tensors"


def test_a_row_that_cannot_be_read_is_damage(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
    with store.database.engine.begin() as connection:
        connection.execute(update(Openings).values(record="{}"))
    with pytest.raises(Damage, match="run run, replica 1, task 1: the ledger's Opening cannot be read"):
        store.history("run")


READ = """
import json, sys
from search.store import open_store
store = open_store(sys.argv[1], create=False)
run = store.run("run")
history = store.history("run")
store.runs(), store.jobs("run"), store.attempts("run"), store.holder("run"), store.close()
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "torchvision", "pandas"})
print(json.dumps([run.name, len(history.cells[0, 0]), loaded]))
"""


def test_reading_imports_no_torch_and_no_ray(store: Store, storage_url: str, make: Any, child: Any) -> None:
    with store.take("run", **make.take) as writer:
        writer.open_task(make.opening())
        writer.add_cell(0, 0, make.record(0))
    output, errors = child(READ, storage_url).communicate(timeout=60)
    assert errors == ""
    assert json.loads(output) == ["run", 1, []]


def test_leaving_with_a_lost_lease_is_quiet(store: Store, make: Any) -> None:
    with store.take("run", **make.take) as writer:
        with store.database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE clnp_leases SET token = 'another'")
        with pytest.raises(LeaseLost):
            writer.note("late")
    assert [attempt.outcome for attempt in store.attempts("run")] == [None]
