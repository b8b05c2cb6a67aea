"""`Creation`: makes tasks, alone or by the key of a call that may be repeated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.transitions import create_record, may_join
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.sqlite import _tasks
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._records import RECORD_COLUMNS, DamageLog, to_sql
from mcp_task_runtime.stores.sqlite._tasks import ALIVE
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = ["STATEMENTS", "Creation"]

_JOINABLE: Final = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE join_key = ? AND {ALIVE} ORDER BY sequence DESC LIMIT 1"
_SET_JOIN_KEY: Final = "UPDATE tasks SET join_key = ? WHERE task_id = ?"

STATEMENTS: Final = (_JOINABLE, _SET_JOIN_KEY)
"""All statements of this module."""


class Creation:
    """Makes tasks; the owner's limit is checked in the same transaction."""

    def __init__(self, engine: Engine, damage: DamageLog) -> None:
        self._engine = engine
        self._damage = damage

    async def create(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        return await self._engine.write(partial(_insert, new=_named(new)))

    async def count_live(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""
        return await self._engine.read(partial(_tasks.count_live, owner=owner))

    async def join(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        new = _named(new)
        _storable.check_text("key", key)
        stored_key = to_sql(key)

        def join(transaction: Transaction) -> tuple[TaskRecord, bool]:
            rows = transaction.execute(_JOINABLE, (stored_key, transaction.stamp)).fetchall()
            for record in self._damage.records_of(rows):
                if may_join(record, now=transaction.now, ended_ms=ended_ms):
                    return record, False
            record = _insert(transaction, new)
            transaction.execute(_SET_JOIN_KEY, (stored_key, to_sql(record.task_id)))
            return record, True

        return await self._engine.write(join)


def _named(new: NewTask) -> NewTask:
    """Return a new task that can be stored, with an identifier."""
    _storable.check_new_task(new)
    return replace(new, task_id=new_task_id()) if new.task_id is None else new


def _insert(transaction: Transaction, new: NewTask) -> TaskRecord:
    _tasks.check_room_for(transaction, new)
    record = create_record(new, now=transaction.now)
    _tasks.insert(transaction, record)
    return record
