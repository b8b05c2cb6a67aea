"""`TaskContext`: what work may do to its own task, with a store and nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio
from typing_extensions import Self

from mcp_task_runtime.core.abilities import is_queue, is_store
from mcp_task_runtime.core.causes import UnexpectedError, sole_cause
from mcp_task_runtime.core.endings import TaskEndings
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS, outlasting
from mcp_task_runtime.core.text import clean_text
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Fence, Outcome, Progress, Task
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    CapabilityError,
    InvalidTransitionError,
    LeaseLostError,
    ProtocolError,
    TaskNotFoundError,
)

__all__ = ["TaskContext", "client_error", "extended_ttl", "outcome_of_exception", "task_execution"]

logger: logging.Logger = logging.getLogger(__name__)


def outcome_of_exception(error: BaseException) -> tuple[Outcome, BaseException | None]:
    """Map an exception that work raised to the task's outcome (law L11).

    A `ProtocolError` or `CapabilityError`, also when it is the only one in an exception group, keeps
    its code, message and data. Anything else becomes -32603 without its text.

    Returns:
        The outcome, and the exception for the log; `None` where the work raised an error for its client.
    """
    cause = sole_cause(error)
    if isinstance(cause, ProtocolError | CapabilityError):
        unexpected = cause.__cause__ if isinstance(cause, UnexpectedError) else None
        try:
            return Outcome.failed(clean_text(cause.message), code=cause.code, data=cause.data), unexpected
        except (ValueError, TypeError, AttributeError):
            pass  # it has no JSON form
    return Outcome.failed("Internal error", code=INTERNAL_ERROR), error


def client_error(error: ProtocolError | CapabilityError) -> JSONObject:
    """Return the code, message and data of an error as a client may get them; the same for a task and a plain call.

    Lone surrogates in the message are replaced. An error whose data has no JSON form is logged and becomes -32603.
    """
    outcome, unexpected = outcome_of_exception(error)
    if unexpected is error:
        logger.error("An error that has no JSON form reaches the client as an internal error", exc_info=error)
    return outcome.error or {}


def extended_ttl(task: Task, ttl_ms: int, *, now: datetime, settings: TaskSettings | None) -> int | None:
    """Return the TTL of a task that is to live for at least `ttl_ms` milliseconds from now; `None` to leave it.

    Args:
        task: The task.
        ttl_ms: Milliseconds from now.
        now: The time.
        settings: Bounds of the TTL; `None` for none.

    Raises:
        InvalidTransitionError: The task has ended.
    """
    if is_terminal(task.status):
        raise InvalidTransitionError(task.task_id, current=task.status, requested="working")
    if task.ttl_ms is None:
        return None
    wanted = (now - task.created_at) // timedelta(milliseconds=1) + ttl_ms
    longest = wanted if settings is None else settings.clamp_ttl(wanted)
    return longest if longest is not None and longest > task.ttl_ms else None


class TaskContext:
    """A task as its work sees it: reports status, and ends the task.

    Attributes change only through this object; another process's changes show in the store.
    """

    __slots__ = ("__weakref__", "_fence", "_is_cancelled", "_queue", "_store", "_task")

    def __init__(
        self,
        *,
        task: Task,
        store: TaskStore,
        queue: TaskMessageQueue | None = None,
        fence: Fence | Callable[[], Fence | None] | None = None,
    ) -> None:
        """Make the context of a task.

        Args:
            task: The task as it is now.
            store: The store it is kept in.
            queue: The queue of its questions, which an end releases (law L5); the store's own when `None`.
            fence: The run of work that this context belongs to, or a function that returns it; its writes are
                refused once the run has lost its lease (law L12).

        Raises:
            ValueError: An argument has the wrong type; the message names it.
        """
        if not isinstance(task, Task):
            raise ValueError("task must be a Task; a store's record has it as record.task")
        if not is_store(store):
            raise ValueError("store must be a TaskStore; open_store(url) makes one of a URL")
        if queue is not None and not is_queue(queue):
            raise ValueError("queue must be a TaskMessageQueue, or None for the store's own")
        self._begin(task, store, queue, fence)

    @classmethod
    def of_run(cls, task: Task, store: TaskStore, queue: TaskMessageQueue, fence: Callable[[], Fence | None]) -> Self:
        """Return the context of a task that a runtime runs: what it holds was checked when it was made.

        Args:
            task: The task as it is now.
            store: The store it is kept in.
            queue: The queue of its questions.
            fence: Returns the run of work that this context belongs to.
        """
        context = cls.__new__(cls)
        context._begin(task, store, queue, fence)
        return context

    def _begin(
        self,
        task: Task,
        store: TaskStore,
        queue: TaskMessageQueue | None,
        fence: Fence | Callable[[], Fence | None] | None,
    ) -> None:
        self._task = task
        self._store = store
        self._queue = queue
        self._fence = fence
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
        """Whether the work is to stop: the task was cancelled, or ended from outside the work."""
        return self._is_cancelled

    def request_cancellation(self) -> None:
        """Set `is_cancelled`, for work that checks it. It does not end the task."""
        self._is_cancelled = True

    async def refresh(self) -> Task:
        """Read the task from the store and return it; an outage is waited out.

        Raises:
            TaskNotFoundError: The task has expired or was deleted.
        """
        record = await outlasting(partial(self._store.get_task, self.task_id))
        if record is None:
            raise TaskNotFoundError(self.task_id)
        self._task = record.task
        return self._task

    async def update_status(self, message: str, *, progress: Progress | None = None) -> None:
        """Set the status message, and how far the work is; an outage of the store is waited out.

        Args:
            message: Text for people to read; U+FFFD replaces what is not Unicode in it.
            progress: How far the work is; stays as it is when `None`.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease.
        """
        await self._update(status_message=clean_text(message), progress=progress)

    async def extend(self, ttl_ms: int, *, settings: TaskSettings | None = None) -> Task:
        """Let the task live for at least `ttl_ms` milliseconds from now, and return it; an outage is waited out.

        Args:
            ttl_ms: Milliseconds from now; the task never lives shorter than before.
            settings: Bounds of its TTL, which counts from its creation; `None` for none.

        Raises:
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease.
        """
        longer = extended_ttl(await self.refresh(), ttl_ms, now=self._store.clock.now(), settings=settings)
        if longer is not None:
            await self._update(ttl_ms=longer)
        return self._task

    async def _update(
        self, *, status_message: str | None = None, progress: Progress | None = None, ttl_ms: int | None = None
    ) -> None:
        # A store that knows no leases need not know the argument.
        fence = self._fence_now()
        fenced: dict[str, Any] = {} if fence is None else {"fence": fence}
        update = partial(self._store.update_task, status_message=status_message, progress=progress, ttl_ms=ttl_ms)
        self._task = (await outlasting(partial(update, self.task_id, **fenced))).task

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
        await self.finish(Outcome.failed(clean_text(error)))

    async def finish(self, outcome: Outcome) -> None:
        """End the task with this outcome and release its askers; see `complete` and `fail`.

        Shielded and bounded: cancelled, it happened in full or not at all.

        Raises:
            StoreUnavailableError: The store did not answer in time; the task may have ended.
        """
        endings = TaskEndings(self._store, self._queue)
        self._task = (await endings.finish(self.task_id, outcome, fence=self._fence_now())).task

    def _fence_now(self) -> Fence | None:
        return self._fence() if callable(self._fence) else self._fence


@asynccontextmanager
async def task_execution(
    task_id: str, store: TaskStore, queue: TaskMessageQueue | None = None
) -> AsyncIterator[TaskContext]:
    """Run a block as the work of a task that exists already, for example in a worker process.

    A block that raises ends the task as `failed` (law L11), and the exception goes no further. A
    block that is cancelled ends it as `failed` too, and stays cancelled. A block that ends without
    `complete` or `fail` leaves the task open, to be ended from outside. Each end releases the task's askers.

    Args:
        task_id: The task.
        store: The store it is kept in.
        queue: The queue of its questions; the store's own when `None`.

    Raises:
        TaskNotFoundError: The task is unknown or has expired.
    """
    record = await store.get_task(task_id)
    if record is None:
        raise TaskNotFoundError(task_id)
    context = TaskContext(task=record.task, store=store, queue=queue)
    finish = partial(_finish_unless_ended, context, TaskEndings(store, queue))
    try:
        yield context
    except Exception as error:
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            await finish(*outcome_of_exception(error))
    except BaseException:
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            await finish(Outcome.failed("The work was interrupted"))
        raise


async def _finish_unless_ended(
    context: TaskContext, endings: TaskEndings, outcome: Outcome, error: BaseException | None = None
) -> None:
    if is_terminal(context.task.status):
        return
    try:
        await endings.finish(context.task_id, outcome, error=error)
    except (InvalidTransitionError, LeaseLostError, TaskNotFoundError):
        logger.debug("A task had ended before its work did")
