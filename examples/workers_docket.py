"""Tools that run in the workers of docket: a server, a Redis and two workers with one command.

python examples/workers_docket.py

It starts a Redis that is installed, or takes the one that `REDIS_URL` names.
A worker of your own is `mcp-tasks worker examples.workers_docket:tasks`, or with `--tools report` one for the queue of
that tool alone. The dockets `reports` and `reports-slow` show in docket's own tools.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, open_store
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.engines.docket import DocketDispatcher
from mcp_task_runtime.server import Tasks

if __name__ == "__main__":
    from own_broker import provide_redis

    provide_redis()
URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
store = open_store(URL)
dispatcher = DocketDispatcher(URL, name="reports", queues={"report": "slow"})
mcp = MCPServer("reports")
tasks = Tasks(store, dispatcher=dispatcher)
tasks.install(mcp)


@tasks.tool(rerunnable=True)
async def report(topic: str, task: ServerTaskContext) -> str:
    await task.update_status("Collecting sources")
    return f"{topic}, written by process {os.getpid()}"


async def main() -> None:
    command = [sys.executable, "-m", "mcp_task_runtime", "worker", "workers_docket:tasks"]
    async with AsyncExitStack() as stack:
        for _ in range(2):
            worker = await stack.enter_async_context(
                await anyio.open_process(command, cwd=Path(__file__).parent, stdout=None, stderr=None)
            )
            stack.callback(worker.terminate)
        client_of_tasks = TasksClient()
        async with store, dispatcher, Client(mcp, extensions=[client_of_tasks]) as client:
            for topic in ("Tea", "Bees"):
                task = await client_of_tasks.start(client, "report", {"topic": topic})
                assert isinstance(task, ClientTask)
                result = await task.wait()
                print(result.structured_content)
                assert f"process {os.getpid()}" not in str(result.structured_content)


if __name__ == "__main__":
    anyio.run(main)
