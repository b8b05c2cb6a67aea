"""`PostponedRuns`: tasks of this process whose work runs again after a delay.

A task that waits keeps its lease, which is not renewed and lapses when the delay has passed. So the delay survives the
process: any other one finds the lapsed lease then, and claims it. This one does so on time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

import anyio

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.status_messages import runs_again
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS, log_loss
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, TaskNotFoundError

__all__ = ["PostponedRuns"]

logger: logging.Logger = logging.getLogger(__name__)

_MARGIN = timedelta(milliseconds=20)
"""A claim before the lease has lapsed finds nothing: the store's clock may differ a little."""


class PostponedRuns:
    """The tasks that wait, and when each begins again."""

    def __init__(
        self,
        store: TaskStore,
        group: IsolatedGroup,
        leases: WorkerLeases,
        run: Callable[[str, int], Awaitable[None]],
    ) -> None:
        """Make an empty set.

        Args:
            store: Where the tasks are kept.
            group: Runs the delays.
            leases: The leases of this process.
            run: Claims a task, whose last attempt it gets too, and runs its work again.
        """
        self._store = store
        self._clock: Clock = store.clock
        self._group = group
        self._leases = leases
        self._run = run
        self._waiting: dict[str, anyio.CancelScope] = {}

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def task_ids(self) -> list[str]:
        """The tasks that wait."""
        return list(self._waiting)

    async def postpone(self, record: TaskRecord, delay: timedelta, error: BaseException | None) -> bool:
        """Let a task wait whose run has ended; return whether it does: not if it has ended, or was lost.

        A store that fails only costs precision: the lease lapses, and the task is claimed then.

        Args:
            record: The task.
            delay: How long it waits.
            error: What the run raised, for the log.
        """
        assert record.lease is not None
        attempt, task_id = record.lease.used_attempts, record.task_id
        message = runs_again(delay, attempt + 1, record.request.max_attempts)
        until = self._clock.now() + delay
        scope = self._waiting[task_id] = anyio.CancelScope()  # from now on its lease is not renewed
        is_waiting = False
        try:
            is_waiting = await self._write(record, message, delay)
        finally:
            if not is_waiting:
                self.discard(task_id)
        if is_waiting and not scope.cancel_called:
            audit.postponed(record, delay, error)
            self._group.start(partial(self._wait, task_id, record.lease.attempt, until), scope)
        return is_waiting

    async def _write(self, record: TaskRecord, message: str, delay: timedelta) -> bool:
        assert record.lease is not None
        task_id = record.task_id
        try:
            with anyio.move_on_after(CLEANUP_SECONDS):
                await self._store.update_task(task_id, status_message=message, fence=record.lease.fence)
                await self._leases.postpone(task_id, delay)
        except (InvalidTransitionError, LeaseLostError, TaskNotFoundError):
            audit.late(record)
            return False
        except Exception as error:
            log_loss(logger, "The delay of a rerun could not be written; the lease of the task will lapse", error)
        return True

    def discard(self, task_id: str) -> None:
        """Stop the wait of a task: it has ended, or runs."""
        scope = self._waiting.pop(task_id, None)
        if scope is not None:
            scope.cancel()

    def clear(self) -> None:
        """Leave all tasks to their leases: the runtime closes."""
        for task_id in self.task_ids:
            self.discard(task_id)

    async def _wait(self, task_id: str, attempt: int, until: datetime) -> None:
        with self._clock.move_on_at(until + _MARGIN):
            await anyio.sleep_forever()
        del self._waiting[task_id]
        try:
            await self._run(task_id, attempt)
        except Exception as error:
            log_loss(logger, "A task could not be claimed to run again; it waits for its lease to be seen", error)
