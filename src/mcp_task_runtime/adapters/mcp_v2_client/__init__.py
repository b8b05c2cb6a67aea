"""Tasks for clients on `mcp` 2.x."""

from mcp_task_runtime.adapters.mcp_v2_client._client import (
    DEFAULT_POLL_INTERVAL_MS,
    MAX_FAILED_REQUESTS,
    MAX_LISTEN_STREAMS,
    MAX_POLL_INTERVAL_MS,
    MIN_POLL_INTERVAL_MS,
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
    "DEFAULT_POLL_INTERVAL_MS",
    "MAX_FAILED_REQUESTS",
    "MAX_LISTEN_STREAMS",
    "MAX_POLL_INTERVAL_MS",
    "MIN_POLL_INTERVAL_MS",
    "ClientTask",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskSnapshot",
    "TasksClient",
    "UnknownTaskError",
]
