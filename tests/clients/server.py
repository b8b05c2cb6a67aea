"""The server that the clients are driven against, on the SDK line that is installed, over Streamable HTTP."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import anyio
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks

started = stopped = 0


class Name(BaseModel):
    name: str


async def add(a: int, b: int, task: ServerTaskContext) -> str:
    """Add two numbers, and say how far it is."""
    await task.report_progress(1, 2, "adding")
    await task.report_progress(2, 2, "added")
    return f"sum {a + b}"


async def ask(task: ServerTaskContext) -> str:
    """Ask the user for a name."""
    answer = await task.elicit("Who are you?", Name, timeout=20)
    return f"name {answer.data.name}" if answer.action == "accept" else answer.action


async def write(task: ServerTaskContext) -> str:
    """Let the model of the client write."""
    message = {"role": "user", "content": {"type": "text", "text": "Write."}}
    return f"wrote {(await task.create_message([message], max_tokens=20)).content}"


async def wait(task: ServerTaskContext) -> None:
    """Work until it is cancelled."""
    global started, stopped
    started += 1
    try:
        await anyio.sleep_forever()
    finally:
        stopped += 1


def count() -> str:
    """Return how many calls of `wait` were started and stopped."""
    return f"started {started}, stopped {stopped}"


def main() -> None:
    """Serve at /mcp of a free port, which uvicorn prints."""
    mcp: Any
    if version("mcp").startswith("1."):
        from mcp.server.fastmcp import FastMCP  # type: ignore[attr-defined]

        mcp, where = FastMCP("clients", port=0), {}
    else:
        from mcp.server import MCPServer

        mcp, where = MCPServer("clients"), {"port": 0}
    tasks = Tasks()
    tasks.install(mcp)
    for function in (add, ask, write, wait):
        tasks.tool(advertise="--hide" not in sys.argv)(function)
    mcp.tool()(count)
    mcp.run("streamable-http", **where)


if __name__ == "__main__":
    main()
