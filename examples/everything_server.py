"""One tool for each behaviour, over Streamable HTTP at /mcp: a server to try any client with.

python examples/everything_server.py --port 8000
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import Elicit, Resolve
from pydantic import BaseModel

import everything_tools
from everything_tools import OutsideSystem
from mcp_task_runtime import ServerTaskContext, open_store
from mcp_task_runtime.server import Tasks


class UserName(BaseModel):
    name: str


def ask_user_name() -> Elicit[UserName]:
    return Elicit("What is your name?", UserName)


def make_server(store_url: str = "memory://") -> MCPServer:
    """Return a new server with all the tools, which keeps its tasks in this store."""
    mcp = MCPServer("everything")
    tasks = Tasks(open_store(store_url))
    tasks.install(mcp)
    outside = OutsideSystem(tasks.complete)

    mcp.tool()(everything_tools.greet)
    tasks.tool()(everything_tools.slow_compute)
    for function in (
        everything_tools.failing_job,
        everything_tools.protocol_error_job,
        everything_tools.confirm_delete,
        everything_tools.multi_input,
        everything_tools.write_haiku,
    ):
        tasks.tool(required=True)(function)

    @tasks.tool(required=True)
    async def external_job(job_id: str, task: ServerTaskContext) -> str:
        """Hand a job to the outside system, which completes the task by its id."""
        return await everything_tools.external_job(job_id, task, outside)

    @tasks.tool(required=True)
    async def test_tool_with_task(
        user_name: Annotated[UserName, Resolve(ask_user_name)], task: ServerTaskContext
    ) -> str:
        """Ask for a name before the task starts, then work in the background."""
        await task.update_status(f"Working for {user_name.name}")
        return f"Done for {user_name.name}"

    return mcp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", default="memory://", help="URL of the store, as for open_store")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):  # Ctrl-C has stopped the server by then
        make_server(options.store).run("streamable-http", host=options.host, port=options.port)


if __name__ == "__main__":
    main()
