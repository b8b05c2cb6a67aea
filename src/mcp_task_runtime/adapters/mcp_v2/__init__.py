"""Tasks for servers on `mcp` 2.x."""

from mcp_task_runtime.adapters.mcp_v2._tasks import FastMCPServer, Tasks

__all__ = ["FastMCPServer", "Tasks"]
