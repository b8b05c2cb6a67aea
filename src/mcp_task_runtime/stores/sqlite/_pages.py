"""`Pages`: pages of tasks, in the order of creation; of one owner, or of all that match a filter."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.types import TaskFilter, TaskPage
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.stores._cursor import CursorKey, owner_scope, search_scope
from mcp_task_runtime.stores.sqlite import _search
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._records import RECORD_COLUMNS, DamageLog, to_sql
from mcp_task_runtime.stores.sqlite._tasks import ALIVE
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = ["LARGEST_INTEGER", "STATEMENTS", "Pages", "page_size"]

LARGEST_INTEGER: Final = 2**63 - 1
"""The largest integer that SQLite takes."""

_CURSOR_KEY: Final = "cursor key"  # no task's id: `known` of a reader has nothing else

# Without INDEXED BY a database that was never analysed may be read in order of creation, all owners.
_PAGE: Final = (
    f"SELECT {RECORD_COLUMNS}, sequence FROM tasks INDEXED BY tasks_by_owner"
    f" WHERE owner IS ? AND sequence > ? AND {ALIVE} ORDER BY sequence LIMIT ?"
)
_BY_SEQUENCE: Final = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE sequence = ? AND {ALIVE}"

STATEMENTS: Final = (_PAGE, _BY_SEQUENCE)
"""The statements of this module that read tasks."""


class Pages:
    """Reads pages of tasks, and makes and reads the cursors between them. Damaged tasks are left out."""

    def __init__(self, engine: Engine, damage: DamageLog) -> None:
        self._engine = engine
        self._damage = damage

    async def of_owner(self, owner: str | None, *, cursor: str | None, limit: int) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        size = page_size(limit)

        def page(transaction: Transaction) -> TaskPage:
            key = _cursor_key(transaction)
            position = 0 if cursor is None else _position(key, cursor, owner_scope(owner))
            rows = transaction.execute(_PAGE, (to_sql(owner), position, transaction.stamp, size + 1)).fetchall()
            next_cursor = key.encode(rows[size - 1][-1], owner_scope(owner)) if len(rows) > size else None
            return TaskPage(tuple(self._damage.records_of([row[:-1] for row in rows[:size]])), next_cursor)

        return await self._engine.read(page)

    async def find(self, wanted: TaskFilter, *, newest_first: bool, cursor: str | None, limit: int) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        size = page_size(limit)
        scope = search_scope(wanted, newest_first=newest_first)

        def page(transaction: Transaction) -> TaskPage:
            key = _cursor_key(transaction)
            position = None if cursor is None else _position(key, cursor, scope)
            found, stop = _search.find(transaction, wanted, position, newest_first=newest_first, limit=size + 1)
            if len(found) > size:
                stop = found[size - 1]
            rows = [
                row
                for sequence in found[:size]
                if (row := transaction.execute(_BY_SEQUENCE, (sequence, transaction.stamp)).fetchone()) is not None
            ]
            next_cursor = None if stop is None else key.encode(stop, scope)
            return TaskPage(tuple(self._damage.records_of(rows)), next_cursor)

        return await self._engine.read(page)


def page_size(limit: int) -> int:
    """Return a limit as SQLite takes it, with room for one more.

    Raises:
        ValueError: It is less than 1.
    """
    if limit < 1:
        raise ValueError("limit must be at least 1")
    return min(limit, LARGEST_INTEGER - 1)


def _cursor_key(transaction: Transaction) -> CursorKey:
    key: CursorKey | None = transaction.known.get(_CURSOR_KEY)
    if key is None:
        (secret,) = transaction.execute("SELECT value FROM secrets WHERE name = 'cursor'").fetchone()
        key = transaction.known[_CURSOR_KEY] = CursorKey(secret)
    return key


def _position(key: CursorKey, cursor: str, scope: bytes) -> int:
    position = key.decode(cursor, scope)
    if position > LARGEST_INTEGER:
        raise InvalidCursorError
    return position
