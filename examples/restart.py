"""A task outlives its server: another one, on the same SQLite file, serves its result.

python examples/restart.py
"""
# ci: run

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore


def make_server(store: SQLiteTaskStore) -> MCPServer:
    mcp = MCPServer("reports")
    tasks = Tasks(store)
    tasks.install(mcp)

    @tasks.tool()
    async def build_report(topic: str, task: ServerTaskContext) -> str:
        return f"{topic}: done"

    return mcp


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        tasks_client = TasksClient()
        async with SQLiteTaskStore(path) as store, Client(make_server(store), extensions=[tasks_client]) as client:
            task = await tasks_client.start(client, "build_report", {"topic": "Bees"})
            assert isinstance(task, ClientTask)
            await task.wait()
        # later, after a restart:
        async with SQLiteTaskStore(path) as store, Client(make_server(store), extensions=[tasks_client]) as client:
            result = await tasks_client.resume(client, task.task_id).wait()
            assert result.structured_content == {"result": "Bees: done"}
            print(result.structured_content)


if __name__ == "__main__":
    anyio.run(main)
