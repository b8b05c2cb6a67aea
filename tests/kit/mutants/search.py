"""Stores with `TaskSearch` that have one fault each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio.lowlevel
from typing_extensions import Unpack

from mcp_task_runtime.core.types import (
    NewTask,
    NewTaskFields,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
    TaskStatus,
)
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import live, store_mutant


class _Searches(InMemoryTaskStore):
    """Changes what is searched for."""

    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        return wanted

    async def search_tasks(self, wanted: TaskFilter, **options: Any) -> TaskPage:
        return await super().search_tasks(self._wanted(wanted), **options)


@store_mutant("a_search_shows_each_task_that_matches_once_in_order")
class TheToolIsIgnored(_Searches):
    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        return replace(wanted, names=None)


@store_mutant("a_search_shows_each_task_that_matches_once_in_order")
class NoStatusMeansAnyStatus(_Searches):
    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        return replace(wanted, statuses=wanted.statuses or None)


@store_mutant("a_search_takes_every_character_literally")
class ATextIsAPattern(_Searches):
    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        return replace(wanted, text=None if wanted.text in ("%", "_") else wanted.text)


@store_mutant("a_search_survives_what_comes_and_goes_meanwhile")
class ASearchsCursorIsAnOffset(InMemoryTaskStore):
    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        offset = 0 if cursor is None else int(cursor)
        page = await super().search_tasks(wanted, newest_first=newest_first, limit=offset + limit)
        return TaskPage(page.records[offset:], str(offset + limit) if page.next_cursor else None)


@store_mutant("a_cursor_is_good_for_its_own_search_alone")
class AForeignCursorIsTheBeginning(InMemoryTaskStore):
    async def search_tasks(self, wanted: TaskFilter, **options: Any) -> TaskPage:
        try:
            return await super().search_tasks(wanted, **options)
        except InvalidCursorError:
            return await super().search_tasks(wanted, **{**options, "cursor": None})


@store_mutant("counts_are_those_of_the_tasks_there_are")
class TheOldestIsTheOldestOfAll(InMemoryTaskStore):
    async def count_tasks(self) -> TaskCounts:
        counts = await super().count_tasks()
        times = [entry.record.task.created_at for entry in self._entries.values()]
        return replace(counts, oldest_working=min(times, default=None))


@store_mutant("tasks_that_completed_with_an_error_are_found_and_counted")
class ErrorsAreAllThatCompleted(_Searches):
    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        completed: frozenset[TaskStatus] = frozenset({"completed"})
        if not wanted.errors_only:
            return wanted
        statuses = completed if wanted.statuses is None else wanted.statuses & completed
        return replace(wanted, errors_only=False, statuses=statuses)


@store_mutant("tasks_that_completed_with_an_error_are_found_and_counted")
class NoErrorIsCounted(InMemoryTaskStore):
    async def count_tasks(self) -> TaskCounts:
        return replace(await super().count_tasks(), errors_by_name={})


@store_mutant("counts_are_those_of_the_tasks_there_are")
class DeletedTasksAreCounted(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._most: dict[Any, int] = {}

    async def count_tasks(self) -> TaskCounts:
        counts = await super().count_tasks()
        for key, count in counts.by_status_and_name.items():
            self._most[key] = max(count, self._most.get(key, 0))
        return replace(counts, by_status_and_name=dict(self._most))


class _Histories(InMemoryTaskStore):
    """Changes a history when it is read."""

    def _told(self, history: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
        raise NotImplementedError

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        return self._told(await super().get_history(task_id))


@store_mutant("a_history_has_what_happened_to_a_task")
class TheEndIsNoEvent(_Histories):
    def _told(self, history: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
        return tuple(event for event in history if event.kind not in ("completed", "failed", "cancelled"))


@store_mutant("a_history_is_bounded")
class TheFirstEventsAreKept(_Histories):
    def _told(self, history: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
        self._seen = (*getattr(self, "_seen", ()), *history)[:21]
        return self._seen


@store_mutant("a_history_says_which_worker_had_the_task")
class AttemptsAreNotTold(_Histories):
    def _told(self, history: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
        return tuple(replace(event, text=event.text and event.text.split("#")[0]) for event in history)


@store_mutant("a_history_says_what_was_asked_and_answered")
class AWithdrawalIsAnAnswer(_Histories):
    def _told(self, history: tuple[TaskEvent, ...]) -> tuple[TaskEvent, ...]:
        return tuple(replace(event, kind="answered") if event.kind == "withdrawn" else event for event in history)


@store_mutant("an_event_is_written_with_the_change")
class AnEventIsWrittenAfterTheChange(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = live(self, task_id)
        before = entry._events
        record = await super().update_task(task_id, **changes)
        entry._events, after = before, entry._events
        await anyio.lowlevel.checkpoint()
        entry._events = after
        return record


@store_mutant("a_history_goes_with_its_task")
class HistoriesOutliveTheirTask(InMemoryTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._histories: dict[str, bytes] = {}

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        record = await super().create_task(new)
        live(self, record.task_id)._events = self._histories.get(record.task_id, b"")
        return record

    def _remove(self, task_id: str) -> None:
        self._histories[task_id] = self._entries[task_id]._events
        super()._remove(task_id)


@store_mutant("a_page_of_a_search_costs_what_is_on_it")
class ASearchLooksAtEveryTask(_Searches):
    def _wanted(self, wanted: TaskFilter) -> TaskFilter:
        for entry in self._entries.values():
            assert None not in (entry.record.task.status, entry.record.request.name, entry.record.task_id)
        return wanted


def _forget_histories(store: LeasedTaskStore) -> LeasedTaskStore:
    for entry in store._entries.values():
        entry._events = b""
    return store


class _FindsNothing(Link):
    """A process's connection."""

    async def search_tasks(self, wanted: TaskFilter, **options: Any) -> TaskPage:
        return TaskPage(())


leased_process_mutant(
    "OpeningForgetsTheHistories", "a_reopened_store_finds_and_counts_every_task", process=_forget_histories
)
leased_process_mutant("AProcessFindsNothingOfOthers", "a_search_shows_what_another_process_made", process=_FindsNothing)
