"""Clients of protocol revision 2025-11-25 on a server with `mcp` 2.x: the same endpoint, the same tools.

Everything stands in middleware: the SDK validates what it knows of this revision, and knows no tasks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import anyio
from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import CONNECTION_CLOSED
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2._requests import Context, RawMessage, RawResult, as_mcp_errors, capabilities
from mcp_task_runtime.adapters.task_methods import (
    JSON_RESPONSES,
    NO_SESSION,
    ConnectionScopes,
    Requestor,
    TaskMethods,
    ToolModes,
    calling,
    http_manager,
    listed_mode,
)
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.errors import INVALID_PARAMS, METHOD_NOT_FOUND, CapabilityError, ProtocolError
from mcp_task_runtime.wire import v2025_11_25 as wire

__all__ = ["LegacyClients"]

logger: logging.Logger = logging.getLogger(__name__)

_PROTOCOL_VERSIONS = frozenset({wire.PROTOCOL_VERSION, "2025-06-18"})
"""The revision with tasks, and the one before: `mcp` 1.23.0 has tasks, and cannot say the later one's name."""

_SESSION_HEADER = "mcp-session-id"


class LegacyClients:
    """Serves the `tasks` capability to the clients that know no other."""

    def __init__(self, runtime: TaskRuntime, host: RuntimeHost, principal: Callable[[Context], str | None]) -> None:
        """Make it for one server; the host must hold the runtime open while it serves."""
        self.modes: ToolModes = ToolModes()
        self._principal = principal
        self._methods = TaskMethods(runtime, host)
        self._scopes = ConnectionScopes()

    async def middleware(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve what such a client asks for; pass on everything else."""
        if ctx.request_id is None or ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            with calling(None):
                return await call_next(ctx)
        if ctx.method == "initialize":
            return await self._initialize(ctx, call_next)
        if not _is_initialized(ctx):
            return await call_next(ctx)
        with as_mcp_errors():
            if ctx.method == "tools/call":
                return await self._call(ctx, call_next)
            if ctx.protocol_version not in _PROTOCOL_VERSIONS:
                return await call_next(ctx)
            requestor = self._requestor(ctx)
            if ctx.method == "tools/list":
                return await self._tools(ctx, call_next)
            if ctx.method == "tasks/get":
                return await self._methods.get(ctx.params, requestor)
            if ctx.method == "tasks/result":
                return await self._methods.result(ctx.params, requestor, _RequestSession(ctx), is_alive=_liveness(ctx))
            if ctx.method == "tasks/list":
                return await self._methods.list(ctx.params, requestor)
            if ctx.method == "tasks/cancel":
                return await self._methods.cancel(ctx.params, requestor)
        return await call_next(ctx)

    async def _initialize(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        result = await _as_object(call_next(ctx))
        if result.get("protocolVersion") in _PROTOCOL_VERSIONS and "tools" in result.get("capabilities", {}):
            can_list = self._principal(ctx) is not None or not _is_stateless(ctx)
            tasks = wire.render_capability(can_list=can_list)
            result["capabilities"] = {**result["capabilities"], "tasks": tasks}
        return result

    async def _tools(self, ctx: Context, call_next: CallNext) -> JSONObject:
        result = await _as_object(call_next(ctx))
        result["tools"] = self.modes.show(result.get("tools", []))
        return result

    async def _mode_of(self, name: str, ctx: Context, call_next: CallNext) -> wire.TaskSupport:
        """Return the mode of a tool: as declared here, or as the server's own list shows it."""
        mode = self.modes.get(name)
        cursor: str | None = None
        while mode is None:
            params = {} if cursor is None else {"cursor": cursor}
            try:
                page = await _as_object(call_next(replace(ctx, method="tools/list", params=params)))
            except MCPError as error:
                if error.code != METHOD_NOT_FOUND:
                    raise
                return "forbidden"
            mode = listed_mode(page.get("tools", []), name)
            cursor = page.get("nextCursor")
            if cursor is None:
                break
        return mode or "forbidden"

    async def _call(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        params = ctx.params or {}
        name = params.get("name")
        if not isinstance(name, str):
            return await call_next(ctx)  # the SDK refuses it
        mode = await self._mode_of(name, ctx, call_next)
        if ctx.protocol_version not in _PROTOCOL_VERSIONS or params.get("task") is None:
            if mode == "required":
                raise wire.task_required(name)
            with calling(None):
                return await call_next(ctx)
        if mode == "forbidden":
            raise wire.task_forbidden(name)

        async def job() -> JSONObject:
            try:
                return await _as_object(call_next(ctx))
            except MCPError as error:
                raise ProtocolError(error.code, error.message, error.data) from error
            except ValidationError as error:
                raise ProtocolError(INVALID_PARAMS, "Invalid request parameters", "") from error

        undeliverable = NO_SESSION if _is_stateless(ctx) else None
        if undeliverable is None and not ctx.session.can_send_request:
            undeliverable = JSON_RESPONSES
        return await self._methods.call(
            params,
            job,
            self._requestor(ctx),
            _ConnectionSession(ctx),
            undeliverable=undeliverable,
            home=id(ctx.lifespan_context),
        )

    def _requestor(self, ctx: Context) -> Requestor:
        principal = self._principal(ctx)
        if principal is not None:
            return Requestor(principal)
        if _is_stateless(ctx):
            return Requestor(None)
        session_id = _header(ctx, _SESSION_HEADER)
        if session_id is not None:
            # The id admits to the session: it is kept nowhere as it is.
            return Requestor(f"session:{hashlib.sha256(session_id.encode()).hexdigest()}")
        # The session is a new object for each request, but these params are the connection's own.
        return Requestor(self._scopes.of(ctx.session.client_params))


def _header(ctx: Context, name: str) -> str | None:
    headers: Mapping[str, str] | None = getattr(ctx.request, "headers", None)
    return None if headers is None else headers.get(name)


def _is_stateless(ctx: Context) -> bool:
    """Whether this request belongs to no connection: over HTTP without sessions."""
    if getattr(ctx.request, "headers", None) is None:
        return False
    if ctx.method != "initialize":
        return ctx.session.client_params is None
    manager = http_manager(ctx.request)
    return bool(manager.stateless) if manager is not None else not ctx.session.can_send_request


def _is_initialized(ctx: Context) -> bool:
    return ctx.session.client_params is not None or _is_stateless(ctx)


def _liveness(ctx: Context) -> Callable[[], Awaitable[bool]] | None:
    """Return what says whether the client still reads this request's stream.

    Over Streamable HTTP a stream may end while the connection lives, and nobody tells the handler.
    """
    if _header(ctx, _SESSION_HEADER) is None:
        return None
    request: Any = ctx.request

    async def is_alive() -> bool:
        return not await request.is_disconnected()

    return is_alive


async def _as_object(result: Awaitable[HandlerResult]) -> JSONObject:
    value = to_json_value(await result)
    return dict(value) if isinstance(value, dict) else {}


class _ConnectionSession:
    """The `TaskSession` of a whole connection: what is sent here belongs to no request."""

    can_send_request = False

    def __init__(self, ctx: Context) -> None:
        self.client_capabilities = capabilities(ctx)
        self._session = ctx.session
        self._request_id = ctx.request_id

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification on the connection's own channel; a client that has left is no error."""
        await self._send(method, params, None)

    async def _send(self, method: str, params: JSONObject, related_request_id: Any) -> None:
        try:
            await self._session.send_notification(cast(Any, RawMessage(method, params)), related_request_id)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            logger.debug("A notification was dropped: the client has left")

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Refuse: such requests would belong to no stream."""
        raise CapabilityError("Requests to the client go over the stream of one of its own")


class _RequestSession(_ConnectionSession):
    """The `TaskSession` of one request: what is sent here goes over its stream."""

    @property
    def can_send_request(self) -> bool:  # type: ignore[override]
        """Whether the stream carries requests."""
        return self._session.can_send_request

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification, unless it belongs to no stream."""
        if method != wire.STATUS_NOTIFICATION:
            await self._send(method, params, self._request_id)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request and return what the client answers."""
        try:
            result: Any = await self._session.send_request(
                cast(Any, RawMessage(method, params)),
                cast(Any, RawResult),
                metadata=ServerMessageMetadata(related_request_id=self._request_id),
            )
        except MCPError as error:
            if error.code == CONNECTION_CLOSED and error.message == "Connection closed":
                raise ConnectionError("The client has left") from error
            raise ProtocolError(error.code, error.message, error.data) from error
        return cast(JSONObject, result)
