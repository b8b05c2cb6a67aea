"""Brings a database schema to the version of this library, or refuses it. No table and no row is ever dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, tuple_row

from mcp_task_runtime.errors import SchemaVersionError, StoreError
from mcp_task_runtime.stores.postgres._schema import (
    HAS_INDEXES,
    MAKE_MIGRATIONS,
    MIGRATED,
    MIGRATIONS,
    REINDEX,
    SECRET,
    VERSION,
)

__all__ = ["migrate"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.postgres")

_OLDEST_SERVER: Final = 14_00_00

_CANNOT_INDEX: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
)
"""Why the indexes stay as they are: all works without the new one, and a sweep takes longer."""


def migrate(
    connection: Connection[Any], schema: str, query: Callable[[str], bytes], parameters: dict[str, Any]
) -> bytes:
    """Bring the schema up to date, one process at a time; return the secret of its cursors.

    Args:
        connection: A connection that is in no transaction.
        schema: Name of the schema, which may not exist yet.
        query: Returns a statement of `_schema` with the names of this database.
        parameters: What tells the statements the time.

    Raises:
        SchemaVersionError: A later version of this library wrote the schema.
        StoreError: The schema is another application's or cannot be read, the server is too old, or the database has
            another encoding than UTF8.
    """
    if connection.info.server_version < _OLDEST_SERVER:
        raise StoreError(f"PostgreSQL {_OLDEST_SERVER // 10_000} or later is needed")
    if connection.info.parameter_status("server_encoding") != "UTF8":  # it could not keep, or return, every text
        raise StoreError("The database must have the encoding UTF8")
    migration = _Migration(Cursor(connection, row_factory=tuple_row), schema, query, parameters)
    autocommit = connection.autocommit
    connection.autocommit = True
    try:
        if migration.version() < len(MIGRATIONS):
            with connection.transaction():
                migration.apply()
        elif not migration.has_indexes():
            try:
                with connection.transaction():
                    migration.apply()
            except _CANNOT_INDEX as error:
                logger.warning(
                    "The index of lost tasks cannot be made now; a store that is opened later makes it: %s", error
                )
        return migration.secret()
    finally:
        if not connection.closed:
            connection.autocommit = autocommit


class _Migration:
    def __init__(
        self, cursor: Cursor[TupleRow], schema: str, query: Callable[[str], bytes], parameters: dict[str, Any]
    ) -> None:
        self._cursor = cursor
        self._schema = schema
        self._query = query
        self._parameters = parameters

    def version(self) -> int:
        """Return the version of the schema, 0 when there is none."""
        # Not to_regclass: it may remember that there was none, from before the lock.
        self._cursor.execute(
            "SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'schema_migrations'", [self._schema]
        )
        if self._cursor.fetchone() is None:
            return 0
        try:
            row = self._cursor.execute(self._query(VERSION)).fetchone()
        except psycopg.ProgrammingError as error:
            raise StoreError(f"The version of the schema {self._schema!r} cannot be read") from error
        version = None if row is None else row[0]
        if type(version) is not int or version < 1:
            raise StoreError(f"The schema {self._schema!r} does not say which version it has")
        if version > len(MIGRATIONS):
            raise SchemaVersionError(found=version, supported=len(MIGRATIONS))
        return version

    def apply(self) -> None:
        """Apply what is missing, in a transaction that one process at a time can be in."""
        digest = blake2b(self._schema.encode(), digest_size=8, person=b"mcp-task-runtime").digest()
        self._cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        self._cursor.execute("SELECT pg_advisory_xact_lock(%s)", [int.from_bytes(digest, "big") - 2**63])
        version = self.version()  # again: another process may have been first
        if version == 0:
            self._make_schema()
        for number, statements in list(enumerate(MIGRATIONS, 1))[version:]:
            try:
                self._execute_each(statements)
            except psycopg.errors.DuplicateTable as error:
                raise StoreError(f"The schema {self._schema!r} has tables of another application") from error
            self._cursor.execute(self._query(MIGRATED), {"version": number, **self._parameters})
        if not self.has_indexes():
            self._execute_each(REINDEX)

    def _execute_each(self, statements: str) -> None:
        """Execute several statements, which no connection may prepare as one."""
        self._cursor.execute(self._query(statements), prepare=False)

    def has_indexes(self) -> bool:
        """Return whether the indexes are those of this version of the library."""
        return self._cursor.execute(HAS_INDEXES, [self._schema]).fetchone() is not None

    def secret(self) -> bytes:
        """Return the secret of list cursors."""
        row = self._cursor.execute(self._query(SECRET), binary=True).fetchone()
        if row is None:
            raise StoreError(f"The schema {self._schema!r} has lost the secret of its cursors")
        return bytes(row[0])[:64]

    def _make_schema(self) -> None:
        # A user who may use the schema need not be allowed to create one, not even IF NOT EXISTS.
        self._cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", [self._schema])
        if self._cursor.fetchone() is None:
            self._cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
        self._cursor.execute(self._query(MAKE_MIGRATIONS))
