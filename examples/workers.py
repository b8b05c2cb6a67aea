"""Tools that run in other processes: a server and two workers on one SQLite file, with one command.

python examples/workers.py

Elsewhere: serve `mcp` as ever, and start as many workers as you like with
`mcp-tasks worker examples.workers:tasks --concurrency 8`, all with the same `MCP_TASKS_STORE`.
"""
# ci: run

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, open_store
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks

if __name__ == "__main__":
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.environ["MCP_TASKS_STORE"] = f"sqlite:///{folder.name}/tasks.db"  # for the workers, too
store = open_store(os.environ.get("MCP_TASKS_STORE", "sqlite:///tasks.db"))
mcp = MCPServer("reports")
tasks = Tasks(store, dispatcher=StoreDispatcher())
tasks.install(mcp)


@tasks.tool(rerunnable=True)
async def report(topic: str, task: ServerTaskContext) -> str:
    await task.update_status("Collecting sources")
    return f"{topic}, written by process {os.getpid()}"


async def main() -> None:
    command = [sys.executable, "-m", "mcp_task_runtime", "worker", "workers:tasks"]
    async with AsyncExitStack() as stack:
        for _ in range(2):
            worker = await stack.enter_async_context(
                await anyio.open_process(command, cwd=Path(__file__).parent, stdout=None, stderr=None)
            )
            stack.callback(worker.terminate)
        client_of_tasks = TasksClient()
        async with store, Client(mcp, extensions=[client_of_tasks]) as client:
            for topic in ("Tea", "Bees"):
                task = await client_of_tasks.start(client, "report", {"topic": topic})
                assert isinstance(task, ClientTask)
                result = await task.wait()
                print(result.structured_content)
                assert f"process {os.getpid()}" not in str(result.structured_content)


if __name__ == "__main__":
    anyio.run(main)
