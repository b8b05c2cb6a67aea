"""The `tasks/*` methods of protocol 2025-11-25, apart from any SDK."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mcp_task_runtime import InMemoryTaskStore, ProtocolError, TaskRuntime
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.requestor import Requestor
from mcp_task_runtime.adapters.task_methods import TaskMethods
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from tests.adapters.scripted import ScriptedSession


class WatchedStore(InMemoryTaskStore):
    """Notes reads of records, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[str] = []

    async def get_task(self, task_id: str) -> TaskRecord | None:
        self.uses.append("get_task")
        return await super().get_task(task_id)

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        self.uses.append("wait_for_update")
        return await super().wait_for_update(task_id, after=after)

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        self.uses.append("watch_task")
        return super().watch_task(task_id, on_change, after=after)


async def test_b1_who_cannot_be_told_apart_is_not_shown_a_list() -> None:
    runtime = TaskRuntime(InMemoryTaskStore())
    host = RuntimeHost(runtime)
    methods = TaskMethods(runtime, host)
    async with host:
        with pytest.raises(ProtocolError) as refused:
            await methods.list(None, Requestor(None))
        assert refused.value.code == -32601
        assert await methods.list(None, Requestor("ada")) == {"tasks": []}


async def test_the_result_of_a_task_that_has_ended_takes_one_look() -> None:
    store = WatchedStore()
    runtime = TaskRuntime(store)
    host = RuntimeHost(runtime)
    methods = TaskMethods(runtime, host)
    async with host:
        record = await store.create_task(NewTask(ttl_ms=None))
        await runtime.finish(record.task_id, Outcome.completed({"content": []}))
        store.uses.clear()
        result = await methods.result({"taskId": record.task_id}, Requestor(None), ScriptedSession)
    assert result["content"] == []
    assert store.uses == []  # but the one look that tells whose task it is
