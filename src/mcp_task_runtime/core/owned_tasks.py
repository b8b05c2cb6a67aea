"""`OwnedTasks`: the tasks of a store as their owners see them."""

from __future__ import annotations

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import TaskNotFoundError

__all__ = ["OwnedTasks"]


class OwnedTasks:
    """Reads tasks for their owners; a task of another owner is an unknown one, at the same cost (law L10)."""

    def __init__(self, reader: TaskReader) -> None:
        """Make the owners' side of a reader.

        Args:
            reader: Reads tasks.
        """
        self._reader = reader

    async def record(self, task_id: str, owner: str | None) -> TaskRecord:
        """Return a task.

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            StoreError: The store failed.
        """
        record = await self._reader.find(task_id, owner)
        if record is None:
            audit.refused(task_id, owner)
            raise TaskNotFoundError(task_id)
        return record

    async def view(self, task_id: str, owner: str | None) -> TaskView:
        """Return a task with its open questions.

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            StoreError: The store failed.
        """
        view = await self._reader.find_view(task_id, owner)
        if view is None:
            audit.refused(task_id, owner)
            raise TaskNotFoundError(task_id)
        return view
