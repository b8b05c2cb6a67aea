"""Stores with one fault each in fences, and in leases that no process holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import anyio.lowlevel

from mcp_task_runtime.core.transitions import check_fence
from mcp_task_runtime.core.types import Fence, Lease, Outcome, TaskRecord
from mcp_task_runtime.errors import LeaseLostError
from tests.core.leased_store import LeasedTaskStore
from tests.kit.mutants.registry import from_now, live, set_lease, store_mutant


class _Fenced(LeasedTaskStore):
    """Changes the fence of a write, or what is checked of it."""

    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        raise NotImplementedError

    async def update_task(self, task_id: str, *, fence: Fence | None = None, **changes: Any) -> TaskRecord:
        return await super().update_task(task_id, fence=await self._checked(task_id, fence), **changes)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        return await super().finish_task(task_id, outcome, fence=await self._checked(task_id, fence))


@store_mutant("a_run_that_lost_its_lease_changes_nothing", "a_run_without_a_lease_changes_nothing")
class FencesAreIgnored(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        return None


@store_mutant("a_run_that_lost_its_lease_changes_nothing")
class AFenceComparesWorkersOnly(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        lease = live(self, task_id).record.lease
        return lease.fence if fence is not None and lease is not None and lease.worker == fence.worker else fence


@store_mutant("a_run_that_holds_the_lease_writes")
class ALapsedLeaseFencesItsRun(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        lease = live(self, task_id).record.lease
        if fence is not None and lease is not None and lease.expires_at <= self.clock.now():
            raise LeaseLostError(task_id)
        return fence


@store_mutant("a_run_without_a_lease_changes_nothing")
class AFenceNeedsNoLease(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        return None if live(self, task_id).record.lease is None else fence


@store_mutant("a_fence_is_checked_after_the_status_and_before_the_revision")
class AFenceIsCheckedFirst(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        check_fence(live(self, task_id).record, fence)
        return fence


@store_mutant("fenced_writes_that_overlap_a_claim_have_the_effect_of_some_sequence")
class AFenceIsCheckedTooEarly(_Fenced):
    async def _checked(self, task_id: str, fence: Fence | None) -> Fence | None:
        check_fence(live(self, task_id).record, fence)
        await anyio.lowlevel.checkpoint()
        return None


# --- leases that no process holds ---------------------------------------------------------------------


@store_mutant("work_that_waits_for_a_worker_can_be_claimed_at_any_time")
class WaitingWorkIsClaimedWhenItIsOverdue(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        record = await self.get_task(task_id)
        lease = None if record is None else record.lease
        if lease is not None and lease.expires_at > self.clock.now():
            return None
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("work_that_no_worker_started_in_time_is_listed", "a_lost_task_can_be_put_back_to_wait_for_a_worker")
class WaitingWorkIsNeverOverdue(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        lapsed = await super().list_lapsed(limit=limit)
        return tuple(record for record in lapsed if record.lease is not None and record.lease.worker)


@store_mutant("a_lost_task_can_be_put_back_to_wait_for_a_worker")
class PuttingBackCountsAnAttempt(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if claimed is None or claimed.lease is None or worker:
            return claimed
        set_lease(self, task_id, replace(claimed.lease, attempt=claimed.lease.attempt + 1))
        return self.record(task_id)


@store_mutant("a_lost_task_can_be_put_back_to_wait_for_a_worker")
class AHeldTaskCanBePutBack(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        if not worker and (lease := live(self, task_id).record.lease) is not None:
            set_lease(self, task_id, replace(lease, expires_at=self.clock.now()))
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("no_worker_holds_a_lease_that_waits_for_one")
class RenewingTakesWaitingWork(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.record.lease is not None and not entry.record.lease.worker:
                set_lease(self, task_id, Lease(worker, from_now(self, lease_ms), 1))
        return await super().renew_leases(worker, task_ids, lease_ms=lease_ms)


@store_mutant("of_many_workers_exactly_one_gets_the_work_that_waits")
class EveryWorkerThatLookedInTimeGetsTheWork(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        before = await self.get_task(task_id)
        await anyio.lowlevel.checkpoint()
        if before is not None and before.lease is not None and task_id in self._entries:
            set_lease(self, task_id, before.lease)
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
