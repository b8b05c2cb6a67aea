"""Clients of protocol revision 2025-11-25 on a server with `mcp` 2.x: the same endpoint, the same tools.

Everything stands in middleware: the SDK validates what it knows of this revision, and knows no tasks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver import authenticated_principal
from mcp.shared.exceptions import MCPError
from mcp_types.methods import serialize_server_result

from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters._tool_table import ToolTable
from mcp_task_runtime.adapters._unwinding_call import NoteFailure, UnwindingCall
from mcp_task_runtime.adapters.base_tasks import to_call_result
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2._conversions import Conversions
from mcp_task_runtime.adapters.mcp_v2._promotion import PromotingSession
from mcp_task_runtime.adapters.mcp_v2._requests import (
    ConnectionSession,
    Context,
    RequestSession,
    as_mcp_errors,
    as_shown,
)
from mcp_task_runtime.adapters.requestor import (
    JSON_RESPONSES,
    NO_SESSION,
    UNCHECKED_ANSWERS,
    ConnectionScopes,
    Requestor,
    http_manager,
)
from mcp_task_runtime.adapters.session import DetachedSession
from mcp_task_runtime.adapters.task_methods import TaskMethods
from mcp_task_runtime.core.inbox import Inbox
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import TaskRequest, TaskSpec
from mcp_task_runtime.errors import METHOD_NOT_FOUND
from mcp_task_runtime.wire import v2025_11_25 as wire

__all__ = ["Clients2025"]

logger: logging.Logger = logging.getLogger(__name__)

_PROTOCOL_VERSIONS = frozenset({wire.PROTOCOL_VERSION, "2025-06-18"})
"""The revision with tasks, and the one before: `mcp` 1.23.0 has tasks, and does not know the later one's name."""

_SESSION_HEADER = "mcp-session-id"


class Clients2025:
    """Serves the `tasks` capability to the clients that know no other."""

    def __init__(
        self,
        runtime: TaskRuntime,
        host: RuntimeHost,
        tools: ToolTable,
        principal: Callable[[Context], str | None],
        conversions: Conversions,
        seal: Callable[[TaskSpec, Context], TaskSpec],
        *,
        inbox: float | Inbox | None,
    ) -> None:
        """Make it for one server; the host must hold the runtime open while it serves."""
        self._conversions = conversions
        self._runtime = runtime
        self._tools = tools
        self._principal = principal
        self._seal = seal
        self._methods = TaskMethods(runtime, host, inbox=inbox)
        self._scopes = ConnectionScopes()

    async def middleware(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve the requests of these clients that concern tasks, and pass on the others."""
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
                return await self._list_tools(ctx, call_next)
            if ctx.method == "tasks/get":
                has_connection = not (_is_stateless(ctx) or self._is_unchecked(ctx))
                connect = partial(ConnectionSession, ctx) if has_connection else None
                return await self._methods.get(ctx.params, requestor, connect)
            if ctx.method == "tasks/result":
                stream = DetachedSession if self._is_unchecked(ctx) else partial(RequestSession, ctx)
                return await self._methods.result(ctx.params, requestor, stream, is_alive=_liveness(ctx))
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

    async def _list_tools(self, ctx: Context, call_next: CallNext) -> JSONObject:
        result = await _as_object(call_next(ctx))
        result["tools"] = self._tools.show(result.get("tools", []))
        return result

    async def _support_of(self, name: str, ctx: Context, call_next: CallNext) -> wire.TaskSupport:
        async def list_page(cursor: str | None) -> JSONObject:
            params = {} if cursor is None else {"cursor": cursor}
            try:
                return await _as_object(call_next(replace(ctx, method="tools/list", params=params)))
            except MCPError as error:
                if error.code != METHOD_NOT_FOUND:
                    raise
                return {}

        return await self._tools.support_of(name, list_page)

    async def _call(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        params = ctx.params or {}
        name = params.get("name")
        if not isinstance(name, str) or not isinstance(params.get("arguments"), dict | None):
            with calling(None):
                return await call_next(ctx)  # the SDK refuses it
        support = await self._support_of(name, ctx, call_next)
        if ctx.protocol_version not in _PROTOCOL_VERSIONS or params.get("task") is None:
            if support == "required":
                raise wire.task_required(name)
            with calling(None):
                return await call_next(ctx)
        if support == "forbidden":
            raise wire.task_forbidden(name)

        async def job(call: TaskCall | UnwindingCall) -> JSONObject:
            session: Any = PromotingSession(ctx, call)
            try:
                return await _as_object(call_next(replace(ctx, session=session)))
            except Exception as error:
                raise as_shown(error, 0, str(error)) from error

        undeliverable = NO_SESSION if _is_stateless(ctx) else None
        if undeliverable is None and not ctx.session.can_send_request:
            undeliverable = JSON_RESPONSES
        if undeliverable is None and self._is_unchecked(ctx):
            undeliverable = UNCHECKED_ANSWERS
        return await self._methods.call(
            params,
            job,
            self._requestor(ctx),
            ConnectionSession(ctx),
            undeliverable=undeliverable,
            declared=self._tools.get(name),
            resource_scope=id(ctx.lifespan_context),
            protocol_version=ctx.protocol_version,
            seal=lambda spec: self._seal(spec, ctx),
            convert=None if self._conversions.get(name) is None else partial(self._converted, ctx.protocol_version),
        )

    async def _converted(
        self, version: str, request: TaskRequest, end: Callable[[], Any], note: NoteFailure
    ) -> JSONObject:
        """Return what the SDK makes of the end of a tool's work, as a client of this revision sees it."""
        result = await self._conversions.convert(request, end, note)
        return serialize_server_result("tools/call", version, to_call_result(result))

    def _is_unchecked(self, ctx: Context) -> bool:
        """Whether another principal could post the answer to a question on this connection (law L10).

        Over Streamable HTTP, the SDK takes a response from anyone who knows the session's id, unless the session was
        opened with a credential of its own authentication. A response passes no middleware.
        """
        return (
            _header(ctx, _SESSION_HEADER) is not None
            and self._principal(ctx) is not None
            and authenticated_principal(ctx) is None
        )

    def _requestor(self, ctx: Context) -> Requestor:
        principal = self._principal(ctx)
        if principal is not None:
            return Requestor(principal)
        if _is_stateless(ctx):
            return Requestor(None)
        session_id = _header(ctx, _SESSION_HEADER)
        if session_id is not None:
            # The id gives access to the session: only its digest is kept.
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
    """Return a function that says whether the client still reads this request's stream.

    Over Streamable HTTP a stream may end while the connection lives, and the handler does not learn of it.
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
