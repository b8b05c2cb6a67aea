"""Stores with `TaskQuotas` that have one fault each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio.lowlevel

from mcp_task_runtime.core.transitions import check_room
from mcp_task_runtime.core.types import NewTask, TaskRecord
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import store_mutant


@store_mutant("an_owner_has_no_more_live_tasks_than_it_may_have")
class NothingIsRefused(LeasedTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Any) -> TaskRecord:
        return await super().create_task(replace(NewTask.of(new, fields), max_live=None))  # type: ignore[arg-type]


@store_mutant("a_task_counts_until_it_ends_expires_or_is_deleted")
class EndedTasksCount(LeasedTaskStore):
    async def count_live_tasks(self, owner: str | None) -> int:
        return len((await self.list_tasks(owner=owner, limit=100)).records)


@store_mutant("of_many_that_create_a_task_as_many_do_as_there_is_room_for")
class TasksThatWereCountedInTimeAreMade(LeasedTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Any) -> TaskRecord:
        new = NewTask.of(new, fields)  # type: ignore[arg-type]
        check_room(await self.count_live_tasks(new.owner), new.max_live)
        await anyio.lowlevel.checkpoint()
        return await super().create_task(replace(new, max_live=None))


@store_mutant("a_call_that_joins_needs_no_room")
class CallsThatJoinNeedRoom(LeasedTaskStore):
    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        check_room(await self.count_live_tasks(new.owner), new.max_live)
        return await super().join_task(new, key=key, ended_ms=ended_ms)


@store_mutant("a_call_that_may_only_join_creates_no_task")
class NoLimitOfNoneIsKnown(LeasedTaskStore):
    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        return await super().join_task(replace(new, max_live=new.max_live or None), key=key, ended_ms=ended_ms)


class _CountsItsOwn(Link):
    """A process's connection."""

    def __init__(self, store: LeasedTaskStore) -> None:
        super().__init__(store)
        self._made = 0

    async def create_task(self, new: NewTask) -> TaskRecord:
        check_room(self._made, new.max_live)
        record: TaskRecord = await self._call(self._target, "create_task", replace(new, max_live=None))
        self._made += 1
        return record


leased_process_mutant(
    "AProcessCountsItsOwnTasksAlone",
    "a_reopened_store_knows_the_live_tasks",
    "an_owner_has_one_limit_in_all_processes",
    process=_CountsItsOwn,
)
