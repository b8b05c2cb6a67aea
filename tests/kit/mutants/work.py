"""Stores with `TaskWork`, `TaskWatching` or `TaskDiagnosis` that have one fault each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import anyio

from mcp_task_runtime.core.types import Finding, TaskRecord
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import store_mutant

OnChange = Callable[[TaskRecord | None], None]
Found = tuple[TaskRecord, ...]


@store_mutant("tasks_that_wait_are_shown_in_their_order")
class TheLastThatWaitsComesFirst(LeasedTaskStore):
    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        return (await super().wait_for_work(names, limit=10**6))[::-1][:limit]


@store_mutant("a_worker_finds_its_tools_behind_those_of_others")
class OnlyTheFirstAreLookedAt(LeasedTaskStore):
    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        first = {record.task_id for record in await self.list_lapsed(limit=limit)}
        return tuple(each for each in await super().wait_for_work(names, limit=limit) if each.task_id in first)


@store_mutant("a_worker_looks_at_its_own_tools_alone")
class WhatWaitsForOthersIsLookedAt(LeasedTaskStore):
    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        for record in await self.list_lapsed(limit=10**6):
            assert record.lease is not None
        return await super().wait_for_work(names, limit=limit)


@store_mutant("every_worker_that_waits_is_woken", "a_worker_that_gives_up_takes_no_task_with_it")
class OneWorkerIsWoken(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._waiting: list[object] = []

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        me = object()
        self._waiting.append(me)  # and stays there if it gives up
        while True:
            found = await super().wait_for_work(names, limit=limit)
            if self._waiting[-1] is me:
                self._waiting.clear()
                return found
            await anyio.sleep_forever()


@store_mutant("a_worker_is_woken_when_the_store_is_closed")
class ClosingWakesNoWorker(LeasedTaskStore):
    async def aclose(self) -> None:
        self._work = None
        await super().aclose()


class _SeesNoWork(Link):
    """A process's connection."""

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        await anyio.sleep_forever()
        raise AssertionError


leased_process_mutant("AProcessSeesNoWorkOfOthers", "a_worker_is_woken_by_another_process", process=_SeesNoWork)


@store_mutant("a_watch_is_called_after_each_change")
class AWatchIsCalledOnce(LeasedTaskStore):
    def watch_task(self, task_id: str, on_change: OnChange, *, after: int) -> Callable[[], None]:
        calls: list[object] = []

        def once(record: TaskRecord | None) -> None:
            calls.append(record)
            if len(calls) == 1:
                on_change(record)

        return super().watch_task(task_id, once, after=after)


@store_mutant("a_watch_of_what_has_changed_already_is_called_at_once")
class AWatchMissesWhatCameBefore(LeasedTaskStore):
    def watch_task(self, task_id: str, on_change: OnChange, *, after: int) -> Callable[[], None]:
        return super().watch_task(task_id, on_change, after=10**6)


@store_mutant("a_watch_is_called_for_its_task_until_it_is_stopped")
class AWatchCannotBeStopped(LeasedTaskStore):
    def watch_task(self, task_id: str, on_change: OnChange, *, after: int) -> Callable[[], None]:
        super().watch_task(task_id, on_change, after=after)
        return lambda: None


@store_mutant("a_closed_store_is_not_watched")
class AClosedStoreIsWatched(LeasedTaskStore):
    def watch_task(self, task_id: str, on_change: OnChange, *, after: int) -> Callable[[], None]:
        return (lambda: None) if self._closed else super().watch_task(task_id, on_change, after=after)


class _CallsNoWatch(Link):
    """A process's connection."""

    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        entry = self._target._entries[task_id]
        watchers, entry.watchers = entry.watchers, ()
        try:
            updated: TaskRecord = await self._call(self._target, "update_task", task_id, **changes)
            return updated
        finally:
            entry.watchers = watchers


leased_process_mutant(
    "AProcessCallsNoWatchOfOthers", "a_watch_is_called_after_changes_of_another_process", process=_CallsNoWatch
)


@store_mutant("a_diagnosis_says_something_of_each_subject_once")
class ADiagnosisRepeatsItself(LeasedTaskStore):
    async def diagnose(self) -> tuple[Finding, ...]:
        return (Finding("schema", "ok", "version 1"),) * 2


@store_mutant("a_closed_store_cannot_be_diagnosed")
class AClosedStoreIsFine(LeasedTaskStore):
    async def diagnose(self) -> tuple[Finding, ...]:
        return (Finding("schema", "ok", "version 1"),)
