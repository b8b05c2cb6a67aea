"""Work that finishes elsewhere: the tool returns, and what knows the task's id ends it.

python examples/detached.py
"""
# ci: run

from __future__ import annotations

import anyio
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.server import Tasks

mcp = MCPServer("orders")
tasks = Tasks()
tasks.install(mcp)
open_orders: dict[str, str] = {}


@tasks.tool(required=True)
async def order(item: str, task: ServerTaskContext) -> str:
    task.detach()
    open_orders[item] = task.task_id
    return ""  # not used: the result comes from outside


async def main() -> None:
    tasks_client = TasksClient()
    async with Client(mcp, extensions=[tasks_client]) as client:
        task = await tasks_client.start(client, "order", {"item": "bread"})
        assert isinstance(task, ClientTask)
        await tasks.complete(open_orders["bread"], "delivered")  # or tasks.fail(id, "sold out")
        assert (await task.wait()).structured_content == {"result": "delivered"}
        print("ended from outside")


if __name__ == "__main__":
    anyio.run(main)
