"""The quickstart: a tool that runs in the background and asks its user, and a client that calls it.

Run it: it starts the server as a child process over stdio, calls the tool and prints the result.
"""
# ci: run

from __future__ import annotations

import sys

import anyio
from mcp import Client, StdioServerParameters
from mcp.client import ClientRequestContext
from mcp.client.stdio import stdio_client
from mcp.server import MCPServer
from mcp_types import ElicitRequestParams, ElicitResult
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.client import TasksClient, TaskSnapshot
from mcp_task_runtime.server import Tasks

mcp = MCPServer("reports")
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


async def show(snapshot: TaskSnapshot) -> None:
    print(f"  {snapshot.status}: {snapshot.status_message or ''}")


async def answer_yes(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    print(f"  the server asks: {params.message}")
    return ElicitResult(action="accept", content={"ok": True})


async def main() -> None:
    server = stdio_client(StdioServerParameters(command=sys.executable, args=[__file__, "serve"]))
    async with Client(server, extensions=[TasksClient(on_update=show)], elicitation_callback=answer_yes) as client:
        print("calling build_report")
        result = await client.call_tool("build_report", {"topic": "Bees"})
        print(f"result: {result.structured_content}")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        mcp.run("stdio")
    else:
        anyio.run(main)
