"""The tables: made once, by whoever comes first, and readable or refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, inspect, select, text, update

from search.database import Database
from search.errors import BadInput, Damage
from search.ledger import SCHEMA, Cells, Schema, create_tables, has_tables, read
from search.records import CellRecord, dump


def test_tables_stand_beside_optunas(empty_url: str) -> None:
    database = Database(empty_url)
    assert not has_tables(database)
    database.rdb_storage().engine.dispose()
    assert not has_tables(database)
    create_tables(database)
    create_tables(database)
    assert has_tables(database)
    ours = {name for name in inspect(database.engine).get_table_names() if name.startswith("clnp_")}
    assert ours == {
        f"clnp_{name}" for name in ("schema", "runs", "leases", "attempts", "openings", "jobs", "cells", "commits")
    }
    with database.engine.connect() as connection:
        assert connection.execute(select(Schema.version)).scalars().all() == [SCHEMA]
    database.close()


def test_processes_that_make_the_tables_at_once_do_not_disturb_each_other(
    empty_url: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    script = """
import sys
from search.database import Database
from search.ledger import create_tables, has_tables
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
create_tables(database)
database.rdb_storage()
assert has_tables(database)
"""
    children = [child(script, empty_url) for _ in range(2)]
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in children:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    database = Database(empty_url)
    with database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(Schema)).scalar() == 1
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    database.close()


def test_the_columns_are_those_that_databases_hold_already() -> None:
    """A database is not changed by the version that reads it: whatever the code calls a column, its name stays."""
    columns = {column.name for column in Cells.__table__.columns}
    assert columns == {"run_id", "replica", "task", "cell", "key", "artifact", "dropped", "record"}


def test_tables_of_an_older_version_are_refused(tmp_path: Path) -> None:
    """Promise 8: with what was found and what to do, before anything is read or written."""
    database = Database(f"sqlite:///{tmp_path}/old.db")
    create_tables(database)
    with database.engine.begin() as connection:
        connection.execute(update(Schema).values(version=SCHEMA - 1))
    for look in (has_tables, create_tables):
        with pytest.raises(BadInput, match=rf"tables of version {SCHEMA - 1}, made by an older .* another --storage"):
            look(database)
    database.close()


def test_a_row_that_is_no_record_is_damage(make: Any) -> None:
    whole = dump(make.record(0))
    assert read(CellRecord, whole, "here") == make.record(0)
    for text_ in (whole[:-5], whole.replace('"majority":12', '"majority":"many"'), "{}"):
        with pytest.raises(Damage, match=r"^run x, replica 1: the ledger's CellRecord cannot be read .*backup"):
            read(CellRecord, text_, "run x, replica 1")
