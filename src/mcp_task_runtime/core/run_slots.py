"""`RunSlots`: the places of runs in their queues, and the slots that they hold."""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio

from mcp_task_runtime.core.clock import Clock, sleep_by
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.run_observer import RunObserver
from mcp_task_runtime.core.slots import WorkSlots
from mcp_task_runtime.core.status_messages import RUNNING
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS
from mcp_task_runtime.core.task_maker import TaskMaker
from mcp_task_runtime.core.types import TaskRecord, TaskSpec
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    LimitExceededError,
    RevisionConflictError,
    StoreError,
    TaskNotFoundError,
)

__all__ = ["RunSlots"]

logger: logging.Logger = logging.getLogger(__name__)

_QUICK: Final = timedelta(milliseconds=100)
"""Work that ends sooner costs no write that says that it runs."""


class RunSlots:
    """Gives each run its slot; the status message of a task says while its work waits for one."""

    def __init__(
        self,
        clock: Clock,
        slots: WorkSlots,
        maker: TaskMaker,
        reader: TaskReader,
        group: IsolatedGroup,
        observer: RunObserver | None,
    ) -> None:
        """Make the places of one process's runs.

        Args:
            clock: The store's clock.
            slots: The slots of all work, and of each queue.
            maker: Makes tasks.
            reader: Writes that a task no longer waits.
            group: Runs that writing.
            observer: Hears of runs that wait.
        """
        self._clock = clock
        self._slots = slots
        self._maker = maker
        self._reader = reader
        self._group = group
        self._observer = observer
        self._quick: dict[Execution[Any], anyio.CancelScope] = {}

    async def make_task(
        self, spec: TaskSpec, execution: Execution[Any], *, shield: bool = False
    ) -> tuple[TaskRecord, bool]:
        """Create the task of a run, which waits for a slot in its queue afterwards, or return the one it joins.

        One that joins needs no place in the queue.

        Args:
            spec: What the task is made with.
            execution: The run.
            shield: Whether a cancellation waits until the task exists; see `TaskMaker.make`.

        Returns:
            The task, and whether it is a new one.

        Raises:
            LimitExceededError: As many tasks wait in the queue as may, or as for `TaskMaker.make`.
            StoreError: The store could not create it.
            ValueError: There is another queue of this name, or as for `TaskMaker.make`.
        """
        if spec.queue is None and not self._slots.is_limited:
            return await self._maker.make(spec, shield=shield)
        try:
            begins_at_once = self._slots.admit(spec.queue)
        except LimitExceededError:
            joined = await self._maker.join(spec, shield=shield)
            if joined is None:
                raise
            return joined, False
        is_new = False
        try:
            record, is_new = await self._maker.make(spec, is_queued=not begins_at_once, shield=shield)
        finally:
            if not is_new:
                self._slots.dismiss(spec.queue)
        if not is_new:
            return record, False
        self._slots.enter(execution, spec.queue)
        execution.queue = spec.queue
        execution.is_queued = not begins_at_once
        return record, True

    def has_all(self, execution: Execution[Any]) -> bool:
        """Return whether a run needs no slot, and does not look as if it waited for one."""
        return execution.queue is None and not execution.is_queued and not self._slots.is_limited

    async def acquire(self, execution: Execution[Any]) -> None:
        """Wait for the slots of a run; one that holds them has them. Cancelled, it holds what it held, or less."""
        record, queue = execution.record, execution.queue
        owner = None if record is None else record.owner
        if self._observer is None or record is None or self._slots.has_room(execution, queue):
            await self._slots.acquire(execution, queue, owner)
        else:
            with self._observer.waiting(record):
                await self._slots.acquire(execution, queue, owner)
        if execution.is_queued and record is not None:
            execution.is_queued = False
            scope = self._quick[execution] = anyio.CancelScope()
            self._group.start(partial(self._say_running, execution, record), scope)

    def release(self, execution: Execution[Any]) -> None:
        """Release the slots of a run, if it holds any."""
        self._slots.release(execution, execution.queue)

    def close(self, execution: Execution[Any]) -> None:
        """Release slots and place of a run that is over, or never began."""
        self._slots.close(execution, execution.queue)
        scope = self._quick.pop(execution, None)
        if scope is not None:
            scope.cancel()

    async def _say_running(self, execution: Execution[Any], record: TaskRecord) -> None:
        """Replace the status message of a task that waited, unless its work is quick, or has changed something."""
        await sleep_by(self._clock, _QUICK)
        self._quick.pop(execution, None)  # the write is not cancelled
        try:
            with anyio.move_on_after(CLEANUP_SECONDS):
                await self._reader.say(record, RUNNING)
        except (InvalidTransitionError, RevisionConflictError, StoreError, TaskNotFoundError):
            logger.debug("The status message of a task that waited was not replaced", exc_info=True)
