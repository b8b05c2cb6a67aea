"""`Resumption`: runs work by its tool's name: what was lost elsewhere, and what waits for a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.outbox import Outbox
from mcp_task_runtime.core.reruns import may_run_again
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.core.workers import Workers

__all__ = ["NamedWork", "Resumption"]

NamedWork: TypeAlias = Callable[[Execution[Outcome]], Awaitable[Outcome]]
"""Work that runs by the name of its tool, with the arguments in the record of its `Execution`; returns the outcome."""

_LOST = "The worker that ran this task was lost"


class Resumption:
    """The registered work of one process, and the rules for running it again."""

    def __init__(self, workers: Workers, outbox: Outbox | None) -> None:
        """Make an empty registry.

        Args:
            workers: Where the work runs.
            outbox: The way to other processes, for work that runs there.
        """
        self._workers = workers
        self._outbox = outbox
        self._works: dict[str, NamedWork] = {}
        self._queues: dict[str, WorkQueue] = {}

    def register(self, name: str, work: NamedWork, queue: WorkQueue | None = None) -> None:
        """Set the work for the tasks of a tool, and the queue in which it waits."""
        self._works[name] = work
        if queue is None:
            self._queues.pop(name, None)
        else:
            self._queues[name] = queue

    def find(self, name: str) -> NamedWork | None:
        """Return the work for the tasks of a tool, or `None`."""
        return self._works.get(name)

    @property
    def names(self) -> Collection[str]:
        """The tools whose work is registered."""
        return self._works.keys()

    def wanted(self) -> Collection[str]:
        """Return the tools whose tasks this process may want although no process holds them.

        Tasks that the store itself shows to workers are theirs.
        """
        if self._outbox is None or self._outbox.grace_ms:
            return self._works.keys()
        return [name for name in self._works if not self._outbox.has(name)]

    def can_resume(self, record: TaskRecord) -> bool:
        """Return whether this process may claim a task that was lost or put back: to run its work, or to end it.

        Not while it still runs here, nor if it is sealed and this process has no keys. Before its first run
        `TaskRuntime.execute` claims it; once that is overdue, any process does that has its work.
        """
        lease = record.lease
        if lease is None or not self._workers.is_accepting or self._workers.has(record.task_id) or is_sealed(record):
            return False
        if not lease.used_attempts:
            return lease.expires_at <= self._workers.clock.now() and record.request.name in self._works
        return not may_run_again(record) or record.request.name in self._works

    def runs_elsewhere(self, record: TaskRecord) -> bool:
        """Return whether the work of a task is for another process, and may run once more."""
        if self._outbox is None or record.lease is None or not self._outbox.has(record.request.name):
            return False
        return not self._workers.has(record.task_id) and (not record.lease.used_attempts or may_run_again(record))

    async def put_back(self, record: TaskRecord) -> bool:
        """Put back a task whose lease has lapsed, so that a worker can claim it; return whether that was due."""
        if self._outbox is None or not self._workers.is_accepting:
            return False
        is_lost = record.lease is not None and bool(record.lease.worker)
        if not await self._outbox.put_back(record):
            return False
        if is_lost:
            audit.lost(record, "it waits for another one", is_claimed=False)
        return True

    def is_for_others(self, record: TaskRecord) -> bool:
        """Return whether the work of a lost task may run again, and only other processes can run it."""
        if record.lease is None or self._workers.has(record.task_id) or self.runs_elsewhere(record):
            return False
        is_mine = record.request.name in self._works and not is_sealed(record)
        return not is_mine and (not record.lease.used_attempts or may_run_again(record))

    async def run_again(self, leases: WorkerLeases, task_id: str, attempt: int) -> None:
        """Claim a task whose delay has passed, and run its work again.

        Args:
            leases: The leases of this process.
            task_id: The task.
            attempt: Its last one.

        Raises:
            StoreError: The store failed.
        """
        if not self._workers.is_accepting or self._workers.has(task_id):
            return
        record = await leases.claim(task_id, attempt=attempt)
        if record is not None:
            await self.start(record, was_lost=False)

    async def start(self, record: TaskRecord, *, was_lost: bool = True) -> Execution[Outcome] | None:
        """Run the work of a task that this process has claimed, or end the task.

        Args:
            record: The task.
            was_lost: Whether a run before lost its worker; not if it asked to run again.

        Returns:
            The run, or `None` if the runtime closes and the lease was released.
        """
        work = self._works.get(record.request.name)
        attempt = 1 if record.lease is None else record.lease.used_attempts
        is_rerun = record.request.rerunnable and attempt <= record.request.max_attempts
        if not self._workers.is_accepting or (work is None and is_rerun):
            await self._workers.hand_over(record)
            return None
        if work is not None and (attempt == 1 or is_rerun):
            if was_lost and attempt > 1:
                audit.lost(record, "it runs again")
            return self._workers.resume(record, work, queue=self._queues.get(record.request.name))
        lost = f"its worker was lost in attempt {attempt - 1}"
        if record.request.rerunnable:
            lost += f" of {record.request.max_attempts}, the last one"
        message = f"{_LOST}, in each of {attempt - 1} attempts" if record.request.rerunnable else _LOST

        async def fail(execution: Execution[Outcome]) -> Outcome:
            return Outcome.failed(message)

        return self._workers.resume(record, fail, reason=lost, needs_slot=False)
