"""Stores with one fault each in what they take and return: progress, more time, values at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio.lowlevel
from typing_extensions import Unpack

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, NewTaskFields, Outcome, TaskRecord
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from tests.core.leased_store import LeasedTaskStore
from tests.kit.mutants.registry import live, store_mutant


@store_mutant("progress_is_part_of_the_task_and_outlives_its_end")
class TheEndDropsTheProgress(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        record = await super().finish_task(task_id, outcome, fence=fence)
        entry = live(self, task_id)
        entry.record = replace(record, progress=None)
        return entry.record


@store_mutant("a_live_task_can_be_given_more_time_or_less")
class MoreTimeIsInTheAnswerOnly(InMemoryTaskStore):
    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        due = live(self, task_id).record.task.expires_at
        record = await super().update_task(task_id, **changes)
        self._expiry.set(task_id, due)
        return record


@store_mutant("more_time_or_progress_that_is_cancelled_happened_in_full_or_not_at_all")
class MoreTimeIsWrittenBeforeTheProgress(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, ttl_ms: int | None = None, **changes: Any) -> TaskRecord:
        if ttl_ms is not None:
            await super().update_task(task_id, ttl_ms=ttl_ms)
            await anyio.lowlevel.checkpoint()
        return await super().update_task(task_id, **changes)


@store_mutant("what_create_task_accepts_it_can_give_back")
class SurrogatesAreReplaced(InMemoryTaskStore):
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        owner = None if new.owner is None else new.owner.encode("utf-8", "replace").decode()
        return await super().create_task(replace(new, owner=owner))


@store_mutant("what_a_change_accepts_can_be_given_back")
class TextEndsAtItsFirstNUL(InMemoryTaskStore):
    async def update_task(self, task_id: str, *, status_message: str | None = None, **changes: Any) -> TaskRecord:
        text = None if status_message is None else status_message.split("\0")[0]
        return await super().update_task(task_id, status_message=text, **changes)


@store_mutant("what_a_question_or_answer_accepts_can_be_given_back")
class QuestionsAreSerialisedAnew(InMemoryTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        text = dump_json(load_json(question.params_json))
        return await super().ask(task_id, replace(question, params_json=text), fence=fence)


@store_mutant("what_a_step_accepts_can_be_given_back")
class StepsAreCut(LeasedTaskStore):
    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        return await super().record_step(task_id, key[:1_000], value_json, fence=fence)


@store_mutant("an_identifier_that_is_no_text_finds_nothing")
class AnIdentifierMustBeText(InMemoryTaskStore):
    async def get_task(self, task_id: str) -> TaskRecord | None:
        task_id.encode()
        return await super().get_task(task_id)
