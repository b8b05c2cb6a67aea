"""Tasks for clients on `mcp` 2.x; `mcp_task_runtime.client` exports the same for the installed line."""

try:
    import mcp_types as _mcp_types  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v2_client needs mcp 2.x: pip install 'mcp-task-runtime[mcp]' 'mcp>=2'"
    ) from _error

from mcp_task_runtime.adapters.mcp_v2_client._client import TasksClient
from mcp_task_runtime.adapters.mcp_v2_client._client_task import ClientTask
from mcp_task_runtime.adapters.mcp_v2_client._errors import (
    InvalidTaskResponseError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    UnknownTaskError,
)
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.adapters.task_client.statistics import ClientStatistics

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
