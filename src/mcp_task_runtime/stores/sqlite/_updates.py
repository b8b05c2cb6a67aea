"""What callers look for that wait for a task to change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.sqlite import _tasks
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.stores.sqlite._waiters import IRRELEVANT

__all__ = ["UpdateLook", "WatchLook"]


class UpdateLook:
    """What a caller looks for that waits for a later revision."""

    __slots__ = ("_after", "_task_id")

    def __init__(self, task_id: str, after: int) -> None:
        self._task_id = task_id
        self._after = after

    def __call__(self, transaction: Transaction) -> tuple[TaskRecord | None, datetime | None]:
        record = _tasks.read_record(transaction, self._task_id)
        if record is None:
            raise TaskNotFoundError(self._task_id)
        return (record if record.revision > self._after else None), record.task.expires_at

    def accept(self, change: object) -> Any:
        """Return the record that was written; answers alone do not change it."""
        if isinstance(change, TaskRecord):
            return change if change.revision > self._after else None
        return IRRELEVANT


class WatchLook(UpdateLook):
    """What is looked for on behalf of a watcher: each revision once."""

    __slots__ = ()

    def __call__(self, transaction: Transaction) -> tuple[TaskRecord | None, datetime | None]:
        found, until = super().__call__(transaction)
        if found is not None:
            self._after = found.revision
        return found, until

    def accept(self, change: object) -> Any:
        """Return the record that was written, once."""
        if not isinstance(change, TaskRecord) or change.revision <= self._after:
            return IRRELEVANT  # answers alone do not change it
        self._after = change.revision
        return change
