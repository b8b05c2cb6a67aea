"""`RunObserver`: tells an observer of the runs of one process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.observer import (
    LeaseLost,
    SlotAcquired,
    SlotAwaited,
    TaskChange,
    TaskObserver,
    WorkStarted,
    WorkStopped,
)
from mcp_task_runtime.core.run_end import RunEnd
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["RunObserver"]


class RunObserver:
    """Reports each run once when it starts and once when it stops."""

    def __init__(self, observer: TaskObserver, clock: Clock) -> None:
        """Make an observer of no runs yet.

        Args:
            observer: Hears of tasks and runs.
            clock: The store's clock.
        """
        self._observer = observer
        self._clock = clock
        self._started: set[Execution[Any]] = set()

    def created(self, record: TaskRecord) -> None:
        """Report a new task."""
        self._observer.observe(TaskChange.of(record, is_new=True))

    def started(self, execution: Execution[Any], record: TaskRecord) -> None:
        """Report that the work of a task has begun; a run that was reported before is not reported again."""
        if execution not in self._started:
            self._started.add(execution)
            waited = (self._clock.now() - record.task.created_at).total_seconds()
            self._observer.observe(WorkStarted(record, max(0.0, waited)))

    def stopped(self, execution: Execution[Any], end: RunEnd[Any]) -> None:
        """Report that the work of a task is over, if its start was reported."""
        if execution in self._started:
            self._started.discard(execution)
            assert execution.record is not None
            self._observer.observe(WorkStopped(execution.record, end.outcome, end.error))

    def lease_lost(self, record: TaskRecord) -> None:
        """Report that a run has lost its lease."""
        self._observer.observe(LeaseLost(record))

    @contextmanager
    def waiting(self, record: TaskRecord) -> Generator[None, None, None]:
        """Report that the block waits for a slot, and for how long it did."""
        self._observer.observe(SlotAwaited(record))
        began = perf_counter()
        try:
            yield
        finally:
            self._observer.observe(SlotAcquired(record, perf_counter() - began))
