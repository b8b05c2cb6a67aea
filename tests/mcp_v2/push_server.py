"""A server whose tasks do what plain tools say, so that a test steers them over any transport.

Run as a program, it serves stdio; with `slowly`, it has clients poll once an hour.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import NewTask

FORM: dict[str, Any] = {"type": "object", "properties": {}}


def add_tools(mcp: MCPServer[Any], tasks: Tasks) -> None:
    """Add the tools to a server that has these tasks installed."""

    @tasks.tool(required=True)
    async def work(task: ServerTaskContext) -> str:
        await anyio.sleep_forever()
        return ""

    @tasks.tool(required=True)
    async def ask(task: ServerTaskContext) -> str:
        first = await task.elicit("first?", FORM)
        second = await task.elicit("second?", FORM)
        return f"{first.action}, {second.action}"

    @mcp.tool()
    async def say(task_id: str, message: str) -> None:
        await tasks.runtime.store.update_task(task_id, status_message=message)

    @mcp.tool()
    async def complete(task_id: str, text: str) -> None:
        await tasks.complete(task_id, text)

    @mcp.tool()
    async def fail(task_id: str, text: str) -> None:
        await tasks.fail(task_id, text)

    @mcp.tool()
    async def delete(task_id: str) -> None:
        await tasks.runtime.store.delete_task(task_id)

    @mcp.tool()
    async def belongs_to(owner: str) -> str:
        return (await tasks.runtime.store.create_task(NewTask(ttl_ms=60_000, owner=owner))).task_id

    @mcp.tool()
    async def announce(ctx: Context) -> None:
        await ctx.notify_tools_changed()


def make_server(store: TaskStore | None = None, **settings: Any) -> tuple[MCPServer[Any], Tasks]:
    """Return a server with all the tools, which stops without waiting for its clients."""
    mcp: MCPServer[Any] = MCPServer("push")
    tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0, **settings))
    tasks.install(mcp)
    add_tools(mcp, tasks)
    return mcp, tasks


if __name__ == "__main__":
    interval_ms = 3_600_000 if "slowly" in sys.argv else 500
    make_server(poll_interval_ms=interval_ms)[0].run("stdio")
