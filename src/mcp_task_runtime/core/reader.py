"""`TaskReader`: reads tasks with their questions, also for their owners."""

from __future__ import annotations

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.store import TaskOwners, TaskQuestions, TaskStore
from mcp_task_runtime.core.store_calls import store_errors
from mcp_task_runtime.core.text import clean_text
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView, as_client_sees
from mcp_task_runtime.errors import SealedError, TaskNotFoundError

__all__ = ["TaskReader"]


class TaskReader:
    """Reads the tasks of one store, in one read each where the store can.

    Questions that wait for a person are left out: what it returns is for the client.
    """

    def __init__(self, store: TaskStore, queue: TaskMessageQueue, *, is_own_queue: bool) -> None:
        """Make the reader.

        Args:
            store: Where tasks are kept.
            queue: Where their questions are kept.
            is_own_queue: Whether the queue is the store's own.
        """
        self._store = store
        self._queue = queue
        self._views = store if is_own_queue and isinstance(store, TaskQuestions) else None
        self._owners = store if isinstance(store, TaskOwners) else None

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None` when there is none.

        Raises:
            StoreError: The store failed, or the task is sealed and this process has no keys.
        """
        record = await self._get(task_id)
        return None if record is None else _unsealed(record)

    async def get_owned(self, task_id: str, owner: str | None) -> TaskRecord:
        """Return an owner's task. One of another owner is an unknown one, of which nothing is read (law L10).

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            StoreError: The store failed, or the task is sealed and this process has no keys.
        """
        if self._owners is not None:
            view = await self._view_owned(self._owners, task_id, owner)
            if view is not None:
                return view.record
        else:
            record = await self._get(task_id)
            if record is not None and record.owner == owner:
                return _unsealed(record)
        audit.refused(task_id, owner)
        raise TaskNotFoundError(task_id)

    async def view_owned(self, task_id: str, owner: str | None) -> TaskView:
        """Return an owner's task with its open questions, as `get_owned`.

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            StoreError: The store failed, or the task is sealed and this process has no keys.
        """
        if self._owners is not None and self._views is not None:
            view = await self._view_owned(self._owners, task_id, owner)
            if view is not None:
                return as_client_sees(view)
        else:
            view = await self.view(await self.get_owned(task_id, owner))
            if view is not None:
                return view
        audit.refused(task_id, owner)
        raise TaskNotFoundError(task_id)

    async def _get(self, task_id: str) -> TaskRecord | None:
        if clean_text(task_id) != task_id:
            return None
        with store_errors():
            return await self._store.get_task(task_id)

    @staticmethod
    async def _view_owned(owners: TaskOwners, task_id: str, owner: str | None) -> TaskView | None:
        if clean_text(task_id) != task_id:
            return None
        with store_errors():
            view = await owners.get_owned(task_id, owner=owner)
        if view is None or view.record.owner != owner:
            return None
        _unsealed(view.record)
        return view

    async def view(self, record: TaskRecord) -> TaskView | None:
        """Return the task with its open questions, from this record or a later one; `None` when it is gone.

        Raises:
            StoreError: The store failed.
        """
        if record.outcome is not None:
            return TaskView(record)
        view: TaskView | None = TaskView(record)
        with store_errors():
            if self._views is None:
                view = TaskView(record, await self._queue.outstanding(record.task_id))
            elif record.status != "working":
                view = await self._views.get_view(record.task_id)
        return None if view is None else as_client_sees(view)

    async def say(self, record: TaskRecord, message: str) -> None:
        """Set the status message of a task that has not changed since it was read.

        Raises:
            InvalidTransitionError: It has ended.
            RevisionConflictError: It has changed.
            TaskNotFoundError: It is gone.
            StoreError: The store failed.
        """
        with store_errors():
            await self._store.update_task(record.task_id, status_message=message, if_revision=record.revision)


def _unsealed(record: TaskRecord) -> TaskRecord:
    """Return a task that can be read: a store that seals has opened it.

    Raises:
        SealedError: It is sealed still.
    """
    if is_sealed(record):
        raise SealedError("The task is sealed, and this process has no seal keys")
    return record
