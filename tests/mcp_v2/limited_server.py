"""A server with low limits.

Run as a program, it serves stdio; its argument is the settings as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks


class Form(BaseModel):
    text: str


def make_server(settings: dict[str, Any]) -> MCPServer[Any]:
    """Return a new server."""
    mcp: MCPServer[Any] = MCPServer("limited")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0, **settings))
    tasks.install(mcp)
    begun = 0
    gates: dict[str, anyio.Event] = {}

    @tasks.tool()
    async def work(task: ServerTaskContext) -> str:
        """Work that goes on until it is let go."""
        nonlocal begun
        begun += 1
        gates[task.task_id] = anyio.Event()
        await gates[task.task_id].wait()
        return task.task_id

    @mcp.tool()
    async def let_go(task_id: str) -> bool:
        """Let work go; return whether it had begun."""
        if task_id in gates:
            gates[task_id].set()
        return task_id in gates

    @tasks.tool()
    async def ask(task: ServerTaskContext) -> str:
        """Work that goes on until it is answered."""
        nonlocal begun
        begun += 1
        answer = await task.elicit("Go on?", Form)
        return answer.data.text if answer.action == "accept" else answer.action

    @tasks.tool()
    async def quick(task: ServerTaskContext) -> str:
        nonlocal begun
        begun += 1
        return "quick"

    for name, ttl_ms in {"short": 1, "fit": 5_000, "long": 10**12}.items():

        @tasks.tool(name=name, ttl_ms=ttl_ms)
        async def lives(task: ServerTaskContext) -> str:
            return "done"

    @mcp.tool()
    async def how_many_have_begun() -> int:
        return begun

    return mcp


if __name__ == "__main__":
    make_server(json.loads(sys.argv[1])).run("stdio")
