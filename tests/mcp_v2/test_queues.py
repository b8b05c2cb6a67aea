"""Tools with a `WorkQueue`: on the wire a task that waits says so, and one too many is refused."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import InMemoryTaskStore, Rerun, ServerTaskContext, TaskSettings, WorkQueue
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.testing import FakeClock
from tests.mcp_v2.in_process import memory_client
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


async def test_tools_of_one_queue_wait_together() -> None:
    mcp: MCPServer[Any] = MCPServer("queues")
    tasks = Tasks()
    tasks.install(mcp)
    queue, release = WorkQueue("reports", concurrency=1, max_queued=1), anyio.Event()

    @tasks.tool(required=True, queue=queue)
    async def declared(task: ServerTaskContext) -> str:
        await release.wait()
        return "declared"

    @mcp.tool()
    async def adopted() -> str:
        return "adopted"

    tasks.adopt("adopted", queue=queue)
    with anyio.fail_after(PATIENCE):
        async with memory_client(mcp) as client:
            first = await client.start("declared")
            while "statusMessage" in await client.get(first):
                await anyio.lowlevel.checkpoint()
            second = await client.start("adopted")
            assert (await client.get(second))["statusMessage"] == "Queued"
            refused = await client.call("adopted")
            assert refused.error["code"] == -32600
            assert "tasks queued for 'reports'" in refused.error["message"]
            release.set()
            for task_id in (first, second):
                assert (await client.until(task_id, "completed"))["status"] == "completed"


@pytest.mark.parametrize("name", ["declared", "called"])
async def test_a_tool_that_runs_again_waits_in_its_queue(name: str) -> None:
    mcp: MCPServer[Any] = MCPServer("queues")
    clock = FakeClock()
    tasks = Tasks(InMemoryTaskStore(clock=clock), settings=TaskSettings(shutdown_grace=0))
    tasks.install(mcp)
    queue, fail, release = WorkQueue("reports", concurrency=1), anyio.Event(), anyio.Event()
    rerunnable = Rerun(on=[ConnectionError], backoff=1)
    runs: list[str] = []

    async def flaky(task: ServerTaskContext) -> str:
        runs.append("flaky")
        if len(runs) == 1:
            await fail.wait()
            raise ConnectionError
        return "done"

    @tasks.tool(required=True, queue=queue, rerunnable=rerunnable)
    async def declared(task: ServerTaskContext) -> str:
        return await flaky(task)

    @mcp.tool()
    async def called() -> str:
        return await tasks.run(flaky, required=True, queue=queue, rerunnable=rerunnable)

    @tasks.tool(required=True, queue=queue)
    async def long(task: ServerTaskContext) -> str:
        runs.append("long")
        await release.wait()
        return "long"

    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            first = await client.start(name)
            second = await client.start("long")
            assert (await client.get(second))["statusMessage"] == "Queued"
            fail.set()
            while tasks.runtime.statistics().postponed != 1 or runs != ["flaky", "long"]:
                await anyio.lowlevel.checkpoint()
            clock.advance(2)
            while tasks.runtime.statistics().postponed:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert runs == ["flaky", "long"], "the rerun waits for the slot of its queue"
            release.set()
            for task_id in (first, second):
                assert (await client.until(task_id, "completed"))["status"] == "completed"
    assert runs == ["flaky", "long", "flaky"]


async def test_work_of_a_tool_that_calls_run_without_a_queue_runs_again_by_its_name_too() -> None:
    mcp: MCPServer[Any] = MCPServer("undeclared")
    clock = FakeClock()
    tasks = Tasks(InMemoryTaskStore(clock=clock), settings=TaskSettings(shutdown_grace=0))
    tasks.install(mcp)
    attempts: list[int] = []

    async def flaky(task: ServerTaskContext) -> str:
        attempts.append(task.attempt)
        if task.attempt == 1:
            raise ConnectionError
        return "done"

    @mcp.tool()
    async def called() -> str:
        return await tasks.run(flaky, required=True, rerunnable=Rerun(on=[ConnectionError], backoff=1))

    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            task_id = await client.start("called")
            while tasks.runtime.statistics().postponed != 1:
                await anyio.lowlevel.checkpoint()
            clock.advance(2)
            # A client may not poll often while the clock stands still.
            while tasks.runtime.statistics().postponed or tasks.runtime.statistics().calls:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            task = await client.until(task_id, "completed")
    assert task["result"]["content"][0]["text"] == "done"
    assert attempts == [1, 2]


async def test_another_queue_of_the_same_name_is_refused_when_a_tool_is_declared() -> None:
    tasks = Tasks()
    tasks.install(MCPServer("queues"))

    async def work(task: ServerTaskContext) -> str:
        return ""

    tasks.tool(name="one", queue=WorkQueue("reports", concurrency=1))(work)
    with pytest.raises(ValueError, match="two queues with the name 'reports'"):
        tasks.tool(name="two", queue=WorkQueue("reports", concurrency=2))(work)
