"""Stores that have one fault each in what they do for workers, sweeps, those who watch, and operators."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import anyio

from mcp_task_runtime.core.types import Finding, TaskRecord
from tests.core.leased_store import LeasedTaskStore, Link, TakingTaskStore
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


@store_mutant("tasks_are_taken_in_their_order")
class TheLastThatWaitsIsTakenFirst(TakingTaskStore):
    async def wait_for_work(self, names: Collection[str], *, limit: int) -> Found:
        return (await super().wait_for_work(names, limit=limit))[::-1]


@store_mutant("each_task_is_taken_by_one_of_the_workers_that_want_it")
class WhatAnotherHasTakenIsTakenAgain(TakingTaskStore):
    async def take_work(self, names: Collection[str], **options: Any) -> Found:
        found = await self.wait_for_work(names, limit=options["limit"])
        await anyio.lowlevel.checkpoint()
        await super().take_work(names, **options)
        return found


@store_mutant("what_is_taken_is_claimed")
class WhatIsTakenIsHeldForLong(TakingTaskStore):
    async def take_work(self, names: Collection[str], *, lease_ms: int, **options: Any) -> Found:
        return await super().take_work(names, lease_ms=10 * lease_ms, **options)


@store_mutant("a_worker_takes_its_own_tools_alone")
class AWorkerWithoutToolsTakesNothingAtOnce(TakingTaskStore):
    async def take_work(self, names: Collection[str], **options: Any) -> Found:
        return await super().take_work(names, **options) if names else ()


@store_mutant("a_worker_takes_its_own_tools_alone")
class SealedTasksAreTaken(TakingTaskStore):
    async def take_work(self, names: Collection[str], **options: Any) -> Found:
        return await super().take_work(names, **{**options, "with_sealed": True})


@store_mutant("a_worker_that_was_cancelled_has_taken_nothing")
class ACancelledWorkerTakes(TakingTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left: list[str] = []

    async def take_work(self, names: Collection[str], *, worker: str, **options: Any) -> Found:
        self._left.append(worker)
        taken = await super().take_work(names, worker=self._left[0], **options)
        self._left.remove(worker)
        return taken


@store_mutant("a_worker_that_is_cancelled_gets_what_it_has_claimed")
class ACancelledWorkerLeavesWhatItHasClaimed(TakingTaskStore):
    async def take_work(self, names: Collection[str], **options: Any) -> Found:
        taken = await super().take_work(names, **options)
        await anyio.lowlevel.checkpoint()
        return taken


@store_mutant("a_worker_that_is_cancelled_gets_what_it_has_claimed")
class ACancelledWorkerLeavesTheTaskThatItHasClaimed(TakingTaskStore):
    async def take_task(self, task_id: str, names: Collection[str], **options: Any) -> TaskRecord | None:
        taken = await super().take_task(task_id, names, **options)
        await anyio.lowlevel.checkpoint()
        return taken


@store_mutant("a_worker_that_takes_is_woken_when_the_store_is_closed")
class ClosingWakesNoWorkerThatTakes(TakingTaskStore):
    async def aclose(self) -> None:
        self._work = None
        await super().aclose()


@store_mutant("a_task_is_taken_by_its_id_while_it_waits")
class ATaskOfAnotherToolIsTaken(TakingTaskStore):
    async def take_task(self, task_id: str, names: Collection[str], **options: Any) -> TaskRecord | None:
        return await super().take_task(task_id, [*names, "tool"], **options)


@store_mutant("a_task_is_taken_by_its_id_while_it_waits")
class ALostTaskIsTaken(TakingTaskStore):
    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, **options: Any
    ) -> TaskRecord | None:
        record = await self.get_task(task_id)
        if record is not None and record.lease is not None and record.lease.worker:
            return await self.claim_task(task_id, worker=worker, lease_ms=lease_ms)
        return await super().take_task(task_id, names, worker=worker, lease_ms=lease_ms, **options)


class _TakesNothing(Link):
    """A process's connection."""

    async def take_work(self, *args: Any, **options: Any) -> Found:
        await anyio.sleep_forever()
        raise AssertionError

    async def take_task(self, *args: Any, **options: Any) -> None:
        pass


leased_process_mutant(
    "AProcessTakesNoWorkOfOthers",
    "a_worker_takes_what_another_process_makes",
    process=_TakesNothing,
    store_class=TakingTaskStore,
)


class _TakesWithoutALook(Link):
    """A process's connection: between its look and its claims another process may claim."""

    async def take_work(self, names: Collection[str], *, worker: str, limit: int, **options: Any) -> Found:
        found: Found = await self._call(self._target, "wait_for_work", names, limit=limit)
        for record in found:
            await self._target.claim_task(record.task_id, worker=worker, lease_ms=options["lease_ms"])
        return tuple([await self._target.get_task(record.task_id) for record in found])


leased_process_mutant(
    "AProcessTakesWhatAnotherHasTaken",
    "each_task_is_taken_by_one_of_the_workers_of_two_processes",
    process=_TakesWithoutALook,
    store_class=TakingTaskStore,
)


@store_mutant("an_end_is_told_once_and_no_other_change")
class EachChangeIsTakenForAnEnd(TakingTaskStore):
    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        return self.watch_task(task_id, lambda record: on_end(), after=1)


@store_mutant("an_end_before_its_watch_is_told")
class AnEndBeforeItsWatchIsMissed(TakingTaskStore):
    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        is_begun = False

        def tell() -> None:
            if is_begun:
                on_end()

        stop = super().watch_end(task_id, tell)
        is_begun = True
        return stop


@store_mutant("no_end_is_watched_in_a_closed_store")
class EndsAreWatchedInAClosedStore(TakingTaskStore):
    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        return (lambda: None) if self._closed else super().watch_end(task_id, on_end)


class _TellsNoEnd(Link):
    """A process's connection."""

    async def finish_task(self, task_id: str, *args: Any, **options: Any) -> TaskRecord:
        entry = self._target._entries[task_id]
        watchers, entry.watchers = entry.watchers, ()
        try:
            ended: TaskRecord = await self._call(self._target, "finish_task", task_id, *args, **options)
            return ended
        finally:
            entry.watchers = watchers


leased_process_mutant(
    "AProcessTellsNoEnd", "an_end_by_another_process_is_told_once", process=_TellsNoEnd, store_class=TakingTaskStore
)


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


@store_mutant("connecting_again_closes_nothing_that_is_in_use")
class ConnectingForgetsEverything(LeasedTaskStore):
    async def connect(self) -> None:
        self._entries.clear()


@store_mutant("a_closed_store_cannot_be_connected")
class AClosedStoreConnects(LeasedTaskStore):
    async def connect(self) -> None:
        pass


class _IsAlone(Link):
    """A process's connection."""

    is_shared = False


leased_process_mutant(
    "AProcessSaysThatItIsAlone", "a_store_that_processes_share_does_not_say_otherwise", process=_IsAlone
)


@store_mutant("lost_tasks_and_the_waiting_ones_of_some_tools_are_listed")
class TheWaitingTasksOfAllToolsAreListed(LeasedTaskStore):
    async def list_lost(self, names: Collection[str], *, limit: int) -> Found:
        return await self.list_lapsed(limit=limit)


@store_mutant("lost_tasks_and_the_waiting_ones_of_some_tools_are_listed")
class WhatWaitsHidesWhatIsLost(LeasedTaskStore):
    async def list_lost(self, names: Collection[str], *, limit: int) -> Found:
        wanted = {each.task_id for each in await super().list_lost(names, limit=10**6)}
        return tuple([each for each in await self.list_lapsed(limit=10**6) if each.task_id in wanted][:limit])


@store_mutant("a_task_is_lost_from_the_time_at_which_its_worker_is")
class OnlyTheFirstWorkerIsLost(LeasedTaskStore):
    async def list_lost(self, names: Collection[str], *, limit: int) -> Found:
        found = await super().list_lost(names, limit=limit)
        return tuple(each for each in found if each.lease is not None and each.lease.attempt < 2)


@store_mutant("tasks_that_wait_for_a_worker_cost_a_sweep_nothing")
class ASweepLooksAtAllThatWait(LeasedTaskStore):
    async def list_lost(self, names: Collection[str], *, limit: int) -> Found:
        for record in await self.list_lapsed(limit=10**6):
            assert record.lease is not None
        return await super().list_lost(names, limit=limit)


class _SeesNoLoss(Link):
    """A process's connection."""

    async def list_lost(self, names: Collection[str], *, limit: int) -> Found:
        return ()


leased_process_mutant("AProcessSeesNoLossOfOthers", "a_task_that_another_process_lost_is_listed", process=_SeesNoLoss)
