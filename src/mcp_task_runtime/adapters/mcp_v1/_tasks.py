"""Tasks for servers on `mcp` 1.23 to 1.30: the low-level `Server` and `FastMCP`.

Replaces `server.experimental.enable_tasks()`, and uses nothing of `mcp.server.experimental`.
"""

from __future__ import annotations

import functools
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast

import anyio

try:
    from mcp import types
    from mcp.server.fastmcp import FastMCP
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v1 needs mcp 1.23 to 1.30: pip install 'mcp-task-runtime[mcp]' 'mcp<2'. "
        "A server on mcp 2.x imports mcp_task_runtime.adapters.mcp_v2"
    ) from _error
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.lowlevel import Server
from mcp.server.models import InitializationOptions
from mcp.shared.context import RequestContext
from mcp.shared.exceptions import McpError
from mcp.shared.message import ServerMessageMetadata
from typing_extensions import Self

from mcp_task_runtime.adapters.base_tasks import BaseTasks, TaskOptions
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.task_methods import (
    JSON_RESPONSES,
    NO_SESSION,
    ConnectionScopes,
    Requestor,
    TaskMethods,
    ToolModes,
    augmented_call,
    calling,
    http_manager,
    listed_mode,
    run_within_request,
)
from mcp_task_runtime.adapters.tool_function import ToolFunction
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject, JSONValue, to_json_value
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    CapabilityError,
    ProtocolError,
    StoreError,
    TaskRuntimeError,
)
from mcp_task_runtime.wire import v2025_11_25 as wire

__all__ = ["Tasks"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_Context: TypeAlias = RequestContext[Any, Any, Any]
_Handler: TypeAlias = Callable[[Any], Awaitable[types.ServerResult]]

_PAUSE_SECONDS = 1.0
"""How long a connection may take to settle before something goes on without that."""

_ID_BITS = 48
"""Request ids start at a random number of so many bits: JSON readers everywhere hold it exactly."""


class Tasks(BaseTasks):
    """Background tasks for one server on `mcp` 1.x.

        mcp = FastMCP("reports")
        tasks = Tasks()
        tasks.install(mcp)

    Then make tools that run as tasks with `tool`, or `task` under `mcp.tool()`; in the `call_tool` handler
    of a low-level server use `run`, and show in its `list_tools` which tools run as tasks, with
    `execution=ToolExecution(taskSupport=...)`.

    The first connection opens the runtime, and no connection's end closes it: on this SDK line a lifespan
    belongs to one connection. It closes with the event loop; `async with tasks:` around the server's run
    closes it earlier, and gives running work its grace period. Work must not use what a connection's
    lifespan made: the work may outlive it.
    """

    def __init__(
        self,
        store: TaskStore | None = None,
        queue: TaskMessageQueue | None = None,
        *,
        settings: TaskSettings | None = None,
        principal: Callable[[_Context], str | None] | None = None,
    ) -> None:
        """Make the tasks of one server.

        Args:
            store: Where tasks are kept; in memory when `None`. It stays yours to close.
            queue: Where questions are kept; the store's own when `None`.
            settings: Limits and defaults.
            principal: Who makes a request: its tasks belong to that principal, and nobody else sees them
                (law L10). `None` from it means that nobody can tell; then they belong to the session. The
                SDK's authentication says who when this argument is `None`.

        Raises:
            ValueError: `queue` is `None` and the store brings none.
        """
        super().__init__(store, queue, settings)
        self._principal = principal
        self._methods = TaskMethods(self.runtime, self._host)
        self._modes = ToolModes()
        self._scopes = ConnectionScopes()
        self._mcp: FastMCP[Any] | None = None
        self._server: Server[Any, Any] | None = None
        self._call_tool: _Handler | None = None
        self._list_tools: _Handler | None = None

    # -- wiring

    def install(self, server: FastMCP[Any] | Server[Any, Any]) -> None:
        """Add tasks to a server.

        A low-level server must have its `list_tools` and `call_tool` handlers already. For a `FastMCP` this
        reaches for the low-level server inside it, through the one private name this library needs
        there.

        Raises:
            RuntimeError: This object is installed already, the server has no tools, or has other tasks.
        """
        if self._server is not None:
            raise RuntimeError("These Tasks are installed already; make one Tasks for each server")
        low_level: Server[Any, Any] = server._mcp_server if isinstance(server, FastMCP) else server
        handlers = low_level.request_handlers
        if types.CallToolRequest not in handlers or types.ListToolsRequest not in handlers:
            raise RuntimeError("install() needs a server that has its list_tools and call_tool handlers already")
        if types.GetTaskRequest in handlers:
            raise RuntimeError("The server has tasks already")
        self._mcp = server if isinstance(server, FastMCP) else None
        self._server = low_level
        self._call_tool = handlers[types.CallToolRequest]
        self._list_tools = handlers[types.ListToolsRequest]
        handlers[types.CallToolRequest] = self._serve_call
        handlers[types.ListToolsRequest] = self._serve_tools
        handlers[types.GetTaskRequest] = self._serve_get
        handlers[types.GetTaskPayloadRequest] = self._serve_result
        handlers[types.ListTasksRequest] = self._serve_list
        handlers[types.CancelTaskRequest] = self._serve_cancel
        # Public methods, replaced on this instance: no other seam of this SDK line tells us of these.
        setattr(low_level, "get_capabilities", functools.partial(_get_capabilities, low_level.get_capabilities))  # noqa: B010
        setattr(low_level, "run", functools.partial(self._run_connection, low_level.run))  # noqa: B010

    # -- tools

    def tool(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: types.ToolAnnotations | None = None,
        icons: list[types.Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        required: bool = False,
        ttl_ms: int | None = None,
        poll_interval_ms: int | None = None,
        model_immediate_response: str | None = None,
        rerunnable: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Make a tool of the installed `FastMCP` that runs as a task.

        Args:
            name: As for `FastMCP.tool`.
            title: As for `FastMCP.tool`.
            description: As for `FastMCP.tool`.
            annotations: As for `FastMCP.tool`.
            icons: As for `FastMCP.tool`.
            meta: As for `FastMCP.tool`; `mcp` 1.23 has it not everywhere.
            structured_output: As for `FastMCP.tool`.
            required: As for `task`.
            ttl_ms: As for `task`.
            poll_interval_ms: As for `task`.
            model_immediate_response: As for `task`.
            rerunnable: Whether the work may run again, with the same arguments, when the process that ran
                it is lost; any process of the same server that shares the store does it. What it asks in
                the same words as before then gets the answer it got before. If not, the task fails.

        Raises:
            RuntimeError: These Tasks are not installed in a `FastMCP`.
        """
        if callable(name):
            raise TypeError("Use @tasks.tool() instead of @tasks.tool")
        mcp = self._mcp
        if mcp is None:
            raise RuntimeError("tool() needs install(mcp); without it write @mcp.tool() above @tasks.task()")

        options = TaskOptions(required, ttl_ms, poll_interval_ms, None, model_immediate_response, rerunnable)

        def register(function: FunctionT) -> FunctionT:
            tool_name = name or function.__name__
            body = self._task_body(function, tool_name, options)
            if rerunnable:
                self.runtime.rerun_with(tool_name, functools.partial(self._rerun, tool_name))
            more = {} if meta is None else {"meta": meta}
            mcp.add_tool(
                body,
                name=name,
                title=title,
                description=description,
                annotations=annotations,
                icons=icons,
                structured_output=structured_output,
                **cast(Any, more),
            )
            return function

        return register

    def task(
        self,
        *,
        name: str | None = None,
        required: bool = False,
        ttl_ms: int | None = None,
        poll_interval_ms: int | None = None,
        model_immediate_response: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator, to stand under `mcp.tool()`, for functions that run as tasks.

        A parameter annotated with `ServerTaskContext` gets the task's context and shows in no schema.
        Async and plain functions work; a plain one runs in a thread, where `anyio.from_thread.run` calls
        the context's methods, and `is_cancelled` says when to stop. Its task ends at once when it is
        cancelled, but Python cannot stop a thread, and a process waits for its threads when it exits.

        Args:
            name: The tool's name, where `mcp.tool()` gives it another than the function's.
            required: Whether it must be called as a task. If not, a plain call gets the result itself, and
                the work runs within its request.
            ttl_ms: TTL in milliseconds of tasks whose client asks for none; the settings' default when
                `None`.
            poll_interval_ms: Milliseconds clients wait between polls; the settings' default when `None`.
            model_immediate_response: What to tell the client's model while the task runs.

        Raises:
            ValueError: A number is out of range; the message names it.
        """
        options = TaskOptions(required, ttl_ms, poll_interval_ms, None, model_immediate_response)
        return lambda function: self._task_body(function, name or function.__name__, options)

    def _task_body(self, function: Callable[..., Any], name: str, options: TaskOptions) -> Callable[..., Any]:
        tool = ToolFunction(function)
        self._modes.declare(name, required=options.required)

        async def body(**arguments: Any) -> Any:
            return await self._run(functools.partial(tool.call, arguments), options)

        return tool.disguise(body)

    async def run(
        self,
        work: Callable[[ServerTaskContext], Awaitable[T]],
        *,
        required: bool = False,
        ttl_ms: int | None = None,
        poll_interval_ms: int | None = None,
        model_immediate_response: str | None = None,
    ) -> T:
        """Run work as a task, from inside a tool call.

        Returns what the work returns, for the handler to return; the caller's client has its task handle
        long before. Options that come later than a moment after the call are too late for its handle.

        Args:
            work: What to run; it gets the task's context.
            required: As for `task`.
            ttl_ms: As for `task`.
            poll_interval_ms: As for `task`.
            model_immediate_response: As for `task`.

        Raises:
            RuntimeError: This is no tool call of the server these Tasks are installed in.
            ValueError: A number is out of range; the message names it.
            Exception: What the work raised. A `ProtocolError` or `CapabilityError` that leaves the handler
                ends the call with exactly that error; of any other exception the client reads only that
                there was one, except for a `ToolError`.
        """
        return await self._run(work, TaskOptions(required, ttl_ms, poll_interval_ms, None, model_immediate_response))

    async def _run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        running = _running_call.get()
        if running is None or running.tasks is not self:
            raise RuntimeError("run() works in a tool call of the server that these Tasks are installed in")
        try:
            if running.rerun is not None:
                return await work(self._rerun_context(running.rerun))
            call = augmented_call(self.runtime)
            if call is not None:
                return await call.run(work, options)
            if options.required:
                raise wire.task_required(running.name)
            ctx = self._context()
            return await run_within_request(
                work, _RequestSession(ctx), undeliverable=_undeliverable(ctx), progress_token=_progress_token(ctx)
            )
        except (ProtocolError, CapabilityError, TaskRuntimeError) as error:
            running.error = error
            raise
        except ToolError:
            raise
        except Exception as error:
            logger.exception("The work of a task raised an exception")
            raise ToolError("internal error") from error

    # -- what the SDK calls

    async def _serve_call(self, request: types.CallToolRequest) -> types.ServerResult:
        with _as_mcp_errors():
            await self._host.keep_open()
            ctx = self._context()
            name = request.params.name
            mode = await self._mode_of(name)
            if request.params.task is None:
                if mode == "required":
                    raise wire.task_required(name)
                with _serving(), calling(None), _as_caller(ctx):
                    return await self._call(request)
            if mode == "forbidden":
                raise wire.task_forbidden(name)

            async def job() -> JSONObject:
                with _as_caller(ctx):
                    result = await self._call(request)
                return cast(JSONObject, result.model_dump(by_alias=True, mode="json", exclude_none=True))

            created = await self._methods.call(
                request.params.model_dump(by_alias=True, mode="json", exclude_none=True),
                job,
                self._requestor(ctx),
                _ConnectionSession(ctx),
                undeliverable=_undeliverable(ctx),
            )
            return _raw_result(created)

    async def _call(self, request: types.CallToolRequest, rerun: Execution[Any] | None = None) -> types.ServerResult:
        """Run the server's own handler; let pass what it makes of protocol errors that left a task's work."""
        assert self._call_tool is not None
        running = _Running(self, request.params.name, rerun)
        token = _running_call.set(running)
        try:
            result = await self._call_tool(request)
        finally:
            _running_call.reset(token)
        if running.error is not None and _tells_of(result, running.error):
            raise running.error
        return result

    async def _serve_tools(self, request: types.ListToolsRequest | None) -> types.ServerResult:
        assert self._list_tools is not None
        result = await self._list_tools(request)
        for tool in cast(types.ListToolsResult, result.root).tools:
            mode = self._modes.get(tool.name)
            if mode is not None:
                tool.execution = types.ToolExecution(taskSupport=mode)
        return result

    async def _mode_of(self, name: str) -> wire.TaskSupport:
        """Return the mode of a tool: as declared here, or as the server's own list shows it."""
        mode = self._modes.get(name)
        if mode is not None or self._mcp is not None:
            return mode or "forbidden"
        assert self._list_tools is not None
        cursor: str | None = None
        while True:
            request = types.ListToolsRequest(
                params=None if cursor is None else types.PaginatedRequestParams(cursor=cursor)
            )
            page = cast(types.ListToolsResult, (await self._list_tools(request)).root)
            mode = listed_mode([to_json_value(tool) for tool in page.tools], name)
            cursor = page.nextCursor
            if mode is not None or cursor is None:
                return mode or "forbidden"

    async def _serve_get(self, request: types.GetTaskRequest) -> types.ServerResult:
        with _as_mcp_errors():
            await self._host.keep_open()
            return _raw_result(await self._methods.get(to_json_value(request.params), self._requestor(self._context())))

    async def _serve_result(self, request: types.GetTaskPayloadRequest) -> types.ServerResult:
        with _as_mcp_errors(), _serving():
            await self._host.keep_open()
            ctx = self._context()
            result = await self._methods.result(
                to_json_value(request.params), self._requestor(ctx), _RequestSession(ctx), is_alive=_liveness(ctx)
            )
            return _raw_result(result)

    async def _serve_list(self, request: types.ListTasksRequest) -> types.ServerResult:
        with _as_mcp_errors():
            await self._host.keep_open()
            return _raw_result(
                await self._methods.list(to_json_value(request.params), self._requestor(self._context()))
            )

    async def _serve_cancel(self, request: types.CancelTaskRequest) -> types.ServerResult:
        with _as_mcp_errors():
            await self._host.keep_open()
            return _raw_result(
                await self._methods.cancel(to_json_value(request.params), self._requestor(self._context()))
            )

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
        user = auth_context_var.get()
        tasks = initialization_options.capabilities.tasks
        if stateless and user is None and tasks is not None and tasks.list is not None:  # B1
            capabilities = initialization_options.capabilities.model_copy(
                update={"tasks": tasks.model_copy(update={"list": None})}
            )
            initialization_options = initialization_options.model_copy(update={"capabilities": capabilities})
        connection = _Connection(read_stream)
        token = _connection.set(connection)
        try:
            await run(connection, write_stream, initialization_options, raise_exceptions, stateless)
        except BaseException as error:
            if not (connection.is_over and _is_about_lost_connection(error)):
                raise
            logger.debug("A client left while it was answered", exc_info=True)
        finally:
            _connection.reset(token)

    # -- who asks, and how to reach them

    def _context(self) -> _Context:
        assert self._server is not None
        return self._server.request_context

    def _requestor(self, ctx: _Context) -> Requestor:
        principal = _authenticated_principal(ctx) if self._principal is None else self._principal(ctx)
        if principal is not None:
            return Requestor(principal)
        if _is_stateless(ctx):
            return Requestor(None)
        return Requestor(self._scopes.of(ctx.session))

    async def _rerun(self, name: str, execution: Execution[Outcome]) -> Outcome:
        """Run the work of a tool again whose process was lost (law L12)."""
        record = execution.record
        assert record is not None
        params = types.CallToolRequestParams(name=name, arguments=record.request.arguments)
        with calling(None):
            result = await self._call(types.CallToolRequest(params=params), execution)
        return Outcome.completed(result.root)

    def _rerun_context(self, execution: Execution[Any]) -> ServerTaskContext:
        record = execution.record
        assert record is not None
        return ServerTaskContext(
            task=record.task,
            store=self.runtime.store,
            session=_NoSession(record.client_capabilities),
            queue=self.runtime.queue,
            handler=TaskResultHandler(self.runtime.store, self.runtime.queue, settings=self.runtime.settings),
            execution=execution,
            attempt=1 if record.lease is None else record.lease.attempt,
        )


class _Running:
    """The tool call that runs in this context, and the protocol error that left a task's work in it."""

    __slots__ = ("error", "name", "rerun", "tasks")

    def __init__(self, tasks: Tasks, name: str, rerun: Execution[Any] | None) -> None:
        self.tasks = tasks
        self.name = name
        self.rerun = rerun
        self.error: TaskRuntimeError | None = None


_running_call: ContextVar[_Running | None] = ContextVar("mcp_task_runtime_running_call", default=None)


def _tells_of(result: types.ServerResult, error: TaskRuntimeError) -> bool:
    """Whether a result is what the SDK makes of an exception with this error's text."""
    root = result.root
    if not isinstance(root, types.CallToolResult) or not root.isError or len(root.content) != 1:
        return False
    content = root.content[0]
    return isinstance(content, types.TextContent) and content.text.endswith(str(error))


@contextmanager
def _as_mcp_errors() -> Generator[None, None, None]:
    """Turn this library's errors into the SDK's, with the code that belongs to them."""
    try:
        yield
    except (ProtocolError, CapabilityError) as error:
        raise _mcp_error(error.code, error.message, error.data) from error
    except StoreError as error:
        logger.exception("The task store failed")
        raise _mcp_error(INTERNAL_ERROR, "The task store failed") from error
    except TaskRuntimeError as error:
        raise _mcp_error(error.jsonrpc_code, str(error), error.data) from error


def _mcp_error(code: int, message: str, data: JSONValue = None) -> McpError:
    return McpError(types.ErrorData(code=code, message=message, data=data))


def _get_capabilities(
    original: Callable[..., types.ServerCapabilities], *args: Any, **kwargs: Any
) -> types.ServerCapabilities:
    """Return what the server has, with tasks (wire rule B1); `Server.run` takes listing away again."""
    capabilities = original(*args, **kwargs)
    capabilities.tasks = types.ServerTasksCapability.model_validate(wire.render_capability(can_list=True))
    return capabilities


# Connections


class _Connection:
    """A connection's incoming messages. Its end ends the requests that still wait.

    `mcp` before 1.27 lets them wait for ever, and stumbles over requests to the client that are open then.
    """

    def __init__(self, stream: Any) -> None:
        self.is_over = False
        self.requests: set[anyio.CancelScope] = set()
        self.idle = anyio.Event()
        self._stream = stream
        self._pauses = 0
        self._between = anyio.Event()
        self._resumed = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._between.set()
        try:
            message = await self._stream.__anext__()
            while self._pauses:
                await self._resumed.wait()
        except BaseException:
            await self._end()
            raise
        self._between = anyio.Event()
        return message

    @asynccontextmanager
    async def pause(self) -> AsyncGenerator[None, None]:
        """Run a block while the SDK handles no incoming message."""
        self._pauses += 1
        try:
            with anyio.move_on_after(_PAUSE_SECONDS, shield=True):
                await self._between.wait()
            yield
        finally:
            self._pauses -= 1
            self._resumed.set()
            self._resumed = anyio.Event()

    async def _end(self) -> None:
        self.is_over = True
        for scope in self.requests:
            scope.cancel()
        if self.requests:
            with anyio.move_on_after(_PAUSE_SECONDS, shield=True):
                await self.idle.wait()


_connection: ContextVar[_Connection | None] = ContextVar("mcp_task_runtime_connection", default=None)


@contextmanager
def _serving() -> Generator[None, None, None]:
    """Run a block that ends when its connection ends, however long it would wait."""
    connection = _connection.get()
    if connection is None:
        yield
        return
    scope = anyio.CancelScope()
    connection.requests.add(scope)
    try:
        with scope:
            yield
    finally:
        connection.requests.discard(scope)
        if connection.is_over and not connection.requests:
            connection.idle.set()
    if scope.cancelled_caught:
        raise _mcp_error(types.CONNECTION_CLOSED, "Connection closed")


def _is_about_lost_connection(error: BaseException) -> bool:
    inner = getattr(error, "exceptions", None)
    if isinstance(inner, tuple):
        return all(_is_about_lost_connection(each) for each in inner)
    return isinstance(error, anyio.ClosedResourceError | anyio.BrokenResourceError)


# Requests


def _user(ctx: _Context) -> AuthenticatedUser | None:
    """Return who makes this very request; context variables are those of the connection's first one."""
    scope = getattr(ctx.request, "scope", None)
    user = scope.get("user") if isinstance(scope, Mapping) else auth_context_var.get()
    return user if isinstance(user, AuthenticatedUser) else None


def _authenticated_principal(ctx: _Context) -> str | None:
    """Return the text that the adapter for `mcp` 2.x has for this principal, too."""
    user = _user(ctx)
    if user is None:
        return None
    token = user.access_token
    issuer = (getattr(token, "claims", None) or {}).get("iss")
    principal = [token.client_id, None if issuer is None else str(issuer), getattr(token, "subject", None)]
    return json.dumps(principal, separators=(",", ":"))


@contextmanager
def _as_caller(ctx: _Context) -> Generator[None, None, None]:
    """Let `get_access_token()` tell of this request's caller, also in background work."""
    token = auth_context_var.set(_user(ctx))
    try:
        yield
    finally:
        auth_context_var.reset(token)


def _is_stateless(ctx: _Context) -> bool:
    return ctx.session.client_params is None


def _progress_token(ctx: _Context) -> str | int | None:
    return None if ctx.meta is None else ctx.meta.progressToken


def _undeliverable(ctx: _Context) -> str | None:
    """Return why no question can reach this client, if that is so."""
    if _is_stateless(ctx):
        return NO_SESSION
    manager = http_manager(ctx.request)
    return JSON_RESPONSES if manager is not None and manager.json_response else None


def _liveness(ctx: _Context) -> Callable[[], Awaitable[bool]] | None:
    """Return what says whether the client still reads this request's stream.

    Over Streamable HTTP a stream may end while the connection lives, and nobody tells the handler.
    """
    headers = getattr(ctx.request, "headers", None)
    if headers is None or "mcp-session-id" not in headers:
        return None
    request: Any = ctx.request

    async def is_alive() -> bool:
        return not await request.is_disconnected()

    return is_alive


class _RawMessage:
    """A message the SDK sends as it is: it only asks for a dump."""

    def __init__(self, message: JSONObject) -> None:
        self._message = message

    def model_dump(self, **_: Any) -> JSONObject:
        return dict(self._message)


def _raw_result(result: JSONObject) -> types.ServerResult:
    """Return a result that is sent as it is: the SDK's own models leave out a `ttl` of `null` (A4)."""
    return cast(types.ServerResult, _RawMessage(result))


class _RawAnswer:
    """A result type that takes any result as it is."""

    @staticmethod
    def model_validate(value: Any, **_: Any) -> Any:
        return value


class _ConnectionSession:
    """The `TaskSession` of a whole connection: what is sent here belongs to no request."""

    can_send_request = False

    def __init__(self, ctx: _Context) -> None:
        params = ctx.session.client_params
        capabilities: JSONObject | None = None if params is None else to_json_value(params.capabilities)
        self.client_capabilities: JSONObject = capabilities or {}
        self._session = ctx.session

    async def send_notification(self, method: str, params: JSONObject) -> None:
        await self._send(method, params, None)

    async def _send(self, method: str, params: JSONObject, related_request_id: Any) -> None:
        message = cast(Any, _RawMessage({"method": method, "params": params}))
        try:
            await self._session.send_notification(message, related_request_id)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            logger.debug("A notification was dropped: the client has left")

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        raise CapabilityError("Requests to the client go over the stream of one of its own")


class _RequestSession(_ConnectionSession):
    """The `TaskSession` of one request: what is sent here goes over its stream."""

    def __init__(self, ctx: _Context) -> None:
        super().__init__(ctx)
        self.can_send_request = not _is_stateless(ctx)
        self._request_id = ctx.request_id
        session: Any = ctx.session
        if getattr(session, "_request_id", None) == 0:
            # Ids count from 0 in each connection: an answer meant for another one would fit.
            session._request_id = secrets.randbits(_ID_BITS)

    async def send_notification(self, method: str, params: JSONObject) -> None:
        if method != wire.STATUS_NOTIFICATION:  # which belongs to no stream
            await self._send(method, params, self._request_id)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        try:
            return await _cancellable(functools.partial(self._send_request, method, params))
        except McpError as error:
            if error.error.code == types.CONNECTION_CLOSED and error.error.message == "Connection closed":
                raise ConnectionError("The client has left") from error
            raise ProtocolError(error.error.code, error.error.message, error.error.data) from error

    async def _send_request(self, method: str, params: JSONObject) -> JSONObject:
        result: Any = await self._session.send_request(
            cast(Any, _RawMessage({"method": method, "params": params})),
            cast(Any, _RawAnswer),
            metadata=ServerMessageMetadata(related_request_id=self._request_id),
        )
        return cast(JSONObject, result)


async def _cancellable(request: Callable[[], Awaitable[T]]) -> T:
    """Send a request to the client that may be cancelled at any time.

    Cancelled just when its answer is being handled, the SDK's own method ends the whole connection.
    """
    connection = _connection.get()
    answer: list[T] = []
    failure: list[Exception] = []
    ended = anyio.Event()
    scope = anyio.CancelScope(shield=True)

    async def send() -> None:
        try:
            with scope:
                answer.append(await request())
        except Exception as error:
            failure.append(error)
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        try:
            await ended.wait()
        finally:
            with anyio.CancelScope(shield=True):
                if not ended.is_set():
                    async with nullcontext() if connection is None else connection.pause():
                        scope.cancel()
                        await ended.wait()
    if failure:
        raise failure[0]
    return answer[0]


class _NoSession:
    """The `TaskSession` of work that runs again: its client is reached through the task alone."""

    can_send_request = False

    def __init__(self, client_capabilities: JSONObject) -> None:
        self.client_capabilities = client_capabilities

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Do nothing: the client sees the status when it polls."""

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        raise CapabilityError("This connection carries no requests to the client")
