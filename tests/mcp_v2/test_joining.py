"""Tools with `join` on `mcp` 2.x: a repeated call gets the task of the first one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.testing import YieldingTaskStore
from tests.mcp_v2.in_process import memory_client
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


def key_of(arguments: dict[str, Any]) -> str | None:
    key: str | None = arguments.get("key")
    return key


def test_join_is_refused_with_a_store_that_cannot() -> None:
    store = InMemoryTaskStore()
    tasks = Tasks(YieldingTaskStore(store), queue=store.message_queue)
    with pytest.raises(ValueError, match="join needs a store that implements TaskJoins"):
        tasks.adopt("adopted", join=True)


@pytest.mark.parametrize("name", ["declared", "adopted", "running"])
@pytest.mark.parametrize("principal", [None, "ada"])
async def test_a_repeated_call_joins(name: str, principal: str | None) -> None:
    mcp: MCPServer[Any] = MCPServer("joining")
    tasks = Tasks(principal=lambda ctx: principal)
    tasks.install(mcp)
    join = key_of if principal is None else True
    runs: list[str] = []
    release = anyio.Event()

    @tasks.tool(required=True, join=join)
    async def declared(key: str, task: ServerTaskContext) -> str:
        runs.append(key)
        await release.wait()
        return key

    @mcp.tool()
    async def adopted(key: str) -> str:
        runs.append(key)
        await release.wait()
        return key

    tasks.adopt("adopted", join=join)

    @mcp.tool()
    async def running(key: str) -> str:
        async def work(task: ServerTaskContext) -> str:
            runs.append(key)
            await release.wait()
            return key

        return await tasks.run(work, required=True, join=join)

    with anyio.fail_after(PATIENCE):
        async with memory_client(mcp) as client:
            first = await client.start(name, {"key": "a"})
            assert await client.start(name, {"key": "a"}) == first
            other = await client.start(name, {"key": "b"})
            assert other != first
            release.set()
            for task_id, key in ((first, "a"), (other, "b")):
                task = await client.until(task_id, "completed")
                assert task["result"]["structuredContent"] == {"result": key}
            assert await client.start(name, {"key": "a"}) == first, "it has just ended"
    assert sorted(runs) == ["a", "b"]
