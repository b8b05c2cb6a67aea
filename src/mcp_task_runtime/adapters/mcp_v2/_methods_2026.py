"""The extension `io.modelcontextprotocol/tasks` of protocol revision 2026-07-28 on `mcp` 2.x."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
from mcp.server.context import CallNext, HandlerResult
from mcp.server.extension import MethodBinding
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    ErrorData,
    InputRequiredResult,
    RequestParams,
)
from pydantic import BaseModel
from starlette.requests import Request

from mcp_task_runtime.adapters._caller import caller_of, implicit_owner
from mcp_task_runtime.adapters._ended_request import without_connection
from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._task_call import (
    TaskCall,
    cancelled_with_caller,
    enter_for_good,
    submit_call,
    with_options,
)
from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters._tool_table import DeclaredTool, ToolTable
from mcp_task_runtime.adapters._unwinding_call import UnwindingCall
from mcp_task_runtime.adapters.base_tasks import to_call_result
from mcp_task_runtime.adapters.mcp_v2._conversions import Conversions
from mcp_task_runtime.adapters.mcp_v2._promotion import PromotingSession
from mcp_task_runtime.adapters.mcp_v2._requests import (
    Context,
    as_mcp_errors,
    as_shown,
    declares_tasks,
    is_modern,
)
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.session import DetachedSession
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.text import shared_text
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.errors import InvalidTransitionError, ProtocolError
from mcp_task_runtime.wire import v2026_07_28 as wire
from mcp_task_runtime.wire.answers import check_answer
from mcp_task_runtime.wire.client_values import client_json

__all__ = ["Methods2026", "answer_through_task", "outcome_of_result"]


class _TaskIdParams(RequestParams):
    task_id: str


class _UpdateParams(_TaskIdParams):
    input_responses: dict[str, Any]


class _WayOut(MCPError):
    """Leaves a call that has become a task: an error of the SDK, which passes its tool layer, and reaches no client."""

    _SHARED: ClassVar = ErrorData(code=INTERNAL_ERROR, message="The call has become a task")

    def __init__(self) -> None:
        Exception.__init__(self)
        self.error = self._SHARED


class _UnwindingCall(UnwindingCall):
    """A call that ends with an error of the SDK, which its tool layer raises as it is."""

    __slots__ = ()

    raises_as_is = True

    def _way_out(self) -> Exception:
        return _WayOut()


class _ReturningCall(UnwindingCall):
    """A call of a tool that was made with `Tasks.tool`: nothing is between the work and the SDK.

    So a result ends the request, at a fraction of what an error costs: one that the SDK neither converts nor checks.
    """

    __slots__ = ()

    raises_as_is = True
    _RESULT: ClassVar = InputRequiredResult(request_state="The call has become a task")

    def _leave(self) -> Any:
        return self._RESULT


class Methods2026:
    """Serves the extension over one runtime."""

    def __init__(
        self,
        runtime: TaskRuntime,
        handler: TaskResultHandler,
        tools: ToolTable,
        principal: Callable[[Context], str | None],
        seal: Callable[[TaskSpec, Context], TaskSpec],
        conversions: Conversions,
    ) -> None:
        """Make the methods.

        Args:
            runtime: Where tasks run.
            handler: Delivers their questions.
            tools: The tools that were declared as tasks.
            principal: Returns the principal that makes a request.
            seal: Adds what is kept of a caller's credentials.
            conversions: Makes the results of tools apart from their calls.
        """
        self._runtime = runtime
        self._handler = handler
        self._tools = tools
        self._principal = principal
        self._seal = seal
        self._conversions = conversions
        self._convert = conversions.convert  # bound once: each task keeps it

    def bindings(self) -> Sequence[MethodBinding]:
        """Return the methods other than `tools/call`."""
        return [
            MethodBinding("tasks/get", _TaskIdParams, self._get),
            MethodBinding("tasks/update", _UpdateParams, self._update),
            MethodBinding("tasks/cancel", _TaskIdParams, self._cancel),
        ]

    async def call(self, params: CallToolRequestParams, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve a `tools/call` of a client that takes tasks: run it apart from its request, so that it can become one.

        Argument validation, dependencies and multi-round-trip input stay part of the call (wire rule C5), and result
        conversion and output validation stay the SDK's.
        """
        declared = self._tools.get(params.name)
        if declared is not None and self._runtime.is_dispatched(params.name):
            return await self._dispatch(declared, params, ctx, call_next)
        unwinds = declared is not None and declared.options.promote_after is None
        if declared is not None and unwinds and self._conversions.get(params.name) is not None:
            return await self._call_and_unwind(declared.options, params, ctx, call_next)
        # The context of the work gets the session of the call, and keeps that of the request no longer.
        work = partial(self._work, declared, params, replace(ctx), call_next)
        result = await self._runtime.run(work, outcome_of=outcome_of_result, resource_scope=id(ctx.lifespan_context))
        return wire.render_handle(result) if isinstance(result, TaskRecord) else result

    async def _work(
        self,
        declared: DeclaredTool | None,
        params: CallToolRequestParams,
        ctx: Context,
        call_next: CallNext,
        execution: Execution[HandlerResult],
    ) -> HandlerResult:
        """Run a tool as the work of a run that may become a task."""
        call = TaskCall(
            self._runtime,
            params.name,
            execution=execution,
            handler=self._handler,
            new=partial(self.new_task, params, ctx),
            connect=_detached,
            declared=declared,
        )
        with as_mcp_errors():
            await call.start()
        session: Any = PromotingSession(ctx, call)
        ctx.session = session
        if call.is_task:
            ctx.request = await without_connection(ctx.request, Request)
        enter_for_good(calling(call))
        try:
            return await answer_through_task(params, call, ctx, call_next)
        except Exception as error:
            if not execution.is_published:
                raise
            raise as_shown(error, INTERNAL_ERROR, "Internal server error") from error

    def new_task(self, params: CallToolRequestParams, ctx: Context, *, is_implicit: bool = False) -> TaskSpec:
        """Return what a task for a call is made with.

        Args:
            params: The call.
            ctx: Its request.
            is_implicit: Whether the client takes no tasks, and knows of none.

        Raises:
            ProtocolError: The call has values that no store takes.
        """
        principal = self._principal(ctx)
        spec = TaskSpec(
            owner=implicit_owner(principal) if is_implicit else principal,
            ttl_ms=self._runtime.settings.input_ttl_ms if is_implicit else None,
            request=TaskRequest(
                name=params.name,
                arguments_json=client_json("arguments", params.arguments) if params.arguments else "{}",
                caller_json=caller_of((ctx.params or {}).get("_meta"), ctx.protocol_version),
            ),
            client_capabilities_json=shared_text(client_json("capabilities", ctx.session.client_capabilities or {})),
        )
        return self._seal(spec, ctx)

    async def _dispatch(
        self, declared: DeclaredTool, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Let the SDK check a call, and have a worker run its tool by its name."""
        if not declared.is_adopted:
            call, result = await self.unwound(params.name, ctx, call_next)
            if not call.has_begun:
                return result
        with as_mcp_errors():
            spec = with_options(self.new_task(params, ctx), declared.options)
            record = await self._runtime.dispatch(spec)
            await cancelled_with_caller(self._runtime, record, spec)
        return wire.render_handle(record)

    async def unwound(self, name: str, ctx: Context, call_next: CallNext) -> tuple[UnwindingCall, HandlerResult]:
        """Run a call up to its work; return it, and its result if its work did not begin: wrong arguments, maybe.

        Where the author's function takes the SDK's context, that lives on, and asks through the task.
        """
        result: HandlerResult = None
        tool = self._conversions.get(name)
        call = (_UnwindingCall if tool is None else _ReturningCall)(self._runtime, name)
        if tool is not None and tool.context_kwarg is not None:
            session: Any = PromotingSession(ctx, call)
            ctx = replace(ctx, session=session, request=await without_connection(ctx.request, Request))
        with calling(call):
            try:
                result = await call_next(ctx)
            except MCPError:
                if not call.has_begun:
                    raise
        return call, result

    async def _call_and_unwind(
        self, options: TaskOptions, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Let the SDK check a call, and run its work as a task that keeps nothing of the request."""
        call, result = await self.unwound(params.name, ctx, call_next)
        if not call.has_begun:
            return result
        work = partial(call.perform, handler=self._handler, connect=_detached, convert=self._convert)
        with as_mcp_errors():
            record = await submit_call(
                self._runtime,
                with_options(self.new_task(params, ctx), options),
                work,
                outcome_of=outcome_of_result,
                resource_scope=id(ctx.lifespan_context),
            )
        return wire.render_handle(record)

    async def _get(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            view = await self._runtime.get(params.task_id, owner=self._principal(ctx), rate_limited=True)
            return {"resultType": "complete", **wire.render_view(view)}

    async def _update(self, ctx: Context, params: _UpdateParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            await self._runtime.answer(
                params.task_id,
                params.input_responses,
                owner=self._principal(ctx),
                check=partial(check_answer, max_bytes=self._runtime.settings.max_answer_bytes),
            )
            return wire.acknowledge()

    async def _cancel(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            with suppress(InvalidTransitionError):  # it has ended: acknowledged all the same (wire rule C9)
                await self._runtime.cancel(params.task_id, owner=self._principal(ctx))
            return wire.acknowledge()


async def answer_through_task(
    params: CallToolRequestParams, call: TaskCall, ctx: Context, call_next: CallNext
) -> HandlerResult:
    """Run a tool; where it needs multi-round-trip input although its call is a task, ask through the task."""
    result = await call_next(ctx)
    while call.is_task and isinstance(result, InputRequiredResult):
        with as_mcp_errors():
            answers = await _ask_all(await call.context(), result)
        answered = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        answered["inputResponses"] = answers
        params.input_responses = CallToolRequestParams.model_validate(answered).input_responses
        params.request_state = result.request_state
        result = await call_next(ctx)
    return result


async def _ask_all(context: ServerTaskContext, needed: InputRequiredResult) -> JSONObject:
    """Ask for all input that a result needs, at the same time; return the answers by key."""
    answers: JSONObject = {}

    async def ask(key: str, request: JSONObject) -> None:
        answers[key] = await context.ask(request["method"], request.get("params") or {})

    async with anyio.create_task_group() as group:
        for key, request in (needed.input_requests or {}).items():
            group.start_soon(ask, key, request.model_dump(by_alias=True, mode="json", exclude_none=True))
    return answers


def _detached(record: TaskRecord) -> DetachedSession:
    return DetachedSession(record.client_capabilities_json)


def outcome_of_result(result: HandlerResult) -> Outcome:
    """Return how a task ends whose tool returned this."""
    if isinstance(result, ErrorData):
        return Outcome.failed(result.message, code=result.code, data=result.data)
    if isinstance(result, InputRequiredResult):
        return Outcome.failed("A task cannot return InputRequiredResult; use task.elicit()")
    return Outcome.completed(result if isinstance(result, BaseModel) else to_call_result(result))


def _admit(ctx: Context, params: _TaskIdParams) -> None:
    """Check what every `tasks/*` request must fulfil.

    Raises:
        MCPError: The request is of an older protocol revision.
        ProtocolError: The extension was not declared (C13), or the header names another task (C12).
    """
    if not is_modern(ctx):
        raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
    if not declares_tasks(ctx):
        raise wire.missing_capability()
    headers: Mapping[str, str] | None = getattr(ctx.request, "headers", None)
    name = None if headers is None else headers.get("mcp-name")
    if name is not None and decode_header_value(name) != params.task_id:
        raise ProtocolError(wire.HEADER_MISMATCH, "The Mcp-Name header does not name the task of the request")
