"""Task-augmented calls and the `tasks/*` methods of protocol revision 2025-11-25, for every SDK line.

An adapter says who asks (`Requestor`), how its client is reached (`TaskSession`) and how a tool runs; what
follows from that is here, in JSON terms.
"""

from __future__ import annotations

import logging
import secrets
import weakref
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from mcp_task_runtime.adapters._caller import caller_of
from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._tool_calls import (
    Convert,
    TaskCall,
    UnwindingCall,
    calling,
    cancelled_with_caller,
    submit_call,
    with_options,
)
from mcp_task_runtime.adapters._tool_table import DeclaredTool
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.notifications import LatestSender, StartSoon
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core import audit
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.store_log import log_loss
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Outcome, Progress, Task, TaskRecord, TaskRequest, TaskSpec
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    InvalidTransitionError,
    ProtocolError,
    StoreError,
    TaskNotFoundError,
)
from mcp_task_runtime.wire import v2025_11_25 as wire_2025

__all__ = [
    "JSON_RESPONSES",
    "NO_SESSION",
    "UNCHECKED_ANSWERS",
    "ConnectionScopes",
    "Requestor",
    "TaskMethods",
    "TaskStreamSession",
    "http_manager",
]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_SESSION: Final = "The client cannot be asked: the server keeps no sessions (stateless HTTP)"
JSON_RESPONSES: Final = "The client cannot be asked: the server answers with JSON, which carries no requests"
UNCHECKED_ANSWERS: Final = (
    "The client cannot be asked: principal= says who makes a request, and nothing checks who answers on this connection"
)

_DEEPEST_MIDDLEWARE: Final = 16

_MOST_POLLERS: Final = 10_000
"""Tasks of which is known that their client was told of a question; it is told again of a forgotten one."""


# Who asks


@dataclass(frozen=True, slots=True)
class Requestor:
    """Who makes a request.

    Attributes:
        owner: What the requestor's tasks belong to: its principal, otherwise its session; `None` where
            there is neither, and the task's id is the secret (law L10).
    """

    owner: str | None

    @property
    def can_list(self) -> bool:
        """Whether this requestor can be told apart from others (wire rule B1)."""
        return self.owner is not None


class ConnectionScopes:
    """A secret for each connection without a principal, for as long as it lives (law L10)."""

    def __init__(self) -> None:
        self._scopes: dict[int, str] = {}

    def of(self, anchor: object) -> str:
        """Return the scope of a connection.

        Args:
            anchor: An object that belongs to this connection alone, and lives as long.
        """
        key = id(anchor)
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = f"session:{secrets.token_urlsafe(24)}"
            weakref.finalize(anchor, self._scopes.pop, key, None)
        return scope


def http_manager(request: object) -> Any:
    """Return the SDK's manager of Streamable HTTP sessions that a request came through, or `None`.

    Its public `stateless` and `json_response` are told to no handler otherwise. It stands behind the
    endpoint that Starlette noted: under middleware, or as the owner of a method.
    """
    scope = getattr(request, "scope", None)
    application: Any = scope.get("endpoint") if isinstance(scope, Mapping) else None
    for _ in range(_DEEPEST_MIDDLEWARE):
        if application is None:
            break
        if isinstance(getattr(application, "json_response", None), bool):
            return application
        inner = (getattr(application, name, None) for name in ("session_manager", "__self__", "app"))
        application = next((each for each in inner if each is not None), None)
    return None


class _Job(Protocol):
    """Runs a tool to its end and returns its result as JSON."""

    async def __call__(self) -> JSONObject: ...


# What the protocol asks for


class TaskMethods:
    """The `tasks` capability over one runtime."""

    def __init__(self, runtime: TaskRuntime, host: RuntimeHost, *, inbox: float | None = None) -> None:
        """Make the methods.

        Args:
            runtime: Where the tasks live.
            host: It must hold the runtime open while they are used.
            inbox: As for `TaskResultHandler`.
        """
        self._runtime = runtime
        self._host = host
        self._handler = TaskResultHandler(
            runtime.store, runtime.queue, settings=runtime.settings, followers=runtime.followers, inbox=inbox
        )
        self._start_soon = host.start_soon  # bound once: each task keeps it
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
        home: Hashable = None,
        protocol_version: object = None,
        seal: Callable[[TaskSpec], TaskSpec] | None = None,
        convert: Convert[JSONObject] | None = None,
        around: Callable[[UnwindingCall], AbstractContextManager[object]] = nullcontext,
    ) -> JSONObject:
        """Run a tool as a task and return its handle as soon as there is one (wire rule B3).

        Args:
            params: The params of the `tools/call`.
            job: Runs the tool; it raises what is to end the task as an error.
            requestor: Who calls.
            connection: What of the client's connection outlives the call.
            undeliverable: As for `TaskResultHandler`.
            declared: How the tool runs as a task; `None` where the tool itself says so, with `Tasks.run`.
            home: As for `TaskRuntime.run`.
            protocol_version: The protocol revision of the call.
            seal: Adds what is kept of the caller's credentials.
            convert: Makes the tool's result of what its work ends with: the work goes on without its request.
            around: Returns a block that sets the context variables of such work.

        Raises:
            ProtocolError: `task` is malformed.
            StoreError: The task could not be created.
        """
        meta: JSONValue = params.get("_meta")
        token = meta.get("progressToken") if isinstance(meta, Mapping) else None
        new = TaskSpec(
            owner=requestor.owner,
            ttl_ms=wire_2025.parse_ttl(params.get("task")),
            request=TaskRequest(
                name=str(params.get("name", "")),
                arguments_json=dump_json(params.get("arguments") or {}),
                progress_token=token if isinstance(token, str | int) else None,
                caller_json=caller_of(meta, protocol_version, undeliverable),
            ),
            client_capabilities_json=dump_json(connection.client_capabilities),
        )
        if seal is not None:
            new = seal(new)
        if declared is not None and self._runtime.is_dispatched(new.request.name):
            return await self._dispatch(with_options(new, declared.options), connection, declared.options)
        handler = self._handler
        if undeliverable is not None:
            handler = TaskResultHandler(
                self._runtime.store,
                self._runtime.queue,
                settings=self._runtime.settings,
                undeliverable=undeliverable,
                inbox=self._handler.inbox,
            )

        def announce(record: TaskRecord) -> TaskSession:
            client = TaskStreamSession(record, connection, self._handler, self._start_soon)
            client.announce(self._runtime)
            return client

        if convert is not None and declared is not None:
            unwinding = UnwindingCall(self._runtime, new.request.name)
            ended = await self._begin(unwinding, job)
            perform = partial(unwinding.perform, handler=handler, connect=announce, convert=convert)
            with around(unwinding):
                record = await submit_call(
                    self._runtime,
                    with_options(new, declared.options),
                    perform if ended is None else ended,
                    outcome_of=Outcome.completed,
                    home=home,
                )
            said = declared.options.model_immediate_response
            return wire_2025.render_created(record.task, model_immediate_response=said)
        calls: list[TaskCall] = []

        async def work(execution: Execution[JSONObject]) -> JSONObject:
            call = TaskCall(
                self._runtime,
                new.request.name,
                execution=execution,
                handler=handler,
                new=lambda: new,
                connect=announce,
                declared=declared,
                client_decides=True,
            )
            calls.append(call)
            await call.start()
            with calling(call):
                # A call that ends before its tool began is a task too: the client asked for one.
                try:
                    result = await job()
                except Exception:
                    await call.begin()
                    raise
                await call.begin()
                return result

        made = await self._runtime.run(work, outcome_of=Outcome.completed, resource_scope=home)
        assert isinstance(made, TaskRecord)
        return wire_2025.render_created(made.task, model_immediate_response=calls[0].model_immediate_response)

    async def _dispatch(self, spec: TaskSpec, connection: TaskSession, options: TaskOptions) -> JSONObject:
        """Have a worker run a tool, also one with wrong arguments: the client has asked for a task."""
        record = await self._runtime.dispatch(spec)
        await cancelled_with_caller(self._runtime, record, spec)
        client = TaskStreamSession(record, connection, self._handler, self._start_soon)
        client.announce(self._runtime, with_progress=True)
        return wire_2025.render_created(record.task, model_immediate_response=options.model_immediate_response)

    async def _begin(
        self, call: UnwindingCall, job: _Job
    ) -> Callable[[Execution[JSONObject]], Awaitable[JSONObject]] | None:
        """Run a tool until its work begins.

        Returns:
            Where it ended before that, with wrong arguments for example, work that ends in the same way: the client
            asked for a task. Otherwise `None`.
        """
        error: Exception | None = None
        result: JSONObject = {}
        with calling(call):
            try:
                result = await job()
            except Exception as raised:
                error = raised
        if call.has_begun:
            return None

        async def end(execution: Execution[JSONObject]) -> JSONObject:
            if error is not None:
                raise error
            return result

        return end

    async def get(
        self,
        params: Mapping[str, JSONValue] | None,
        requestor: Requestor,
        connection: TaskSession | None = None,
    ) -> JSONObject:
        """Serve `tasks/get` (wire rule B4).

        A client that was told that input is required, and polls again, does not wait for the result: it is asked over
        its connection's general stream (law L15).

        Args:
            params: The params of the request.
            requestor: Who asks.
            connection: The client's connection, if it carries requests outside of a request of the client's.
        """
        view = await self._runtime.get(wire_2025.parse_task_id(params), owner=requestor.owner, rate_limited=True)
        if view.questions and connection is not None:
            self._ask_poller(view.record.task_id, connection)
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
        stream: TaskSession,
        *,
        is_alive: Callable[[], Awaitable[bool]] | None = None,
    ) -> JSONObject:
        """Serve `tasks/result`: wait for the end, with the task's questions on this stream (wire rules B5, B6).

        Raises:
            ProtocolError: What the call would have ended with, or the task was cancelled.
        """
        task_id = wire_2025.parse_task_id(params)
        ended = (await self._runtime.get(task_id, owner=requestor.owner)).record.outcome
        if ended is not None:  # nothing is queued for its client any more
            audit.retrieved(task_id, requestor.owner)
            return wire_2025.render_result(ended, task_id)
        with self._host.until_stopped():
            outcome = await self._handler.handle(task_id, stream, is_alive=is_alive)
            audit.retrieved(task_id, requestor.owner)
            return wire_2025.render_result(outcome, task_id)
        raise ProtocolError(INTERNAL_ERROR, "The server stops before the task has ended")

    async def list(self, params: Mapping[str, JSONValue] | None, requestor: Requestor) -> JSONObject:
        """Serve `tasks/list` (wire rule B9)."""
        if not requestor.can_list:
            raise wire_2025.list_not_offered()
        return wire_2025.render_page(
            await self._runtime.list(owner=requestor.owner, cursor=wire_2025.parse_cursor(params))
        )

    async def cancel(self, params: Mapping[str, JSONValue] | None, requestor: Requestor) -> JSONObject:
        """Serve `tasks/cancel` (wire rule B8)."""
        try:
            record = await self._runtime.cancel(wire_2025.parse_task_id(params), owner=requestor.owner)
        except InvalidTransitionError:
            raise wire_2025.already_ended() from None
        return wire_2025.render_record(record)


class TaskStreamSession:
    """The `TaskSession` of a task: what its work can send when the call is long answered.

    As a `TaskNotifier` it sends each status over the connection (wire rule B10), and progress over the stream of a
    `tasks/result` if there is one (B11).
    """

    __slots__ = (
        "_connection",
        "_handler",
        "_is_over",
        "_is_telling",
        "_news",
        "_progress",
        "_record",
        "_runtime",
        "_start_soon",
        "_statuses",
        "_told",
        "_told_progress",
        "_unwatch",
        "_with_progress",
    )

    can_send_request = False

    def __init__(
        self, record: TaskRecord, connection: TaskSession, handler: TaskResultHandler, start_soon: StartSoon
    ) -> None:
        """Make the session of a task.

        Args:
            record: The task as it was made.
            connection: What of the client's connection outlives the call.
            handler: Knows the streams of the task in this process.
            start_soon: Starts the wait for a client that does not read.
        """
        self._record = record
        self._told: JSONValue = record.task.status
        self._connection = connection
        self._handler = handler
        self._start_soon = start_soon
        self._statuses = LatestSender(connection, start_soon)
        self._progress: LatestSender | None = None
        self._runtime: TaskRuntime | None = None
        self._unwatch: Callable[[], None] | None = None
        self._news: TaskRecord | None = None
        self._is_telling = False
        self._is_over = False
        self._with_progress = False
        self._told_progress: Progress | None = None

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it made the task."""
        return self._record.client_capabilities

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification about the task, over one of its streams or the connection."""
        task_id = self._record.task_id
        params = wire_2025.with_related_task(params, task_id)
        if not await self._handler.notify(task_id, method, params):
            await self._connection.send_notification(method, params)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Refuse: requests go through the task's questions.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Requests to the client go through the task's questions")

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Send the whole task."""
        await self._send_status(wire_2025.render_task(task, outcome))

    async def _send_status(self, params: JSONObject) -> None:
        self._told = params["status"]
        await self._statuses.send(wire_2025.STATUS_NOTIFICATION, params)

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Send the whole task, and progress if the client gave a token for it."""
        await self.notify_status(task, None)
        token = self._record.request.progress_token
        if token is not None:
            if self._progress is None:
                self._progress = LatestSender(self, self._start_soon)
            await self._progress.send(*wire_2025.render_progress(progress, token))

    def announce(self, runtime: TaskRuntime, *, with_progress: bool = False) -> None:
        """Send each change of the task's status, unless the work has sent it, until the task has ended.

        Args:
            runtime: Follows the task.
            with_progress: Whether to send progress, too: the work runs in another process.
        """
        record = self._record
        self._runtime = runtime
        self._with_progress = with_progress
        self._unwatch = runtime.followers.watch(record.task_id, self._on_change, after=record.revision)
        if self._is_over:  # the first call was the last one
            self._unwatch()

    def _on_change(self, record: TaskRecord | None) -> None:
        if record is None or is_terminal(record.status):
            self._is_over = True
            if self._unwatch is not None:
                self._unwatch()
        self._news = record
        if record is None or self._is_telling:
            return
        if record.status != self._told or self._has_progressed(record):
            self._is_telling = True
            self._start_soon(self._tell)

    def _has_progressed(self, record: TaskRecord) -> bool:
        return self._with_progress and record.progress not in (None, self._told_progress) and record.outcome is None

    async def _tell(self) -> None:
        """Send what is new, and again while there is something newer. It does not raise."""
        try:
            while (record := self._news) is not None:
                self._news = None
                await self._tell_of(record)
        except TaskNotFoundError:
            return
        except StoreError as error:
            log_loss(logger, "A change of a task was not announced", error)
        finally:
            self._is_telling = False

    async def _tell_of(self, record: TaskRecord) -> None:
        if self._has_progressed(record):
            assert record.progress is not None
            self._told_progress = record.progress
            await self.notify_progress(record.task, record.progress)
        elif wire_2025.render_record(record)["status"] == self._told:
            return
        elif record.status == "input_required":
            assert self._runtime is not None
            params = wire_2025.render_view(await self._runtime.get(record.task_id, owner=record.owner))
            if params["status"] != self._told:  # the question waits for a person elsewhere
                await self._send_status(params)
        else:
            await self.notify_status(record.task, record.outcome)
