"""`TaskClaims`: claims tasks that no process runs, and runs their registered work."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import anyio

from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.lease_keeper import LeaseKeeper
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.resumption import Resumption
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS, store_errors
from mcp_task_runtime.core.text import clean_text
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.core.workers import Workers

__all__ = ["TaskClaims"]


class TaskClaims:
    """The tasks that a runtime may take from a store which it shares with other processes."""

    def __init__(
        self,
        reader: TaskReader,
        leases: WorkerLeases,
        keeper: LeaseKeeper,
        workers: Workers,
        resumption: Resumption,
    ) -> None:
        """Make the claims of a runtime.

        Args:
            reader: Reads tasks.
            leases: The leases of this process.
            keeper: Says whether lost tasks may be claimed.
            workers: Where the work runs.
            resumption: The registered work.
        """
        self._reader = reader
        self._leases = leases
        self._keeper = keeper
        self._workers = workers
        self._resumption = resumption

    @property
    def is_accepting(self) -> bool:
        """Whether new work is taken."""
        return self._workers.is_accepting

    @property
    def names(self) -> Collection[str]:
        """The tools whose work is registered."""
        return self._resumption.names

    async def execute(self, task_id: str) -> bool:
        """Claim a task, run its work, and wait until it has ended; return whether there was a task to claim.

        Cancelled, the work is stopped and the lease released: another process may claim it.

        Raises:
            StoreError: The store failed.
        """
        execution = await self._begin_waiting(task_id)
        if execution is None:
            record = await self._reader.get(task_id)
            execution = None if record is None else await self.begin(record)
        if execution is None:
            return False
        try:
            await self._workers.join(execution)
        except BaseException:
            await self._workers.recall(execution)
            raise
        return True

    async def begin(self, record: TaskRecord) -> Execution[Any] | None:
        """Claim a task and start its work, also when this is cancelled meanwhile; `None` for nothing to claim.

        Raises:
            StoreError: The store failed.
        """
        if record.lease is None or not self._may_claim(record):
            return None
        execution = None
        with anyio.CancelScope(shield=True):
            with store_errors():
                claimed = await self._leases.claim(record.task_id, attempt=record.lease.attempt)
            if claimed is not None:
                execution = await self._resumption.start(claimed)
        return execution

    async def _begin_waiting(self, task_id: str) -> Execution[Any] | None:
        """Claim a task that waits for a worker, without reading it first, where the store can; and start its work."""
        if not self._leases.takes or not self._workers.is_accepting or clean_text(task_id) != task_id:
            return None
        execution = None
        with anyio.CancelScope(shield=True):
            with store_errors():
                record = await self._leases.take_task(task_id, self.names)
            if record is not None:
                execution = await self._start(record)
        return execution

    @property
    def takes(self) -> bool:
        """Whether the store finds and claims tasks in one step: `take` is for such a store."""
        return self._leases.takes

    async def take(self, names: Collection[str], limit: int) -> list[Execution[Any]]:
        """Wait for tasks of these tools that wait for a worker, claim them and start their work.

        Raises:
            StoreError: The store failed.
        """
        with store_errors():
            taken = await self._leases.take_work(names, limit)
        started: list[Execution[Any] | None] = []
        with anyio.CancelScope(shield=True):
            started = [await self._start(record) for record in taken]
        return [execution for execution in started if execution is not None]

    async def _start(self, record: TaskRecord) -> Execution[Any] | None:
        """Start the work of a task that was claimed; `None` if it was put back, to be claimed again.

        A run of it here that lost its lease, or is about to end, is over first: its end would release the new lease.
        """
        if not self._workers.has(record.task_id):
            return await self._resumption.start(record)
        if (run := self._workers.run_of(record)) is not None:
            return run  # it began while this claim was on its way; see `DoubtfulClaims`
        with anyio.move_on_after(CLEANUP_SECONDS):
            await self._workers.leave(record.task_id)
        await self._workers.hand_over(record)
        return None

    async def join(self, execution: Execution[Any]) -> None:
        """Wait until a run has ended and its outcome is written."""
        await self._workers.join(execution)

    def _may_claim(self, record: TaskRecord) -> bool:
        lease = record.lease
        if lease is None or not self._workers.is_accepting or self._workers.has(record.task_id):
            return False
        if self._resumption.find(record.request.name) is None or is_sealed(record):
            return False
        return not lease.worker or self._keeper.may_claim
