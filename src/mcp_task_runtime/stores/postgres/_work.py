"""`WaitingWork`: the tasks that wait for a worker, by tool."""

from __future__ import annotations

from collections.abc import Collection

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt, NotYet
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._pages import LARGEST_POSITION, Pages, checked_limit
from mcp_task_runtime.stores.postgres._rows import to_text

__all__ = ["WaitingWork"]


class WaitingWork:
    """Finds tasks that wait for a worker: those of other tools cost nothing."""

    def __init__(self, database: Database, pages: Pages) -> None:
        self._database = database
        self._pages = pages

    async def wait(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`."""
        limit = checked_limit(limit, LARGEST_POSITION)
        stored = [to_text(name) for name in names]

        def look(attempt: Attempt) -> tuple[TaskRecord, ...] | NotYet:
            return self._pages.first_intact(attempt, statements.WAITING, limit, {"names": stored}) or NotYet(None)

        return await self._database.wait("work", "", look)
