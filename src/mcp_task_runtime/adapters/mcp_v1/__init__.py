"""Tasks for servers on `mcp` 1.x."""

from mcp_task_runtime.adapters.mcp_v1._tasks import Tasks

__all__ = ["Tasks"]
