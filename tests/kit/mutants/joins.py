"""Stores with `TaskJoins` that have one fault each."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel

from mcp_task_runtime.core.types import NewTask, TaskRecord
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import store_mutant

Joined = tuple[TaskRecord, bool]


@store_mutant("a_repeated_call_joins_its_task_while_that_lives")
class NothingIsJoined(LeasedTaskStore):
    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        return await self.create_task(new), True


@store_mutant("a_repeated_call_joins_its_task_for_a_time_after_its_end")
class WhatHasEndedIsJoinedForEver(LeasedTaskStore):
    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        return await super().join_task(new, key=key, ended_ms=10**9)


@store_mutant("of_many_that_make_a_call_one_creates_its_task")
class CallsThatLookedInTimeCreate(LeasedTaskStore):
    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        known = key in self._joins
        await anyio.lowlevel.checkpoint()
        if not known:
            self._joins.pop(key, None)
            self._join_keys = {task_id: other for task_id, other in self._join_keys.items() if other != key}
        return await super().join_task(new, key=key, ended_ms=ended_ms)


@store_mutant("a_cancelled_call_has_a_task_or_has_none")
class ACancelledCallIsKnownWithoutATask(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._begun: set[str] = set()

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        is_half_done = key in self._begun
        self._begun.add(key)
        await anyio.lowlevel.checkpoint()
        if is_half_done:
            return await self.create_task(new), True
        joined = await super().join_task(new, key=key, ended_ms=ended_ms)
        self._begun.discard(key)
        return joined


@store_mutant("nothing_is_kept_of_a_call_whose_task_is_gone")
class CallsAreKept(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._calls: list[str] = []

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        self._calls.append(key + "x" * 200)
        return await super().join_task(new, key=key, ended_ms=ended_ms)


class _JoinsItsOwn(Link):
    """A process's connection."""

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> Joined:
        joined: Joined = await self._call(self._target, "join_task", new, key=f"{id(self)} {key}", ended_ms=ended_ms)
        return joined


leased_process_mutant(
    "AProcessJoinsNoCallsOfOthers", "a_call_that_is_repeated_in_another_process_joins", process=_JoinsItsOwn
)
