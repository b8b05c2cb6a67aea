"""`TaskEndings`: the only code that ends or discards a task.

Each end is: write the outcome, log, call the listeners, release the task's askers (law L5). Listeners hear of
ends that were seen elsewhere too, through `announce`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import anyio

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.abilities import has_questions, queue_of
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import (
    CLEANUP_SECONDS,
    does_never_wait,
    log_loss,
    pause_after,
    store_errors,
    time_limit,
)
from mcp_task_runtime.core.text import check_size
from mcp_task_runtime.core.types import Fence, Outcome, TaskRecord
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    LeaseLostError,
    LimitExceededError,
    StoreClosedError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntimeError,
)

__all__ = ["EndListener", "TaskEndings"]

logger: logging.Logger = logging.getLogger(__name__)

_ATTEMPT_SECONDS = 30.0
_UNSTORABLE = Outcome.failed("Internal error")
_SMALL = 256
"""Characters of an outcome that is never too large, so that there is always room to say what was."""

EndListener: TypeAlias = Callable[[str, TaskRecord | None], None]
"""Called with the id of a task that has ended or is gone, and its last record where that is known."""


class TaskEndings:
    """Ends the tasks of one store."""

    def __init__(
        self, store: TaskStore, queue: TaskMessageQueue | None = None, *, max_bytes: int | None = None
    ) -> None:
        """Make the endings of a store.

        Args:
            store: Where the tasks are kept.
            queue: Where their questions are kept; the store's own when `None`.
            max_bytes: Bytes that a result or an error may have; `None` for no limit.
        """
        own = queue_of(store)
        self._max_bytes = max_bytes
        queue = own if queue is None else queue
        self._store = store
        # A store with this ability drops the mailbox in the write that ends or deletes the task.
        self._queue = None if queue is own and has_questions(store) else queue
        self._ends_at_once = does_never_wait(store.finish_task)
        self._listeners: list[EndListener] = []
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Number of outcomes that wait to be written because the store failed."""
        return self._waiting

    def on_end(self, listener: EndListener) -> None:
        """Call a listener after each end, in the order of registration. What it raises is logged."""
        self._listeners.append(listener)

    def announce(self, task_id: str, record: TaskRecord | None = None) -> None:
        """Tell the listeners of an end that was seen elsewhere."""
        for listener in self._listeners:
            try:
                listener(task_id, record)
            except Exception:
                logger.exception("A listener for ends of tasks raised an exception")

    async def finish(
        self,
        task_id: str,
        outcome: Outcome,
        *,
        fence: Fence | None = None,
        reason: str | None = None,
        error: BaseException | None = None,
    ) -> TaskRecord:
        """End a task. Shielded and bounded: cancelled, it happened in full or not at all.

        Args:
            task_id: The task.
            outcome: How it ends.
            fence: End it only if this run of the work still holds its lease (law L12).
            reason: Why the runtime ends it, for the log.
            error: The unexpected exception behind the outcome, for the log.

        Raises:
            TaskNotFoundError: The task is unknown or has expired.
            InvalidTransitionError: The task has already ended; nothing changed.
            LeaseLostError: Another run holds the lease; nothing changed.
            LimitExceededError: The outcome is too large; nothing changed.
            StoreError: The store failed.
            StoreUnavailableError: The store did not answer in time; the task may have ended.
        """
        try:
            with store_errors(), anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                return await self._end(task_id, outcome, fence, reason, error)
        except (InvalidTransitionError, TaskNotFoundError):
            self.announce(task_id)
            raise
        raise StoreUnavailableError("The store did not answer in time")

    async def finish_eventually(
        self,
        record: TaskRecord,
        outcome: Outcome,
        *,
        fence: Fence | None = None,
        reason: str | None = None,
        error: BaseException | None = None,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """End a task, retrying while the store fails, until it is written or the task has expired (law L12).

        A late outcome is dropped: the task has ended, or another run of its work holds the lease. An outcome that
        the store refuses as a value is replaced by an internal error, and one that is too large by an error that says
        so. Not shielded; cancelled while it waits, the outcome is dropped. A drop of an outcome that was not late is
        logged at ERROR.

        Args:
            record: The task.
            outcome: How it ends.
            fence: As for `finish`.
            reason: As for `finish`.
            error: As for `finish`.
            waiting: Makes the context manager in which the store is waited for, such as a shield.
        """
        try:
            if self._ends_at_once:  # it needs no time limit and no shield
                try:
                    await self._end(record.task.task_id, outcome, fence, reason, error)
                except (InvalidTransitionError, TaskNotFoundError, LeaseLostError):
                    raise
                except Exception:
                    logger.debug("An outcome could not be written at once", exc_info=True)
                else:
                    return
            with waiting():
                await self._retry(record, outcome, fence, reason, error)
        except (InvalidTransitionError, TaskNotFoundError):
            audit.late(record, error)
            await self._clear(record.task_id)
            self.announce(record.task_id)
        except LeaseLostError:
            audit.late(record, error)

    async def discard(self, record: TaskRecord) -> None:
        """Delete a task that no client has heard of. Shielded, bounded; a failure is logged, and the task expires."""
        try:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True) as scope:
                await self._store.delete_task(record.task_id)
                await self._clear(record.task_id)
            if scope.cancelled_caught:
                logger.warning("A task that became no task could not be deleted in time; it will expire")
        except Exception as error:
            log_loss(logger, "A task that became no task could not be deleted; it will expire", error)
        finally:
            self.announce(record.task_id)

    async def _retry(
        self,
        record: TaskRecord,
        outcome: Outcome,
        fence: Fence | None,
        reason: str | None,
        unexpected: BaseException | None,
    ) -> None:
        failures = 0
        try:
            while True:
                try:
                    with time_limit(self._store.finish_task, _ATTEMPT_SECONDS):
                        await self._end(record.task_id, outcome, fence, reason, unexpected)
                        if failures:
                            audit.written(record)
                        return
                    error: Exception = StoreUnavailableError("The store did not answer in time")
                except (InvalidTransitionError, TaskNotFoundError, LeaseLostError):
                    raise
                except LimitExceededError as too_large:
                    outcome, reason = Outcome.failed(str(too_large)), reason or str(too_large)
                    continue
                except Exception as raised:
                    error = raised
                if _is_refusal(error) and outcome is not _UNSTORABLE:
                    outcome, unexpected, reason = _UNSTORABLE, error, reason or "the store refuses its outcome"
                    continue
                if (loss := self._loss(record, error)) is not None:
                    audit.dropped(record, outcome, loss)
                    return
                if not failures:
                    self._waiting += 1
                    audit.waits(record, error)
                    logger.debug("An outcome could not be written", exc_info=error)
                failures += 1
                await pause_after(failures)
        except anyio.get_cancelled_exc_class():
            audit.dropped(record, outcome, "the runtime closed before the store returned")
            raise
        finally:
            self._waiting -= bool(failures)

    def _loss(self, record: TaskRecord, error: Exception) -> str | None:
        """Return why an outcome that the store did not take will never be written; `None` if it may be."""
        if isinstance(error, StoreClosedError):
            return "the store was closed"
        if _is_refusal(error):
            return "the store refuses it"
        expires_at = record.task.expires_at
        if expires_at is not None and self._store.clock.now() >= expires_at:
            return "the task expired before the store returned"
        return None

    async def _end(
        self, task_id: str, outcome: Outcome, fence: Fence | None, reason: str | None, error: BaseException | None
    ) -> TaskRecord:
        if outcome.payload_json is not None and len(outcome.payload_json) > _SMALL:
            check_size("results and errors", outcome.payload_json, self._max_bytes)
        if fence is None:
            record = await self._store.finish_task(task_id, outcome)
        else:
            record = await self._store.finish_task(task_id, outcome, fence=fence)
        audit.ended(record, reason, error, attempt=1 if fence is None else fence.attempt)
        self.announce(task_id, record)  # first: clients may see the end already, and its owner has room again
        if self._queue is not None:
            await self._clear(task_id)
        return record

    async def _clear(self, task_id: str) -> None:
        if self._queue is None:
            return
        try:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._queue.clear(task_id)
        except Exception as error:
            log_loss(logger, "The mailbox of an ended task could not be cleared", error)


def _is_refusal(error: Exception) -> bool:
    """Return whether a store refuses an outcome as a value."""
    return isinstance(error, ValueError) and not isinstance(error, TaskRuntimeError)
