"""The extension `io.modelcontextprotocol/tasks` of protocol revision 2026-07-28 on `mcp` 2.x."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

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

from mcp_task_runtime.adapters._options import DEFAULT_OPTIONS
from mcp_task_runtime.adapters._tool_calls import TaskCall, calling
from mcp_task_runtime.adapters._tool_table import ToolTable
from mcp_task_runtime.adapters.base_tasks import to_call_result
from mcp_task_runtime.adapters.mcp_v2._promotion import PromotingSession
from mcp_task_runtime.adapters.mcp_v2._requests import (
    Context,
    as_mcp_errors,
    as_shown,
    capabilities,
    declares_tasks,
    is_modern,
)
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.session import DetachedSession
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.errors import InvalidTransitionError, ProtocolError
from mcp_task_runtime.wire import v2026_07_28 as wire
from mcp_task_runtime.wire.answers import check_answer

__all__ = ["Methods2026", "outcome_of_result"]


class _TaskIdParams(RequestParams):
    task_id: str


class _UpdateParams(_TaskIdParams):
    input_responses: dict[str, Any]


class Methods2026:
    """Serves the extension over one runtime."""

    def __init__(
        self,
        runtime: TaskRuntime,
        handler: TaskResultHandler,
        tools: ToolTable,
        principal: Callable[[Context], str | None],
        promote_after: float | None,
    ) -> None:
        """Make the methods.

        Args:
            runtime: Where tasks run.
            handler: Delivers their questions.
            tools: The tools that were declared as tasks.
            principal: Returns the principal that makes a request.
            promote_after: Seconds after which any tool call becomes a task; `None` for never.
        """
        self._runtime = runtime
        self._handler = handler
        self._tools = tools
        self._principal = principal
        self._promote_after = promote_after

    def bindings(self) -> Sequence[MethodBinding]:
        """Return the methods beside `tools/call`."""
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

        def new() -> TaskSpec:
            return TaskSpec(
                owner=self._principal(ctx),
                request=TaskRequest(name=params.name, arguments_json=dump_json(params.arguments or {})),
                client_capabilities_json=dump_json(capabilities(ctx)),
            )

        declared = self._tools.get(params.name)
        options = None if declared is None else declared.options
        if options is None and self._promote_after is not None:
            options = DEFAULT_OPTIONS

        async def work(execution: Execution[HandlerResult]) -> HandlerResult:
            call = TaskCall(
                self._runtime,
                params.name,
                execution=execution,
                handler=self._handler,
                new=new,
                connect=lambda record: DetachedSession(record.client_capabilities),
                options=options,
            )
            if self._promote_after is not None:
                call.promote_after(self._promote_after)
            session: Any = PromotingSession(ctx, call)
            with calling(call):
                try:
                    return await call_next(replace(ctx, session=session))
                except Exception as error:
                    if not execution.is_announced:
                        raise
                    raise as_shown(error, INTERNAL_ERROR, "Internal server error") from error

        result = await self._runtime.run(work, outcome_of=outcome_of_result, home=id(ctx.lifespan_context))
        return wire.render_handle(result) if isinstance(result, TaskRecord) else result

    async def _get(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            view = await self._runtime.poll(params.task_id, owner=self._principal(ctx))
            return {"resultType": "complete", **wire.render_view(view)}

    async def _update(self, ctx: Context, params: _UpdateParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            await self._runtime.answer(
                params.task_id,
                params.input_responses,
                owner=self._principal(ctx),
                check=functools.partial(check_answer, max_bytes=self._runtime.settings.max_answer_bytes),
            )
            return wire.acknowledge()

    async def _cancel(self, ctx: Context, params: _TaskIdParams) -> HandlerResult:
        with as_mcp_errors():
            _admit(ctx, params)
            with suppress(InvalidTransitionError):  # it has ended: acknowledged all the same (wire rule C9)
                await self._runtime.cancel(params.task_id, owner=self._principal(ctx))
            return wire.acknowledge()


def outcome_of_result(result: HandlerResult) -> Outcome:
    """Return how a task ends whose tool returned this."""
    if isinstance(result, ErrorData):
        return Outcome.failed(result.message, code=result.code, data=result.data)
    if isinstance(result, InputRequiredResult):
        return Outcome.failed("A task cannot return InputRequiredResult; use task.elicit()")
    return Outcome.completed(to_call_result(result))


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
