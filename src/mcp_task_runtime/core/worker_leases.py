"""`WorkerLeases`: the leases of one process, under its name (law L12)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from mcp_task_runtime.core.ids import new_worker_name
from mcp_task_runtime.core.store import TaskLeases, TaskSweeping, TaskTaking
from mcp_task_runtime.core.store_calls import log_loss
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["DoubtfulClaim", "WorkerLeases"]

logger: logging.Logger = logging.getLogger(__name__)


_MOST_DOUBTFUL = 1_000
"""Claims without an answer, and releases that failed, that are kept."""


@dataclass(slots=True, eq=False)
class DoubtfulClaim:
    """A claim that the store has not answered, and may have carried out.

    Attributes:
        attempt: The attempt of the lease before; `None` where that was held by no process.
        until: When it is too late for it to be carried out; `None` while that is unknown.
    """

    attempt: int | None
    until: datetime | None = None


class WorkerLeases:
    """What a process does with leases of its own."""

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
        self._doubtful: dict[str, DoubtfulClaim] = {}
        self._claiming: Counter[str] = Counter()  # calls on their way, which may bring what an earlier one claimed
        self._unreleased: dict[str, None] = {}

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
        with self._claims(task_id, attempt):
            claimed = await self._store.claim_task(task_id, worker=self.worker, lease_ms=self.lease_ms)
        if claimed is not None:
            self._doubtful.pop(task_id, None)
        return claimed

    @property
    def doubtful(self) -> Mapping[str, DoubtfulClaim]:
        """The claims that the store has not answered, by their tasks; see `DoubtfulClaims`."""
        return MappingProxyType(self._doubtful)

    def may_settle(self, task_id: str, claim: DoubtfulClaim) -> bool:
        """Return whether a claim is still in doubt, and no call is on its way that may bring the same task."""
        return self._doubtful.get(task_id) is claim and task_id not in self._claiming

    def settle(self, task_id: str, claim: DoubtfulClaim) -> None:
        """Note that nothing more can come of a claim."""
        if self._doubtful.get(task_id) is claim:
            del self._doubtful[task_id]

    @contextmanager
    def _claims(self, task_id: str, attempt: int | None, *, is_noted: bool = True) -> Iterator[None]:
        """Have a call claim a task; note the claim if the call fails."""
        self._claiming[task_id] += 1
        try:
            yield
        except BaseException:
            if is_noted and (task_id in self._doubtful or len(self._doubtful) < _MOST_DOUBTFUL):
                self._doubtful[task_id] = DoubtfulClaim(attempt)
            raise
        finally:
            self._claiming[task_id] -= 1
            if not self._claiming[task_id]:
                del self._claiming[task_id]

    @property
    def takes(self) -> bool:
        """Whether the store finds and claims tasks for a worker in one step."""
        return self._taking is not None

    async def take_work(self, names: Collection[str], limit: int) -> tuple[TaskRecord, ...]:
        """Wait for tasks that wait for a worker, and claim them for this process; see `TaskTaking.take_work`."""
        assert self._taking is not None
        taken = await self._taking.take_work(names, worker=self.worker, lease_ms=self.lease_ms, limit=limit)
        for record in taken:
            self._doubtful.pop(record.task_id, None)
            self._unreleased.pop(record.task_id, None)
        return taken

    async def take_task(self, task_id: str, names: Collection[str]) -> TaskRecord | None:
        """Claim a task that waits for a worker; `None` also where the store cannot tell. See `TaskTaking.take_task`."""
        if self._taking is None:
            return None
        is_noted = task_id not in self._unreleased  # otherwise its lease may be that of the run before
        with self._claims(task_id, None, is_noted=is_noted):
            taken = await self._taking.take_task(task_id, names, worker=self.worker, lease_ms=self.lease_ms)
        if taken is not None:
            self._doubtful.pop(task_id, None)
            self._unreleased.pop(task_id, None)
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
        except BaseException as error:
            self._note_unreleased(task_id)
            if not isinstance(error, Exception):
                raise
            log_loss(logger, "A lease could not be released; it will lapse", error)
            return None

    async def postpone(self, task_id: str, delay: timedelta) -> None:
        """Let the lease of a task of this process lapse after a delay. See `TaskLeases.renew_leases`."""
        lease_ms = max(1, -(-delay // timedelta(milliseconds=1)))
        await self._store.renew_leases(self.worker, [task_id], lease_ms=lease_ms)

    async def forget(self, task_id: str) -> None:
        """Remove a task's lease: something outside ends the task. A failure is logged."""
        try:
            await self._store.drop_leases(self.worker, [task_id], lapse=False)
        except BaseException as error:
            self._note_unreleased(task_id)
            if not isinstance(error, Exception):
                raise
            log_loss(logger, "A lease could not be removed; it will lapse", error)

    def _note_unreleased(self, task_id: str) -> None:
        self._unreleased[task_id] = None
        if len(self._unreleased) > _MOST_DOUBTFUL:
            del self._unreleased[next(iter(self._unreleased))]  # the oldest one, which has lapsed
