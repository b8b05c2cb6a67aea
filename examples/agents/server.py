"""The server that the agents here call: one tool that runs as a task, and asks its user, on `mcp` 1.x or 2.x."""

from __future__ import annotations

from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks

try:
    from mcp.server import MCPServer as Server  # mcp 2.x
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server  # mcp 1.x

mcp = Server("reports")
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


@tasks.tool()
async def count_words(text: str, task: ServerTaskContext) -> int:
    """Count the words of a text."""
    await task.report_progress(1, 1, "Counted")
    return len(text.split())


if __name__ == "__main__":
    mcp.run("stdio")
