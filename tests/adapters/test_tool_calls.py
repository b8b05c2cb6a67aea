"""Calls of tools as tasks, apart from any SDK."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, InMemoryTaskStore, TaskRuntime, TaskSpec
from mcp_task_runtime.adapters._task_call import submit_call
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from tests.support.patience import PATIENCE


class SlowStore(InMemoryTaskStore):
    """A store that makes a task when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = anyio.Event(), anyio.Event()

    async def create_task(self, new: NewTask | None = None, **fields: Any) -> TaskRecord:
        self.entered.set()
        await self.release.wait()
        return await super().create_task(new, **fields)

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        self.entered.set()
        await self.release.wait()
        return await super().join_task(new, key=key, ended_ms=ended_ms)


@pytest.mark.parametrize(("join_key", "status"), [(None, "cancelled"), ("key", "working")])
async def test_a_call_that_is_cancelled_while_its_task_is_made_ends_it_unless_another_can_join_it(
    join_key: str | None, status: str
) -> None:
    store = SlowStore()
    stopped = anyio.Event()

    async def work(execution: Execution[Any]) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async with TaskRuntime(store) as runtime:
        returned: list[TaskRecord] = []

        async def call() -> None:
            spec = TaskSpec(join_key=join_key, task_id="made")
            returned.append(await submit_call(runtime, spec, work, outcome_of=Outcome.completed, resource_scope=None))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await store.entered.wait()
                group.cancel_scope.cancel()
                store.release.set()
            record = await store.get_task("made")
            assert record is not None
            assert record.status == status
            if join_key is None:
                assert returned == [], "its caller is cancelled"
                await stopped.wait()
            else:
                assert not stopped.is_set()
                await runtime.finish("made", Outcome.cancelled())
