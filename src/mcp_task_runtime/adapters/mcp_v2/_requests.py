"""What every part of the `mcp` 2.x adapter needs: errors, what a request declared, sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_task_runtime.core.context import sole_cause
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import INTERNAL_ERROR, CapabilityError, ProtocolError, StoreError, TaskRuntimeError
from mcp_task_runtime.wire import v2026_07_28 as wire

__all__ = [
    "Context",
    "RawMessage",
    "RawResult",
    "RequestClient",
    "TaskClient",
    "as_mcp_errors",
    "capabilities",
    "declares_tasks",
]

logger: logging.Logger = logging.getLogger(__name__)

Context: TypeAlias = ServerRequestContext[Any, Any]


@contextmanager
def as_mcp_errors() -> Iterator[None]:
    """Turn this library's errors into the SDK's, with the code that belongs to them."""
    try:
        yield
    except (ProtocolError, CapabilityError) as error:
        raise MCPError(error.code, error.message, error.data) from error
    except StoreError as error:
        logger.exception("The task store failed")
        raise MCPError(INTERNAL_ERROR, "The task store failed") from error
    except TaskRuntimeError as error:
        raise MCPError(error.jsonrpc_code, str(error), error.data) from error
    except Exception as error:  # work that asks in a task group raises groups
        cause = sole_cause(error)
        if not isinstance(cause, ProtocolError | CapabilityError):
            raise
        raise MCPError(cause.code, cause.message, cause.data) from error


def capabilities(ctx: Context) -> JSONObject:
    """Return what the client declared, as JSON."""
    declared: JSONObject | None = to_json_value(ctx.session.client_capabilities)
    return declared or {}


def declares_tasks(ctx: Context) -> bool:
    """Whether this very request declared the extension; a client of an older revision cannot (C1)."""
    declared = ctx.session.client_capabilities
    extensions = None if declared is None else declared.extensions
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and wire.EXTENSION_ID in (extensions or {})


class TaskClient:
    """The `TaskSession` of a task: its request is over, so the client is reached through the task alone."""

    can_send_request = False

    def __init__(self, record: TaskRecord) -> None:
        self.client_capabilities: JSONObject = record.client_capabilities

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Do nothing: the client sees the status when it polls."""

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Refuse: under this protocol revision a server sends no requests."""
        raise CapabilityError("This connection carries no requests to the client")


class RequestClient:
    """The `TaskSession` of a call that runs within its request, over the SDK's own session."""

    def __init__(self, ctx: Context) -> None:
        self.client_capabilities: JSONObject = capabilities(ctx)
        self._ctx = ctx

    @property
    def can_send_request(self) -> bool:
        """Whether this connection carries requests to the client."""
        return self._ctx.session.can_send_request

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send progress; a client that has no task is told nothing of one."""
        if method == "notifications/progress":
            await self._ctx.session.report_progress(params["progress"], params.get("total"), params.get("message"))

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request on the stream of the call."""
        try:
            result: Any = await self._ctx.session.send_request(
                cast(Any, RawMessage(method, params)),
                cast(Any, RawResult),
                metadata=ServerMessageMetadata(related_request_id=self._ctx.request_id),
            )
        except MCPError as error:
            raise ProtocolError(error.code, error.message, error.data) from error
        return cast(JSONObject, result)


class RawMessage:
    """A message the SDK sends as it is: it asks for no more than these two members."""

    method = "raw"  # not the wire's method: under that name the SDK would validate the result

    def __init__(self, method: str, params: JSONObject) -> None:
        self._message = {"method": method, "params": params}

    def model_dump(self, **_: Any) -> JSONObject:
        """Return the message."""
        return dict(self._message)


class RawResult:
    """A result type that takes any result as it is."""

    @staticmethod
    def model_validate(value: Any, **_: Any) -> Any:
        """Return the value."""
        return value
