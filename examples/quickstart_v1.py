"""The quickstart on mcp 1.x: a tool that runs in the background and asks its user, and a client that calls it.

Run it: it starts the server as a child process over stdio, calls the tool and prints the result.
"""
# ci: run mcp1

from __future__ import annotations

import sys
import warnings
from typing import Any

import anyio
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.server.fastmcp import FastMCP
from mcp.shared.context import RequestContext
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks

mcp = FastMCP("reports", log_level="WARNING")
tasks = Tasks()
tasks.install(mcp)


class Publish(BaseModel):
    ok: bool


@tasks.tool()
async def build_report(topic: str, task: ServerTaskContext) -> str:
    """Build a report about a topic."""
    await task.update_status("Collecting sources")
    answer = await task.elicit("Publish it?", Publish)
    return f"{topic}: published" if answer.action == "accept" and answer.data.ok else f"{topic}: draft kept"


class Progress:
    """Shows each status of the task, and knows when the last one has come."""

    def __init__(self) -> None:
        self.ended = anyio.Event()

    async def show(self, message: Any) -> None:
        if isinstance(message, types.ServerNotification) and isinstance(message.root, types.TaskStatusNotification):
            status = message.root.params.status
            print(f"  {status}: {message.root.params.statusMessage or ''}")
            if status == "completed":
                self.ended.set()


async def answer_yes(
    context: RequestContext[ClientSession, Any], params: types.ElicitRequestParams
) -> types.ElicitResult:
    print(f"  the server asks: {params.message}")
    return types.ElicitResult(action="accept", content={"ok": True})


async def main() -> None:
    warnings.simplefilter("ignore")  # the SDK's own client for tasks is called deprecated from mcp 1.28
    server = StdioServerParameters(command=sys.executable, args=[__file__, "serve"])
    progress = Progress()
    async with (
        stdio_client(server) as (read, write),
        ClientSession(read, write, elicitation_callback=answer_yes, message_handler=progress.show) as client,
    ):
        await client.initialize()
        print("calling build_report")
        created = await client.experimental.call_tool_as_task("build_report", {"topic": "Bees"})
        result = await client.experimental.get_task_result(created.task.taskId, types.CallToolResult)
        print(f"result: {result.structuredContent}")
        await progress.ended.wait()  # the SDK's stdio client fails when a message comes while its session closes


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        mcp.run("stdio")
    else:
        anyio.run(main)
