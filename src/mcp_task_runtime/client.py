"""`TasksClient` for the SDK line that is installed.

On `mcp` 2.x it is an extension of the SDK's `Client` that serves both protocol revisions; see
`mcp_task_runtime.adapters.mcp_v2_client`.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("mcp") is None:
    raise ImportError("mcp_task_runtime.client needs the MCP SDK: pip install 'mcp-task-runtime[mcp]'")

from mcp_task_runtime.adapters.mcp_v2_client import (
    ClientStatistics,
    ClientTask,
    InvalidTaskResponseError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TasksClient,
    TaskSnapshot,
    UnknownTaskError,
)

__all__ = [
    "ClientStatistics",
    "ClientTask",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskSnapshot",
    "TasksClient",
    "UnknownTaskError",
]
