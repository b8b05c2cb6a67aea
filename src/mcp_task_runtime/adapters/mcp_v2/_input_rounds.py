"""Multi-round-trip input for the work of a call, where a client of 2026-07-28 has not declared the tasks extension.

When the work first asks, the call answers with its open questions (`InputRequiredResult`) and the work goes on in the
background. The client repeats the call with its answers and the `requestState` of the round, in any process that
shares the store; that request waits for the next questions or the end.

The state names the call's task by its 192 random bits, and is checked against what the store has: the owner, the tool
and the arguments of the call, and whether it has expired. So it needs no key, and `Tasks.install` takes it past the
SDK's request-state boundary, whose key each process makes for itself: other processes could not read what it has
sealed. In a server that has these tasks by its constructor, the boundary seals it with everything else, and servers
in several processes need `MCPServer(request_state_security=RequestStateSecurity(keys=[...]))`.

What the work says goes to the request that waits for it: progress to its token, log messages of the level it asked
for. While no request waits, this is dropped; so are log messages where the request came to another process than the
one that runs the work, which shares the progress of its task alone.

The task belongs to an owner of its own, so that no method of either task protocol shows it. It lives as long as a
request waits for it, and `TaskSettings.input_ttl_ms` longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio
from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, CallToolRequestParams
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError

from mcp_task_runtime.adapters._asking_call import AskingCall, HeldRequests
from mcp_task_runtime.adapters._caller import implicit_owner
from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters._tool_table import ToolTable
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2._methods_2026 import Methods2026, answer_through_task, outcome_of_result
from mcp_task_runtime.adapters.mcp_v2._promotion import PromotingSession
from mcp_task_runtime.adapters.mcp_v2._requests import (
    Context,
    as_mcp_errors,
    as_shown,
    call_notifier,
    capabilities,
    declares_tasks,
    is_modern,
)
from mcp_task_runtime.adapters.notifications import CallNotifier
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.core.context import extended_ttl
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.followers import TaskFollower
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    CapabilityError,
    InvalidTransitionError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntimeError,
)
from mcp_task_runtime.wire import v2026_07_28 as wire
from mcp_task_runtime.wire.answers import check_answer

__all__ = ["InputRounds"]

_STATE_PREFIX: Final = "mcp-task-runtime:"

_ROUND_SECONDS: Final = 0.01
"""How long a round waits for questions that are asked side by side: clients take ten rounds and no more."""

_CAPABILITY_OF: Final = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
"""What multi-round-trip input can ask, and what a client must have declared for it."""


@dataclass
class _Carried:
    """The state of one request on its way around the SDK's boundary.

    Attributes:
        server: Whose request it is: its tools may call other servers.
        received: What the client sent.
        given: What the client gets.
    """

    server: InputRounds
    received: str
    given: str | None = None


_carried: ContextVar[_Carried | None] = ContextVar("mcp_task_runtime_request_state", default=None)


class InputRounds:
    """Serves the calls of clients that take no task, and can be asked by the rounds of a call."""

    def __init__(
        self,
        runtime: TaskRuntime,
        host: RuntimeHost,
        handler: TaskResultHandler,
        tools: ToolTable,
        methods: Methods2026,
        principal: Callable[[Context], str | None],
    ) -> None:
        """Make it for one server.

        Args:
            runtime: Where calls run.
            host: Holds the runtime open, and says when the server is to stop.
            handler: The handler of the runtime's tasks.
            tools: The tools that were declared as tasks.
            methods: Makes tasks of calls.
            principal: Returns the principal that makes a request.
        """
        self._runtime = runtime
        self._host = host
        self._handler = handler
        self._tools = tools
        self._methods = methods
        self._principal = principal
        self._requests = HeldRequests()

    async def carry_state(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Take the states of calls past the SDK's boundary, in front of which this stands; leave other states to it."""
        if ctx.method != "tools/call" or not is_modern(ctx):
            return await call_next(ctx)
        params = ctx.params or {}
        state = params.get("requestState")
        received = state if isinstance(state, str) and state.startswith(_STATE_PREFIX) else ""
        if not received and declares_tasks(ctx) and _carried.get() is None:
            return await call_next(ctx)  # such a client has the handles of its tasks, and gets no state
        carried = _Carried(self, received)
        if received:
            ctx = replace(ctx, params={name: value for name, value in params.items() if name != "requestState"})
        token = _carried.set(carried)
        try:
            result = await call_next(ctx)
        finally:
            _carried.reset(token)
        if carried.given is None or not isinstance(result, Mapping):
            return result
        return {**result, "requestState": carried.given}

    def state_of(self, params: CallToolRequestParams) -> str | None:
        """Return the state of a request that repeats a call which was asked here; `None` for any other request."""
        carried = self._carried()
        state = params.request_state if carried is None else carried.received or params.request_state
        return state if state is not None and state.startswith(_STATE_PREFIX) else None

    def takes(self, ctx: Context) -> bool:
        """Whether the client that makes this request can be asked by multi-round-trip input now."""
        declared = ctx.session.client_capabilities
        if declared is None or not self._runtime.is_open:
            return False
        return declared.elicitation is not None or declared.sampling is not None or declared.roots is not None

    async def call(self, params: CallToolRequestParams, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve the first request of a call: run its tool apart from the request, so that it can outlive it."""
        task_id = new_task_id()
        declared = capabilities(ctx)

        async def work(execution: Execution[HandlerResult]) -> HandlerResult:
            call = AskingCall(
                self._runtime,
                params.name,
                task_id=task_id,
                execution=execution,
                handler=self._handler,
                new=partial(self._methods.new_task, params, ctx, is_implicit=True),
                client_capabilities=declared,
                requests=self._requests,
                declared=self._tools.get(params.name),
                check=partial(_check_question, declared),
                refusal=wire.missing_capability,
            )
            session: Any = PromotingSession(ctx, call, partial(self._requests.newest, task_id))
            with calling(call), self._requests.running(task_id):
                try:
                    return await answer_through_task(params, call, replace(ctx, session=session), call_next)
                except Exception as error:
                    if not execution.is_published:
                        raise
                    raise as_shown(error, INTERNAL_ERROR, "Internal server error") from error

        with self._requests.holding(task_id, call_notifier(ctx)):
            made = await self._runtime.run(work, outcome_of=outcome_of_result, resource_scope=id(ctx.lifespan_context))
            if not isinstance(made, TaskRecord):
                return made
            with as_mcp_errors():
                return await self._answer(made)

    async def retry(self, state: str, params: CallToolRequestParams, ctx: Context) -> HandlerResult:
        """Serve a later request of a call: take its answers, wait for the next questions or the end.

        Raises:
            MCPError: The state is unknown, has expired, or belongs to another principal, tool or other arguments, all
                of which look alike (law L10). Or an answer is malformed; its question stays open. Or the call has
                ended with an error.
        """
        task_id = state.removeprefix(_STATE_PREFIX)
        owner = self._owner(ctx)
        with as_mcp_errors():
            try:
                record = (await self._runtime.get(task_id, owner=owner)).record
                if not _is_call_of(record.request, params):
                    raise TaskNotFoundError(task_id)
                request = call_notifier(ctx)
                listener = None if self._requests.is_running(task_id) else request
                with self._requests.holding(task_id, request):  # the work goes on with the answers, and speaks
                    answers = (ctx.params or {}).get("inputResponses")
                    if isinstance(answers, Mapping):
                        check = partial(check_answer, max_bytes=self._runtime.settings.max_answer_bytes)
                        await self._runtime.answer(task_id, answers, owner=owner, check=check)
                    await self._extend(record)
                    return await self._answer(record, listener)
            except TaskNotFoundError:  # in the words of the SDK, for a state that it refuses itself
                data = {"reason": "invalid_request_state"}
                raise MCPError(INVALID_PARAMS, "Invalid or expired requestState", data) from None

    async def _answer(self, record: TaskRecord, listener: CallNotifier | None = None) -> JSONObject:
        """Wait until the work asks or has ended, and return what that answers the request with.

        Cancelled, it cancels the work, unless another request of this process waits for it, too.

        Args:
            record: The call's task.
            listener: The request, where progress goes to it; `None` where the work runs here, which says so itself.
        """
        try:
            with self._host.until_stopped():
                view = await self._next_round(record, listener)
                outcome = view.record.outcome
                if outcome is not None:
                    return _result(outcome)
                await self._extend(view.record)
                return self._render_round(view)
        except anyio.get_cancelled_exc_class():
            if self._requests.count(record.task_id) == 1:
                with suppress(TaskRuntimeError):  # it has ended, or its time to live ends it
                    await self._runtime.finish(record.task_id, Outcome.cancelled())
            raise
        raise MCPError(INTERNAL_ERROR, "The server stops before the call has ended")

    def _render_round(self, view: TaskView) -> JSONObject:
        state = f"{_STATE_PREFIX}{view.record.task_id}"
        carried = self._carried()
        if carried is None:
            return wire.render_input_required(view.questions, state)
        carried.given = state
        return wire.render_input_required(view.questions)

    def _carried(self) -> _Carried | None:
        carried = _carried.get()
        return carried if carried is not None and carried.server is self else None

    async def _next_round(self, record: TaskRecord, listener: CallNotifier | None) -> TaskView:
        """Return the task when it has open questions or has ended; tell a listener meanwhile how far the work is."""
        told = record.progress
        with self._runtime.followers.follow(record.task_id) as follower:
            while True:
                view = await self._changed(follower, record)
                progress = view.record.progress
                if listener is not None and progress is not None and progress != told:
                    await listener.notify_progress(view.task, progress)
                told = progress
                if view.questions:
                    await anyio.sleep(_ROUND_SECONDS)
                    with suppress(StoreUnavailableError):  # then those that are known make the round
                        view = await self._runtime.get(record.task_id, owner=record.owner)
                if view.questions or view.record.outcome is not None:
                    return view

    async def _changed(self, follower: TaskFollower, record: TaskRecord) -> TaskView:
        """Return the task after a change, and let it live meanwhile."""
        clock = self._runtime.store.clock
        has_changed = False
        while True:
            with clock.move_on_at(clock.now() + timedelta(milliseconds=self._runtime.settings.input_ttl_ms / 3)):
                if not has_changed:
                    await follower.changed()
                    has_changed = True
                return await follower.view()
            await self._extend(record)

    async def _extend(self, record: TaskRecord) -> None:
        """Let a live task live for `input_ttl_ms` from now; it may have ended, or the store may be unavailable."""
        store, settings, task_id = self._runtime.store, self._runtime.settings, record.task_id
        with suppress(InvalidTransitionError, StoreUnavailableError):  # an outage is not waited out: the client waits
            current = await store.get_task(task_id)
            if current is None:
                raise TaskNotFoundError(task_id)
            ttl_ms = extended_ttl(current.task, settings.input_ttl_ms, now=store.clock.now(), settings=settings)
            if ttl_ms is not None:
                await store.update_task(task_id, ttl_ms=ttl_ms)

    def _owner(self, ctx: Context) -> str:
        return implicit_owner(self._principal(ctx))


def _check_question(declared: JSONObject, method: str, params: JSONObject) -> None:
    """Check that a client which declared this can be asked by multi-round-trip input.

    Raises:
        CapabilityError: It cannot.
        ValueError: The params are malformed.
    """
    needed = _CAPABILITY_OF.get(method)
    if needed is None or "task" in params:
        what = method if needed is None else f"{method} as a task of its own"
        raise CapabilityError(f"A client that has not declared the tasks extension cannot be asked {what}")
    if declared.get(needed) is None:
        raise CapabilityError(f"Client does not support {needed} capability")
    question = QueuedMessage.request("question", method, params)
    try:
        serialize_server_result("tools/call", wire.PROTOCOL_VERSION, wire.render_input_required([question]))
    except ValidationError as error:
        raise ValueError(f"The params of {method!r} cannot be sent: {error}") from error


def _is_call_of(request: TaskRequest, params: CallToolRequestParams) -> bool:
    return request.name == params.name and _canonical(request.arguments) == _canonical(params.arguments or {})


def _canonical(arguments: JSONObject) -> str:
    return json.dumps(arguments, sort_keys=True)


def _result(outcome: Outcome) -> JSONObject:
    """Return what the call ended with.

    Raises:
        MCPError: It ended with an error, or was cancelled.
    """
    if outcome.result is not None:
        return {"resultType": "complete", **outcome.result}
    error = outcome.error
    if error is None:
        raise MCPError(INTERNAL_ERROR, "The call was cancelled")
    raise MCPError(error["code"], error["message"], error.get("data"))
