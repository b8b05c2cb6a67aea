"""Memory of a task that waits on a question: Python's own allocations for each of many tasks, over stdio's JSON."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks
from tests.benchmarks.measuring import row
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import DECLARED

TASKS = 500


class Choice(BaseModel):
    ok: bool


async def declared(topic: str, task: ServerTaskContext) -> str:
    return (await task.elicit("Sure?", Choice)).action


async def adopted(topic: str, ctx: Context) -> str:
    return (await ctx.elicit("Sure?", Choice)).action


async def kib_for_each(name: str) -> float:
    """Return the KiB that Python holds for each waiting task of a tool."""
    mcp: MCPServer[Any] = MCPServer("bench")
    tasks = Tasks()
    tasks.install(mcp, tools=["adopted"])
    mcp.tool()(adopted)
    tasks.tool()(declared)
    async with tasks, memory_client(mcp) as client:

        async def start(count: int) -> None:
            for number in range(count):
                await client.call(name, {"topic": f"topic {number}"}, capabilities=DECLARED)
            await anyio.wait_all_tasks_blocked()
            gc.collect()

        await start(20)  # what is made once
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await start(TASKS)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (after - before) / 1024 / TASKS


async def main() -> None:
    logging.disable(logging.CRITICAL)
    for name, what, bound in (
        ("declared", "of `@tasks.tool()`", "≤ 20 KiB"),
        ("adopted", "of an adopted tool that asks through its own context", "≤ 45 KiB"),
    ):
        row(f"Memory of a waiting task {what}", bound, f"{await kib_for_each(name):.1f} KiB")


if __name__ == "__main__":
    anyio.run(main)
