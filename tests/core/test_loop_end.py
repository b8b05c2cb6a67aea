"""What becomes of work when the event loop ends around a runtime that is open."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from mcp_task_runtime import Execution, Outcome, TaskRuntime
from tests.core.leased_store import SETTINGS, LeasedTaskStore
from tests.core.test_dispatch import RERUNNABLE

DONE = Outcome.completed({"by": "another process"})


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))), ids=str)
def test_work_that_ends_with_its_event_loop_may_run_again_elsewhere(order: tuple[int, ...]) -> None:
    """L12: asyncio cancels all tasks in one turn, the work and what opened its runtime in any order."""
    store = LeasedTaskStore()

    async def never(execution: Execution[Any]) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    async def first() -> str:
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def host() -> None:
            async with TaskRuntime(store, settings=SETTINGS) as runtime:
                runtime.register("tool", never)
                made.set_result((await runtime.submit(RERUNNABLE)).task_id)
                await asyncio.Event().wait()

        others = asyncio.all_tasks()
        hosting = asyncio.create_task(host())
        task_id = await made
        for _ in range(10):
            await asyncio.sleep(0)  # the work has begun, and waits
        tasks = sorted(asyncio.all_tasks() - others, key=asyncio.Task.get_name)
        assert len(tasks) == len(order)
        for number in order:
            tasks[number].cancel()
        await asyncio.wait(tasks)
        assert hosting.cancelled()
        return task_id

    async def second(task_id: str) -> Outcome | None:
        async def work(execution: Execution[Any]) -> Outcome:
            return DONE

        async with TaskRuntime(store, settings=SETTINGS) as runtime:
            runtime.register("tool", work)
            assert await runtime.execute(task_id)
            return await store.get_result(task_id)

    assert asyncio.run(second(asyncio.run(first()))) == DONE
