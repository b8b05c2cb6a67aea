"""`WaitingWork`: the tasks that wait for a worker, by tool."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._pages import LARGEST_INTEGER, page_size
from mcp_task_runtime.stores.sqlite._records import RECORD_COLUMNS, DamageLog, to_sql
from mcp_task_runtime.stores.sqlite._tasks import ALIVE, WORK_TOPIC
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = ["STATEMENTS", "WaitingWork"]

_WAITING: Final = (
    f"SELECT {RECORD_COLUMNS} FROM tasks WHERE name = ? AND lease_worker = '' AND lease_expires_at <= ? AND {ALIVE}"
    " ORDER BY lease_expires_at LIMIT ?"
)

STATEMENTS: Final = (_WAITING,)
"""All statements of this module."""


class WaitingWork:
    """Finds tasks that wait for a worker: those of other tools cost nothing."""

    def __init__(self, engine: Engine, damage: DamageLog) -> None:
        self._engine = engine
        self._damage = damage

    async def wait(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`."""
        look = _WorkLook(self._damage, sorted(names), page_size(limit))
        return await self._engine.wait(WORK_TOPIC, look)


class _WorkLook:
    """What a worker looks for."""

    __slots__ = ("_damage", "_limit", "_names")

    def __init__(self, damage: DamageLog, names: Sequence[str], limit: int) -> None:
        self._damage = damage
        self._names = names
        self._limit = limit

    def __call__(self, transaction: Transaction) -> tuple[tuple[TaskRecord, ...] | None, datetime | None]:
        found = [record for name in self._names for record in self._of(transaction, name)]
        found.sort(key=_expiry_of_lease)
        return tuple(found[: self._limit]) or None, None

    def _of(self, transaction: Transaction, name: str) -> Sequence[TaskRecord]:
        size = self._limit
        while True:
            values = (to_sql(name), transaction.stamp, transaction.stamp, size)
            rows = transaction.execute(_WAITING, values).fetchall()
            records = self._damage.records_of(rows)
            if len(records) >= self._limit or len(rows) < size:
                return records
            size = min(2 * size, LARGEST_INTEGER)  # those at the head are damaged

    def accept(self, change: object) -> Any:
        """Have the worker look: what waits may be for another one."""
        return None


def _expiry_of_lease(record: TaskRecord) -> datetime:
    assert record.lease is not None
    return record.lease.expires_at
