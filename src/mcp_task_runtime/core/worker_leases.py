"""`WorkerLeases`: the leases of one process, under its name (law L12)."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from datetime import timedelta

from mcp_task_runtime.core.ids import new_worker_name
from mcp_task_runtime.core.store import TaskLeases, TaskSweeping, TaskTaking
from mcp_task_runtime.core.store_calls import log_loss
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["WorkerLeases"]

logger: logging.Logger = logging.getLogger(__name__)


_MOST_DOUBTFUL = 1_000
"""Claims without an answer, and releases that failed, that are kept; more than one for each task in an outage."""


class WorkerLeases:
    """What a process does with leases of its own.

    Attributes:
        doubtful: The tasks of claims that the store has not answered, and may have carried out: with the attempt of
            the lease before, `None` where that was held by no process. See `DoubtfulClaims`.
    """

    def __init__(self, store: TaskLeases, lease_ms: int) -> None:
        """Make the leases of this process.

        Args:
            store: Where the leases are kept.
            lease_ms: How long a lease lasts, in milliseconds.
        """
        self.lease_ms = lease_ms
        self._name = new_worker_name()
        self._store = store
        self._sweeping = store if isinstance(store, TaskSweeping) else None
        self._taking = store if isinstance(store, TaskTaking) else None
        self.doubtful: dict[str, int | None] = {}
        self._unreleased: set[str] = set()

    @property
    def worker(self) -> str:
        """The name of this process; another one after a fork."""
        return f"{self._name}.{os.getpid():x}"

    async def renew(self, task_ids: Collection[str]) -> frozenset[str]:
        """Renew leases; return those that this process still holds. See `TaskLeases.renew_leases`."""
        return await self._store.renew_leases(self.worker, task_ids, lease_ms=self.lease_ms)

    async def list_lost(self, names: Collection[str], limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks whose lease has lapsed, without those of other tools that wait if the store can leave them out.

        See `TaskSweeping.list_lost` and `TaskLeases.list_lapsed`.
        """
        if self._sweeping is not None:
            return await self._sweeping.list_lost(names, limit=limit)
        return await self._store.list_lapsed(limit=limit)

    async def claim(self, task_id: str, *, attempt: int) -> TaskRecord | None:
        """Claim a task for this process; see `TaskLeases.claim_task`.

        Args:
            task_id: The task.
            attempt: `Lease.attempt` as it was read before.
        """
        try:
            claimed = await self._store.claim_task(task_id, worker=self.worker, lease_ms=self.lease_ms)
        except BaseException:
            self._doubt(task_id, attempt)
            raise
        if claimed is not None:
            self.doubtful.pop(task_id, None)
        return claimed

    def _doubt(self, task_id: str, attempt: int | None) -> None:
        if task_id in self.doubtful or len(self.doubtful) < _MOST_DOUBTFUL:
            self.doubtful[task_id] = attempt

    @property
    def takes(self) -> bool:
        """Whether the store finds and claims tasks for a worker in one step."""
        return self._taking is not None

    async def take_work(self, names: Collection[str], limit: int) -> tuple[TaskRecord, ...]:
        """Wait for tasks that wait for a worker, and claim them for this process; see `TaskTaking.take_work`."""
        assert self._taking is not None
        return await self._taking.take_work(names, worker=self.worker, lease_ms=self.lease_ms, limit=limit)

    async def take_task(self, task_id: str, names: Collection[str]) -> TaskRecord | None:
        """Claim a task that waits for a worker; `None` also where the store cannot tell. See `TaskTaking.take_task`."""
        if self._taking is None:
            return None
        try:
            taken = await self._taking.take_task(task_id, names, worker=self.worker, lease_ms=self.lease_ms)
        except BaseException:
            if task_id not in self._unreleased:  # otherwise its lease may be that of the run before
                self._doubt(task_id, None)
            raise
        if taken is not None:
            self.doubtful.pop(task_id, None)
            self._unreleased.discard(task_id)
        return taken

    async def put_back(self, task_id: str, grace_ms: int) -> TaskRecord | None:
        """Put a task back whose lease has lapsed, or whose wait for a worker is overdue; see `TaskLeases.claim_task`.

        Args:
            task_id: The task.
            grace_ms: Milliseconds until its wait for a worker is overdue.
        """
        return await self._store.claim_task(task_id, worker="", lease_ms=grace_ms)

    async def release(self, task_id: str, grace_ms: int = 0, *, is_lost: bool = False) -> TaskRecord | None:
        """Put a task of this process back, so that any process can claim it at once; return it, if that was done.

        The lease is held by no process then, which tells it from one that only lapsed. A failure is logged: the lease
        lapses later.

        Args:
            task_id: The task.
            grace_ms: Milliseconds until its wait for a worker is overdue.
            is_lost: Whether its run counts as lost, and so as one of its attempts; otherwise it is handed over.
        """
        try:
            if is_lost:
                await self._store.renew_leases(self.worker, [task_id], lease_ms=0)
            else:
                await self._store.drop_leases(self.worker, [task_id], lapse=True)
            return await self.put_back(task_id, grace_ms)
        except Exception as error:
            log_loss(logger, "A lease could not be released; it will lapse", error)
            if len(self._unreleased) < _MOST_DOUBTFUL:
                self._unreleased.add(task_id)
            return None

    async def postpone(self, task_id: str, delay: timedelta) -> None:
        """Let the lease of a task of this process lapse after a delay. See `TaskLeases.renew_leases`."""
        lease_ms = max(1, -(-delay // timedelta(milliseconds=1)))
        await self._store.renew_leases(self.worker, [task_id], lease_ms=lease_ms)

    async def forget(self, task_id: str) -> None:
        """Remove a task's lease: something outside ends the task. A failure is logged."""
        try:
            await self._store.drop_leases(self.worker, [task_id], lapse=False)
        except Exception as error:
            log_loss(logger, "A lease could not be removed; it will lapse", error)
