"""Tools with a `WorkQueue` on `mcp` 1.x: a task that waits says so, and one too many is refused."""

from __future__ import annotations

from typing import Any

import anyio
from mcp.server.fastmcp import FastMCP

from mcp_task_runtime import ServerTaskContext, WorkQueue
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.support.patience import PATIENCE


async def test_tools_of_one_queue_wait_together() -> None:
    mcp: FastMCP[Any] = FastMCP("queues", log_level="CRITICAL")
    tasks = Tasks()
    tasks.install(mcp)
    queue, release = WorkQueue("reports", concurrency=1, max_queued=1), anyio.Event()

    @tasks.tool(queue=queue)
    async def declared(task: ServerTaskContext) -> str:
        await release.wait()
        return "declared"

    @mcp.tool()
    async def adopted() -> str:
        return "adopted"

    tasks.adopt("adopted", queue=queue)
    with anyio.fail_after(PATIENCE):
        async with connect(mcp) as client:
            first = await client.start("declared", {})
            second = await client.start("adopted", {})
            assert (await client.task(second))["statusMessage"] == "Queued"
            refused = await client.error("tools/call", {"name": "adopted", "arguments": {}, "task": {}})
            assert refused["code"] == -32600
            assert "tasks queued for 'reports'" in refused["message"]
            release.set()
            assert await client.text(first) == "declared"
            assert await client.text(second) == "adopted"
