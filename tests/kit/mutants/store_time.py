"""Stores with one fault each: time, cost and lists."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
from typing_extensions import Unpack

from mcp_task_runtime.core.types import (
    Fence,
    NewTask,
    NewTaskFields,
    Outcome,
    Task,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.errors import (
    InvalidCursorError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores._cursor import owner_scope
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from tests.kit.mutants.registry import (
    live,
    store_mutant,
)

# --- store: time --------------------------------------------------------------------------------------


@store_mutant("all_time_comes_from_the_injected_clock")
class TheMachinesClockIsUsed(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(new)
        entry = live(self, record.task_id)
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
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(replace(new, ttl_ms=None if new.ttl_ms is None else new.ttl_ms + 1))
        entry = live(self, record.task_id)
        entry.record = replace(record, task=replace(record.task, ttl_ms=new.ttl_ms))
        return entry.record


@store_mutant("an_outcome_can_be_fetched_for_the_retention_time", "a_waiter_outlasts_a_deadline_that_moved")
class FinishingDoesNotExtendTheTTL(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        return await super().create_task(replace(new, retention_ms=0))


@store_mutant("an_outcome_can_be_fetched_for_the_retention_time")
class FinishingExtendsTheTTLInTheAnswerOnly(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        due = live(self, task_id).record.task.expires_at
        record = await super().finish_task(task_id, outcome)
        self._expiry.set(task_id, due)
        return record


@store_mutant("a_task_without_a_ttl_never_expires")
class EveryTaskExpires(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(replace(new, ttl_ms=86_400_000 if new.ttl_ms is None else new.ttl_ms))
        entry = live(self, record.task_id)
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

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
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
            return replace(page, next_cursor=self._cursors.encode(10**9, owner_scope(owner)))
        return page


@store_mutant("made_identifiers_are_long_random_and_plain")
class IdentifiersAreNumbered(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        return await super().create_task(replace(new, task_id=new.task_id or f"task-{self._sequence:020}"))
