"""What following a task can raise, and how its errors are read.

Each line of the SDK derives its classes from these and from the SDK's own error, so that `except MCPError`
(`McpError` on 1.x) catches them, and hands them on as `ErrorTypes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NoReturn

import anyio
from pydantic import ValidationError

from mcp_task_runtime.errors import INTERNAL_ERROR, INVALID_REQUEST, TaskRuntimeError

__all__ = [
    "CONNECTION_CLOSED",
    "LOST_CONNECTION",
    "PARSE_ERROR",
    "REQUEST_TIMEOUT",
    "UNANSWERED",
    "BaseInvalidTaskResponseError",
    "BaseTaskCancelledError",
    "BaseTaskError",
    "BaseTaskFailedError",
    "BaseUnknownTaskError",
    "ErrorTypes",
    "MalformedError",
    "is_passing",
    "retry_after_ms",
]

CONNECTION_CLOSED: Final = -32000
REQUEST_TIMEOUT: Final = -32001
PARSE_ERROR: Final = -32700

LOST_CONNECTION: Final = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What a session raises whose connection is closed."""

UNANSWERED: Final = (ValidationError, TimeoutError, *LOST_CONNECTION)
"""What a session raises for a request that got no answer, or one without the form of a result."""

_PASSING_CODES: Final = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT, INTERNAL_ERROR})
"""Errors that may pass: a response was lost or late, or server or gateway are at fault (-32603 is also HTTP 502)."""


class BaseTaskError(TaskRuntimeError):
    """A task could not be followed to its result. Raised itself, it is the error of a `tasks/*` request.

    Attributes:
        task_id: The task, which `TasksClient.resume` takes; empty if the server did not name one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, task_id: str = "") -> None:
        super().__init__(code, message, data)
        self.task_id = task_id

    @property
    def code(self) -> int:
        """The JSON-RPC error code."""
        raise NotImplementedError

    @property
    def message(self) -> str:
        """The error's text."""
        raise NotImplementedError


class BaseTaskFailedError(BaseTaskError):
    """The task ended as `failed`."""


class BaseTaskCancelledError(BaseTaskError):
    """The task ended as `cancelled`."""


class BaseUnknownTaskError(BaseTaskError):
    """The server has no task with this id."""


class BaseInvalidTaskResponseError(BaseTaskError):
    """The server sent something that the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class ErrorTypes:
    """The classes that one line of the SDK raises."""

    error: type[BaseTaskError]
    failed: type[BaseTaskFailedError]
    cancelled: type[BaseTaskCancelledError]
    unknown: type[BaseUnknownTaskError]
    invalid_response: type[BaseInvalidTaskResponseError]

    def invalid(self, problem: str, *, task_id: str = "") -> BaseInvalidTaskResponseError:
        """Return the error for something that a server must not send."""
        return self.invalid_response(PARSE_ERROR, f"Invalid response from the server: {problem}", task_id=task_id)

    def raise_unanswered(self, error: Exception, method: str, *, task_id: str) -> NoReturn:
        """Raise the error for one of `UNANSWERED` that a session raised for a request.

        Args:
            error: What it raised; it becomes the cause, unless it holds values of the server.
            method: The request's method.
            task_id: The task that it is about.

        Raises:
            BaseTaskError: Always.
        """
        if isinstance(error, ValidationError):
            raise self.invalid(f"the result of {method}", task_id=task_id) from None
        if isinstance(error, TimeoutError):
            raise self.error(REQUEST_TIMEOUT, f"{method} timed out", task_id=task_id) from error
        raise self.error(CONNECTION_CLOSED, "Connection closed", task_id=task_id) from error


class MalformedError(ValueError):
    """What a server sent has not the form that the protocol asks for. The text names places, never values."""


def is_passing(error: BaseTaskError) -> bool:
    """Return whether a request that failed with this error may succeed later."""
    return error.code in _PASSING_CODES or retry_after_ms(error) is not None


def retry_after_ms(error: Exception) -> float | None:
    """Return after how many milliseconds a server wants to be asked again; `None` if the error does not say."""
    data = error.data if isinstance(error, BaseTaskError) and error.code == INVALID_REQUEST else None
    wanted = data.get("retryAfterMs") if isinstance(data, dict) else None
    if not isinstance(wanted, int | float) or isinstance(wanted, bool) or not wanted >= 0:
        return None
    return wanted
