"""Tools that run in the threads of Celery's workers: a server, a Redis and two workers with one command.

python examples/workers_celery.py

It starts a Redis that is installed, or takes the one that `REDIS_URL` names.
A worker of your own is `celery -A examples.workers_celery worker --pool threads -Q reports,slow`. The tasks show in
Celery's own tools, such as Flower, by the id of the task and the number of the run.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from celery import Celery
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, open_store
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.engines.celery import CeleryDispatcher
from mcp_task_runtime.server import Tasks

if __name__ == "__main__":
    from own_broker import provide_redis

    provide_redis()
URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
store = open_store(URL)
app = Celery("reports", broker=URL)
dispatcher = CeleryDispatcher(app, queue="reports", queues={"report": "slow"})
mcp = MCPServer("reports")
tasks = Tasks(store, dispatcher=dispatcher)
tasks.install(mcp)
dispatcher.serve(tasks)


@tasks.tool(rerunnable=True)
async def report(topic: str, task: ServerTaskContext) -> str:
    await task.update_status("Collecting sources")
    return f"{topic}, written by process {os.getpid()}"


async def main() -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers_celery", "worker", "--pool", "threads"]
    async with AsyncExitStack() as stack:
        for number in range(2):
            options = ["-Q", "reports,slow", "-n", f"worker-{number}@%h"]
            worker = await stack.enter_async_context(
                await anyio.open_process([*command, *options], cwd=Path(__file__).parent, stdout=None, stderr=None)
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
