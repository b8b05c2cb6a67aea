"""Stores with `TaskOwners` that have one fault each."""

from __future__ import annotations

import anyio.lowlevel

from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from tests.kit.mutants.registry import store_mutant


@store_mutant("a_task_is_found_for_its_owner_alone", "an_owner_sees_the_open_questions_of_its_task")
class NoOwnerIsCompared(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        return await self.get_view(task_id)


@store_mutant("a_task_is_found_for_its_owner_alone")
class ATaskWithoutAnOwnerIsEverybodys(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        record = await self.get_task(task_id)
        return await super().get_owned(task_id, owner=None if record is not None and record.owner is None else owner)


@store_mutant("a_task_is_found_for_its_owner_alone")
class AnEmptyOwnerIsNone(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        view = await self.get_view(task_id)
        return view if view is not None and (view.record.owner or None) == (owner or None) else None


@store_mutant("a_task_that_is_gone_is_found_for_no_owner")
class AnOwnerIsRememberedByTheIdentifier(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        found = self.__dict__.setdefault("owners", {})
        record = await self.get_task(task_id)
        if record is None:
            return None
        return await super().get_owned(task_id, owner=found.setdefault(task_id, record.owner))


@store_mutant("an_owner_sees_the_open_questions_of_its_task")
class AnOwnerSeesNoQuestions(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        view = await super().get_owned(task_id, owner=owner)
        return None if view is None else TaskView(view.record)


@store_mutant("an_owner_never_sees_questions_that_belie_the_status")
class AnOwnersQuestionsAreReadLater(InMemoryTaskStore):
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        view = await super().get_owned(task_id, owner=owner)
        if view is None:
            return None
        await anyio.lowlevel.checkpoint()
        return TaskView(view.record, await self.message_queue.outstanding(task_id))
