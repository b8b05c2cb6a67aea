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

__all__ = ["STATEMENTS", "WaitingWork", "first_lapsed", "lapsed_records", "waiting_records", "waiting_tools"]

_WAITING: Final = (
    f"SELECT {RECORD_COLUMNS} FROM tasks WHERE name = ? AND lease_worker = '' AND lease_expires_at <= ? AND {ALIVE}"
    " ORDER BY lease_expires_at LIMIT ?"
)
_FIRST_TOOL, _NEXT_TOOL = (
    f"SELECT name FROM tasks WHERE lease_worker = '' AND name {compares} ? ORDER BY name LIMIT 1"
    for compares in (">=", ">")
)

STATEMENTS: Final = (_WAITING, _FIRST_TOOL, _NEXT_TOOL)
"""All statements of this module."""


def lapsed_records(
    transaction: Transaction, damage: DamageLog, statement: str, limit: int, *values: object
) -> Sequence[TaskRecord]:
    """Return tasks whose lease has lapsed, the longest lapsed first; damaged ones are left out.

    Args:
        transaction: Reads them.
        damage: Reads rows.
        statement: Its parameters are `values`, the time twice and a limit.
        limit: Most tasks to return.
        values: What stands before the time.
    """
    size = limit
    while True:
        rows = transaction.execute(statement, (*values, transaction.stamp, transaction.stamp, size)).fetchall()
        records = damage.records_of(rows)
        if len(records) >= limit or len(rows) < size:
            return records[:limit]
        size = min(2 * size, LARGEST_INTEGER)  # those at the head are damaged


def waiting_records(
    transaction: Transaction, damage: DamageLog, names: Collection[object], limit: int
) -> list[TaskRecord]:
    """Return as many tasks of each of these tools, named as in the file, that wait for a worker, in no order."""
    return [record for name in names for record in lapsed_records(transaction, damage, _WAITING, limit, name)]


def waiting_tools(transaction: Transaction) -> list[object]:
    """Return the tools whose tasks wait for a worker, named as in the file. The cost is linear in the tools."""
    names: list[object] = []
    found = transaction.execute(_FIRST_TOOL, ("",)).fetchone()
    while found is not None:
        names += found
        found = transaction.execute(_NEXT_TOOL, found).fetchone()
    return names


def first_lapsed(records: list[TaskRecord], limit: int) -> tuple[TaskRecord, ...]:
    """Return those of these tasks whose lease has lapsed first."""
    records.sort(key=_expiry_of_lease)
    return tuple(records[:limit])


class WaitingWork:
    """Finds tasks that wait for a worker: those of other tools cost nothing."""

    def __init__(self, engine: Engine, damage: DamageLog) -> None:
        self._engine = engine
        self._damage = damage

    async def wait(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`."""
        look = _WorkLook(self._damage, [to_sql(name) for name in set(names)], page_size(limit))
        return await self._engine.wait(WORK_TOPIC, look)


class _WorkLook:
    """What a worker looks for."""

    __slots__ = ("_damage", "_limit", "_names")

    def __init__(self, damage: DamageLog, names: Sequence[object], limit: int) -> None:
        self._damage = damage
        self._names = names
        self._limit = limit

    def __call__(self, transaction: Transaction) -> tuple[tuple[TaskRecord, ...] | None, datetime | None]:
        found = waiting_records(transaction, self._damage, self._names, self._limit)
        return first_lapsed(found, self._limit) or None, None

    def accept(self, change: object) -> Any:
        """Have the worker look: what waits may be for another one."""
        return None


def _expiry_of_lease(record: TaskRecord) -> datetime:
    assert record.lease is not None
    return record.lease.expires_at
