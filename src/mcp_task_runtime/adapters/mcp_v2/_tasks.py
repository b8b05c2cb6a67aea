"""Tasks for servers on `mcp` 2.x: `MCPServer` and the low-level `Server`."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar, cast

try:
    from mcp.server.context import CallNext, HandlerResult
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v2 needs mcp 2.x: pip install 'mcp-task-runtime[mcp]' 'mcp>=2'. "
        "A server on mcp 1.x imports mcp_task_runtime.adapters.mcp_v1"
    ) from _error
from mcp.server.extension import Extension, MethodBinding, compose_tool_call_handler
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import lifespan as sdk_default_lifespan
from mcp.server.mcpserver import MCPServer, authenticated_principal
from mcp.server.mcpserver import exceptions as sdk_exceptions
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import (
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ErrorData,
    Icon,
    InputRequiredResult,
    RequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_task_runtime.adapters.base_tasks import BaseTasks, TaskOptions, check_seconds, to_call_result
from mcp_task_runtime.adapters.mcp_v2._clients_2025 import LegacyClients
from mcp_task_runtime.adapters.mcp_v2._listen import is_listen, serve_listen
from mcp_task_runtime.adapters.mcp_v2._promotion import PromotingSession
from mcp_task_runtime.adapters.mcp_v2._requests import (
    Context,
    RequestClient,
    TaskClient,
    as_mcp_errors,
    capabilities,
    declares_tasks,
)
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.task_methods import augmented_call, run_within_request
from mcp_task_runtime.adapters.tool_function import ToolFunction
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    ProtocolError,
)
from mcp_task_runtime.wire import v2026_07_28 as wire
from mcp_task_runtime.wire.answers import check_answer

__all__ = ["Tasks"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_BACK_CHANNEL: Final = (
    "The client cannot be asked: it did not declare the tasks extension, and its connection carries no requests"
)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_SDK_MASKS_CRASHES: Final = hasattr(sdk_exceptions, "UnexpectedToolError")
"""Whether the SDK keeps the text of an unexpected exception to itself (law L11): since `mcp` 2.1."""


class _TaskIdParams(RequestParams):
    task_id: str


class _UpdateParams(_TaskIdParams):
    input_responses: dict[str, Any]


class Tasks(BaseTasks, Extension):
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
    """

    identifier: ClassVar[str] = wire.EXTENSION_ID  # type: ignore[misc]  # the base declares it without ClassVar

    def __init__(
        self,
        store: TaskStore | None = None,
        queue: TaskMessageQueue | None = None,
        *,
        settings: TaskSettings | None = None,
        promote_after: float | None = None,
        principal: Callable[[Context], str | None] = authenticated_principal,
    ) -> None:
        """Make the tasks of one server.

        Args:
            store: Where tasks are kept; in memory when `None`. It stays yours to close.
            queue: Where questions are kept; the store's own when `None`.
            settings: Limits and defaults.
            promote_after: Seconds after which any tool call becomes a task by itself, if its client takes
                tasks; `None` for never. Such a call becomes a task at once when its tool asks the client.
            principal: Who makes a request: its tasks belong to that principal, and nobody else sees them
                (law L10). `None` from it means that nobody can tell, and that a task's id is its secret.
                Otherwise the SDK's authentication says who.

        Raises:
            ValueError: `queue` is `None` and the store brings none; or `promote_after` is out of range.
        """
        check_seconds("promote_after", promote_after)
        self._promote_after = promote_after
        super().__init__(store, queue, settings)
        self._handler = TaskResultHandler(self.runtime.store, self.runtime.queue, settings=settings)
        self._principal = principal
        self._legacy = LegacyClients(self.runtime, self._host, principal)
        self._homes: Counter[int] = Counter()
        self._mcp: MCPServer[Any] | None = None
        self._installed = False
        self._has_middleware: bool | None = None  # until the first tool call tells

    # -- wiring

    def install(self, server: MCPServer[Any] | Server[Any]) -> None:
        """Add tasks to a server that exists.

        A low-level server must have its `tools/call` handler already. For an `MCPServer` this reaches
        for the low-level server inside it, the one private name this library uses of `mcp` 2.x;
        the constructor arguments named above do without.

        Raises:
            RuntimeError: This object is installed already, or the server has the extension or lacks the handler.
        """
        if self._installed:
            raise RuntimeError("These Tasks are installed already; make one Tasks for each server")
        low_level: Server[Any]
        if isinstance(server, MCPServer):
            self._mcp = server
            low_level = server._lowlevel_server
        else:
            low_level = server
        if self.identifier in low_level.extensions:
            raise RuntimeError(f"The server has the extension {self.identifier!r} already")
        entry = low_level.get_request_handler("tools/call")
        if entry is None:
            raise RuntimeError("install() needs a server that has its tools/call handler already")
        for binding in self.methods():
            low_level.add_request_handler(binding.method, binding.params_type, binding.handler)
        low_level.add_request_handler(
            "tools/call", CallToolRequestParams, compose_tool_call_handler([self], entry.handler)
        )
        low_level.extensions[self.identifier] = self.settings()
        low_level.middleware.append(self.middleware)
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
                try:
                    yield state
                finally:
                    self._homes[home] -= 1
                    if not self._homes[home]:
                        del self._homes[home]
                        await self.runtime.drain(home=home)

        return holding

    # -- tools

    def tool(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: ToolAnnotations | None = None,
        icons: list[Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        required: bool = False,
        ttl_ms: int | None = None,
        poll_interval_ms: int | None = None,
        promote_after: float | None = None,
        model_immediate_response: str | None = None,
        rerunnable: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Make a tool of the installed `MCPServer` that runs as a task.

        Args:
            name: As for `MCPServer.tool`.
            title: As for `MCPServer.tool`.
            description: As for `MCPServer.tool`.
            annotations: As for `MCPServer.tool`.
            icons: As for `MCPServer.tool`.
            meta: As for `MCPServer.tool`.
            structured_output: As for `MCPServer.tool`.
            required: As for `task`.
            ttl_ms: As for `task`.
            poll_interval_ms: As for `task`.
            promote_after: As for `task`.
            model_immediate_response: As for `task`.
            rerunnable: Whether the work may run again, with the same arguments, when the process that ran
                it is lost; any process of the same server that shares the store does it. What it asks in
                the same words as before then gets the answer it got before. If not, the task fails.

        Raises:
            RuntimeError: These Tasks are not installed in an `MCPServer`.
        """
        if callable(name):
            raise TypeError("Use @tasks.tool() instead of @tasks.tool")
        mcp = self._mcp
        if mcp is None:
            raise RuntimeError("tool() needs install(mcp); without it write @mcp.tool() above @tasks.task()")

        def register(function: FunctionT) -> FunctionT:
            options = TaskOptions(
                required, ttl_ms, poll_interval_ms, promote_after, model_immediate_response, rerunnable
            )
            body = self._task_body(function, name or function.__name__, options)
            if rerunnable:
                self.runtime.rerun_with(name or function.__name__, functools.partial(self._rerun, mcp))
            mcp.add_tool(
                body,
                name=name,
                title=title,
                description=description,
                annotations=annotations,
                icons=icons,
                meta=meta,
                structured_output=structured_output,
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
        promote_after: float | None = None,
        model_immediate_response: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator, to stand under `mcp.tool()`, for functions that run as tasks.

        A parameter annotated with `ServerTaskContext` gets the task's context and shows in no schema.
        Async and plain functions work; a plain one runs in a thread, where `anyio.from_thread.run` calls
        the context's methods, and `is_cancelled` says when to stop. Its task ends at once when it is
        cancelled, but Python cannot stop a thread, and a process waits for its threads when it exits.

        Args:
            name: The tool's name, where `mcp.tool()` gives it another than the function's.
            required: Whether a client must take a task. If not, a client without the extension gets the
                result itself, and the work runs within its request.
            ttl_ms: TTL of the tasks in milliseconds; the settings' default when `None`.
            poll_interval_ms: Milliseconds clients wait between polls; the settings' default when `None`.
            promote_after: Seconds to wait for the result before the client gets a task instead of it;
                `None` to give it a task at once. A question to the client ends the wait.
            model_immediate_response: What a client of protocol revision 2025-11-25 tells its model while the
                task runs (wire rule B3).

        Raises:
            ValueError: A number is out of range; the message names it.
        """
        options = TaskOptions(required, ttl_ms, poll_interval_ms, promote_after, model_immediate_response)
        return lambda function: self._task_body(function, name or function.__name__, options)

    def _task_body(self, function: Callable[..., Any], name: str, options: TaskOptions) -> Callable[..., Any]:
        tool = ToolFunction(function)
        self._legacy.modes.declare(name, required=options.required)

        async def body(**arguments: Any) -> Any:
            try:
                return await self._run(functools.partial(tool.call, arguments), options)
            except (MCPError, ToolError, ResourceError):
                raise
            except Exception as error:
                if _SDK_MASKS_CRASHES:
                    raise
                logger.exception("The work of a task raised an exception")
                raise ToolError("internal error") from error

        return tool.disguise(body)

    async def run(
        self,
        work: Callable[[ServerTaskContext], Awaitable[T]],
        *,
        required: bool = False,
        ttl_ms: int | None = None,
        poll_interval_ms: int | None = None,
        promote_after: float | None = None,
        model_immediate_response: str | None = None,
    ) -> T:
        """Run work as a task, from inside a tool call.

        Returns what the work returns; the caller's client has its task handle long before. What a tool
        does before this is part of the call, what it does afterwards is part of the task.

        Args:
            work: What to run; it gets the task's context.
            required: As for `task`.
            ttl_ms: As for `task`.
            poll_interval_ms: As for `task`.
            promote_after: As for `task`.
            model_immediate_response: As for `task`.

        Raises:
            MCPError: The client did not declare the extension, and it is required (wire rule C2); or the
                work raised a `ProtocolError` or `CapabilityError`.
            RuntimeError: This is no tool call of the server these Tasks are installed in.
            ValueError: A number is out of range; the message names it.
        """
        return await self._run(
            work, TaskOptions(required, ttl_ms, poll_interval_ms, promote_after, model_immediate_response)
        )

    async def _run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        call = _current_call.get()
        if call is None or call.tasks is not self:
            raise RuntimeError("run() works in a tool call of the server that these Tasks are installed in")
        with as_mcp_errors():
            augmented = augmented_call(self.runtime)
            if augmented is not None:
                return await augmented.run(work, options)
            if call.execution is None:
                if options.required:
                    raise wire.missing_capability()
                assert call.ctx is not None
                session = RequestClient(call.ctx)
                return await run_within_request(
                    work,
                    session,
                    undeliverable=None if session.can_send_request else _NO_BACK_CHANNEL,
                    progress_token=None if call.ctx.meta is None else call.ctx.meta.get("progress_token"),
                )
            if call.execution.record is None:
                new = call.new_task(options)
                if options.promote_after is not None:
                    call.execution.promote_after(options.promote_after, new)
                await call.execution.begin(new, quietly=options.promote_after is not None)
            return await work(self._context(call.execution))

    def _context(self, execution: Execution[Any]) -> ServerTaskContext:
        record = execution.record
        assert record is not None
        return ServerTaskContext(
            task=record.task,
            store=self.runtime.store,
            session=TaskClient(record),
            queue=self.runtime.queue,
            handler=self._handler,
            execution=execution,
            attempt=1 if record.lease is None else record.lease.attempt,
        )

    # -- what the SDK calls

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods of the extension; called by `MCPServer`."""
        self._installed = True
        return [
            MethodBinding("tasks/get", _TaskIdParams, self._get),
            MethodBinding("tasks/update", _UpdateParams, self._update),
            MethodBinding("tasks/cancel", _TaskIdParams, self._cancel),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Run a tool call apart from its request, so that it can become a task; called by the SDK.

        Argument validation, dependencies and multi-round-trip input stay part of the call (wire rule
        C5), and result conversion and output validation stay the SDK's.
        """
        if self._has_middleware is None:  # every request would have passed it before it came here
            self._has_middleware = False
            logger.warning(
                "middleware=[tasks.middleware] is missing among the arguments of the server: "
                "its tasks are not pushed, and clients of protocol 2025-11-25 have none"
            )
        if not declares_tasks(ctx):
            with _calling(_Call(self, ctx, params, None)):
                return await call_next(ctx)

        async def work(execution: Execution[HandlerResult]) -> HandlerResult:
            call = _Call(self, ctx, params, execution)
            inner = ctx
            if self._promote_after is not None:
                execution.promote_after(self._promote_after, call.new_task(_DEFAULT_OPTIONS))
                session = PromotingSession(ctx.session, execution, call.context)
                inner = replace(ctx, session=cast(Any, session))
            with _calling(call):
                try:
                    return await call_next(inner)
                except MCPError as error:
                    if not execution.is_announced:
                        raise
                    raise ProtocolError(error.code, error.message, error.data) from error

        result = await self.runtime.run(work, outcome_of=_outcome, home=id(ctx.lifespan_context))
        return wire.render_handle(result) if isinstance(result, TaskRecord) else result

    async def middleware(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve what no handler of an extension can; called by the SDK.

        That is push for tasks (wire rule C11), and clients of protocol revision 2025-11-25.
        """
        self._has_middleware = True
        if is_listen(ctx):
            return await serve_listen(self.runtime, self._host, self._principal(ctx), ctx, call_next)
        return await self._legacy.middleware(ctx, call_next)

    async def _rerun(self, mcp: MCPServer[Any], execution: Execution[Outcome]) -> Outcome:
        """Run the work of a tool again whose process was lost (law L12)."""
        record = execution.record
        assert record is not None
        params = CallToolRequestParams(name=record.request.name, arguments=record.request.arguments)
        with _calling(_Call(self, None, params, execution)):
            try:
                return _outcome(await mcp.call_tool(params.name, params.arguments or {}))
            except MCPError as error:
                raise ProtocolError(error.code, error.message, error.data) from error
            except ToolError as error:
                logger.exception("A tool that was run again failed")
                return _outcome(CallToolResult(content=[TextContent(text=str(error))], is_error=True))

    async def _get(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            view = await self.runtime.poll(params.task_id, owner=self._principal(ctx))
            return {"resultType": "complete", **wire.render_view(view)}

    async def _update(self, ctx: Context, params: _UpdateParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            await self.runtime.answer(
                params.task_id,
                params.input_responses,
                owner=self._principal(ctx),
                check=functools.partial(check_answer, max_bytes=self.runtime.settings.max_answer_bytes),
            )
            return wire.acknowledge()

    async def _cancel(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            with suppress(InvalidTransitionError):  # it has ended: acknowledged all the same (wire rule C9)
                await self.runtime.cancel(params.task_id, owner=self._principal(ctx))
            return wire.acknowledge()


_DEFAULT_OPTIONS = TaskOptions()


@dataclass(frozen=True, slots=True)
class _Call:
    """The tool call that is running in this context; without a request when it runs again."""

    tasks: Tasks
    ctx: Context | None
    params: CallToolRequestParams
    execution: Execution[Any] | None

    def new_task(self, options: TaskOptions) -> TaskSpec:
        """Return what a task for this call is made with."""
        assert self.ctx is not None
        return TaskSpec(
            owner=self.tasks._principal(self.ctx),
            ttl_ms=options.ttl_ms,
            poll_interval_ms=options.poll_interval_ms,
            request=TaskRequest(
                name=self.params.name,
                arguments_json=dump_json(self.params.arguments or {}),
                rerunnable=options.rerunnable,
            ),
            client_capabilities_json=dump_json(capabilities(self.ctx)),
        )

    async def context(self) -> ServerTaskContext:
        """Make this call a task, if it is none, and return the task's context."""
        assert self.execution is not None
        await self.execution.begin(self.new_task(_DEFAULT_OPTIONS))
        return self.tasks._context(self.execution)


_current_call: ContextVar[_Call | None] = ContextVar("mcp_task_runtime_call", default=None)


@contextmanager
def _calling(call: _Call) -> Iterator[None]:
    token = _current_call.set(call)
    try:
        yield
    finally:
        _current_call.reset(token)


def _admit(ctx: Context, params: _TaskIdParams) -> None:
    """Check what every `tasks/*` request must fulfil.

    Raises:
        MCPError: The request is of an older protocol revision.
        ProtocolError: The extension was not declared (C13), or the header names another task (C12).
    """
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
    if not declares_tasks(ctx):
        raise wire.missing_capability()
    headers: Mapping[str, str] | None = getattr(ctx.request, "headers", None)
    name = None if headers is None else headers.get("mcp-name")
    if name is not None and decode_header_value(name) != params.task_id:
        raise ProtocolError(wire.HEADER_MISMATCH, "The Mcp-Name header does not name the task of the request")


def _outcome(result: HandlerResult) -> Outcome:
    if isinstance(result, ErrorData):
        return Outcome.failed(result.message, code=result.code, data=result.data)
    if isinstance(result, InputRequiredResult):
        return Outcome.failed("A task cannot ask by multi-round-trip input: it asks through its context")
    return Outcome.completed(to_call_result(result))
