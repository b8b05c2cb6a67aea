"""Tasks in a low-level server on `mcp` 2.x: its handler says what runs as a task.

python examples/low_level_server.py
"""
# ci: run

from __future__ import annotations

import anyio
from mcp import Client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import TasksClient
from mcp_task_runtime.server import Tasks

tasks = Tasks()


async def list_tools(ctx: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(tools=[Tool(name="work", input_schema={"type": "object"})])


async def call_tool(ctx: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
    async def work(task: ServerTaskContext) -> CallToolResult:
        await task.update_status("Working")
        return CallToolResult(content=[TextContent(text="done")])

    return await tasks.run(work, required=True)


server = Server("low-level", on_list_tools=list_tools, on_call_tool=call_tool)
tasks.install(server)


async def main() -> None:
    async with Client(server, extensions=[TasksClient()]) as client:
        result = await client.call_tool("work")
        assert result.content == [TextContent(text="done")]
        print(result.content)


if __name__ == "__main__":
    anyio.run(main)
