"""`Tasks` for the SDK line that is installed: `mcp` 2.x or 1.x.

A type checker cannot see which line that is, and takes it for 2.x: type-checked code for `mcp` 1.x imports
`mcp_task_runtime.adapters.mcp_v1`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("mcp") is None:
    raise ImportError("mcp_task_runtime.server needs the MCP SDK: pip install 'mcp-task-runtime[mcp]'")
if TYPE_CHECKING or find_spec("mcp.server.mcpserver") is not None:
    from mcp_task_runtime.adapters.mcp_v2 import Tasks
else:
    from mcp_task_runtime.adapters.mcp_v1 import Tasks

__all__ = ["Tasks"]
