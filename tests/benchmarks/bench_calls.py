"""A whole task call through the SDK in memory against plain tool calls, and what the absence of listeners costs."""

from __future__ import annotations

import logging

import anyio
import mcp_types as types
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TasksClient
from tests.benchmarks.measuring import rates, row

CALLS = 200


async def main() -> None:
    logging.disable(logging.CRITICAL)
    mcp = MCPServer("bench")
    tasks = Tasks()
    tasks.install(mcp)

    @mcp.tool()
    async def plain() -> str:
        return "done"

    @tasks.tool()
    async def as_task(task: ServerTaskContext) -> str:
        return "done"

    tasks_client = TasksClient()
    async with Client(mcp, extensions=[tasks_client]) as client, Client(mcp) as plain_client:
        await client.list_tools()
        await plain_client.list_tools()

        async def two_plain_calls() -> None:
            for _ in range(CALLS):
                await plain_client.call_tool("plain", {})
                await plain_client.call_tool("plain", {})

        async def task_calls() -> None:
            for _ in range(CALLS):
                task = await tasks_client.start(client, "as_task")
                assert isinstance(task, ClientTask)
                snapshot = await task.get()
                assert types.CallToolResult.model_validate(snapshot.result).structured_content == {"result": "done"}

        both = await rates({"plain": two_plain_calls, "task": task_calls}, operations=CALLS)
    row(
        "A task call through the SDK (call, one get, result): time / that of two plain calls",
        "≤ 1",
        f"{both['plain'] / both['task']:.2f}",
    )


if __name__ == "__main__":
    anyio.run(main)
