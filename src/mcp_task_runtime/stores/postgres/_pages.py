"""`Pages`: pages of tasks, without those whose row is damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcp_task_runtime.core.types import TaskPage, TaskRecord
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.stores._cursor import CursorKey, owner_scope
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._rows import DamagedRowError, record_of, to_text

__all__ = ["LARGEST_POSITION", "Pages", "checked_limit", "position_of"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.postgres")

LARGEST_POSITION: Final = 2**63 - 1
_LARGEST_PAGE: Final = 10_000
_MOST_REPORTED: Final = 1_000


class Pages:
    """Reads pages of tasks. A task that is damaged is left out, and logged once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reported: set[int] = set()

    async def of_owner(self, owner: str | None, cursor: str | None, limit: int) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        limit, scope = checked_limit(limit), owner_scope(owner)
        statement = statements.LIST_OF_NOBODY if owner is None else statements.LIST_OF_OWNER
        key = await self._database.cursor_key()
        begin = 0 if cursor is None else position_of(key, cursor, scope)
        parameters = {"owner": to_text(owner), "after": begin, "limit": limit + 1}
        rows = await self._database.read(lambda attempt: list(attempt.fetch_each(statement, parameters)))
        records = self.intact(rows[:limit])
        return TaskPage(tuple(records), key.encode(rows[limit - 1][0], scope) if len(rows) > limit else None)

    def intact(self, rows: Iterable[Sequence[Any]]) -> list[TaskRecord]:
        """Return the records of rows that begin with a position, without those that are damaged."""
        records: list[TaskRecord] = []
        for position, *row in rows:
            try:
                records.append(record_of(row))
            except DamagedRowError:
                if position not in self._reported and len(self._reported) < _MOST_REPORTED:
                    self._reported.add(position)
                    logger.error("Left a damaged task out of a list: the row of `tasks` with position %d", position)
        return records

    def first_intact(
        self, attempt: Attempt, statement: str, limit: int, parameters: Mapping[str, object]
    ) -> tuple[TaskRecord, ...]:
        """Return the first tasks of a query that are not damaged.

        Args:
            attempt: Reads them.
            statement: The query; its parameter `limit` says how many rows it has.
            limit: Most tasks to return.
            parameters: Its other parameters.
        """
        size = limit
        while True:
            rows = list(attempt.fetch_each(statement, {**parameters, "limit": size}))
            records = self.intact(rows)
            if len(records) >= limit or len(rows) < size:
                return tuple(records[:limit])
            size = min(2 * size, LARGEST_POSITION)  # those at the head are damaged


def position_of(key: CursorKey, cursor: str, scope: bytes) -> int:
    """Return the position that a cursor stands for.

    Raises:
        InvalidCursorError: It is not one of these.
    """
    position = key.decode(cursor, scope)
    if position > LARGEST_POSITION:
        raise InvalidCursorError
    return position


def checked_limit(limit: int, most: int = _LARGEST_PAGE) -> int:
    """Return how many tasks a page has at most.

    Args:
        limit: How many are asked for.
        most: A page that another one follows may have fewer than that; what is not continued may not.

    Raises:
        ValueError: It would have none.
    """
    if limit < 1:
        raise ValueError("limit must be at least 1")
    return min(limit, most)
