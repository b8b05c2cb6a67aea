"""The everything server on mcp 1.x, over Streamable HTTP at /mcp: a server to try any 2025-11-25 client with.

python examples/everything_server_v1.py --port 8000
"""

from __future__ import annotations

import argparse

from mcp.server.fastmcp import FastMCP

import everything_tools
from everything_tools import Name, OutsideSystem
from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks


def make_server(*, host: str = "127.0.0.1", port: int = 8000) -> FastMCP:
    """Return a new server with all the tools."""
    mcp = FastMCP("everything", host=host, port=port)
    tasks = Tasks()
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
    async def test_tool_with_task(task: ServerTaskContext) -> str:
        """Ask for a name, then work in the background."""
        answer = await task.elicit("What is your name?", Name)  # this revision asks within the task
        user_name = answer.data.name if answer.action == "accept" else "nobody"
        await task.update_status(f"Working for {user_name}")
        return f"Done for {user_name}"

    return mcp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    make_server(host=options.host, port=options.port).run("streamable-http")


if __name__ == "__main__":
    main()
