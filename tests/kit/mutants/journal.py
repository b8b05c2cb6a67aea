"""Stores with `TaskJournal` that have one fault each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel

from mcp_task_runtime.core.types import Fence
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import live, store_mutant


@store_mutant("a_step_is_recorded_once_and_read_in_order")
class ALaterStepOverwrites(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        await super().record_step(task_id, key, value_json, fence=fence)
        (live(self, task_id).steps or {})[key] = value_json
        return value_json


@store_mutant("recording_a_step_is_quiet")
class AStepIsAChange(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        recorded = await super().record_step(task_id, key, value_json, fence=fence)
        await self.update_task(task_id)
        return recorded


@store_mutant("a_step_is_recorded_by_the_run_that_holds_the_lease_alone")
class AnyRunRecordsSteps(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        lease = live(self, task_id).record.lease
        return await super().record_step(task_id, key, value_json, fence=fence if lease is None else lease.fence)


@store_mutant("of_many_that_record_a_step_the_first_wins")
class EveryStepThatLookedInTimeIsRecorded(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        known = (live(self, task_id).steps or {}).get(key)
        await anyio.lowlevel.checkpoint()
        await super().record_step(task_id, key, value_json, fence=fence)
        return value_json if known is None else known


@store_mutant("a_cancelled_step_was_recorded_or_was_not")
class AStepIsWrittenInTwoSteps(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        recorded = await super().record_step(task_id, key, "null", fence=fence)
        await anyio.lowlevel.checkpoint()
        (live(self, task_id).steps or {})[key] = value_json
        return recorded


@store_mutant("steps_go_with_their_task")
class StepsOutliveTheirTask(LeasedTaskStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps: dict[str, dict[str, str]] = {}

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        live(self, task_id).steps = self._steps.setdefault(task_id, {})
        return await super().record_step(task_id, key, value_json, fence=fence)


@store_mutant("no_step_costs_more_when_there_are_many")
class RecordingLooksAtEveryStep(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        for known in live(self, task_id).steps or ():
            if known == key:
                break
        return await super().record_step(task_id, key, value_json, fence=fence)


def _forget_steps(store: LeasedTaskStore) -> LeasedTaskStore:
    for entry in store._entries.values():
        entry.steps = None
    return store


class _SeesNoSteps(Link):
    """A process's connection."""

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        return {}


leased_process_mutant("OpeningForgetsTheSteps", "a_reopened_store_has_every_step", process=_forget_steps)
leased_process_mutant("AProcessSeesNoStepsOfOthers", "another_process_finds_the_steps", process=_SeesNoSteps)
