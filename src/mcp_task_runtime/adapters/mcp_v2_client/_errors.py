"""The errors of `TasksClient` on `mcp` 2.x: each is an `MCPError` as well."""

from __future__ import annotations

from typing import Any

from mcp.shared.exceptions import MCPError

from mcp_task_runtime.adapters.task_client.errors import (
    BaseInvalidTaskResponseError,
    BaseTaskCancelledError,
    BaseTaskError,
    BaseTaskFailedError,
    BaseUnknownTaskError,
    ErrorTypes,
)

__all__ = [
    "ERRORS",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "UnknownTaskError",
]


class TaskError(MCPError, BaseTaskError):
    """A task could not be followed to its result. Raised itself, it is the error of a `tasks/*` request.

    Attributes:
        task_id: The task, which `TasksClient.resume` takes; empty if the server did not name one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, task_id: str = "") -> None:
        super().__init__(code, message, data)
        self.task_id = task_id


class TaskFailedError(TaskError, BaseTaskFailedError):
    """The task ended as `failed`: exactly the error that the call would have had, code, message and data."""


class TaskCancelledError(TaskError, BaseTaskCancelledError):
    """The task ended as `cancelled`, by this client or another one."""


class UnknownTaskError(TaskError, BaseUnknownTaskError):
    """The server has no task with this id: it never had, it has expired, or another user owns it (wire rule A3)."""


class InvalidTaskResponseError(TaskError, BaseInvalidTaskResponseError):
    """The server sent something that the protocol does not allow."""


ERRORS = ErrorTypes(
    error=TaskError,
    failed=TaskFailedError,
    cancelled=TaskCancelledError,
    unknown=UnknownTaskError,
    invalid_response=InvalidTaskResponseError,
)
