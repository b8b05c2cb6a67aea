"""The errors of `TasksClient` on `mcp` 1.x: each is an `McpError` as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.types import ErrorData

from mcp_task_runtime.adapters.task_client.errors import (
    BaseInvalidTaskResponseError,
    BaseTaskCancelledError,
    BaseTaskError,
    BaseTaskFailedError,
    BaseUnknownTaskError,
    ErrorTypes,
)

MYPY = False  # mypy takes it for true
if TYPE_CHECKING:
    # A type checker that finds `mcp` 2.x, which has no `McpError`, must know a base class; with 1.x the import replaces
    # the class below. mypy keeps the first of two definitions, so it sees the import alone.
    if not MYPY:

        class McpError(Exception): ...

    from mcp.shared.exceptions import *  # noqa: F403  # pyright: ignore[reportAssignmentType, reportWildcardImportFromLibrary]
else:
    from mcp.shared.exceptions import McpError

__all__ = [
    "ERRORS",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "UnknownTaskError",
]


class TaskError(McpError, BaseTaskError):
    """A task could not be followed to its result. Raised itself, it is the error of a `tasks/*` request.

    Attributes:
        code: The JSON-RPC error code.
        message: The error's text.
        data: What the server added, or `None`.
        task_id: The task, which `TasksClient.resume` takes; empty if the server did not name one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, task_id: str = "") -> None:
        Exception.__init__(self, message)
        self.error: ErrorData = ErrorData(code=code, message=message, data=data)
        self.task_id = task_id

    @property
    def code(self) -> int:
        """The JSON-RPC error code."""
        return self.error.code

    @property
    def message(self) -> str:
        """The error's text."""
        return self.error.message

    @property
    def data(self) -> Any:
        """What the server added, or `None`."""
        return self.error.data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.data), {"task_id": self.task_id}


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
