"""What every part of the `mcp` 2.x adapter needs: errors, what a request declared, sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, cast

import anyio
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import CONNECTION_CLOSED
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers

from mcp_task_runtime.adapters._tool_calls import ToolCall
from mcp_task_runtime.adapters.notifications import NO_TOKEN, CallNotifier
from mcp_task_runtime.adapters.sdk_session import is_open
from mcp_task_runtime.core.causes import UnexpectedError, sole_cause
from mcp_task_runtime.core.context import client_error
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.store_calls import log_store_error
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CapabilityError,
    ProtocolError,
    StoreError,
    TaskRuntimeError,
)
from mcp_task_runtime.wire import v2026_07_28 as wire

__all__ = [
    "ConnectionSession",
    "Context",
    "KeptRequest",
    "RawMessage",
    "RawResult",
    "RequestSession",
    "as_json",
    "as_kept_caller",
    "as_mcp_errors",
    "as_shown",
    "call_notifier",
    "capabilities",
    "declares_tasks",
    "is_modern",
    "noting_errors",
]

logger: logging.Logger = logging.getLogger(__name__)

Context: TypeAlias = ServerRequestContext[Any, Any]


class as_mcp_errors:  # read as a phrase: with as_mcp_errors()
    """Context manager that turns this library's errors into the SDK's, with the code that belongs to them."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        if isinstance(error, ProtocolError | CapabilityError):
            raise _sendable(error) from error
        if isinstance(error, StoreError):
            log_store_error(logger, "The task store failed", error)
            raise MCPError(INTERNAL_ERROR, "The task store failed") from error
        if isinstance(error, TaskRuntimeError):
            raise MCPError(error.jsonrpc_code, str(error), error.data) from error
        cause = sole_cause(error)  # work that asks in a task group raises groups
        if isinstance(cause, ProtocolError | CapabilityError):
            raise _sendable(cause) from error


def _sendable(error: ProtocolError | CapabilityError) -> MCPError:
    """Return the SDK's error: sending what has no JSON form would end a stdio server (L13)."""
    shown = client_error(error)
    return MCPError(shown["code"], shown["message"], shown.get("data"))


@contextmanager
def noting_errors(call: ToolCall) -> Iterator[None]:
    """Turn this library's errors into the SDK's, and note in the call which one left its work."""
    try:
        with as_mcp_errors():
            yield
    except MCPError as error:
        call.error = ProtocolError(error.code, error.message, error.data)
        raise


def as_shown(error: Exception, code: int, message: str) -> ProtocolError:
    """Return the error that the SDK would show the client where this exception leaves a `tools/call` handler.

    Args:
        error: The exception.
        code: What the SDK makes of any exception that it knows no other code for.
        message: The message of that.
    """
    if isinstance(error, MCPError | ProtocolError):
        return ProtocolError(error.code, error.message, error.data)
    if isinstance(error, ValidationError):
        return ProtocolError(INVALID_PARAMS, "Invalid request parameters", "")
    return UnexpectedError(code, message)


@contextmanager
def as_kept_caller(token: JSONObject | None) -> Iterator[None]:
    """Let `get_access_token()` return a token that was kept with a task, and no other request's."""
    user = None if token is None else AuthenticatedUser(AccessToken.model_validate(token))
    reset = auth_context_var.set(user)
    try:
        yield
    finally:
        auth_context_var.reset(reset)


class KeptRequest:
    """In place of the HTTP request of a call, for work that runs without it: the headers that were kept."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = Headers(headers)


def capabilities(ctx: Context) -> JSONObject:
    """Return what the client declared, as JSON."""
    return as_json(ctx.session.client_capabilities)


def as_json(declared: BaseModel | None) -> JSONObject:
    """Return a model of the SDK as JSON; `{}` for none."""
    value: JSONObject | None = to_json_value(declared)
    return value or {}


def declares_tasks(ctx: Context) -> bool:
    """Whether this very request of a revision that has the extension declared it (C1); see `is_modern`."""
    declared = ctx.session.client_capabilities
    extensions = None if declared is None else declared.extensions
    return extensions is not None and wire.EXTENSION_ID in extensions


def is_modern(ctx: Context) -> bool:
    """Whether a request is of a protocol revision that has the extension."""
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


@contextmanager
def _client_may_leave() -> Iterator[None]:
    try:
        yield
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        logger.debug("A notification was dropped: the client has left")


class ConnectionSession:
    """The `TaskSession` of a whole connection: what is sent here belongs to no request."""

    def __init__(self, ctx: Context) -> None:
        """Make the session of the connection that a request came by."""
        self._capabilities: JSONObject | None = None
        self._session = ctx.session
        self._request_id = ctx.request_id

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared, as JSON."""
        if self._capabilities is None:
            self._capabilities = as_json(self._session.client_capabilities)
        return self._capabilities

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification on the connection's own channel; a client that has left is no error."""
        await self._send(method, params, None)

    async def _send(self, method: str, params: JSONObject, related_request_id: Any) -> None:
        with _client_may_leave():
            await self._session.send_notification(cast(Any, RawMessage(method, params)), related_request_id)

    @property
    def can_send_request(self) -> bool:
        """Whether requests can be sent: on the general stream, if the client has opened it."""
        return True

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request and return what the client answers.

        Raises:
            ConnectionError: The client has left.
            ProtocolError: The client answered with a JSON-RPC error.
        """
        try:
            return await self._request(method, params)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED and not await is_open(partial(self._request, "ping", {})):
                raise ConnectionError("The client has left") from error
            raise ProtocolError(error.code, error.message, error.data) from error

    async def _request(self, method: str, params: JSONObject) -> JSONObject:
        result: Any = await self._session.send_request(
            cast(Any, RawMessage(method, params)), cast(Any, RawResult), metadata=self._metadata
        )
        return cast(JSONObject, result)

    @property
    def _metadata(self) -> ServerMessageMetadata | None:
        return None


class RequestSession(ConnectionSession):
    """The `TaskSession` of one request: what is sent here goes over its stream."""

    @property
    def can_send_request(self) -> bool:
        """Whether the stream carries requests."""
        return self._session.can_send_request

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification on the stream of the request; progress without a token is that of the request."""
        if params.get("progressToken") != NO_TOKEN:
            await self._send(method, params, self._request_id)
            return
        with _client_may_leave():  # in process, the SDK's client has a way for that
            await self._session.report_progress(params["progress"], params.get("total"), params.get("message"))

    @property
    def _metadata(self) -> ServerMessageMetadata | None:
        return ServerMessageMetadata(related_request_id=self._request_id)


def call_notifier(ctx: Context) -> CallNotifier:
    """Return the session of a plain call, by the stream of its request and what that asked for."""
    return CallNotifier(
        RequestSession(ctx),
        None if ctx.meta is None else ctx.meta.get("progress_token"),
        log_levels=wire.log_levels((ctx.params or {}).get("_meta")) if is_modern(ctx) else (),
        may_lack_token=True,
    )


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
