"""Tasks in a low-level server on `mcp` 1.x, over stdio.

python examples/low_level_server_v1.py
"""

from __future__ import annotations

from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks

server: Server[Any, Any] = Server("low-level")
tasks = Tasks()


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    mode = types.ToolExecution(taskSupport="required")
    return [types.Tool(name="work", inputSchema={"type": "object"}, execution=mode)]


@server.call_tool()
async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
    async def work(task: ServerTaskContext) -> list[types.TextContent]:
        await task.update_status("Working")
        return [types.TextContent(type="text", text="done")]

    return await tasks.run(work, required=True)


tasks.install(server)


async def main() -> None:
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
