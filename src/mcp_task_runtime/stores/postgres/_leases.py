"""`Leases`: the leases of tasks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores._storable import check_duration
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt
from mcp_task_runtime.stores.postgres._calls import TaskCalls, claimed_record
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._pages import LARGEST_POSITION, Pages, checked_limit
from mcp_task_runtime.stores.postgres._rows import from_text, to_stored, to_text

__all__ = ["LONGEST_WORKER", "Leases"]

LONGEST_WORKER: Final = 100
"""Characters of a worker's name in the history of a task."""


class Leases:
    """Renews, releases, lists and claims leases."""

    def __init__(self, database: Database, calls: TaskCalls, pages: Pages) -> None:
        self._database = database
        self._calls = calls
        self._pages = pages

    async def renew(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases; see `TaskLeases.renew_leases`."""
        check_duration("lease_ms", lease_ms)
        parameters = {
            "worker": to_text(worker),
            "task_ids": [to_text(task_id) for task_id in task_ids],
            "lease_ms": lease_ms,
        }
        rows = await self._database.write(
            lambda attempt: attempt.execute(statements.RENEW_LEASES, parameters).fetchall()
        )
        return frozenset(from_text(task_id) for (task_id,) in rows)

    async def drop(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        parameters = {
            "worker": to_text(worker),
            "task_ids": [to_text(task_id) for task_id in task_ids],
            "lapse": lapse,
            "event": to_text(worker[:LONGEST_WORKER]),
        }

        def drop(attempt: Attempt) -> None:
            attempt.execute(statements.DROP_LEASES, {**parameters, "is_repeated": attempt.is_repeated and lapse})

        await self._database.write(drop)

    async def lapsed(self, *, limit: int) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        return await self._lapsed(statements.LIST_LAPSED, limit)

    async def lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, and of these tools those that wait; see `TaskSweeping.list_lost`."""
        return await self._lapsed(statements.LIST_LOST, limit, names=[to_text(name) for name in set(names)])

    async def _lapsed(self, statement: str, limit: int, **parameters: object) -> tuple[TaskRecord, ...]:
        limit = checked_limit(limit, LARGEST_POSITION)

        def read(attempt: Attempt) -> tuple[TaskRecord, ...]:
            return self._pages.first_intact(attempt, statement, limit, parameters)

        return await self._database.read(read)

    async def claim(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed or is held by no process; see `TaskLeases.claim_task`."""
        check_duration("lease_ms", lease_ms)
        stored = to_text(task_id)
        parameters = {
            "task_id": stored,
            "worker": to_stored("worker", worker),
            "lease_ms": lease_ms,
            "event": to_text(worker[:LONGEST_WORKER]),
            **self._calls.marks(),
        }

        def claim(attempt: Attempt) -> TaskRecord | None:
            return claimed_record(attempt, statements.CLAIM, parameters)

        mark = self._database.ends_mark
        claimed = await self._database.change(stored, claim)
        if claimed is not None:
            self._database.note_made(stored, mark)
        return claimed
