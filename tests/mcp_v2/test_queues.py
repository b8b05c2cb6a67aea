"""Tools with a `WorkQueue`: on the wire a task that waits says so, and one too many is refused."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, WorkQueue
from mcp_task_runtime.adapters.mcp_v2 import Tasks
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
