"""Task-augmented calls and the `tasks/*` methods of protocol revision 2025-11-25, for every SDK line.

An adapter says who asks (`Requestor`), how its client is reached (`TaskSession`) and how a tool runs; what
follows from that is here, in JSON terms.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from mcp_task_runtime.adapters._caller import caller_of
from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._task_call import (
    BEGIN_SECONDS,
    TaskCall,
    cancelled_with_caller,
    enter_for_good,
    submit_call,
    with_options,
)
from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters._tool_table import DeclaredTool
from mcp_task_runtime.adapters._unwinding_call import Convert, UnwindingCall
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.notifications import StartSoon
from mcp_task_runtime.adapters.requestor import Requestor
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.adapters.task_stream import TaskStreamSession
from mcp_task_runtime.core import audit
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.inbox import Inbox
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.text import shared_text
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    InvalidTransitionError,
    ProtocolError,
    TaskNotFoundError,
)
from mcp_task_runtime.wire import v2025_11_25 as wire_2025
from mcp_task_runtime.wire.client_values import client_json, parse_progress_token

__all__ = ["TaskMethods"]


_COMPLETED: Final = Outcome.completed  # bound once: each task keeps it

_MOST_POLLERS: Final = 10_000
"""Tasks of which is known that their client was told of a question; it is told again of a forgotten one."""


class _Job(Protocol):
    """Runs a tool for a call to its end and returns its result as JSON."""

    async def __call__(self, call: TaskCall | UnwindingCall, /) -> JSONObject: ...


class TaskMethods:
    """The `tasks` capability over one runtime."""

    def __init__(
        self,
        runtime: TaskRuntime,
        host: RuntimeHost,
        *,
        inbox: float | Inbox | None = None,
        unwinding: Callable[[TaskRuntime, str], UnwindingCall] = UnwindingCall,
    ) -> None:
        """Make the methods.

        Args:
            runtime: Where the tasks live.
            host: It must hold the runtime open while they are used.
            inbox: As for `TaskResultHandler`.
            unwinding: Makes a call that ends its request when its work begins.
        """
        self._runtime = runtime
        self._host = host
        self._handler = TaskResultHandler(
            runtime.store, runtime.queue, settings=runtime.settings, followers=runtime.followers, inbox=inbox
        )
        self._start_soon: StartSoon = host.start_soon  # bound once: each task keeps it
        self._unwinding = unwinding
        self._pollers: dict[str, None] = {}
        """Tasks whose client was told that input is required, the oldest first."""

    async def call(
        self,
        params: Mapping[str, JSONValue],
        job: _Job,
        requestor: Requestor,
        connection: TaskSession,
        *,
        undeliverable: str | None,
        declared: DeclaredTool | None = None,
        resource_scope: Hashable = None,
        protocol_version: object = None,
        seal: Callable[[TaskSpec], TaskSpec] | None = None,
        convert: Convert[JSONObject] | None = None,
        around: Callable[[TaskCall | UnwindingCall], AbstractContextManager[object]] = nullcontext,
        declared_json: str | None = None,
        tell_soon: StartSoon | None = None,
    ) -> JSONObject:
        """Run a tool as a task and return its handle as soon as there is one (wire rule B3).

        Args:
            params: The params of the `tools/call`.
            job: Runs the tool; it raises what is to end the task as an error.
            requestor: Who calls.
            connection: What of the client's connection outlives the call.
            undeliverable: As for `TaskResultHandler`.
            declared: How the tool runs as a task; `None` where the tool itself says so, with `Tasks.run`.
            resource_scope: As for `TaskRuntime.run`.
            protocol_version: The protocol revision of the call.
            seal: Adds what is kept of the caller's credentials.
            convert: Makes the tool's result of what its work ends with: the work goes on without its request.
            around: Returns a block that sets the context variables of a call.
            declared_json: What the client declared, as JSON text; the connection is asked when `None`.
            tell_soon: Starts what tells the client of the task; in the background of the host when `None`.

        Raises:
            ProtocolError: `task` is malformed, or the call has values that no store takes.
            StoreError: The task could not be created.
        """
        spec = self._spec(params, requestor, connection, protocol_version, undeliverable, declared_json)
        if seal is not None:
            spec = seal(spec)
        tell_soon = self._start_soon if tell_soon is None else tell_soon
        if declared is not None and self._runtime.is_dispatched(spec.request.name):
            return await self._dispatch(with_options(spec, declared.options), connection, tell_soon, declared.options)

        def announce(record: TaskRecord) -> TaskStreamSession:
            client = TaskStreamSession(record, connection, self._handler, tell_soon)
            client.announce(self._runtime)
            return client

        call = _AugmentedCall(
            runtime=self._runtime,
            spec=spec,
            job=job,
            handler=self._handler if undeliverable is None else self._handler.silent(undeliverable),
            connect=announce,
            around=around,
            resource_scope=resource_scope,
        )
        if convert is not None and declared is not None:
            record = await call.unwind(self._unwinding(self._runtime, spec.request.name), declared.options, convert)
            said = declared.options.model_immediate_response
        else:
            record, said = await call.run(declared)
        return wire_2025.render_created(record.task, model_immediate_response=said)

    def _spec(
        self,
        params: Mapping[str, JSONValue],
        requestor: Requestor,
        connection: TaskSession,
        protocol_version: object,
        undeliverable: str | None,
        declared_json: str | None,
    ) -> TaskSpec:
        """Return what the task of a call is made with; see `call`."""
        meta: JSONValue = params.get("_meta")
        return TaskSpec(
            owner=requestor.owner,
            ttl_ms=wire_2025.parse_ttl(params.get("task")),
            request=TaskRequest(
                name=str(params.get("name", "")),
                arguments_json=client_json("arguments", arguments) if (arguments := params.get("arguments")) else "{}",
                progress_token=parse_progress_token(meta),
                caller_json=caller_of(meta, protocol_version, undeliverable),
            ),
            client_capabilities_json=(
                shared_text(client_json("capabilities", connection.client_capabilities))
                if declared_json is None
                else declared_json
            ),
        )

    async def _dispatch(
        self, spec: TaskSpec, connection: TaskSession, tell_soon: StartSoon, options: TaskOptions
    ) -> JSONObject:
        """Have a worker run a tool, also one with wrong arguments: the client has asked for a task."""
        record = await self._runtime.dispatch(spec)
        await cancelled_with_caller(self._runtime, record, spec)
        client = TaskStreamSession(record, connection, self._handler, tell_soon)
        client.announce(self._runtime, with_progress=True)
        return wire_2025.render_created(record.task, model_immediate_response=options.model_immediate_response)

    async def get(
        self,
        params: Mapping[str, JSONValue] | None,
        requestor: Requestor,
        connect: Callable[[], TaskSession] | None = None,
    ) -> JSONObject:
        """Serve `tasks/get` (wire rule B4).

        A client that was told that input is required, and polls again, does not wait for the result: it is asked over
        its connection's general stream (law L15).

        Args:
            params: The params of the request.
            requestor: Who asks.
            connect: Returns the client's connection, if it carries requests outside of a request of the client's.
        """
        view = await self._runtime.get(wire_2025.parse_task_id(params), owner=requestor.owner, rate_limited=True)
        if view.questions and connect is not None:
            self._ask_poller(view.record.task_id, connect())
        return wire_2025.render_view(view)

    def _ask_poller(self, task_id: str, connection: TaskSession) -> None:
        if task_id not in self._pollers:
            self._pollers[task_id] = None
            while len(self._pollers) > _MOST_POLLERS:
                del self._pollers[next(iter(self._pollers))]
        elif not self._handler.has_stream(task_id):
            self._host.start_soon(partial(self._handler.deliver_to_poller, task_id, connection))

    async def result(
        self,
        params: Mapping[str, JSONValue] | None,
        requestor: Requestor,
        connect: Callable[[], TaskSession],
        *,
        is_alive: Callable[[], Awaitable[bool]] | None = None,
    ) -> JSONObject:
        """Serve `tasks/result`: wait for the end, with the task's questions on this stream (wire rules B5, B6).

        Args:
            params: The params of the request.
            requestor: Who asks.
            connect: Returns the stream of the request; called for a task that has not ended.
            is_alive: As for `TaskResultHandler.handle`.

        Raises:
            ProtocolError: What the call would have ended with, or the task was cancelled.
        """
        task_id = wire_2025.parse_task_id(params)
        ended = (await self._runtime.get(task_id, owner=requestor.owner)).record.outcome
        if ended is not None:  # nothing is queued for its client any more
            audit.retrieved(task_id, requestor.owner)
            return wire_2025.render_result(ended, task_id)
        with self._host.until_stopped():
            outcome = await self._handler.handle(task_id, connect(), is_alive=is_alive)
            audit.retrieved(task_id, requestor.owner)
            return wire_2025.render_result(outcome, task_id)
        raise ProtocolError(INTERNAL_ERROR, "The server stops before the task has ended")

    async def list(self, params: Mapping[str, JSONValue] | None, requestor: Requestor) -> JSONObject:
        """Serve `tasks/list` (wire rule B9)."""
        if not requestor.can_list:
            raise wire_2025.list_not_offered()
        page = await self._runtime.list(owner=requestor.owner, cursor=wire_2025.parse_cursor(params))
        if self._handler.inbox is not None:
            page = replace(
                page, records=tuple([await self._as_its_client_sees(each, requestor) for each in page.records])
            )
        return wire_2025.render_page(page)

    async def _as_its_client_sees(self, record: TaskRecord, requestor: Requestor) -> TaskRecord:
        """Return a listed task as `tasks/get` shows it: it is `working` while it waits only for a person."""
        if record.status != "input_required":
            return record
        try:
            view = await self._runtime.get(record.task_id, owner=requestor.owner)
        except TaskNotFoundError:  # it went meanwhile
            return record
        return replace(view.record, task=view.task)

    async def cancel(self, params: Mapping[str, JSONValue] | None, requestor: Requestor) -> JSONObject:
        """Serve `tasks/cancel` (wire rule B8)."""
        try:
            record = await self._runtime.cancel(wire_2025.parse_task_id(params), owner=requestor.owner)
        except InvalidTransitionError:
            raise wire_2025.already_ended() from None
        return wire_2025.render_record(record)


@dataclass(frozen=True, slots=True)
class _AugmentedCall:
    """A `tools/call` whose client has asked for a task, so that it becomes one however it ends."""

    runtime: TaskRuntime
    spec: TaskSpec
    job: _Job
    handler: TaskResultHandler
    connect: Callable[[TaskRecord], TaskStreamSession]
    around: Callable[[TaskCall | UnwindingCall], AbstractContextManager[object]]
    resource_scope: Hashable

    async def unwind(self, call: UnwindingCall, options: TaskOptions, convert: Convert[JSONObject]) -> TaskRecord:
        """Run the tool until its work begins, and submit the work as that of the task."""
        perform = partial(call.perform, handler=self.handler, connect=self.connect, convert=convert)
        with self.around(call):
            ended = await self._begin(call)
            return await submit_call(
                self.runtime,
                with_options(self.spec, options),
                perform if ended is None else ended,
                outcome_of=_COMPLETED,
                resource_scope=self.resource_scope,
            )

    async def _begin(self, call: UnwindingCall) -> Callable[[Execution[JSONObject]], Awaitable[JSONObject]] | None:
        """Run the tool until its work begins.

        Returns:
            Where it ended before that, with wrong arguments for example, work that ends in the same way. Otherwise
            `None`.
        """
        error: Exception | None = None
        result: JSONObject = {}
        with calling(call):
            try:
                result = await self.job(call)
            except Exception as raised:
                error = raised
        if call.has_begun:
            return None

        async def end(execution: Execution[JSONObject]) -> JSONObject:
            if error is not None:
                raise error
            return result

        return end

    async def run(self, declared: DeclaredTool | None) -> tuple[TaskRecord, str | None]:
        """Run the tool; return its task, and what its options say to the model meanwhile."""
        calls: list[TaskCall] = []
        made = await self.runtime.run(
            partial(self._work, declared, calls),
            outcome_of=_COMPLETED,
            resource_scope=self.resource_scope,
            begin_after=(BEGIN_SECONDS, self.spec) if declared is None else None,
        )
        assert isinstance(made, TaskRecord)
        return made, calls[0].model_immediate_response

    async def _work(
        self, declared: DeclaredTool | None, calls: list[TaskCall], execution: Execution[JSONObject]
    ) -> JSONObject:
        """Run the tool as that of a run, which keeps nothing of the request once its task has begun.

        Args:
            declared: As for `run`.
            calls: Gets the call.
            execution: The run.
        """
        call = TaskCall(
            self.runtime,
            self.spec.request.name,
            execution=execution,
            handler=self.handler,
            new=partial(_given, self.spec),
            connect=self.connect,
            declared=declared,
            client_decides=True,
        )
        calls.append(call)
        await call.start()
        enter_for_good(calling(call))
        enter_for_good(self.around(call))
        running = self.job(call)
        del self, calls  # the work may take days
        # A call that ends before its tool began is a task too: the client asked for one.
        try:
            result = await running
        except Exception:
            await call.begin()
            raise
        await call.begin()
        return result


def _given(spec: TaskSpec) -> TaskSpec:
    return spec
