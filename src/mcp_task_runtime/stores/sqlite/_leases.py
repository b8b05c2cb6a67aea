"""`Leases`: the leases of tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from mcp_task_runtime.core.transitions import claim_record, lapsed_lease
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.sqlite import _tasks
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._pages import page_size
from mcp_task_runtime.stores.sqlite._records import RECORD_COLUMNS, DamageLog, to_sql, to_stamp
from mcp_task_runtime.stores.sqlite._tasks import ALIVE
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.stores.sqlite._work import first_lapsed, lapsed_records, waiting_records, waiting_tools

__all__ = ["STATEMENTS", "Leases"]

_RENEW: Final = f"UPDATE tasks SET lease_expires_at = ? WHERE task_id = ? AND lease_worker = ? AND {ALIVE}"
_LAPSE: Final = "UPDATE tasks SET lease_expires_at = ?, lease_handovers = ? WHERE task_id = ?"
_DROP: Final = (
    "UPDATE tasks SET lease_worker = NULL, lease_expires_at = NULL, lease_attempt = NULL, lease_handovers = 0"
    " WHERE task_id = ?"
)
_LOST: Final = (
    f"SELECT {RECORD_COLUMNS} FROM tasks WHERE lease_worker <> '' AND lease_expires_at <= ? AND {ALIVE}"
    " ORDER BY lease_expires_at LIMIT ?"
)

STATEMENTS: Final = (_RENEW, _LAPSE, _DROP, _LOST)
"""All statements of this module."""


class Leases:
    """Renews, releases, lists and claims leases."""

    def __init__(self, engine: Engine, damage: DamageLog) -> None:
        self._engine = engine
        self._damage = damage

    async def renew(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        _storable.check_duration("lease_ms", lease_ms)
        wanted = tuple(task_ids)

        def renew(transaction: Transaction) -> frozenset[str]:
            until = to_stamp(transaction.now + timedelta(milliseconds=lease_ms))
            return frozenset(
                [
                    task_id
                    for task_id in wanted
                    if transaction.execute(_RENEW, (until, to_sql(task_id), to_sql(worker), transaction.stamp)).rowcount
                ]
            )

        return await self._engine.write(renew, is_lasting=False) if wanted else frozenset()

    async def drop(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        wanted = tuple(task_ids)

        def drop(transaction: Transaction) -> None:
            for task_id in wanted:
                with suppress(StoreError):  # a damaged task is left as it is
                    _drop(transaction, worker, task_id, lapse=lapse)

        if wanted:
            await self._engine.write(drop)

    async def lapsed(self, *, limit: int) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        wanted = page_size(limit)

        def lapsed(transaction: Transaction) -> tuple[TaskRecord, ...]:
            waiting = waiting_records(transaction, self._damage, waiting_tools(transaction), wanted)
            return first_lapsed([*self._lost(transaction, wanted), *waiting], wanted)

        return await self._engine.read(lapsed)

    async def lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, then those of these tools that wait; see `TaskSweeping.list_lost`."""
        wanted, tools = page_size(limit), [to_sql(name) for name in set(names)]

        def lost(transaction: Transaction) -> tuple[TaskRecord, ...]:
            waiting = waiting_records(transaction, self._damage, tools, wanted)
            return (*self._lost(transaction, wanted), *first_lapsed(waiting, wanted))[:wanted]

        return await self._engine.read(lost)

    def _lost(self, transaction: Transaction, limit: int) -> Sequence[TaskRecord]:
        return lapsed_records(transaction, self._damage, _LOST, limit)

    async def claim(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task; see `TaskLeases.claim_task`."""
        _storable.check_text("worker", worker)
        _storable.check_duration("lease_ms", lease_ms)

        def claim(transaction: Transaction) -> TaskRecord | None:
            found = _tasks.look_up(transaction, task_id)
            if found is None:
                return None
            record = claim_record(found.record, now=transaction.now, worker=worker, lease_ms=lease_ms)
            if record is not None:
                _tasks.claim(transaction, found, record)
            return record

        return await self._engine.write(claim)


def _drop(transaction: Transaction, worker: str, task_id: str, *, lapse: bool) -> None:
    found = _tasks.look_up(transaction, task_id)
    lease = None if found is None else found.record.lease
    if found is None or lease is None or lease.worker != worker:
        return
    if lapse:
        lapsed = lapsed_lease(lease, now=transaction.now)
        transaction.execute(_LAPSE, (to_stamp(lapsed.expires_at), lapsed.handovers, to_sql(task_id)))
    else:
        transaction.execute(_DROP, (to_sql(task_id),))
    _tasks.add_event(transaction, found, ("released", f"{lease.worker}#{lease.attempt}"))
