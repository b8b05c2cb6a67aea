"""A webhook for tasks: a callback hears each new status, apart from the work, and cannot hurt it.

python examples/on_change.py
"""
# ci: run

from __future__ import annotations

import anyio
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, TaskChange
from mcp_task_runtime.client import TasksClient
from mcp_task_runtime.server import Tasks


async def announce(change: TaskChange) -> None:
    """Post to a chat, for example: await http.post(url, json={"text": f"{change.name} {change.status}"})."""
    what = "new" if change.is_new else change.status
    print(f"{change.name}: {what}" + (f", an error ({change.error_type})" if change.error_type else ""))


mcp = MCPServer("reports")
tasks = Tasks(on_change=announce)
tasks.install(mcp)


@tasks.tool(required=True)
async def build_report(topic: str, task: ServerTaskContext) -> str:
    if not topic:
        raise ValueError("no topic")
    return f"All about {topic}"


async def main() -> None:
    async with Client(mcp, extensions=[TasksClient()]) as client:
        for topic in ("rain", ""):
            await client.call_tool("build_report", {"topic": topic})


if __name__ == "__main__":
    anyio.run(main)
