"""A server whose tools run in worker processes: `mcp-tasks worker tests.mcp_v2.worker_server:tasks` is one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, TaskSettings, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks

FOLDER = Path(os.environ.get("WORKER_SERVER_FOLDER", "/nowhere"))
SETTINGS = TaskSettings(lease_ms=3_000, shutdown_grace=0.1, poll_interval_ms=20)


class Name(BaseModel):
    name: str


def log(tool: str, n: int) -> None:
    """Note that a tool began."""
    with (FOLDER / "runs").open("a") as file:
        file.write(f"{tool} {n} {os.getpid()}\n")


async def until_open() -> None:
    """Wait until the test opens the gate."""
    while not (FOLDER / "gate").exists():  # noqa: ASYNC110 - of another process
        await anyio.sleep(0.02)


def block_thread() -> int:
    """Keep a thread as long as the process lives."""
    threading.Event().wait()
    return 0


def make(folder: Path = FOLDER) -> tuple[MCPServer[Any], Tasks]:
    """Return the server, and its tasks in a database of that folder."""
    mcp: MCPServer[Any] = MCPServer("workers")
    tasks = Tasks(open_store(f"sqlite:///{folder}/tasks.db"), settings=SETTINGS, dispatcher=StoreDispatcher())
    tasks.install(mcp)

    @tasks.tool(rerunnable=True)
    async def ask(n: int, task: ServerTaskContext) -> str:
        log("ask", n)
        answer = await task.elicit(f"name {n}?", Name)
        return answer.data.name if answer.action == "accept" else ""

    @tasks.tool(rerunnable=True)
    async def wait(n: int, task: ServerTaskContext) -> int:
        log("wait", n)
        await until_open()
        return n

    @tasks.tool()
    async def once(n: int, task: ServerTaskContext) -> int:
        log("once", n)
        await until_open()
        return n

    @tasks.tool(rerunnable=True)
    def block(n: int) -> int:
        log("block", n)
        return block_thread()

    @tasks.tool(rerunnable=True)
    async def hold(n: int, task: ServerTaskContext) -> int:
        log("hold", n)
        return await anyio.to_thread.run_sync(block_thread)

    return mcp, tasks


mcp, tasks = make()
