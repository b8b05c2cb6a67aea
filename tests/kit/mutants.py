"""Backends with one fault each, to show that the kit finds it.

A mutant is the in-memory backend, or the code above it, with as little changed as makes the fault. Those that
carry a number have that fault of the field report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.context import TaskContext
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import ask_question, settle_status
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    LiveStatus,
    NewTask,
    Outcome,
    Task,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.errors import (
    InvalidCursorError,
    InvalidTransitionError,
    RevisionConflictError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores._cursor import encode_cursor
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore, _Entry
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock
from tests.core.leased_store import LeasedTaskStore, Link


@dataclass(frozen=True)
class Mutant:
    """A faulty backend.

    Attributes:
        name: What is wrong with it.
        kind: What it is a mutant of: `store`, `queue` or `backend`.
        killers: The checks that must find the fault.
        factory: Opens it.
        fault: Its number in the field report.
    """

    name: str
    kind: str
    killers: tuple[str, ...]
    factory: Callable[[FakeClock, str], AbstractAsyncContextManager[Any]]
    fault: int | None = None

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def _live(store: InMemoryTaskStore, task_id: str) -> _Entry:
    store._purge()
    return store._entry(task_id)


def store_mutant(
    *killers: str, fault: int | None = None
) -> Callable[[type[InMemoryTaskStore]], type[InMemoryTaskStore]]:
    def register(mutant: type[InMemoryTaskStore]) -> type[InMemoryTaskStore]:
        MUTANTS.append(Mutant(mutant.__name__, "store", killers, lambda clock, location: mutant(clock=clock), fault))
        return mutant

    return register


def queue_mutant(
    *killers: str, fault: int | None = None
) -> Callable[[type[InMemoryTaskMessageQueue]], type[InMemoryTaskMessageQueue]]:
    def register(mutant: type[InMemoryTaskMessageQueue]) -> type[InMemoryTaskMessageQueue]:
        MUTANTS.append(Mutant(mutant.__name__, "queue", killers, lambda clock, location: mutant(), fault))
        return mutant

    return register


def backend_mutant(name: str, *killers: str, fault: int | None = None, **replaced: Any) -> None:
    @asynccontextmanager
    async def factory(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with InMemoryTaskStore(clock=clock) as store:
            yield TaskBackend(store, store.message_queue, **replaced)

    MUTANTS.append(Mutant(name, "backend", killers, factory, fault))


# --- store: status and endings ------------------------------------------------------------------------


@store_mutant("a_refused_step_raises_and_changes_nothing")
class AnEndedTaskCanBeUpdated(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = _live(self, task_id)
        record = entry.record
        if record.outcome is None:
            return await super().update_task(task_id, **changes)
        entry.record = replace(record, revision=record.revision + 1)
        return entry.record


@store_mutant("a_refused_step_raises_and_changes_nothing")
class ARefusedUpdateAddsToTheRevision(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = _live(self, task_id)
        try:
            return await super().update_task(task_id, **changes)
        except InvalidTransitionError:
            entry.record = replace(entry.record, revision=entry.record.revision + 1)
            raise


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class ARefusedUpdateStampsTheTask(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = _live(self, task_id)
        try:
            return await super().update_task(task_id, **changes)
        except RevisionConflictError:
            task = replace(entry.record.task, last_updated_at=self._clock.now())
            entry.record = replace(entry.record, task=task)
            raise


@store_mutant("a_refused_step_raises_and_changes_nothing")
class AnUpdateCanEndATask(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = _live(self, task_id)
        if changes.get("status") in ("completed", "failed", "cancelled") and entry.record.outcome is None:
            task = replace(entry.record.task, status=changes["status"])
            entry.record = replace(entry.record, task=task, revision=entry.record.revision + 1)
            return entry.record
        return await super().update_task(task_id, **changes)


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class TheExpectedRevisionIsIgnored(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        changes.pop("if_revision", None)
        return await super().update_task(task_id, **changes)


@store_mutant("a_conditional_update_happens_at_its_revision_only")
class TheExpectedRevisionIsCheckedTooEarly(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, if_revision: int | None = None, **changes: Any) -> TaskRecord:
        record = _live(self, task_id).record
        if if_revision is not None and record.revision != if_revision:
            raise RevisionConflictError(task_id, expected=if_revision, current=record.revision)
        await anyio.lowlevel.checkpoint()
        return await super().update_task(task_id, **changes)


@store_mutant("a_created_task_is_working_at_revision_1_and_keeps_what_it_was_given")
class TheProgressTokenIsDropped(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        return await super().create_task(replace(new, request=replace(new.request, progress_token=None)))


@store_mutant("every_allowed_step_is_made_and_adds_one_to_the_revision")
class AnUpdateWithoutAMessageDropsTheMessage(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, status_message: str | None = None, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, status_message=status_message, **changes)
        entry = _live(self, task_id)
        entry.record = replace(record, task=replace(record.task, status_message=status_message))
        return entry.record


@store_mutant("a_taken_identifier_is_refused_and_changes_nothing")
class CreatingOverwrites(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        if new.task_id in self._entries:
            await self.delete_task(new.task_id or "")
        return await super().create_task(new)


@store_mutant("last_updated_at_never_goes_back")
class LastUpdatedAtGoesBack(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, **changes)
        entry = _live(self, task_id)
        entry.record = replace(record, task=replace(record.task, last_updated_at=self._clock.now()))
        return entry.record


@store_mutant("of_many_that_finish_a_task_exactly_one_wins", "changes_that_overlap_have_the_effect_of_some_sequence")
class EveryFinisherThatLookedInTimeWins(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        before = _live(self, task_id).record
        await anyio.lowlevel.checkpoint()
        entry = _live(self, task_id)
        if before.outcome is None:
            entry.record = replace(before, revision=entry.record.revision)
        return await super().finish_task(task_id, outcome)


@store_mutant("nobody_sees_an_end_without_its_outcome", "a_cancelled_change_happened_in_full_or_not_at_all", fault=8)
class TheResultIsWrittenBeforeTheStatus(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        entry = _live(self, task_id)
        if not is_terminal(entry.record.status):
            entry.record = replace(entry.record, outcome=outcome)
        await anyio.lowlevel.checkpoint()
        return await super().finish_task(task_id, outcome)


@store_mutant("nobody_sees_an_end_without_its_outcome", "a_cancelled_change_happened_in_full_or_not_at_all", fault=8)
class TheStatusIsWrittenBeforeTheResult(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        record = await super().finish_task(task_id, outcome)
        entry = _live(self, task_id)
        entry.record = replace(record, outcome=None)
        await anyio.lowlevel.checkpoint()
        entry.record = record
        return record


# --- store: waiting -----------------------------------------------------------------------------------


@store_mutant("every_waiter_wakes_when_the_task_changes", fault=1)
class OnlyTheLastWaiterWakes(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        if _live(self, task_id).record.revision <= after:
            _live(self, task_id).changed = None  # the new event takes the place of the one others wait for
        return await super().wait_for_update(task_id, after=after)


@store_mutant("a_change_before_the_wait_counts", fault=2)
class AChangeBeforeTheWaitIsLost(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        return await super().wait_for_update(task_id, after=_live(self, task_id).record.revision)


@store_mutant("every_waiter_wakes_when_the_task_changes")
class TheEndWakesNobody(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        entry = _live(self, task_id)
        entry.changed, waited_for = None, entry.changed
        try:
            return await super().finish_task(task_id, outcome)
        finally:
            entry.changed = waited_for


@store_mutant("every_waiter_wakes_when_the_task_changes")
class WaitingReturnsAtOnce(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        await anyio.lowlevel.checkpoint()
        return _live(self, task_id).record


@store_mutant("a_waiter_is_woken_by_deletion")
class DeletionWakesNobody(InMemoryTaskStore):
    async def delete_task(self, task_id: str) -> bool:
        entry = self._entries.get(task_id)
        if entry is not None:
            entry.changed = None
        return await super().delete_task(task_id)


@store_mutant("a_waiter_is_woken_by_expiry", fault=20)
class ExpiryWakesNobody(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        while True:
            entry = _live(self, task_id)
            if entry.record.revision > after:
                return entry.record
            entry.changed = entry.changed or anyio.Event()
            await entry.changed.wait()


@store_mutant("a_waiter_outlasts_a_deadline_that_moved")
class AWaiterKeepsTheFirstDeadline(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._first: dict[str, datetime | None] = {}

    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(new)
        self._first[record.task_id] = record.task.expires_at
        return record

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        with self._clock.move_on_at(self._first.get(task_id)):
            return await super().wait_for_update(task_id, after=after)
        raise TaskNotFoundError(task_id)


@store_mutant("a_waiter_is_woken_when_the_store_is_closed")
class ClosingWakesNobody(InMemoryTaskStore):
    async def aclose(self) -> None:
        for entry in self._entries.values():
            entry.changed = None
        await super().aclose()


@store_mutant("a_cancelled_waiter_takes_nobody_with_it")
class ACancelledWaiterTakesTheEventWithIt(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        try:
            return await super().wait_for_update(task_id, after=after)
        finally:
            entry = self._entries.get(task_id)
            if entry is not None:
                entry.changed = None


# --- store: snapshots and cancellation ----------------------------------------------------------------


@store_mutant("what_a_store_returned_never_changes")
class LiveReferencesAreReturned(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        held = _live(self, task_id).record
        changed = await super().update_task(task_id, **changes)
        object.__setattr__(held, "task", changed.task)
        object.__setattr__(held, "revision", changed.revision)
        _live(self, task_id).record = held
        return held


class _SharedOutcome(Outcome):
    __slots__ = ("parsed",)

    @property
    def result(self) -> dict[str, Any] | None:
        if not hasattr(self, "parsed"):
            object.__setattr__(self, "parsed", self._payload())
        shared: dict[str, Any] | None = self.parsed  # type: ignore[attr-defined]
        return shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self.payload_json == other.payload_json

    __hash__ = Outcome.__hash__


@store_mutant("changing_what_a_store_returned_changes_nothing")
class OneResultIsSharedByAllReaders(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        shared = _SharedOutcome(outcome.status, outcome.payload_json, outcome.status_message)
        return await super().finish_task(task_id, shared)


@store_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AnUpdateIsWrittenInTwoSteps(InMemoryTaskStore):
    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        if_revision: int | None = None,
        **changes: Any,
    ) -> TaskRecord:
        if status is not None and status_message is not None:
            record = await super().update_task(task_id, status=status, if_revision=if_revision, **changes)
            await anyio.lowlevel.checkpoint()
            entry = _live(self, task_id)
            entry.record = replace(record, task=replace(record.task, status_message=status_message))
            return entry.record
        return await super().update_task(
            task_id, status=status, status_message=status_message, if_revision=if_revision, **changes
        )


@store_mutant("a_cancelled_operation_leaves_the_store_usable")
class ACancelledReadKeepsTheLock(InMemoryTaskStore):
    _locked = False

    async def get_task(self, task_id: str) -> TaskRecord | None:
        while self._locked:
            await anyio.lowlevel.checkpoint()
        self._locked = True
        await anyio.lowlevel.checkpoint()
        self._locked = False
        return await super().get_task(task_id)


@store_mutant("a_cancelled_wait_leaves_nothing_behind")
class ACancelledWaitLeavesItsTimer(InMemoryTaskStore):
    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        clock = self._clock
        assert isinstance(clock, FakeClock)
        scope = anyio.CancelScope()
        clock._deadlines[scope] = datetime(9999, 1, 1, tzinfo=timezone.utc)
        record = await super().wait_for_update(task_id, after=after)
        del clock._deadlines[scope]
        return record


# --- store: time --------------------------------------------------------------------------------------


@store_mutant("all_time_comes_from_the_injected_clock")
class TheMachinesClockIsUsed(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(new)
        entry = _live(self, record.task_id)
        now = datetime.now(timezone.utc)
        entry.record = replace(record, task=replace(record.task, created_at=now, last_updated_at=now))
        return entry.record


@store_mutant("an_expired_task_is_gone_for_every_caller_at_once")
class AnExpiredTaskCanStillBeRead(InMemoryTaskStore):
    _kept: ClassVar[dict[str, TaskRecord]] = {}

    async def get_task(self, task_id: str) -> TaskRecord | None:
        entry = self._entries.get(task_id)
        return entry.record if entry is not None else await super().get_task(task_id)


@store_mutant("an_expired_task_is_not_listed", "an_expired_task_is_gone_for_every_caller_at_once")
class ExpiredTasksAreHiddenFromReadingOnly(InMemoryTaskStore):
    def _purge(self) -> datetime:
        return self._clock.now()

    async def get_task(self, task_id: str) -> TaskRecord | None:
        record = await super().get_task(task_id)
        expires_at = None if record is None else record.task.expires_at
        return None if expires_at is not None and expires_at <= self._clock.now() else record


@store_mutant("an_expired_task_is_gone_for_every_caller_at_once")
class ATaskOutlivesItsDeadline(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(replace(new, ttl_ms=None if new.ttl_ms is None else new.ttl_ms + 1))
        entry = _live(self, record.task_id)
        entry.record = replace(record, task=replace(record.task, ttl_ms=new.ttl_ms))
        return entry.record


@store_mutant("an_outcome_can_be_fetched_for_the_retention_time", "a_waiter_outlasts_a_deadline_that_moved")
class FinishingDoesNotExtendTheTTL(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        return await super().create_task(replace(new, retention_ms=0))


@store_mutant("an_outcome_can_be_fetched_for_the_retention_time")
class FinishingExtendsTheTTLInTheAnswerOnly(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        due = _live(self, task_id).record.task.expires_at
        record = await super().finish_task(task_id, outcome)
        self._expiry.set(task_id, due)
        return record


@store_mutant("a_task_without_a_ttl_never_expires")
class EveryTaskExpires(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(replace(new, ttl_ms=86_400_000 if new.ttl_ms is None else new.ttl_ms))
        entry = _live(self, record.task_id)
        entry.record = replace(record, task=replace(record.task, ttl_ms=new.ttl_ms))
        return entry.record


@store_mutant("an_unknown_or_deleted_task_is_not_found_by_any_method")
class AnUnknownTaskHasNoResult(InMemoryTaskStore):
    async def get_result(self, task_id: str) -> Outcome | None:
        try:
            return await super().get_result(task_id)
        except TaskNotFoundError:
            return None


# --- store: cost --------------------------------------------------------------------------------------


@store_mutant("no_operation_costs_more_when_there_are_many_tasks", fault=21)
class CleanUpLooksAtEveryTask(InMemoryTaskStore):
    def _purge(self) -> datetime:
        now = super()._purge()
        for task_id in [task_id for task_id, entry in self._entries.items() if _is_over(entry.record.task, now)]:
            self._remove(task_id)
        return now


def _is_over(task: Task, now: datetime) -> bool:
    return task.expires_at is not None and task.expires_at <= now


@store_mutant("nothing_is_kept_of_tasks_that_are_gone", fault=12)
class EventsAreKeptForEver(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._events: dict[str, anyio.Event] = {}

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        self._events.setdefault(task_id, anyio.Event())
        return await super().wait_for_update(task_id, after=after)


@store_mutant("nothing_is_kept_of_tasks_that_are_gone")
class IdentifiersOfDeletedTasksAreKept(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deleted: set[str] = set()

    async def delete_task(self, task_id: str) -> bool:
        self._deleted.add(task_id)
        return await super().delete_task(task_id)


@store_mutant("nothing_is_kept_of_tasks_that_are_gone")
class OwnersAreKeptForEver(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._counts: dict[str | None, int] = {}

    async def create_task(self, new: NewTask) -> TaskRecord:
        self._counts[new.owner] = self._counts.get(new.owner, 0) + 1
        return await super().create_task(new)


# --- store: lists -------------------------------------------------------------------------------------


@store_mutant("a_cursor_that_the_store_did_not_make_for_this_owner_is_refused", fault=13)
class AGarbageCursorIsAccepted(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        try:
            return await super().list_tasks(owner=owner, cursor=cursor, limit=limit)
        except InvalidCursorError:
            return await super().list_tasks(owner=owner, limit=limit)


@store_mutant("walking_the_pages_survives_what_comes_and_goes_meanwhile", fault=13)
class ACursorOfADeletedTaskIsAnError(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._made_at: dict[str, str] = {}

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        if cursor is not None and self._made_at.get(cursor) not in self._entries:
            raise InvalidCursorError
        page = await super().list_tasks(owner=owner, cursor=cursor, limit=limit)
        if page.next_cursor is not None:
            self._made_at[page.next_cursor] = page.records[-1].task_id
        return page


@store_mutant("a_cursor_that_the_store_did_not_make_for_this_owner_is_refused")
class AnotherOwnersCursorIsAccepted(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        for other in ("ada", "bob", None):
            try:
                page = await super().list_tasks(owner=other, cursor=cursor, limit=limit)
            except InvalidCursorError:
                continue
            if other != owner and cursor is not None:
                return page
        return await super().list_tasks(owner=owner, cursor=cursor, limit=limit)


@store_mutant("walking_the_pages_survives_what_comes_and_goes_meanwhile")
class ACursorIsAnOffset(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        offset = 0 if cursor is None else int(cursor)
        mine = [entry.record for entry in self._entries.values() if entry.record.owner == owner]
        more = len(mine) > offset + limit
        return TaskPage(tuple(mine[offset : offset + limit]), str(offset + limit) if more else None)


@store_mutant("a_page_costs_what_is_on_it")
class APageLooksAtEveryTask(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        [entry for entry in self._entries.values() if entry.record.owner == owner]
        return await super().list_tasks(owner=owner, cursor=cursor, limit=limit)


@store_mutant("listing_shows_each_task_of_one_owner_once_oldest_first")
class EveryoneSeesTasksWithoutAnOwner(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        page = await super().list_tasks(owner=owner, cursor=cursor, limit=limit)
        return page if page.records or cursor else await super().list_tasks(owner=None, limit=limit)


@store_mutant("listing_shows_each_task_of_one_owner_once_oldest_first")
class TheLastPageHasACursor(InMemoryTaskStore):
    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        page = await super().list_tasks(owner=owner, cursor=cursor, limit=limit)
        if page.next_cursor is None and len(page.records) == limit:
            return replace(page, next_cursor=encode_cursor(10**9, owner))
        return page


@store_mutant("made_identifiers_are_long_random_and_plain")
class IdentifiersAreNumbered(InMemoryTaskStore):
    async def create_task(self, new: NewTask) -> TaskRecord:
        return await super().create_task(replace(new, task_id=new.task_id or f"task-{self._sequence:020}"))


# --- store: leases ------------------------------------------------------------------------------------


@store_mutant("a_lease_is_made_with_the_task_and_kept_by_its_updates")
class AnUpdateDropsTheLease(LeasedTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        await super().update_task(task_id, **changes)
        self._set_lease(task_id, None)
        return self.record(task_id)


@store_mutant("a_lease_is_made_with_the_task_and_kept_by_its_updates")
class AnUpdateRenewsTheLease(LeasedTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        record = await super().update_task(task_id, **changes)
        if record.lease is not None:
            self._set_lease(task_id, replace(record.lease, expires_at=self._from_now(10_000)))
        return self.record(task_id)


@store_mutant(
    "a_worker_renews_the_leases_that_it_holds_and_no_others", "a_late_worker_does_not_get_a_claimed_task_back"
)
class AnybodyRenewsALease(LeasedTaskStore):
    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        held = {task_id: entry.record.lease for task_id in task_ids if (entry := self._entries.get(task_id))}
        return frozenset().union(
            *[
                await super(AnybodyRenewsALease, self).renew_leases(lease.worker, [task_id], lease_ms=lease_ms)
                for task_id, lease in held.items()
                if lease is not None
            ]
        )


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
        leases = {task_id: lease for task_id in task_ids if (lease := self._lease(task_id, worker)) is not None}
        held = await super().renew_leases(worker, task_ids, lease_ms=lease_ms)
        for task_id in held:
            until = max(leases[task_id].expires_at, self._from_now(lease_ms))
            self._set_lease(task_id, replace(leases[task_id], expires_at=until))
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
            self._set_lease(task_id, Lease(worker, self._from_now(lease_ms)))
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
        entry = _live(self, task_id)
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
            self._set_lease(task_id, Lease("nobody", self._clock.now(), 0))
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("there_is_nothing_to_claim_but_a_live_task_whose_lease_has_lapsed")
class ClaimingATaskThatIsGoneRaises(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        _live(self, task_id)
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
            self._set_lease(task_id, before.lease)
        return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)


@store_mutant("of_many_that_claim_a_task_exactly_one_gets_it")
class ALateClaimRaises(LeasedTaskStore):
    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        claimed = await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)
        if claimed is None:
            record = _live(self, task_id).record
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
        leases = {task_id: lease for task_id in task_ids if (lease := self._lease(task_id, worker)) is not None}
        await anyio.lowlevel.checkpoint()
        for task_id, lease in leases.items():
            if task_id in self._entries:
                self._set_lease(task_id, replace(lease, expires_at=self._from_now(lease_ms)))
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
            lease = self._lease(task_id, worker)
            if lease is not None:
                self._set_lease(task_id, replace(lease, worker=""))
                await anyio.lowlevel.checkpoint()
                self._set_lease(task_id, lease)
        await super().drop_leases(worker, task_ids, lapse=lapse)


@store_mutant("a_late_worker_does_not_get_a_claimed_task_back")
class TheFirstWorkerGetsItsTaskBack(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._first: dict[str, Lease | None] = {}

    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(new)
        self._first[record.task_id] = record.lease
        return record

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        for task_id in task_ids:
            first = self._first.get(task_id)
            if task_id in self._entries and first is not None and first.worker == worker:
                self._set_lease(task_id, first)
        return await super().renew_leases(worker, task_ids, lease_ms=lease_ms)


@store_mutant("an_ended_task_has_no_lease")
class AnEndedTaskKeepsItsLease(LeasedTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        lease = _live(self, task_id).record.lease
        await super().finish_task(task_id, outcome)
        self._set_lease(task_id, lease)
        return self.record(task_id)


@store_mutant("an_ended_task_has_no_lease")
class TheLeaseOfAnEndedTaskIsOnlyHidden(LeasedTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        lease = _live(self, task_id).record.lease
        record = await super().finish_task(task_id, outcome)
        self._lapses.set(task_id, None if lease is None else lease.expires_at)
        return record


@store_mutant("a_lease_goes_with_its_task")
class ANewTaskHasTheLeaseOfAnOldOne(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._old: dict[str, Lease | None] = {}

    async def create_task(self, new: NewTask) -> TaskRecord:
        record = await super().create_task(new)
        if (old := self._old.get(record.task_id)) is not None:
            self._lapses.set(record.task_id, old.expires_at)
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


def leased_process_mutant(name: str, *killers: str, process: Callable[[LeasedTaskStore], Any]) -> None:
    """Register a store that keeps its tasks by location, and how each process but the first opens it."""
    stores: dict[str, LeasedTaskStore] = {}

    def factory(clock: FakeClock, location: str) -> AbstractAsyncContextManager[Any]:
        if location not in stores:
            stores[location] = LeasedTaskStore(clock=clock)
            return nullcontext(stores[location])
        return nullcontext(process(stores[location]))

    MUTANTS.append(Mutant(name, "store", killers, factory))


def _forget_attempts(store: LeasedTaskStore) -> LeasedTaskStore:
    for task_id, entry in store._entries.items():
        if entry.record.lease is not None:
            store._set_lease(task_id, replace(entry.record.lease, attempt=1))
    return store


def _forget_leases(store: LeasedTaskStore) -> LeasedTaskStore:
    for task_id in store._entries:
        store._set_lease(task_id, None)
    return store


leased_process_mutant(
    "AProcessSeesNoLeasesOfOthers", "a_lost_worker_is_noticed_by_another_process", process=_SeesNoLapsedLeases
)
leased_process_mutant(
    "OpeningForgetsTheAttempts", "a_reopened_store_has_every_lease_as_it_was", process=_forget_attempts
)
leased_process_mutant("OpeningForgetsTheLeases", "a_reopened_store_has_every_lease_as_it_was", process=_forget_leases)


# --- queue --------------------------------------------------------------------------------------------


@queue_mutant("messages_of_a_task_are_first_in_first_out_and_its_own")
class TheLastMessageComesFirst(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        mailbox = self._mailbox(task_id)
        if mailbox is not None:
            mailbox.messages.reverse()
        return await super().dequeue(task_id)


@queue_mutant("messages_of_a_task_are_first_in_first_out_and_its_own")
class PeekRemovesTheMessage(InMemoryTaskMessageQueue):
    async def peek(self, task_id: str) -> QueuedMessage | None:
        return await self.dequeue(task_id)


@queue_mutant("each_message_goes_to_one_of_many_that_dequeue")
class OneMessageGoesToTwo(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await self.peek(task_id)
        await anyio.lowlevel.checkpoint()
        await super().dequeue(task_id)
        return message


@queue_mutant("a_question_stays_one_until_it_is_answered", fault=10)
class ADequeuedQuestionIsNoMoreOutstanding(InMemoryTaskMessageQueue):
    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        mailbox = self._mailbox(task_id)
        return () if mailbox is None else tuple(m for m in mailbox.messages if m.key is not None)


@queue_mutant("a_message_is_queued_or_returned_when_dequeue_is_cancelled", fault=10)
class ACancelledDequeueLosesTheMessage(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await super().dequeue(task_id)
        await anyio.lowlevel.checkpoint()
        return message


@queue_mutant("a_question_stays_one_until_it_is_answered")
class AnAnsweredQuestionStaysInTheQueue(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        messages = None if mailbox is None else mailbox.messages
        taken = await super().answer(task_id, key, answer)
        if mailbox is not None and messages is not None:
            mailbox.messages = messages
        return taken


@queue_mutant("a_key_is_never_used_again", fault=15)
class AKeyCanBeUsedAgain(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        mailbox = self._mailbox(task_id)
        if mailbox is not None and message.key is not None:
            mailbox.answers.pop(message.key, None)
        return await super().enqueue(task_id, message)


@queue_mutant("a_key_is_never_used_again")
class ARefusedQuestionIsQueuedAllTheSame(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        taken = await super().enqueue(task_id, message)
        mailbox = self._mailbox(task_id)
        if not taken and mailbox is not None:
            mailbox.messages.append(message)
        return taken


@queue_mutant("the_first_answer_wins")
class TheSecondAnswerOverwrites(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        taken = await super().answer(task_id, key, answer)
        mailbox = self._mailbox(task_id)
        if not taken and mailbox is not None and key in mailbox.answers:
            mailbox.answers[key] = answer
        return taken


@queue_mutant("the_first_answer_wins")
class EveryAnswerIsSaidToBeTaken(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        await super().answer(task_id, key, answer)
        return True


@queue_mutant("answers_to_nothing_are_ignored", fault=15)
class AnAnswerFindsAQuestionOfAnotherTask(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        for other, mailbox in self._mailboxes.items():
            if key in mailbox.questions:
                return await super().answer(other, key, answer)
        return False


@queue_mutant("answers_to_nothing_are_ignored")
class WaitingForAnUnknownAnswerNeverEnds(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        try:
            return await super().wait_for_answer(task_id, key)
        except TaskNotFoundError:
            await anyio.sleep_forever()
            raise


@queue_mutant("every_waiter_wakes_when_a_message_comes", fault=1)
class OnlyTheLastListenerWakes(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        mailbox = self._mailbox(task_id)
        if mailbox is not None and not mailbox.messages:
            mailbox.arrived = None
        await super().wait_for_message(task_id)


@queue_mutant("every_waiter_wakes_when_a_message_comes", fault=2)
class AMessageBeforeTheWaitIsLost(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            return await super().wait_for_message(task_id)
        mailbox.arrived = mailbox.arrived or anyio.Event()
        await mailbox.arrived.wait()
        return None


@queue_mutant("every_asker_gets_the_answer", fault=1)
class OnlyTheLastAskerWakes(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        mailbox = self._mailbox(task_id)
        if mailbox is not None:
            mailbox.settled.pop(key, None)
        return await super().wait_for_answer(task_id, key)


@queue_mutant("clearing_releases_everyone_who_waits", fault=6)
class ClearLeavesThoseWhoWait(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        self._mailboxes.pop(task_id, None)


@queue_mutant("clearing_forgets_everything_of_one_task")
class ClearKeepsTheAnswers(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        mailbox = self._mailboxes.get(task_id)
        answers = {} if mailbox is None else mailbox.answers
        super().forget(task_id)
        if answers and mailbox is not None:
            mailbox.messages, mailbox.questions = [], {}
            self._mailboxes[task_id] = mailbox


@queue_mutant("clearing_forgets_everything_of_one_task")
class ClearForgetsEveryTask(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        for other in list(self._mailboxes):
            super().forget(other)


@queue_mutant("everyone_who_waits_is_woken_when_the_queue_is_closed")
class ClosingTheQueueWakesNobody(InMemoryTaskMessageQueue):
    async def aclose(self) -> None:
        self._closed = True


@queue_mutant("a_cancelled_waiter_takes_nobody_with_it")
class ACancelledListenerTakesTheEventWithIt(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        try:
            await super().wait_for_message(task_id)
        finally:
            mailbox = self._mailboxes.get(task_id)
            if mailbox is not None:
                mailbox.arrived = None


@queue_mutant("what_a_queue_returned_never_changes")
class TheLiveQuestionsAreReturned(InMemoryTaskMessageQueue):
    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        mailbox = self._mailbox(task_id)
        return () if mailbox is None else mailbox.questions.values()  # type: ignore[return-value]


@queue_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AQuestionIsWrittenInTwoSteps(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        taken = await super().enqueue(task_id, message)
        mailbox = self._mailbox(task_id)
        if taken and message.key is not None and mailbox is not None:
            mailbox.questions.pop(message.key)
            await anyio.lowlevel.checkpoint()
            mailbox.questions[message.key] = message
        return taken


@queue_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AnAnswerIsWrittenInTwoSteps(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        messages = [] if mailbox is None else mailbox.messages
        taken = await super().answer(task_id, key, answer)
        if taken and mailbox is not None:
            mailbox.messages, left = messages, mailbox.messages
            await anyio.lowlevel.checkpoint()
            mailbox.messages = left
        return taken


@queue_mutant("changes_that_overlap_have_the_effect_of_some_sequence", "the_first_answer_wins")
class EveryAnswerThatLookedInTimeIsTaken(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        is_open = mailbox is not None and key in mailbox.questions
        await anyio.lowlevel.checkpoint()
        await super().answer(task_id, key, answer)
        return is_open


@queue_mutant("a_cancelled_wait_changes_nothing")
class ACancelledAskerForgetsItsQuestion(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        try:
            return await super().wait_for_answer(task_id, key)
        except anyio.get_cancelled_exc_class():
            mailbox = self._mailbox(task_id)
            if mailbox is not None:
                mailbox.questions.pop(key, None)
            raise


@queue_mutant("no_operation_costs_more_when_there_are_many_tasks", fault=21)
class EachCallLooksAtEveryMailbox(InMemoryTaskMessageQueue):
    def _check_open(self) -> None:
        super()._check_open()
        for mailbox in self._mailboxes.values():
            mailbox.is_blank()


@queue_mutant("nothing_is_kept_of_mailboxes_that_are_gone", fault=12)
class MailboxesOfThoseWhoOnlyLookedAreKept(InMemoryTaskMessageQueue):
    def _drop_if_blank(self, task_id: str, mailbox: Any) -> None: ...


@queue_mutant("nothing_is_kept_of_mailboxes_that_are_gone", fault=12)
class KeysAreKeptForEver(InMemoryTaskMessageQueue):
    def __init__(self) -> None:
        super().__init__()
        self._keys: set[tuple[str, str]] = set()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        if message.key is not None:
            self._keys.add((task_id, message.key))
        return await super().enqueue(task_id, message)


# --- questions ----------------------------------------------------------------------------------------


async def _ask(
    store: TaskStore,
    queue: TaskMessageQueue,
    task_id: str,
    question: QueuedMessage,
    *,
    restore: Callable[[], Awaitable[object]] | None = None,
    release: bool = True,
    expire: bool = True,
) -> Answer | None:
    """What `ask_question` does, with places to go wrong in."""
    key = question.key or ""
    if not await queue.enqueue(task_id, question):
        return None
    try:
        record = await settle_status(store, queue, task_id)
        if record is None or record.outcome is not None:
            raise TaskNotFoundError(task_id)
        with store.clock.move_on_at(record.task.expires_at if expire else None):
            try:
                answer = await queue.wait_for_answer(task_id, key)
            except TaskNotFoundError:
                if not release:
                    await anyio.sleep_forever()
                ended = await store.get_task(task_id)
                if ended is None:
                    raise
                raise InvalidTransitionError(task_id, current=ended.status, requested="input_required") from None
            return answer
        raise TaskNotFoundError(task_id)
    except BaseException:
        if restore is None:
            with anyio.CancelScope(shield=True):
                await queue.answer(task_id, key, Answer.withdrawn())
                await settle_status(store, queue, task_id)
        else:
            await restore()
        raise


async def _ask_and_restore_unshielded(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    async def restore() -> None:
        await queue.answer(task_id, question.key or "", Answer.withdrawn())
        await settle_status(store, queue, task_id)

    return await _ask(store, queue, task_id, question, restore=restore)


async def _ask_and_never_withdraw(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    async def restore() -> None:
        with anyio.CancelScope(shield=True):
            await store.update_task(task_id, status="working")

    return await _ask(store, queue, task_id, question, restore=restore)


async def _ask_for_ever(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question, release=False)


async def _ask_beyond_the_ttl(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question, expire=False)


async def _ask_and_say_nothing(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    await queue.enqueue(task_id, question)
    return await queue.wait_for_answer(task_id, question.key or "")


async def _answer_results_only(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if any(answers[key].type == "result" for key in taken):
        await settle_status(store, queue, task_id)
    return taken


async def _ask_and_trust_the_answerer(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question)


async def _answer_and_resume(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if taken:
        with suppress(InvalidTransitionError, TaskNotFoundError):
            await store.update_task(task_id, status="working")
    return taken


async def _answer_unshielded(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if taken:
        await settle_status(store, queue, task_id)
    return taken


async def _settle_without_revision(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    with anyio.CancelScope(shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        record = await store.get_task(task_id)
        if taken and record is not None and record.outcome is None:
            questions = await queue.outstanding(task_id)
            with suppress(InvalidTransitionError, TaskNotFoundError):
                await store.update_task(task_id, status="input_required" if questions else "working")
    return taken


backend_mutant(
    "AnErrorAnswerLeavesInputRequired",
    "an_error_answer_raises_in_the_asker_and_closes_the_question",
    fault=3,
    answer=_answer_results_only,
    ask=_ask_and_trust_the_answerer,
)
backend_mutant(
    "AnsweringOneOfTwoFlipsToWorking",
    "a_task_is_input_required_exactly_while_a_question_is_open",
    fault=4,
    answer=_answer_and_resume,
)
backend_mutant(
    "AnAskerWaitsForEverWhenItsTaskIsCancelled",
    "ending_the_task_releases_every_asker",
    fault=6,
    ask=_ask_for_ever,
)
backend_mutant(
    "TheStatusIsRestoredUnshielded",
    "a_cancelled_asker_withdraws_its_question",
    fault=7,
    ask=_ask_and_restore_unshielded,
)
backend_mutant(
    "ACancelledAskerLeavesItsQuestion", "a_cancelled_asker_withdraws_its_question", ask=_ask_and_never_withdraw
)
backend_mutant(
    "AnAnswerIsSettledUnshielded", "a_cancelled_answer_counts_in_full_or_not_at_all", answer=_answer_unshielded
)
backend_mutant(
    "TheStatusIsDerivedFromAnOldLook",
    "overlapping_questions_and_answers_leave_the_status_true",
    answer=_settle_without_revision,
)
backend_mutant(
    "AnAskerOutlivesItsTask", "a_task_that_expires_releases_every_asker_by_itself", fault=18, ask=_ask_beyond_the_ttl
)
backend_mutant(
    "AskingDoesNotShowInTheStatus",
    "a_task_is_input_required_exactly_while_a_question_is_open",
    ask=_ask_and_say_nothing,
)


async def _answer_and_always_settle(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    with anyio.CancelScope(shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        await settle_status(store, queue, task_id)
    return taken


async def _ask_again_and_withdraw(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    try:
        return await ask_question(store, queue, task_id, question)
    finally:
        await queue.answer(task_id, question.key or "", Answer.withdrawn())


class _LosesDeliveredQuestions(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await super().dequeue(task_id)
        mailbox = self._mailbox(task_id)
        if message is not None and message.key is not None and mailbox is not None:
            mailbox.questions.pop(message.key)
        return message


@asynccontextmanager
async def _loses_delivered_questions(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
    async with InMemoryTaskStore(clock=clock) as store, _LosesDeliveredQuestions() as queue:
        yield TaskBackend(store, queue)


backend_mutant(
    "AnIgnoredAnswerShowsAsAnUpdate", "unknown_late_and_repeated_answers_are_ignored", answer=_answer_and_always_settle
)
backend_mutant("ARefusedQuestionWithdrawsTheFirst", "a_key_that_was_used_asks_nothing", ask=_ask_again_and_withdraw)
MUTANTS.append(
    Mutant(
        "AQuestionIsLostWithItsDeliverer",
        "backend",
        ("a_question_survives_its_deliverer",),
        _loses_delivered_questions,
        fault=10,
    )
)


# --- the work's view ----------------------------------------------------------------------------------


class _FinishesQuietly(TaskContext):
    async def finish(self, outcome: Outcome) -> None:
        try:
            await super().finish(outcome)
        except InvalidTransitionError:
            self._task = replace(self._task, status=outcome.status)


class _SaysThenEnds(TaskContext):
    async def complete(self, result: object) -> None:
        await self.update_status("about to end")
        await super().complete(result)

    async def finish(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            await super().finish(Outcome("failed", None, "it broke"))
        else:
            await super().finish(outcome)


@asynccontextmanager
async def _execute_and_tell(task_id: str, store: TaskStore) -> AsyncIterator[TaskContext]:
    record = await store.get_task(task_id)
    assert record is not None
    context = TaskContext(task=record.task, store=store)
    try:
        yield context
    except Exception as error:
        await context.fail(str(error))


@asynccontextmanager
async def _execute_unshielded(task_id: str, store: TaskStore) -> AsyncIterator[TaskContext]:
    record = await store.get_task(task_id)
    assert record is not None
    context = TaskContext(task=record.task, store=store)
    try:
        yield context
    except BaseException:
        await context.fail("interrupted")
        raise


class _CancelsFirst(TaskContext):
    async def finish(self, outcome: Outcome) -> None:
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._store.finish_task(self.task_id, Outcome.cancelled())
            raise
        await super().finish(outcome)


backend_mutant("CancelledCompletionEndsTheTaskOtherwise", "cancelled_work_leaves_its_task_whole", context=_CancelsFirst)
backend_mutant("ALateEndIsSwallowed", "work_ends_its_task_once", context=_FinishesQuietly)
backend_mutant("AFailureHasNoError", "work_ends_its_task_once", context=_SaysThenEnds)
backend_mutant(
    "TheTextOfAnExceptionIsTold",
    "what_work_raises_is_told_only_if_it_is_a_protocol_error",
    fault=11,
    execute=_execute_and_tell,
)
backend_mutant(
    "InterruptedWorkEndsItsTaskUnshielded", "interrupted_work_ends_its_task", fault=7, execute=_execute_unshielded
)
