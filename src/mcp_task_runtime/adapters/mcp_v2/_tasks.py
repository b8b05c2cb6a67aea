"""Tasks for servers on `mcp` 2.x: `MCPServer` and the low-level `Server`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final, Literal

try:
    from mcp.server.context import CallNext, HandlerResult
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v2 needs mcp 2.x: pip install 'mcp-task-runtime[mcp]' 'mcp>=2'. "
        "A server on mcp 1.x imports mcp_task_runtime.adapters.mcp_v1"
    ) from _error
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.extension import Extension, MethodBinding, RequestHandler, compose_tool_call_handler
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import lifespan as sdk_default_lifespan
from mcp.server.mcpserver import Context as SDKContext
from mcp.server.mcpserver import MCPServer, RequestStateBoundary, Resolve, authenticated_principal
from mcp.server.mcpserver import exceptions as sdk_exceptions
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolRequestParams, CallToolResult, ListToolsResult, TextContent

from mcp_task_runtime.adapters._masking import masked_text
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import PlainCall, ToolCall, calling, current_call
from mcp_task_runtime.adapters.base_tasks import BaseTasks, fastmcp_version
from mcp_task_runtime.adapters.credentials import CallerCredentials
from mcp_task_runtime.adapters.mcp_v2._clients_2025 import Clients2025
from mcp_task_runtime.adapters.mcp_v2._conversions import Conversions
from mcp_task_runtime.adapters.mcp_v2._fastmcp import FastMCPServer, call_fastmcp
from mcp_task_runtime.adapters.mcp_v2._input_rounds import InputRounds
from mcp_task_runtime.adapters.mcp_v2._listen import Listeners, is_listen
from mcp_task_runtime.adapters.mcp_v2._methods_2026 import Methods2026, outcome_of_result
from mcp_task_runtime.adapters.mcp_v2._promotion import call_in_own_loop, context_by_name
from mcp_task_runtime.adapters.mcp_v2._requests import (
    Context,
    as_kept_caller,
    as_shown,
    call_notifier,
    declares_tasks,
    is_modern,
    noting_errors,
)
from mcp_task_runtime.adapters.tool_function import ToolFunction
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.errors import TaskRuntimeError
from mcp_task_runtime.wire import v2025_11_25 as wire_2025
from mcp_task_runtime.wire import v2026_07_28 as wire_2026

__all__ = ["FastMCPServer", "Tasks"]

logger: logging.Logger = logging.getLogger(__name__)

_SDK_MASKS: Final = hasattr(sdk_exceptions, "UnexpectedToolError")
"""Whether the high-level server shows clients no text of an unexpected exception, as it does since `mcp` 2.1."""

_NO_BACK_CHANNEL: Final = "The client cannot be asked: its connection carries no requests"
_NOT_OPEN: Final = (
    "The client cannot be asked: these Tasks are not open. Pass lifespan=tasks.lifespan() to the server, or use install"
)
_NOTHING_DECLARED: Final = (
    "The client cannot be asked: it declared neither elicitation, sampling, roots nor the tasks extension"
)


class Tasks(BaseTasks[Context], Extension):
    """Background tasks for one server on `mcp` 2.x.

    Install it in a server that exists (`install`), or hand it to a new one, with public API alone:

        tasks = Tasks()
        mcp = MCPServer(
            "reports", extensions=[tasks], middleware=[tasks.middleware], lifespan=tasks.lifespan()
        )

    Then make tools that run as tasks with `tool`, or `task` under `mcp.tool()`; in the handler of a
    low-level server use `run`. The runtime is open while a lifespan of the server is. Where lifespans
    come and go with clients (in process, SSE), `async with tasks:` around it all keeps tasks
    running in between.

    A client of protocol 2026-07-28 that has not declared the extension gets the result itself, as of any call. Where
    the work asks it something, it is asked by multi-round-trip input, with nothing to write for that; work whose client
    does not return ends after `TaskSettings.input_ttl_ms`. Several processes that share a store take each other's
    rounds where `install` was used; by constructor they need one key, as the SDK's own `Resolve` does:
    `request_state_security=RequestStateSecurity(keys=[...])`.
    """

    identifier: ClassVar[str] = wire_2026.EXTENSION_ID  # type: ignore[misc]  # the base declares it without ClassVar

    _deliberate_errors = (ToolError, MCPError, ResourceError)
    _sdk_context = SDKContext
    _authenticated_principal = staticmethod(authenticated_principal)
    _sdk_dependency = Resolve

    def _set_up(self) -> None:
        self._conversions = Conversions(self.runtime)
        self._methods_2026 = Methods2026(
            self.runtime, self._handler, self._tools, self._principal, self._sealed, self._conversions
        )
        self._input_rounds = InputRounds(
            self.runtime, self._host, self._handler, self._tools, self._methods_2026, self._principal
        )
        self._clients_2025 = Clients2025(
            self.runtime, self._host, self._tools, self._principal, self._conversions, self._sealed, inbox=self._inbox
        )
        self._listeners = Listeners(self.runtime, self._host)
        self._homes: Counter[int] = Counter()
        self._states: dict[int, Any] = {}
        """What open lifespans have made, by home."""
        self._call_tool: RequestHandler | None = None
        self._mcp: MCPServer[Any] | None = None
        self._server: Server[Any] | None = None
        self._is_fastmcp = False
        self._installed = False
        self._has_middleware: bool | None = None  # until the first tool call tells

    # -- wiring

    def install(
        self, server: MCPServer[Any] | Server[Any] | FastMCPServer, *, tools: Iterable[str] | Literal["all"] = ()
    ) -> None:
        """Add tasks to a server that exists.

        A low-level server must have its `tools/call` handler already. For an `MCPServer` this reaches
        for the low-level server inside it, the one private name this library uses of `mcp` 2.x;
        the constructor arguments named above do without. For a `FastMCP` of the package `fastmcp` 4 it reaches for
        the low-level server inside that.

        Args:
            server: The server: an `MCPServer`, a low-level `Server`, or a `FastMCP` of `fastmcp` 4.
            tools: Tools that exist and are to run as tasks, by their names, or `"all"`; see `adopt`.

        Raises:
            RuntimeError: This object is installed already, or the server has the extension or lacks the handler.
            TypeError: The server is none of these.
        """
        if self._installed:
            raise RuntimeError("These Tasks are installed already; make one Tasks for each server")
        low_level = _low_level(server)
        if self.identifier in low_level.extensions:
            raise RuntimeError(f"The server has the extension {self.identifier!r} already")
        entry = low_level.get_request_handler("tools/call")
        if entry is None:
            raise RuntimeError("install() needs a server that has its tools/call handler already")
        self._mcp = server if isinstance(server, MCPServer) else None
        self._server = low_level
        self._is_fastmcp = fastmcp_version(server) is not None
        self._call_tool = entry.handler
        self._adopt_all(tools)
        for binding in self.methods():
            low_level.add_request_handler(binding.method, binding.params_type, binding.handler)
        low_level.add_request_handler(
            "tools/call", CallToolRequestParams, compose_tool_call_handler([self], entry.handler)
        )
        low_level.extensions[self.identifier] = self.settings()
        low_level.middleware.append(self.middleware)
        boundaries = [isinstance(each, RequestStateBoundary) for each in low_level.middleware]
        if True in boundaries:
            low_level.middleware.insert(boundaries.index(True), self._input_rounds.carry_state)
        low_level.lifespan = self.lifespan(low_level.lifespan)

    def lifespan(
        self, lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None
    ) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
        """Return a lifespan for the server that holds the runtime open.

        Work that was started under it ends before the wrapped lifespan closes what it opened.

        Args:
            lifespan: The server's own lifespan, to wrap.

        Raises:
            TypeError: It is handed to the server instead of called: `lifespan=tasks.lifespan()`.
        """
        if isinstance(lifespan, MCPServer | Server):
            raise TypeError("Use lifespan=tasks.lifespan() instead of lifespan=tasks.lifespan")

        @asynccontextmanager
        async def holding(server: Any) -> AsyncIterator[Any]:
            if lifespan is None or lifespan is sdk_default_lifespan:  # nothing is closed that work may use
                async with self._host:
                    yield {}
                return
            async with lifespan(server) as state, self._host:
                home = id(state)
                self._homes[home] += 1
                self._states[home] = state
                try:
                    yield state
                finally:
                    self._homes[home] -= 1
                    if not self._homes[home]:
                        del self._homes[home], self._states[home]
                        await self.runtime.drain(resource_scope=home)

        return holding

    # -- what the SDK calls

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods of the extension; called by `MCPServer`."""
        self._installed = True
        return self._methods_2026.bindings()

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Run a tool call so that it can become a task, if its client takes one; called by the SDK."""
        if self._has_middleware is None:  # every request would have passed it before it came here
            self._has_middleware = False
            logger.warning(
                "middleware=[tasks.middleware] is missing among the arguments of the server: "
                "its tasks are not pushed, and clients of protocol 2025-11-25 have none"
            )
        call_next = self._around(params.name, call_next)
        if self._is_fastmcp:
            call_next = partial(self._call_fastmcp, call_next)
        if is_modern(ctx):
            state = self._input_rounds.state_of(params)
            if state is not None:
                return await self._input_rounds.retry(state, params, ctx)
            if declares_tasks(ctx):
                return await self._call_of_tasks_client(params, ctx, call_next)
            if self._input_rounds.takes(ctx):
                return await self._input_rounds.call(params, ctx, call_next)
        elif self._has_middleware and current_call(self.runtime) is not None:
            return await call_next(ctx)  # a task of a client of 2025-11-25
        return await self._call_plainly(params.name, ctx, call_next)

    async def _call_of_tasks_client(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Serve a call whose client takes tasks; a tool that becomes none needs no run of its own."""
        if self._tools.is_plain(params.name):
            return await self._call_plainly(params.name, ctx, call_next, partial(_undeclared, params.name))
        result = await self._methods_2026.call(params, ctx, call_next)
        if isinstance(result, CallToolResult) and not result.is_error and self._is_high_level:
            self._tools.note_success(params.name)
        return result

    async def _call_plainly(
        self, name: str, ctx: Context, call_next: CallNext, refusal: Callable[[], TaskRuntimeError] | None = None
    ) -> HandlerResult:
        if refusal is None:
            undeliverable = partial(self._undeliverable, ctx)
            refusal = wire_2026.missing_capability if is_modern(ctx) else partial(wire_2025.task_required, name)
        else:
            undeliverable = partial(_refused, ctx, refusal)
        connect = partial(call_notifier, ctx)
        call = PlainCall(self.runtime, name, connect=connect, undeliverable=undeliverable, refusal=refusal)
        with calling(call):
            return await call_next(ctx)

    @property
    def _is_high_level(self) -> bool:
        return self._mcp is not None or self._server is None  # without `install`, it is an `MCPServer`

    async def middleware(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve what no handler of an extension can; called by the SDK.

        That is push for tasks (wire rule C11), and clients of protocol revision 2025-11-25.
        """
        self._has_middleware = True
        if ctx.method == "tools/list":
            call_next = partial(self._list_tools, call_next)
        if ctx.request_id is None or is_modern(ctx):
            if ctx.method == "tools/call":  # a call is noted where it is served
                return await call_next(ctx)
            if is_listen(ctx):
                return await self._listeners.serve(self._principal(ctx), ctx, call_next)
            # No other request is part of a call: a tool may make it in this process.
            if current_call(self.runtime) is None:
                return await call_next(ctx)
            with calling(None):
                return await call_next(ctx)
        return await self._clients_2025.middleware(ctx, call_next)

    async def _list_tools(self, call_next: CallNext, ctx: Context) -> HandlerResult:
        """List the tools; warn of those that were declared and are not there."""
        result = await call_next(ctx)
        names = _whole_list(result)
        if names is not None and "cursor" not in (ctx.params or {}):
            self._tools.warn_of_missing(names)
        return result

    def _around(self, name: str, call_next: CallNext) -> CallNext:
        """Return the handler of a tool with what an adopted one needs around it, which knows nothing of tasks."""
        declared = self._tools.get(name)
        if declared is None or not declared.is_adopted:
            return call_next
        if declared.blocks:
            call_next = partial(call_in_own_loop, call_next)
        return partial(self._call_masked, call_next) if self._mask_errors else call_next

    async def _call_masked(self, call_next: CallNext, ctx: Context) -> HandlerResult:
        call = current_call(self.runtime)
        assert call is not None
        with self._masking(call):
            result = await call_next(ctx)
        if _SDK_MASKS or self._mcp is None or not isinstance(result, CallToolResult) or not result.is_error:
            return result
        (block,) = result.content if len(result.content) == 1 else (None,)
        text = masked_text(block.text, call, is_high_level=True) if isinstance(block, TextContent) else None
        return result if text is None else CallToolResult(content=[TextContent(text=text)], is_error=True)

    async def _call_fastmcp(self, call_next: CallNext, ctx: Context) -> HandlerResult:
        call = current_call(self.runtime)
        assert call is not None
        return await call_fastmcp(call, ctx, call_next)

    def _undeliverable(self, ctx: Context) -> str | None:
        if ctx.session.can_send_request:
            return None
        if not is_modern(ctx):
            return _NO_BACK_CHANNEL
        return _NOTHING_DECLARED if self.runtime.is_open else _NOT_OPEN

    # -- what differs from other SDK lines

    def _lifespan_of_worker(self) -> AbstractAsyncContextManager[Any]:
        if self._server is None:
            raise RuntimeError("A worker needs Tasks that are installed in a server with install()")
        return self._server.lifespan(self._server)

    def _require_high_level(self) -> None:
        if self._mcp is None:
            raise RuntimeError(
                "tool() needs install(mcp) with an MCPServer; otherwise write @mcp.tool() above @tasks.task()"
            )

    def _add_tool(self, tool: ToolFunction, body: Callable[..., Any], **sdk_options: Any) -> None:
        assert self._mcp is not None
        self._mcp.add_tool(body, **sdk_options)
        if not tool.takes(Resolve):  # what a dependency asks before the work makes the call a task
            self._conversions.add(
                Tool.from_function(
                    body, name=sdk_options["name"], structured_output=sdk_options.get("structured_output")
                )
            )

    def _raising(self, call: ToolCall) -> AbstractContextManager[None]:
        return noting_errors(call)

    def _credentials_of(self, ctx: Context) -> tuple[JSONObject | None, Mapping[str, str] | None]:
        token = get_access_token()
        return None if token is None else to_json_value(token), getattr(ctx.request, "headers", None)

    async def _invoke(self, call: TaskCall, arguments: JSONObject, credentials: CallerCredentials) -> Outcome:
        handler = self._call_tool
        if handler is None:
            raise RuntimeError("Work runs by its tool's name only in a server that these Tasks are installed in")
        params = CallToolRequestParams(name=call.name, arguments=arguments)
        state: Any = next(reversed(self._states.values()), {})
        ctx = await context_by_name(call, arguments, state, credentials.headers)

        async def call_handler(ctx: Context) -> HandlerResult:
            return await handler(ctx, params)

        call_next = self._around(call.name, call_handler)
        try:
            with as_kept_caller(credentials.token):
                if self._conversions.get(call.name) is not None:
                    unwinding, ended = await self._methods_2026.unwound(call.name, ctx, call_next)
                    if unwinding.has_begun:
                        ended = await call.perform(unwinding, self._conversions.convert)
                    return outcome_of_result(ended)
                result = await (call_fastmcp(call, ctx, call_next) if self._is_fastmcp else call_next(ctx))
        except Exception as error:
            raise as_shown(error, INTERNAL_ERROR, "Internal server error") from error
        return outcome_of_result(result)


def _refused(ctx: Context, refusal: Callable[[], TaskRuntimeError]) -> str | None:
    return None if ctx.session.can_send_request else str(refusal())


def _undeclared(name: str) -> TaskRuntimeError:
    return TaskRuntimeError(
        f"This call of {name!r} is no task: the tool was not declared, and has succeeded without Tasks.run() before. "
        "Its next calls become tasks; declare a tool that calls Tasks.run() in some of its calls alone"
    )


def _whole_list(result: HandlerResult) -> list[str] | None:
    """Return the names of the tools that a result of `tools/list` has; `None` if there is another page."""
    if isinstance(result, ListToolsResult):
        return None if result.next_cursor is not None else [tool.name for tool in result.tools]
    if isinstance(result, dict) and result.get("nextCursor") is None:  # a middleware's
        return [tool["name"] for tool in result.get("tools", ())]
    return None


def _low_level(server: object) -> Server[Any]:
    """Return the low-level server inside one; each name that it has there is private, and nothing public leads there.

    Raises:
        TypeError: It has none.
    """
    if isinstance(server, MCPServer):
        return server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
    if isinstance(server, Server):
        return server
    inner = getattr(server, "_mcp_server", None) if fastmcp_version(server) is not None else None
    if isinstance(inner, Server):
        return inner
    raise TypeError(
        "install() takes an MCPServer or a low-level Server of mcp 2.x, or a FastMCP of the package fastmcp 4; this is "
        f"{type(server).__module__}.{type(server).__qualname__}"
    )
