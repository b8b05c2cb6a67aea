"""Tools that run in the workers of procrastinate: a server, a PostgreSQL and two workers with one command.

python examples/workers_procrastinate.py

It starts a PostgreSQL that is installed, or takes the one that `DATABASE_URL` names.
A worker of your own is `mcp-tasks worker examples.workers_procrastinate:tasks`, or with `--tools report` one for the
queue of that tool alone. The jobs of the queues `reports` and `slow` show in procrastinate's own tools.
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
from mcp_task_runtime.engines.procrastinate import ProcrastinateDispatcher
from mcp_task_runtime.server import Tasks

if __name__ == "__main__":
    from own_broker import provide_postgres

    provide_postgres()
URL = os.environ.get("DATABASE_URL", "postgresql://localhost/reports")
store = open_store(URL)
dispatcher = ProcrastinateDispatcher(URL, queue="reports", queues={"report": "slow"})
mcp = MCPServer("reports")
tasks = Tasks(store, dispatcher=dispatcher)
tasks.install(mcp)


@tasks.tool(rerunnable=True)
async def report(topic: str, task: ServerTaskContext) -> str:
    await task.update_status("Collecting sources")
    return f"{topic}, written by process {os.getpid()}"


async def main() -> None:
    async with dispatcher:
        if not await dispatcher.app.check_connection_async():
            await dispatcher.app.schema_manager.apply_schema_async()
    command = [sys.executable, "-m", "mcp_task_runtime", "worker", "workers_procrastinate:tasks"]
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
