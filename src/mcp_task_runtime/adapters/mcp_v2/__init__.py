"""Tasks for servers on `mcp` 2.x."""

from mcp_task_runtime.adapters.mcp_v2._fastmcp import FastMCPServer
from mcp_task_runtime.adapters.mcp_v2._tasks import Tasks

__all__ = ["FastMCPServer", "Tasks"]
