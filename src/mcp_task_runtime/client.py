"""`TasksClient` for the SDK line that is installed: `mcp` 2.x or 1.x.

On `mcp` 2.x it is an extension of the SDK's `Client`, see `mcp_task_runtime.adapters.mcp_v2_client`; on 1.x it works
over a `ClientSession`, see `mcp_task_runtime.adapters.mcp_v1_client`. A type checker cannot see which line that is, and
takes it for 2.x: type-checked code for `mcp` 1.x imports from that package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("mcp") is None:
    raise ImportError("mcp_task_runtime.client needs the MCP SDK: pip install 'mcp-task-runtime[mcp]'")
if TYPE_CHECKING or find_spec("mcp_types") is not None:
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
else:
    from mcp_task_runtime.adapters.mcp_v1_client import (
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
