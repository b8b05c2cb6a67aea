"""Tasks for servers on `mcp` 1.23 to 1.30: the low-level `Server` and `FastMCP`.

Replaces `server.experimental.enable_tasks()`, and uses nothing of `mcp.server.experimental`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, cast

try:
    from mcp import types
    from mcp.server.fastmcp import Context as SDKContext
    from mcp.server.fastmcp import FastMCP
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v1 needs mcp 1.23 to 1.30: pip install 'mcp-task-runtime[mcp]' 'mcp<2'. "
        "A server on mcp 2.x imports mcp_task_runtime.adapters.mcp_v2"
    ) from _error
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.fastmcp.tools import Tool
from mcp.server.lowlevel import Server
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import McpError, UrlElicitationRequiredError
from starlette.requests import Request

from mcp_task_runtime.adapters._ended_request import without_connection
from mcp_task_runtime.adapters._masking import masked_text
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import PlainCall, ToolCall, calling
from mcp_task_runtime.adapters._unwinding_call import EndedCall, NoteFailure, UnwindingCall
from mcp_task_runtime.adapters.base_tasks import BaseTasks, fastmcp_version
from mcp_task_runtime.adapters.credentials import CallerCredentials
from mcp_task_runtime.adapters.mcp_v1._connection import Connection, has_list, is_about_lost_connection, serving
from mcp_task_runtime.adapters.mcp_v1._conversions import Conversions
from mcp_task_runtime.adapters.mcp_v1._promotion import call_in_own_loop, context_by_name, within_call, within_task
from mcp_task_runtime.adapters.mcp_v1._requests import (
    ConnectionSession,
    Context,
    RequestSession,
    SharedSession,
    as_caller,
    as_kept_caller,
    as_mcp_errors,
    as_shown,
    authenticated_principal,
    declared_by,
    is_stateless,
    liveness,
    params_of,
    progress_token,
    protocol_version,
    raw_result,
    shared_session,
    token_of,
    undeliverable,
)
from mcp_task_runtime.adapters.mcp_v1._schemas import ToolHandler
from mcp_task_runtime.adapters.notifications import CallNotifier
from mcp_task_runtime.adapters.requestor import ConnectionScopes, Requestor
from mcp_task_runtime.adapters.task_methods import TaskMethods
from mcp_task_runtime.adapters.tool_function import ToolFunction
from mcp_task_runtime.core.causes import sole_cause
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.types import Outcome, TaskRequest
from mcp_task_runtime.errors import TaskRuntimeError
from mcp_task_runtime.wire import v2025_11_25 as wire

__all__ = ["Tasks"]

logger: logging.Logger = logging.getLogger(__name__)

_Handler: TypeAlias = Callable[[Any], Awaitable[types.ServerResult]]


_BECAME_TASK: Final = types.ErrorData(code=types.INTERNAL_ERROR, message="The call has become a task")


class _WayOut(UrlElicitationRequiredError):
    """Leaves a call that has become a task: the SDK's tool layer passes this error.

    `mcp` 1.23 makes a result of it, which goes to no client.
    """

    def __init__(self) -> None:
        Exception.__init__(self, _BECAME_TASK.message)  # one for each call: no model of the error is made
        self.error = _BECAME_TASK


class _UnwindingCall(UnwindingCall):
    """An `UnwindingCall` whose way out is an error of the SDK."""

    __slots__ = ()

    raises_as_is = True

    def _way_out(self) -> Exception:
        return _WayOut()


class Tasks(BaseTasks[Any]):  # a type checker with mcp 2.x does not know the class of its context
    """Background tasks for one server on `mcp` 1.x.

        mcp = FastMCP("reports")
        tasks = Tasks()
        tasks.install(mcp)

    Then make tools that run as tasks with `tool`, or `task` under `mcp.tool()`; in the `call_tool` handler
    of a low-level server use `run`, and show in its `list_tools` which tools run as tasks, with
    `execution=ToolExecution(taskSupport=...)`.

    The first connection opens the runtime, and no connection's end closes it: on this SDK line a lifespan
    belongs to one connection. It closes with the event loop; `async with tasks:` around the server's run
    opens it at the start, so that a store which cannot be reached is noticed there, closes it earlier, and gives
    running work its grace period. `FastMCP.streamable_http_app` does all that itself. Work must not use what a
    connection's lifespan made: the work may outlive it.

    Without sessions (`stateless_http=True`, `Server.run(stateless=True)`) a task belongs to its principal; without
    one its id is its secret, and it is not listed.
    """

    _deliberate_errors = (ToolError, McpError)
    _sdk_context = SDKContext
    _authenticated_principal = staticmethod(authenticated_principal)

    def _set_up(self) -> None:
        self._methods = TaskMethods(self.runtime, self._host, inbox=self._inbox, unwinding=_UnwindingCall)
        self._convert = self._converted  # bound once: each task keeps it
        self._scopes = ConnectionScopes()
        self._own_tools: set[str] = set()
        """Tools whose work is all that the SDK calls: nothing of the author's comes after it."""
        self._mcp: FastMCP[Any] | None = None
        self._conversions: Conversions | None = None
        self._server: Server[Any, Any] | None = None
        self._manager: object = None
        self._states_of_worker: list[Any] = []
        self._call_tool: ToolHandler | None = None
        self._list_tools: _Handler | None = None

    # -- wiring

    def install(self, server: FastMCP[Any] | Server[Any, Any], *, tools: Iterable[str] | Literal["all"] = ()) -> None:
        """Add tasks to a server.

        A low-level server must have its `list_tools` and `call_tool` handlers already. For a `FastMCP` this
        reaches for the low-level server inside it, through the one private name this library needs
        there.

        Args:
            server: The server.
            tools: Tools that exist and are to run as tasks, by their names, or `"all"`; see `adopt`.

        Raises:
            RuntimeError: This object is installed already, the server has no tools, or has other tasks.
            TypeError: The server is neither a `FastMCP` of the SDK nor a low-level one.
        """
        if self._server is not None:
            raise RuntimeError("These Tasks are installed already; make one Tasks for each server")
        low_level = _low_level(server)
        handlers = low_level.request_handlers
        if types.CallToolRequest not in handlers or types.ListToolsRequest not in handlers:
            raise RuntimeError("install() needs a server that has its list_tools and call_tool handlers already")
        if types.GetTaskRequest in handlers:
            raise RuntimeError("The server has tasks already")
        self._adopt_all(tools)
        self._mcp = server if isinstance(server, FastMCP) else None
        self._server = low_level
        call_tool = handlers[types.CallToolRequest]
        if self._mcp is not None:
            self._conversions = Conversions(self._mcp, low_level, call_tool)
        self._call_tool = ToolHandler(low_level, call_tool)
        self._list_tools = handlers[types.ListToolsRequest]
        handlers[types.CallToolRequest] = self._serve_call
        handlers[types.ListToolsRequest] = self._serve_tools
        handlers[types.GetTaskRequest] = self._serve_get
        handlers[types.GetTaskPayloadRequest] = self._serve_result
        handlers[types.ListTasksRequest] = self._serve_list
        handlers[types.CancelTaskRequest] = self._serve_cancel
        # Public methods, replaced on this instance: this SDK line has no other hook for these.
        setattr(low_level, "get_capabilities", functools.partial(_get_capabilities, low_level.get_capabilities))  # noqa: B010
        setattr(low_level, "run", functools.partial(self._run_connection, low_level.run))  # noqa: B010
        if self._mcp is not None:
            setattr(self._mcp, "streamable_http_app", functools.partial(self._http_app, self._mcp.streamable_http_app))  # noqa: B010

    # -- what the SDK calls

    async def _serve_call(self, request: types.CallToolRequest) -> types.ServerResult:
        with as_mcp_errors():
            await self._host.keep_open()
            ctx = self._context()
            name = request.params.name
            support = await self._tools.support_of(name, self._list_page)
            if request.params.task is None:
                if support == "required":
                    raise wire.task_required(name)
                call = self._plain_call(name, ctx)
                with serving(), as_caller(ctx), calling(call):
                    return await self._call(request, call)
            if support == "forbidden":
                raise wire.task_forbidden(name)

            connection = shared_session(ctx, self._host.start_soon)
            kept = replace(ctx, request=await without_connection(ctx.request, Request))
            created = await self._methods.call(
                params_of(request.params),
                functools.partial(self._job, request),
                self._requestor(ctx),
                connection,
                undeliverable=undeliverable(ctx),
                declared=self._tools.get(name),
                protocol_version=protocol_version(ctx),
                seal=None if self._credentials is None else functools.partial(self._sealed, ctx=ctx),
                convert=self._convert if name in self._own_tools else None,
                around=functools.partial(within_call, kept, connection),
                declared_json=connection.declared_json,
                tell_soon=connection.tell_soon,
            )
            return raw_result(created)

    async def _job(self, request: types.CallToolRequest, call: TaskCall | UnwindingCall) -> JSONObject:
        """Return the result of a call that becomes a task, as JSON."""
        running = self._call(request, call)
        del request  # a task may wait for days
        try:
            with as_mcp_errors():
                result = await running
        except _WayOut:
            return {}
        except Exception as error:
            raise as_shown(error) from error
        if isinstance(call, UnwindingCall) and call.has_begun:
            return {}  # what the SDK makes of the way out
        return cast(JSONObject, result.model_dump(by_alias=True, mode="json", exclude_none=True))

    async def _converted(self, request: TaskRequest, end: Callable[[], Any], note: NoteFailure) -> JSONObject:
        """Return what the SDK makes of the end of a tool's work.

        Where a conversion is not enough, the SDK calls the tool once more, with the end of its work (`EndedCall`).
        """
        assert self._conversions is not None
        name = request.name
        if not self._is_masked(name):
            converted = self._conversions.convert(name, end)
            if converted is not None:
                return converted
        repeated = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=request.arguments))
        call = EndedCall(self.runtime, name, end, note)
        try:
            with as_mcp_errors(), calling(call):
                result = await self._call(repeated, call)
        except Exception as error:
            raise as_shown(error) from error
        return cast(JSONObject, result.model_dump(by_alias=True, mode="json", exclude_none=True))

    async def _call(self, request: types.CallToolRequest, call: ToolCall) -> types.ServerResult:
        """Run the server's own handler, inside `calling`; let pass what it makes of errors that left a task's work."""
        assert self._call_tool is not None
        running: Awaitable[types.ServerResult]
        if self._blocks(call.name):
            running = call_in_own_loop(self._context(), functools.partial(self._call_tool, request))
        else:
            running = self._call_tool(request)
        del request  # a task may wait for days
        result = await running
        if isinstance(call, UnwindingCall) and call.has_begun:
            return result
        if call.error is not None and _tells_of(result, call.error):
            raise call.error
        return self._masked(call, result) if self._is_masked(call.name) else result

    def _masked(self, call: ToolCall, result: types.ServerResult) -> types.ServerResult:
        root = result.root
        if not isinstance(root, types.CallToolResult) or not root.isError or len(root.content) != 1:
            return result
        (block,) = root.content
        if not isinstance(block, types.TextContent) or root.structuredContent is not None:
            return result
        text = masked_text(block.text, call, is_high_level=self._mcp is not None)
        if text is None:
            return result
        return types.ServerResult(
            types.CallToolResult(content=[types.TextContent(type="text", text=text)], isError=True)
        )

    def _plain_call(self, name: str, ctx: Context) -> PlainCall:
        return PlainCall(
            self.runtime,
            name,
            connect=lambda: CallNotifier(RequestSession(ctx, self._may_answer(ctx)), progress_token(ctx)),
            undeliverable=functools.partial(undeliverable, ctx),
            refusal=functools.partial(wire.task_required, name),
        )

    async def _serve_tools(self, request: types.ListToolsRequest | None) -> types.ServerResult:
        result, is_all = await self._list(request)
        page = cast(types.ListToolsResult, result.root)
        if is_all:
            self._tools.warn_of_missing(tool.name for tool in page.tools)
        for tool in page.tools:
            own = None if tool.execution is None else tool.execution.taskSupport
            self._tools.note_listed(tool.name, own)
            support = self._tools.shown_support(tool.name, own)
            if support is not None:
                tool.execution = types.ToolExecution(taskSupport=support)
        return result

    async def _list(self, request: types.ListToolsRequest | None) -> tuple[types.ServerResult, bool]:
        """Return a page of the server's tools, and whether they are all; note what the SDK notes of them."""
        assert self._list_tools is not None
        assert self._call_tool is not None
        result = await self._list_tools(request)
        page = cast(types.ListToolsResult, result.root)
        cursor = None if request is None or request.params is None else request.params.cursor
        is_all = cursor is None and page.nextCursor is None
        self._call_tool.note_listed(page.tools, is_all=is_all)
        return result, is_all

    async def _list_page(self, cursor: str | None) -> JSONObject:
        """Return what a page of the server's list says of modes."""
        if self._mcp is not None:  # it knows no modes, and one page has all its tools
            return {}
        request = types.ListToolsRequest(params=None if cursor is None else types.PaginatedRequestParams(cursor=cursor))
        page = cast(types.ListToolsResult, (await self._list(request))[0].root)
        modes = ((tool.name, None if tool.execution is None else tool.execution.taskSupport) for tool in page.tools)
        return {
            "tools": [{"name": name, "execution": {"taskSupport": mode}} for name, mode in modes],
            "nextCursor": page.nextCursor,
        }

    async def _serve_get(self, request: types.GetTaskRequest) -> types.ServerResult:
        with as_mcp_errors():
            await self._host.keep_open()
            ctx = self._context()
            connect = None if is_stateless(ctx) else lambda: ConnectionSession(ctx, self._may_answer(ctx))
            return raw_result(await self._methods.get({"taskId": request.params.taskId}, self._requestor(ctx), connect))

    async def _serve_result(self, request: types.GetTaskPayloadRequest) -> types.ServerResult:
        with as_mcp_errors():
            await self._host.keep_open()
            ctx = self._context()
            with serving():
                result = await self._methods.result(
                    {"taskId": request.params.taskId},
                    self._requestor(ctx),
                    lambda: RequestSession(ctx, self._may_answer(ctx)),
                    is_alive=liveness(ctx),
                )
            return raw_result(result)

    async def _serve_list(self, request: types.ListTasksRequest) -> types.ServerResult:
        with as_mcp_errors():
            await self._host.keep_open()
            if not has_list():
                raise wire.list_not_offered()
            return raw_result(await self._methods.list(to_json_value(request.params), self._requestor(self._context())))

    async def _serve_cancel(self, request: types.CancelTaskRequest) -> types.ServerResult:
        with as_mcp_errors():
            await self._host.keep_open()
            return raw_result(
                await self._methods.cancel({"taskId": request.params.taskId}, self._requestor(self._context()))
            )

    def _http_app(self, make_app: Callable[[], Any]) -> Any:
        """Return the application of `FastMCP.streamable_http_app`; its sessions hold the runtime open."""
        app = make_app()
        assert self._mcp is not None
        manager = self._mcp.session_manager
        if self._manager is not manager:
            self._manager = manager
            setattr(manager, "run", functools.partial(self._run_manager, manager.run))  # noqa: B010
        return app

    @asynccontextmanager
    async def _run_manager(self, run: Callable[[], AbstractAsyncContextManager[None]]) -> AsyncIterator[None]:
        """Run the sessions of an HTTP server: one whose store cannot be reached fails here, before it serves."""
        async with self._host, run():
            yield

    async def _run_connection(
        self,
        run: Callable[..., Awaitable[None]],
        read_stream: Any,
        write_stream: Any,
        initialization_options: InitializationOptions,
        raise_exceptions: bool = False,
        stateless: bool = False,
    ) -> None:
        """Run one connection, as `Server.run` does; called by the SDK."""
        await self._host.keep_open()
        # Without sessions, only their principals tell requestors apart (wire rule B1).
        has_principals = auth_context_var.get() is not None or self._principal is not authenticated_principal
        has_list = has_principals or not stateless
        capabilities = _with_tasks(initialization_options.capabilities, can_list=has_list)  # made before `install`, too
        initialization_options = initialization_options.model_copy(update={"capabilities": capabilities})
        connection = Connection(read_stream, is_stateless=stateless, has_list=has_list)
        try:
            with connection.current():
                await run(connection, write_stream, initialization_options, raise_exceptions, stateless)
        except BaseException as error:
            if not (connection.is_over and is_about_lost_connection(error)):
                raise
            logger.debug("A client left while it was answered", exc_info=True)
        finally:
            if isinstance(connection.shared, SharedSession):
                connection.shared.news.close()

    # -- what differs from other SDK lines

    @asynccontextmanager
    async def _lifespan_of_worker(self) -> AsyncIterator[None]:
        if self._server is None:
            raise RuntimeError("A worker needs Tasks that are installed in a server with install()")
        async with self._server.lifespan(self._server) as state:
            self._states_of_worker.append(state)
            try:
                async with self._host:
                    yield
            finally:
                self._states_of_worker.remove(state)

    @asynccontextmanager
    async def _state_by_name(self) -> AsyncIterator[Any]:
        """Run a tool by its name with the state of a lifespan: the worker's, or one of its own, as a connection has."""
        if self._states_of_worker:
            yield self._states_of_worker[-1]
            return
        assert self._server is not None
        async with self._server.lifespan(self._server) as state:
            yield state

    def _require_high_level(self) -> None:
        if self._mcp is None:
            raise RuntimeError(
                "tool() needs install(mcp) with a FastMCP of the SDK; otherwise write @mcp.tool() above @tasks.task()"
            )

    def _add_tool(self, tool: ToolFunction, body: Callable[..., Any], **sdk_options: Any) -> None:
        assert self._mcp is not None
        assert self._conversions is not None
        self._mcp.add_tool(body, **sdk_options)
        self._own_tools.add(sdk_options["name"] or body.__name__)
        self._conversions.add(
            Tool.from_function(body, name=sdk_options["name"], structured_output=sdk_options.get("structured_output"))
        )

    def _raising(self, call: ToolCall) -> AbstractContextManager[None]:
        return _noting_errors(call)

    def _credentials_of(self, ctx: Context) -> tuple[JSONObject | None, Mapping[str, str] | None]:
        return token_of(ctx), getattr(ctx.request, "headers", None)

    async def _invoke(self, call: TaskCall, arguments: JSONObject, credentials: CallerCredentials) -> Outcome:
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=call.name, arguments=arguments))
        try:
            async with self._state_by_name() as state:
                ctx = await context_by_name(call, state, credentials.headers)
                declared = functools.partial(declared_by, ctx.session)
                with as_mcp_errors(), as_kept_caller(credentials.token), within_task(ctx, call, declared):
                    result = await self._call(request, call)
        except Exception as error:
            raise as_shown(error) from error
        return Outcome.completed(result.root)

    def _context(self) -> Context:
        assert self._server is not None
        return self._server.request_context

    def _may_answer(self, ctx: Context) -> Callable[[object], bool] | None:
        """Return what checks that a response is posted by the principal of this request (law L10)."""
        principal = self._principal(ctx)
        if principal is None:
            return None
        return lambda request: self._principal(replace(ctx, request=cast(Any, request))) == principal

    def _requestor(self, ctx: Context) -> Requestor:
        principal = self._principal(ctx)
        if principal is not None:
            return Requestor(principal)
        if is_stateless(ctx):
            return Requestor(None)
        return Requestor(self._scopes.of(ctx.session))


def _low_level(server: object) -> Server[Any, Any]:
    """Return the low-level server inside one.

    Raises:
        TypeError: It has none.
    """
    if isinstance(server, FastMCP):
        # Nothing public leads there.
        low_level: Server[Any, Any] = server._mcp_server  # pyright: ignore[reportPrivateUsage]
        return low_level
    if isinstance(server, Server):
        return server
    release = fastmcp_version(server)
    if release is not None:
        raise TypeError(
            f"fastmcp.FastMCP of fastmcp {release} is another class than the SDK's FastMCP, and cannot run tools as "
            "these tasks: upgrade to fastmcp 4, or use mcp.server.fastmcp.FastMCP"
        )
    raise TypeError(
        "install() takes a FastMCP or a low-level Server of mcp 1.x; this is "
        f"{type(server).__module__}.{type(server).__qualname__}"
    )


@contextmanager
def _noting_errors(call: ToolCall) -> Generator[None, None, None]:
    """Note the error of this library that leaves a block: the SDK's tool layer makes a result of any exception."""
    try:
        yield
    except Exception as error:
        cause = sole_cause(error)  # work that asks in a task group raises groups
        if not isinstance(cause, TaskRuntimeError):
            raise
        call.error = cause
        if cause is error:
            raise
        raise cause from error


def _tells_of(result: types.ServerResult, error: TaskRuntimeError) -> bool:
    """Whether a result is what the SDK makes of an exception with this error's text."""
    root = result.root
    if not isinstance(root, types.CallToolResult) or not root.isError or len(root.content) != 1:
        return False
    content = root.content[0]
    return isinstance(content, types.TextContent) and content.text.endswith(str(error))


def _get_capabilities(
    original: Callable[..., types.ServerCapabilities], *args: Any, **kwargs: Any
) -> types.ServerCapabilities:
    """Return the server's capabilities, with tasks; `_run_connection` removes listing where it is not offered."""
    return _with_tasks(original(*args, **kwargs), can_list=True)


def _with_tasks(capabilities: types.ServerCapabilities, *, can_list: bool) -> types.ServerCapabilities:
    """Return capabilities with tasks (wire rule B1)."""
    tasks = types.ServerTasksCapability.model_validate(wire.render_capability(can_list=can_list))
    return capabilities.model_copy(update={"tasks": tasks})
