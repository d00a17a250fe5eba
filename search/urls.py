"""A database's URL: read, checked, and shown without what may be secret in it."""

import os
import re
from pathlib import Path
from typing import Literal

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from search.errors import BadInput

__all__ = ["check_file", "dialect", "read_url"]

_SUPPORTED = "supported are sqlite:///FILE and postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"

_SHOWN = frozenset(
    {
        *("application_name", "channel_binding", "client_encoding", "connect_timeout", "gssencmode", "host"),
        *("hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "passfile", "port"),
        *("load_balance_hosts", "require_auth", "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert"),
        *("ssl_min_protocol_version", "target_session_attrs", "tcp_user_timeout", "timeout", "user", "dbname"),
        *("sslsni", "sslcompression", "sslcrldir", "sslnegotiation", "sslcertmode", "ssl_max_protocol_version"),
        *("fallback_application_name", "krbsrvname", "requirepeer", "options", "gsslib", "gssdelegation"),
    }
)
"""The options of a URL's query part whose values anybody may see. Any other may be a password, a misspelt one too."""

_FILE = re.compile(r"[^\s:@?]+\.(db|sqlite|sqlite3)")
"""What is no password, but a file name where a URL was asked for."""


def read_url(text: str) -> tuple[URL, dict[str, str]]:
    """A database's URL, and what of its query part may be secret: that travels as connection arguments, which nothing
    shows.

    Raises:
        BadInput: It is none, or of another kind of database. The message shows no password.
    """
    if not text:
        raise BadInput(f"the database URL is empty; {_SUPPORTED}")
    if _FILE.fullmatch(text):
        raise BadInput(f"{text} is a file, not a database URL; give sqlite:///{text}")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise BadInput(f"{_masked(text)!r} is not a database URL; {_SUPPORTED}") from None
    head, _, query = text.partition("://")[2].partition("?")
    if url.get_backend_name() != "sqlite" and ("@" in query or head.partition(":")[2].count("@") > 1):
        # The first one ends the password, and what is left of it would be host, port or database.
        raise BadInput(f"{_masked(text)!r} is not a database URL: write an '@' in a password or an option as %40")
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite":
        url = url.set(drivername="sqlite+pysqlite")
    if url.drivername == "sqlite+pysqlite":
        url = _parse_sqlite(url)
    secrets = {key: str(value) for key, value in url.query.items() if key not in _SHOWN}
    url = url.difference_update_query(secrets)
    dialect(url)
    return url, secrets


def _parse_sqlite(url: URL) -> URL:
    name = url.database
    if not name or name == ":memory:":
        raise BadInput("a run needs a database that outlives it: give sqlite:///FILE instead of one in memory")
    if name.startswith("file:") or "uri" in url.query:
        raise BadInput(f"{name}: SQLite's own file: URIs are not supported; give sqlite:///FILE")
    return url.set(database=os.path.abspath(name))


def dialect(url: URL) -> Literal["sqlite", "postgresql"]:
    """The kind of database that a URL names.

    Raises:
        BadInput: Another kind, or none.
    """
    if url.drivername == "sqlite+pysqlite":
        return "sqlite"
    if url.drivername == "postgresql+psycopg":
        if not url.database:
            raise BadInput(f"{url.render_as_string()} names no database; {_SUPPORTED}")
        return "postgresql"
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() in ("mysql", "mariadb"):
        raise BadInput(f"{shown}: MySQL and MariaDB are not supported; {_SUPPORTED}")
    raise BadInput(f"{shown}: unknown driver {url.drivername!r}; {_SUPPORTED}")


def _masked(text: str) -> str:
    """Of a text that should have been a URL the scheme: all else may be a password."""
    scheme = re.match(r"[A-Za-z0-9+]+:/*", text)
    return f"{scheme.group() if scheme else ''}***"


def check_file(url: URL, create: bool) -> None:
    """Refuse a SQLite file that cannot be used.

    Args:
        create: Whether it may be missing and must be one that can be written.

    Raises:
        BadInput: Why not.
    """
    path = Path(str(url.database))
    if path.is_dir():
        raise BadInput(f"{path} is a folder; give the path of a database file in it")
    if not path.parent.is_dir():
        raise BadInput(f"the folder {path.parent} does not exist; make it, or give another --storage")
    if not path.exists():
        if not create:
            raise BadInput(f"there is no database at {path}; `clnp-search run` makes one, --storage names another")
        if not _allowed(path.parent, os.W_OK | os.X_OK):
            raise BadInput(f"no permission to make {path.name} in {path.parent}; give another --storage")
    elif not _allowed(path, os.R_OK | os.W_OK if create else os.R_OK):
        raise BadInput(f"no permission to {'write' if create else 'read'} {path}; give another --storage")
    elif create and not _allowed(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"no permission to write in {path.parent}, where SQLite keeps its log beside {path.name}")


def _allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
