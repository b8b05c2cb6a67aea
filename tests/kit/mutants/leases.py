"""Stores with leases that have one fault each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import anyio
import anyio.lowlevel
from typing_extensions import Unpack

from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    NewTask,
    NewTaskFields,
    Outcome,
    TaskRecord,
)
from mcp_task_runtime.errors import (
    RevisionConflictError,
)
from mcp_task_runtime.testing.clock import FakeClock
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.registry import (
    MUTANTS,
    Mutant,
    from_now,
    lease_of,
    live,
    set_lease,
    store_mutant,
)

# --- store: leases ------------------------------------------------------------------------------------


@store_mutant("a_lease_is_made_with_the_task_and_kept_by_its_updates")
class AnUpdateDropsTheLease(LeasedTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        await super().update_task(task_id, **changes)
        set_lease(self, task_id, None)
        return self.record(task_id)


@store_mutant("a_lease_is_made_with_the_task_and_kept_by_its_updates")
class AnUpdateRenewsTheLease(LeasedTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, **changes)
        if record.lease is not None:
            set_lease(self, task_id, replace(record.lease, expires_at=from_now(self, 10_000)))
        return self.record(task_id)


@store_mutant(
    "a_worker_renews_the_leases_that_it_holds_and_no_others", "a_late_worker_does_not_get_a_claimed_task_back"
)
class AnybodyRenewsALease(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        renewed: set[str] = set()
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.record.lease is not None:
                renewed |= await super().renew_leases(entry.record.lease.worker, [task_id], lease_ms=lease_ms)
        return frozenset(renewed)


@store_mutant("a_worker_renews_the_leases_that_it_holds_and_no_others", "a_lease_goes_with_its_task")
class EverythingCountsAsRenewed(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        return frozenset(task_ids)


@store_mutant("a_worker_renews_the_leases_that_it_holds_and_no_others")
class ARenewalCountsAsAChange(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        held = await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        for task_id in held:
            await self.update_task(task_id)
        return held


@store_mutant("a_worker_renews_the_leases_that_it_holds_and_no_others")
class ARenewalNeverShortensALease(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        leases = {task_id: lease for task_id in task_ids if (lease := lease_of(self, task_id, worker)) is not None}
        held = await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        for task_id in held:
            until = max(leases[task_id].expires_at, from_now(self, lease_ms))
            set_lease(self, task_id, replace(leases[task_id], expires_at=until))
        return held


@store_mutant("a_worker_renews_the_leases_that_it_holds_and_no_others")
class ALapsedLeaseCannotBeRenewed(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        lapsed = {record.task_id for record in await self.list_lapsed()}
        return await super().renew_leases(worker, set(task_ids) - lapsed, lease_ms=lease_ms)


@store_mutant("a_claim_takes_a_lost_task_over_as_it_is")
class ARenewalForgetsTheAttempt(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        held = await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        for task_id in held:
            set_lease(self, task_id, Lease(worker, from_now(self, lease_ms)))
        return held


@store_mutant("a_worker_drops_the_leases_that_it_holds_and_no_others", "a_late_worker_does_not_get_a_claimed_task_back")
class AnybodyDropsALease(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.record.lease is not None:
                await super().drop_leases(entry.record.lease.worker, [task_id], lapse=lapse)


@store_mutant("a_worker_drops_the_leases_that_it_holds_and_no_others")
class ADroppedLeaseAlwaysLapses(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        await super().drop_leases(worker, task_ids, lapse=True)


@store_mutant("a_worker_drops_the_leases_that_it_holds_and_no_others")
class ADroppedLeaseIsAlwaysGone(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        await super().drop_leases(worker, task_ids, lapse=False)


@store_mutant("a_worker_drops_the_leases_that_it_holds_and_no_others")
class ALapsedLeaseLapsesAgainWhenDropped(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        if lapse:
            await self.renew_leases(worker, task_ids, lease_ms=0)
        else:
            await super().drop_leases(worker, task_ids, lapse=lapse)


@store_mutant(
    "a_worker_drops_the_leases_that_it_holds_and_no_others",
    "runs_that_are_handed_over_are_counted_apart_from_the_attempts",
)
class AHandOverIsNotCounted(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        await super().drop_leases(worker, task_ids, lapse=lapse)
        for task_id in task_ids:
            if (lease := lease_of(self, task_id, worker)) is not None:
                set_lease(self, task_id, replace(lease, handovers=0))


@store_mutant(
    "a_worker_drops_the_leases_that_it_holds_and_no_others",
    "runs_that_are_handed_over_are_counted_apart_from_the_attempts",
)
class ALostRunCountsAsHandedOver(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        before = {task_id: lease_of(self, task_id, worker) for task_id in task_ids}
        await super().drop_leases(worker, task_ids, lapse=lapse)
        for task_id, lease in before.items():
            if lapse and lease is not None and lease == lease_of(self, task_id, worker):
                set_lease(self, task_id, replace(lease, handovers=lease.handovers + 1))


@store_mutant("runs_that_are_handed_over_are_counted_apart_from_the_attempts")
class AClaimForgetsHandOvers(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if claimed is None or claimed.lease is None:
            return claimed
        set_lease(self, task_id, replace(claimed.lease, handovers=0))
        return self.record(task_id)


@store_mutant("a_worker_drops_the_leases_that_it_holds_and_no_others")
class DroppingNoLeasesDropsAll(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        await super().drop_leases(worker, task_ids or list(self._entries), lapse=lapse)


@store_mutant("a_lease_lapses_at_its_time_by_the_injected_clock")
class ALeaseIsListedOnlyAfterItsTime(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        lapsed = await super().list_lapsed(limit=limit)
        return tuple([record for record in lapsed if record.lease and record.lease.expires_at < self._clock.now()])


@store_mutant("a_lease_lapses_at_its_time_by_the_injected_clock")
class ALeaseIsClaimedOnlyAfterItsTime(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        entry = self._entries.get(task_id)
        lease = None if entry is None else entry.record.lease
        if lease is not None and lease.expires_at == self._clock.now():
            return None
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("a_lease_lapses_at_its_time_by_the_injected_clock")
class LeasesLapseByTheMachinesClock(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        clock, self._clock = self._clock, FakeClock(datetime(2036, 1, 1, tzinfo=timezone.utc))
        try:
            return await super().list_lapsed(limit=limit)
        finally:
            self._clock = clock


@store_mutant("lapsed_leases_are_listed_longest_lapsed_first")
class LapsedLeasesAreListedAsTheyWereMade(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        lapsed = await super().list_lapsed(limit=limit)
        return tuple(sorted(lapsed, key=lambda record: self._entries[record.task_id].sequence))


@store_mutant("lapsed_leases_are_listed_longest_lapsed_first")
class TheLimitIsForgotten(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        return await super().list_lapsed(limit=limit + 1)


@store_mutant("lapsed_leases_are_listed_longest_lapsed_first")
class ALimitOfNothingIsTaken(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        return await super().list_lapsed(limit=limit) if limit > 0 else ()


class _Claims(LeasedTaskStore):
    """Changes what a claim made."""

    def _claimed(self, before: TaskRecord, claimed: TaskRecord) -> TaskRecord:
        raise NotImplementedError

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        before = await self.get_task(task_id)
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if before is None or claimed is None:
            return claimed
        entry = self._entries[task_id]
        entry.record = self._claimed(before, claimed)
        return entry.record


@store_mutant("a_claim_takes_a_lost_task_over_as_it_is")
class AttemptsAreNotCounted(_Claims):
    def _claimed(self, before: TaskRecord, claimed: TaskRecord) -> TaskRecord:
        assert claimed.lease is not None
        return replace(claimed, lease=replace(claimed.lease, attempt=1))


@store_mutant("a_claim_takes_a_lost_task_over_as_it_is")
class AClaimedTaskIsWorking(_Claims):
    def _claimed(self, before: TaskRecord, claimed: TaskRecord) -> TaskRecord:
        return replace(claimed, task=replace(claimed.task, status="working"))


@store_mutant("a_claim_takes_a_lost_task_over_as_it_is", "a_claim_wakes_whoever_waits_for_a_change")
class AClaimIsNoChange(_Claims):
    def _claimed(self, before: TaskRecord, claimed: TaskRecord) -> TaskRecord:
        return replace(before, lease=claimed.lease)


@store_mutant("a_claim_takes_a_lost_task_over_as_it_is")
class AClaimIsNotStamped(_Claims):
    def _claimed(self, before: TaskRecord, claimed: TaskRecord) -> TaskRecord:
        return replace(claimed, task=before.task)


@store_mutant("a_claim_wakes_whoever_waits_for_a_change")
class AClaimWakesNobody(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        entry = live(self, task_id)
        entry.changed, waited_for = None, entry.changed
        try:
            return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        finally:
            entry.changed = waited_for


@store_mutant(
    "there_is_nothing_to_claim_but_a_live_task_whose_lease_has_lapsed",
    "a_lease_lapses_at_its_time_by_the_injected_clock",
    "of_many_that_claim_a_task_exactly_one_gets_it",
)
class ALiveLeaseCanBeClaimed(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        entry = self._entries.get(task_id)
        if entry is not None and entry.record.lease is not None:
            await self.drop_leases(entry.record.lease.worker, [task_id], lapse=True)
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("there_is_nothing_to_claim_but_a_live_task_whose_lease_has_lapsed")
class ATaskWithoutALeaseCanBeClaimed(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        record = await self.get_task(task_id)
        if record is not None and record.outcome is None and record.lease is None:
            set_lease(self, task_id, Lease("nobody", self._clock.now(), 0))
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("there_is_nothing_to_claim_but_a_live_task_whose_lease_has_lapsed")
class ClaimingATaskThatIsGoneRaises(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        live(self, task_id)
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant(
    "of_many_that_claim_a_task_exactly_one_gets_it", "changes_that_overlap_a_claim_have_the_effect_of_some_sequence"
)
class EveryClaimerThatLookedInTimeWins(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        before = await self.get_task(task_id)
        await anyio.lowlevel.checkpoint()
        entry = self._entries.get(task_id)
        if entry is not None and before is not None and before.lease is not None and entry.record.outcome is None:
            set_lease(self, task_id, before.lease)
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("of_many_that_claim_a_task_exactly_one_gets_it")
class ALateClaimRaises(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if claimed is None:
            record = live(self, task_id).record
            raise RevisionConflictError(task_id, expected=record.revision - 1, current=record.revision)
        return claimed


@store_mutant("changes_that_overlap_a_claim_have_the_effect_of_some_sequence")
class AClaimWritesWhatItReadBefore(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        before = await self.get_task(task_id)
        await anyio.lowlevel.checkpoint()
        entry = self._entries.get(task_id)
        if before is not None and entry is not None and entry.record.outcome is not None:
            entry.record = before
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("changes_that_overlap_a_claim_have_the_effect_of_some_sequence")
class ARenewalRacesWithTheEnd(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        leases = {task_id: lease for task_id in task_ids if (lease := lease_of(self, task_id, worker)) is not None}
        await anyio.lowlevel.checkpoint()
        for task_id, lease in leases.items():
            if task_id in self._entries:
                set_lease(self, task_id, replace(lease, expires_at=from_now(self, lease_ms)))
        return frozenset(leases)


@store_mutant("a_cancelled_change_of_a_lease_happened_in_full_or_not_at_all")
class AClaimIsWrittenInTwoSteps(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        before = await self.get_task(task_id)
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if before is not None and claimed is not None:
            entry = self._entries[task_id]
            entry.record = replace(before, lease=claimed.lease)
            await anyio.lowlevel.checkpoint()
            entry.record = claimed
        return claimed


@store_mutant("a_cancelled_change_of_a_lease_happened_in_full_or_not_at_all")
class ALeaseIsDroppedInTwoSteps(LeasedTaskStore):
    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        for task_id in task_ids:
            lease = lease_of(self, task_id, worker)
            if lease is not None:
                set_lease(self, task_id, replace(lease, worker=""))
                await anyio.lowlevel.checkpoint()
                set_lease(self, task_id, lease)
        await super().drop_leases(worker, task_ids, lapse=lapse)


@store_mutant("a_late_worker_does_not_get_a_claimed_task_back")
class TheFirstWorkerGetsItsTaskBack(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._first: dict[str, Lease | None] = {}

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(new)
        self._first[record.task_id] = record.lease
        return record

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        for task_id in task_ids:
            first = self._first.get(task_id)
            if task_id in self._entries and first is not None and first.worker == worker:
                set_lease(self, task_id, first)
        return await super().renew_leases(worker, task_ids, lease_ms=lease_ms)


@store_mutant("an_ended_task_has_no_lease")
class AnEndedTaskKeepsItsLease(LeasedTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        lease = live(self, task_id).record.lease
        await super().finish_task(task_id, outcome)
        set_lease(self, task_id, lease)
        return self.record(task_id)


@store_mutant("an_ended_task_has_no_lease")
class TheLeaseOfAnEndedTaskIsOnlyHidden(LeasedTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        lease = live(self, task_id).record.lease
        record = await super().finish_task(task_id, outcome)
        self._leases.set(replace(record, lease=lease))
        return record


@store_mutant("a_lease_goes_with_its_task")
class ANewTaskHasTheLeaseOfAnOldOne(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._old: dict[str, Lease | None] = {}

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(new)
        if (old := self._old.get(record.task_id)) is not None:
            self._leases.set(replace(record, lease=old))
        return record

    def _remove(self, task_id: str) -> None:
        self._old[task_id] = self._entries[task_id].record.lease
        super()._remove(task_id)


@store_mutant("a_lease_goes_with_its_task")
class AnExpiredTaskCountsAsLost(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._expired: list[TaskRecord] = []

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        return (*await super().list_lapsed(limit=limit), *self._expired)

    def _remove(self, task_id: str) -> None:
        record = self._entries[task_id].record
        if record.lease is not None:
            self._expired.append(record)
        super()._remove(task_id)


@store_mutant("no_operation_on_leases_costs_more_when_there_are_many_tasks")
class LookingForLapsedLeasesLooksAtAll(LeasedTaskStore):
    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        now = self._purge()
        leased = [(entry.record.lease, entry.record) for entry in self._entries.values()]
        lapsed = [(lease, record) for lease, record in leased if lease and lease.expires_at <= now]
        return tuple([record for _, record in sorted(lapsed, key=lambda both: both[0].expires_at)[:limit]])


@store_mutant("nothing_is_kept_of_leases_that_are_gone")
class WorkersAreKeptForEver(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._workers: dict[str, set[str]] = {}

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        held = await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        self._workers.setdefault(worker, set()).update(held)
        return held


class _SeesNoLapsedLeases(Link):
    """A process's connection."""

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        return ()


def leased_process_mutant(
    name: str,
    *killers: str,
    process: Callable[[LeasedTaskStore], Any],
    store_class: type[LeasedTaskStore] = LeasedTaskStore,
) -> None:
    """Register a store that keeps its tasks by location, and how each process but the first opens it."""
    stores: dict[str, LeasedTaskStore] = {}

    def factory(clock: FakeClock, location: str) -> AbstractAsyncContextManager[Any]:
        if location not in stores:
            stores[location] = store_class(clock=clock)
            return nullcontext(stores[location])
        return nullcontext(process(stores[location]))

    MUTANTS.append(Mutant(name, "store", killers, factory))


def _forget_attempts(store: LeasedTaskStore) -> LeasedTaskStore:
    for task_id, entry in store._entries.items():
        if entry.record.lease is not None:
            set_lease(store, task_id, replace(entry.record.lease, attempt=1))
    return store


def _forget_leases(store: LeasedTaskStore) -> LeasedTaskStore:
    for task_id in store._entries:
        set_lease(store, task_id, None)
    return store


leased_process_mutant(
    "AProcessSeesNoLeasesOfOthers", "a_lost_worker_is_noticed_by_another_process", process=_SeesNoLapsedLeases
)
leased_process_mutant(
    "OpeningForgetsTheAttempts", "a_reopened_store_has_every_lease_as_it_was", process=_forget_attempts
)
leased_process_mutant(
    "OpeningForgetsTheLeases",
    "a_reopened_store_has_every_lease_as_it_was",
    "a_reopened_store_has_the_work_that_waits",
    process=_forget_leases,
)
