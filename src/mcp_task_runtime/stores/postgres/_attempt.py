"""`Attempt`: one attempt at an operation, and `Queries`, the statements of one database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any, Final

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, tuple_row

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.stores.postgres._rows import DamagedRowError

__all__ = ["Attempt", "NotYet", "Queries"]

_RELATIONS: Final = (
    "tasks",
    "messages",
    "steps",
    "secrets",
    "schema_migrations",
    "drop_belongings",
    "has_questions",
    "find_joinable",
    "count_live",
    "has_room",
    "tasks_by_lease",
    "tasks_by_status",
    "tasks_by_name",
)

_MOST_QUERIES: Final = 500


class Queries:
    """The statements of `_statements` and `_schema` in one schema, and how many operations use them.

    Attributes:
        reads: Operations that read.
        writes: Transactions that may have written.
    """

    def __init__(self, schema: str, clock: Clock | None) -> None:
        """Make the statements of a schema.

        Args:
            schema: Its name.
            clock: Where the time of statements comes from; the server when `None`.
        """
        self.reads: int = 0
        self.writes: int = 0
        self._schema = schema
        self._clock = clock
        self._queries: dict[str, bytes] = {}
        self._counting = Lock()

    def query(self, template: str) -> bytes:
        """Return a statement of `_statements` or `_schema` with the names and the time of this database."""
        query = self._queries.get(template)
        if query is None:
            if len(self._queries) >= _MOST_QUERIES:  # searches are as different as their filters
                self._queries.clear()
            names: dict[str, sql.Composable] = {name: sql.Identifier(self._schema, name) for name in _RELATIONS}
            now = sql.SQL("statement_timestamp()" if self._clock is None else "%(now)s::timestamptz")
            template_sql = sql.SQL(template)  # pyright: ignore[reportArgumentType]  # ours, in _statements
            query = template_sql.format(channel=sql.Literal(self._schema), now=now, **names).as_bytes(None)
            self._queries[template] = query
        return query

    def with_time(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return parameters with the time, where it does not come from the server."""
        return parameters if self._clock is None else {**parameters, "now": self._clock.now()}

    def count(self, *, reads: int = 0, writes: int = 0) -> None:
        """Count operations. May be called from any thread."""
        with self._counting:
            self.reads += reads
            self.writes += writes


@dataclass(frozen=True, slots=True)
class NotYet:
    """What a look returns while there is a reason to wait.

    Attributes:
        until: When to look again at the latest.
        since: Transactions below this number came before the wait, or may have.
    """

    until: datetime | None
    since: int | None = None


class Attempt:
    """One attempt at an operation, on one connection; each statement is a transaction of its own.

    Attributes:
        is_repeated: Whether an earlier attempt may have happened in full.
    """

    def __init__(self, queries: Queries, connection: Connection[Any], is_repeated: bool) -> None:
        self.is_repeated = is_repeated
        self._queries = queries
        self._cursor = Cursor(connection, row_factory=tuple_row)  # whichever kind the owner of a pool likes

    def execute(self, template: str, parameters: dict[str, Any]) -> Cursor[TupleRow]:
        """Run a statement of `_statements`."""
        queries = self._queries
        return self._cursor.execute(queries.query(template), queries.with_time(parameters), binary=True)

    def fetch(self, template: str, parameters: dict[str, Any]) -> TupleRow | None:
        """Run a statement and return its first row.

        Raises:
            DamagedRowError: The driver cannot read it.
        """
        cursor = self.execute(template, parameters)
        try:
            return cursor.fetchone()
        except (psycopg.DataError, ValueError) as error:
            raise DamagedRowError from error

    def fetch_each(self, template: str, parameters: dict[str, Any]) -> Iterator[TupleRow]:
        """Run a statement whose first column is a `position`, and return its rows.

        Of one that the driver cannot read, this returns the position alone.
        """
        cursor = self.execute(template, parameters)
        for number in range(cursor.rowcount):
            try:
                row = cursor.fetchone()
            except (psycopg.DataError, ValueError):
                assert cursor.pgresult is not None
                row = (int.from_bytes(cursor.pgresult.get_value(number, 0) or b"", "big"),)
                if number + 1 < cursor.rowcount:
                    cursor.scroll(1)
            assert row is not None
            yield row

    def count_write(self) -> None:
        """Count a write in an operation that reads."""
        self._queries.count(writes=1)
