"""`TaskContext`: what work may do to its own task, with a store and nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.questions import CLEANUP_SECONDS
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Outcome, Task
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    CapabilityError,
    InvalidTransitionError,
    ProtocolError,
    TaskNotFoundError,
)

__all__ = ["TaskContext", "outcome_of_exception", "sole_cause", "task_execution"]

logger: logging.Logger = logging.getLogger(__name__)


def outcome_of_exception(error: BaseException) -> Outcome:
    """Return how a task ends whose work raised this (law L11).

    A `ProtocolError` or `CapabilityError`, also when it is the only one in an exception group, keeps
    its code, message and data. Anything else is logged in full and becomes -32603 without its text.
    """
    cause = sole_cause(error)
    if isinstance(cause, ProtocolError | CapabilityError):
        try:
            return Outcome.failed(cause.message, code=cause.code, data=cause.data)
        except ValueError:
            pass  # it has no JSON form
    logger.error("The work of a task raised an exception", exc_info=error)
    return Outcome.failed("Internal error", code=INTERNAL_ERROR)


def sole_cause(error: BaseException) -> BaseException:
    """Return the only exception in a group, however deep; an exception that is no such group as it is."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and len(inner) == 1:
        error = inner[0]
    return error


class TaskContext:
    """The view of a task that its work has: say how it goes, and end it.

    Attributes change only through this object; another process's changes show in the store.
    """

    def __init__(self, *, task: Task, store: TaskStore) -> None:
        """Make the context of a task.

        Args:
            task: The task as it is now.
            store: The store it is kept in.
        """
        self._task = task
        self._store = store
        self._is_cancelled = False

    @property
    def task_id(self) -> str:
        """The task's identifier."""
        return self._task.task_id

    @property
    def task(self) -> Task:
        """The task as this context last saw it."""
        return self._task

    @property
    def is_cancelled(self) -> bool:
        """Whether the task is to stop: it was cancelled, or ended by somebody else."""
        return self._is_cancelled

    def request_cancellation(self) -> None:
        """Set `is_cancelled`, for work that looks at it. Ends nothing by itself."""
        self._is_cancelled = True

    async def refresh(self) -> Task:
        """Read the task anew and return it.

        Raises:
            TaskNotFoundError: The task has expired or was deleted.
        """
        record = await self._store.get_task(self.task_id)
        if record is None:
            raise TaskNotFoundError(self.task_id)
        self._task = record.task
        return self._task

    async def update_status(self, message: str) -> None:
        """Set the status message.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
        """
        self._task = (await self._store.update_task(self.task_id, status_message=message)).task

    async def complete(self, result: object) -> None:
        """End the task as `completed` with this result, in one atomic step (law L2).

        Args:
            result: What the call returns: a JSON object, or a pydantic model of one.

        Raises:
            InvalidTransitionError: The task has already ended; nothing changed.
            TaskNotFoundError: The task has expired or was deleted.
            ValueError: The result is not a JSON object.
        """
        await self.finish(Outcome.completed(result))

    async def fail(self, error: str) -> None:
        """End the task as `failed`, in one atomic step (law L2).

        Args:
            error: What went wrong. The client reads it.

        Raises:
            InvalidTransitionError: The task has already ended; nothing changed.
            TaskNotFoundError: The task has expired or was deleted.
        """
        await self.finish(Outcome.failed(error))

    async def finish(self, outcome: Outcome) -> None:
        """End the task with this outcome; see `complete` and `fail`."""
        record = await self._store.finish_task(self.task_id, outcome)
        audit.ended(record)
        self._task = record.task


@asynccontextmanager
async def task_execution(task_id: str, store: TaskStore) -> AsyncIterator[TaskContext]:
    """Run a block as the work of a task that exists already, for example in a worker process.

    A block that raises ends the task as `failed` (law L11), and the exception goes no further. A
    block that is cancelled ends it as `failed` too, and stays cancelled. A block that ends without
    `complete` or `fail` leaves the task open for somebody else to end.

    Raises:
        TaskNotFoundError: The task is unknown or has expired.
    """
    record = await store.get_task(task_id)
    if record is None:
        raise TaskNotFoundError(task_id)
    context = TaskContext(task=record.task, store=store)
    try:
        yield context
    except Exception as error:
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            await _finish_quietly(context, outcome_of_exception(error))
    except BaseException:
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            await _finish_quietly(context, Outcome.failed("The work was interrupted"))
        raise


async def _finish_quietly(context: TaskContext, outcome: Outcome) -> None:
    if is_terminal(context.task.status):
        return
    try:
        await context.finish(outcome)
    except (InvalidTransitionError, TaskNotFoundError):
        logger.debug("A task had ended before its work did")
