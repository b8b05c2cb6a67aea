"""The client of the tasks extension of protocol revision 2026-07-28, for `mcp` 2.x.

`Client(server, extensions=[TasksClient()])` is all it takes: `client.call_tool` then returns the
result also of a call that the server turned into a task. `TasksClient.start` and `resume` give the
task itself to whoever wants to hold it.

What holds for everything here:

- A server is not trusted to keep the rules. Whatever it sends becomes a result or a `TaskError`.
- A user is asked each question once, and the answer is kept until the server has it.
- A task is cancelled with `tasks/cancel` and by no other message (wire rule C14). It is cancelled when
  this side gives up on it, never because the connection failed: then it can be resumed.
- Only `_Looks` knows when to look at a task again. A push from the server makes that now, and nothing
  more: without it, or when it is lost, polling sees the same a little later.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar, Final, Literal, TypeAlias

import anyio
import anyio.abc
import mcp_types as types
from mcp.client import (
    ClaimContext,
    Client,
    ClientExtension,
    ClientRequestContext,
    ClientSession,
    NotificationBinding,
    ResultClaim,
)
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict, Field, RootModel, StrictInt, StrictStr, ValidationError
from pydantic.alias_generators import to_camel

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json, to_json_value
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskStatus
from mcp_task_runtime.errors import TaskRuntimeError
from mcp_task_runtime.wire.v2026_07_28 import EXTENSION_ID, NOTIFICATION

__all__ = [
    "DEFAULT_POLL_INTERVAL_MS",
    "MAX_FAILED_REQUESTS",
    "MAX_LISTEN_STREAMS",
    "MAX_POLL_INTERVAL_MS",
    "MIN_POLL_INTERVAL_MS",
    "ClientTask",
    "InvalidTaskResponseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskSnapshot",
    "TasksClient",
    "UnknownTaskError",
]

logger: logging.Logger = logging.getLogger(__name__)

MAX_LISTEN_STREAMS: Final = 16
"""Tasks that one `TasksClient` has pushed to it at once; more are polled alone."""

MIN_POLL_INTERVAL_MS: Final = 50
"""Milliseconds between two polls at the least, also where a server suggests 0 or less."""

MAX_POLL_INTERVAL_MS: Final = 60_000
"""Milliseconds between two polls at the most, also where a server suggests to come back next year."""

DEFAULT_POLL_INTERVAL_MS: Final = 1_000
"""Milliseconds between two polls where a server suggests nothing."""

MAX_FAILED_REQUESTS: Final = 3
"""How often in a row a request may fail for a reason that may pass, before its error is raised."""

_RETRY_SECONDS: Final = 0.5
"""Seconds until a failed look is tried again, doubled with each failure in a row."""

_PASSING_CODES: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT, types.INTERNAL_ERROR})
"""Errors that may pass: a response was lost or late, or server or gateway are at fault (-32603 is also HTTP 502)."""

_INPUT_REQUESTS: Final[Mapping[str, tuple[type[types.InputRequest], tuple[type[types.Result], ...]]]] = {
    "elicitation/create": (types.ElicitRequest, (types.ElicitResult,)),
    "sampling/createMessage": (
        types.CreateMessageRequest,
        (types.CreateMessageResult, types.CreateMessageResultWithTools),
    ),
    "roots/list": (types.ListRootsRequest, (types.ListRootsResult,)),
}
"""What a server may ask, and what a callback may answer."""


class TaskError(MCPError, TaskRuntimeError):
    """A task could not be followed to its result. Raised itself, it is the error of a `tasks/*` request.

    Attributes:
        task_id: The task, which `TasksClient.resume` takes; empty if the server did not name one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, task_id: str = "") -> None:
        super().__init__(code, message, data)
        self.task_id = task_id


class TaskFailedError(TaskError):
    """The task ended as `failed`: exactly the error that the call would have had, code, message and data."""


class TaskCancelledError(TaskError):
    """The task ended as `cancelled`, by this client or somebody else."""


class UnknownTaskError(TaskError):
    """The server has no such task: it never had, it has expired, or it is somebody else's (wire rule A3)."""


class InvalidTaskResponseError(TaskError):
    """The server sent something that the protocol does not allow."""

    def __init__(
        self, code: int = types.PARSE_ERROR, message: str = "", data: Any = None, *, task_id: str = ""
    ) -> None:
        super().__init__(code, message, data, task_id=task_id)

    @classmethod
    def _because(cls, problem: str, *, task_id: str = "") -> InvalidTaskResponseError:
        return cls(message=f"Invalid response from the server: {problem}", task_id=task_id)


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """What a server said of a task at one time; it never changes.

    Attributes:
        task_id: The task's identifier.
        status: Where the task stands.
        status_message: What the work last said of itself, or why it failed.
        created_at: Aware UTC time of creation.
        last_updated_at: Aware UTC time of the last change, by the server's clock.
        ttl_ms: Milliseconds from creation until the task is gone; `None` means never.
        poll_interval_ms: Milliseconds between two polls as the server suggests them, unclamped; `None` if
            it suggests nothing.
        input_requests_json: The open questions as JSON text.
        result_json: The result of a completed task as JSON text.
        error_json: The JSON-RPC error of a failed task as JSON text.
    """

    task_id: str
    status: TaskStatus
    status_message: str | None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None
    poll_interval_ms: int | None
    input_requests_json: str = "{}"
    result_json: str | None = None
    error_json: str | None = None

    @property
    def input_requests(self) -> dict[str, JSONObject]:
        """The open questions of a task that needs input, by key, parsed anew at each access."""
        value: dict[str, JSONObject] = load_json(self.input_requests_json)
        return value

    @property
    def result(self) -> JSONObject | None:
        """The result of a completed task, parsed anew at each access; otherwise `None`."""
        return None if self.result_json is None else load_json(self.result_json)

    @property
    def error(self) -> JSONObject | None:
        """The JSON-RPC error of a failed task, parsed anew at each access; otherwise `None`."""
        return None if self.error_json is None else load_json(self.error_json)


class TasksClient(ClientExtension):
    """Declares the tasks extension and follows tasks to their results.

    Pass it to the client: `Client(server, extensions=[TasksClient()])`. From then on
    `client.call_tool` polls a task as its server suggests, answers its questions with the client's own
    elicitation, sampling and roots callbacks, and returns its result. What it raises:

    - `TaskFailedError` with the error that the call would have had, and `TaskCancelledError`;
    - what a callback raised or refused with (`MCPError`), after the task was cancelled;
    - `InvalidTaskResponseError`, also after the task was cancelled, where the server breaks the rules;
    - `UnknownTaskError` where the task has vanished, and any other `TaskError` where a request failed:
      then the task lives on, and `resume` takes its `task_id`.

    A `call_tool` that is cancelled cancels its task on the server. That needs the connection: put a
    time-out inside the client's `async with` block, not around it.

    One instance serves any number of clients and calls at once.

    Args:
        on_update: Called with each new snapshot of any task that `call_tool` or `ClientTask.wait` follows,
            beginning with the handle. Polling goes on when it returns. What it raises is logged.
        request_timeout: Seconds that one `tasks/*` request may take, unless the call names a read
            time-out. A lower `read_timeout_seconds` of the client counts as well.
        cancel_timeout: Seconds that `tasks/cancel` may take when this side gives up. The caller waits
            for it, also when the caller was cancelled.
        push: Whether to have changes pushed by servers that do so, besides polling (wire rule C11).

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    identifier = EXTENSION_ID

    def __init__(
        self,
        *,
        on_update: Callable[[TaskSnapshot], Awaitable[None]] | None = None,
        request_timeout: float = 30.0,
        cancel_timeout: float = 5.0,
        push: bool = True,
    ) -> None:
        if not request_timeout > 0:
            raise ValueError("request_timeout must be positive")
        if not cancel_timeout > 0:
            raise ValueError("cancel_timeout must be positive")
        self._on_update = on_update
        self._request_timeout = request_timeout
        self._cancel_timeout = cancel_timeout
        self._push = push
        self._listening: dict[str, set[_Looks]] = {}
        self._streams = 0

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        """Return the binding for pushed changes; the SDK calls this."""
        return (NotificationBinding(method=NOTIFICATION, params_type=_Pushed, handler=self._on_push),)

    async def _on_push(self, pushed: _Pushed) -> None:
        for looks in self._listening.get(pushed.task_id, ()):
            looks.wake()

    async def _listen(self, task: ClientTask, looks: _Looks) -> None:
        """Have a task's changes pushed, if the server does that, until this is cancelled."""
        if not self._push or self._streams >= MAX_LISTEN_STREAMS:
            return
        self._streams += 1
        self._listening.setdefault(task.task_id, set()).add(looks)
        try:
            wanted = types.SubscriptionFilter.model_validate({"taskIds": [task.task_id]})
            params = types.SubscriptionsListenRequestParams(notifications=wanted)
            await task._session.send_request(types.SubscriptionsListenRequest(params=params), _RawResult)
            looks.wake()  # the SDK may deliver what was pushed last after this response
        except (MCPError, ValidationError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("The server does not push changes; polling goes on", exc_info=True)
        finally:
            self._streams -= 1
            others = self._listening[task.task_id]
            others.discard(looks)
            if not others:
                del self._listening[task.task_id]

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Return the claim on `resultType: "task"`; the SDK calls this."""
        return (ResultClaim(result_type="task", model=_Handle, resolve=self._resolve),)

    async def start(
        self,
        client: Client,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        meta: types.RequestParamsMeta | None = None,
        read_timeout_seconds: float | None = None,
    ) -> ClientTask | CallToolResult:
        """Call a tool and return its task, without waiting for the end.

        The server alone decides whether there is a task: any call may come back with its result
        (wire rule C14). Cancelled, the server may have made a task whose id is lost.

        Args:
            client: A connected client that has a `TasksClient` among its extensions.
            name: The tool's name.
            arguments: The tool's arguments.
            meta: Further `_meta` of the request.
            read_timeout_seconds: Seconds that this request, and each later one for the task, may take.

        Returns:
            The task, or the result of a call that did not become one.

        Raises:
            MCPError: The server refused the call, or a callback refused what it asked beforehand.
            InvalidTaskResponseError: The server sent a malformed handle.
        """
        this = _Start(self, client.session, anyio.get_current_task().id)
        token = _starting.set(this)
        try:
            return await client.call_tool(name, arguments, read_timeout_seconds, meta=meta)
        except _Started as started:
            return started.task
        except ValidationError as error:
            raise InvalidTaskResponseError._because(f"tools/call: {_problems(error)}") from None
        finally:
            this.under_way = False
            _starting.reset(token)

    def resume(self, client: Client, task_id: str) -> ClientTask:
        """Return a task by its id alone, such as one that was started before a restart.

        Sends nothing: whether the server has the task shows at the first request.

        Args:
            client: A connected client that has a `TasksClient` among its extensions.
            task_id: The task's identifier.

        Raises:
            ValueError: `task_id` is empty.
            TaskError: The connection speaks a protocol revision without the tasks extension.
        """
        if not task_id:
            raise ValueError("task_id must not be empty")
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            message = f"Protocol revision {client.protocol_version} has no extension {EXTENSION_ID!r}"
            raise TaskError(types.METHOD_NOT_FOUND, message, task_id=task_id)
        return ClientTask(self, client.session, task_id)

    async def _resolve(self, handle: _Handle, context: ClaimContext) -> CallToolResult:
        """Finish a call that became a task: the SDK calls this inside `Client.call_tool`."""
        start = _starting.get()
        if start is not None and not start.is_for(context.session):
            start = None
        raw = handle.model_dump(by_alias=True)
        task_id = raw.get("taskId")
        if not isinstance(task_id, str) or not task_id:
            raise InvalidTaskResponseError._because("a task handle without a taskId")
        task = ClientTask(
            self if start is None else start.tasks,
            context.session,
            task_id,
            tool_name=context.tool_name,
            read_timeout_seconds=context.read_timeout_seconds,
        )
        try:
            task._handle = _parse_task(raw, task_id, "tools/call", detailed=False)
            if start is not None:
                raise _Started(task)
            final = await _Following(task).run()
        except (anyio.get_cancelled_exc_class(), InvalidTaskResponseError):
            await task._abandon()
            raise
        return _outcome(final)


class ClientTask:
    """A task on a server, held by its id. `TasksClient.start` and `TasksClient.resume` return it.

    It lives as long as the connection it was made on; afterwards, resume the task by its id. Every
    method raises `UnknownTaskError` when the server has no such task, `InvalidTaskResponseError` when
    what it sends breaks the rules, and `TaskError` with the server's code, message and data when a
    request fails in another way. Cancelled, a request may or may not have reached the server.
    """

    def __init__(
        self,
        tasks: TasksClient,
        session: ClientSession,
        task_id: str,
        *,
        tool_name: str | None = None,
        read_timeout_seconds: float | None = None,
    ) -> None:
        self._tasks = tasks
        self._session = session
        self._task_id = task_id
        self._tool_name = tool_name
        self._read_timeout_seconds = read_timeout_seconds
        self._handle: TaskSnapshot | None = None
        self._reported: TaskSnapshot | None = None
        self._questions: dict[str, _Question] = {}
        self._waiting = anyio.ResourceGuard("waiting for")
        self._abandoned = False

    @property
    def task_id(self) -> str:
        """The task's identifier. Where clients are not authenticated it is also the key to the task."""
        return self._task_id

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""
        raw = await self._request(_GetTask(params=_TaskParams(task_id=self._task_id)))
        return _parse_task(raw, self._task_id, "tasks/get", detailed=True)

    async def update(self, responses: Mapping[str, Mapping[str, Any] | types.Result]) -> None:
        """Answer some or all of the task's open questions.

        The first answer to a question counts; the server ignores one to a question that is not open (C8).

        Args:
            responses: The answers by the keys of `TaskSnapshot.input_requests`: results of the SDK, or JSON
                objects.

        Raises:
            ValueError: An answer has no JSON form.
        """
        answers = {key: load_json(dump_json(to_json_value(response))) for key, response in responses.items()}
        await self._request(_UpdateTask(params=_UpdateParams(task_id=self._task_id, input_responses=answers)))

    async def cancel(self) -> None:
        """Ask the server to cancel the task.

        It has agreed when this returns, also for a task that had ended; the status may follow later (C9).
        """
        await self._request(_CancelTask(params=_TaskParams(task_id=self._task_id)))

    async def wait(self) -> CallToolResult:
        """Follow the task to its end, as `Client.call_tool` does, and return its result.

        Answers the task's questions with the client's callbacks; a refusal cancels the task. Cancelling
        this method does not: wait again whenever you like. A question that was being asked is then asked
        anew, one that was answered is not. A result is checked against the tool's output schema when the
        task was made by `start`.

        Raises:
            TaskFailedError: The task failed; this is its error.
            TaskCancelledError: The task was cancelled.
            MCPError: A callback refused; this is its error, and the task was cancelled.
            RuntimeError: The result does not match the tool's output schema, as with `Client.call_tool`.
            anyio.BusyResourceError: Somebody else waits for this same object.
        """
        with self._waiting:
            result = _outcome(await _Following(self).run())
        if self._tool_name is not None and not result.is_error:
            await self._session.validate_tool_result(self._tool_name, result)
        return result

    async def snapshots(self) -> AsyncGenerator[TaskSnapshot, None]:
        """Yield how the task stands, and again with each change, up to its end.

        Changes between two polls are seen as one. Answers no question: that is `update`'s or `wait`'s to do.
        """
        looks = _Looks(self)
        seen: TaskSnapshot | None = None
        while seen is None or not is_terminal(seen.status):
            snapshot = await looks.next()
            if snapshot != seen:
                seen = snapshot
                yield snapshot

    async def _request(self, request: _TasksRequest) -> JSONObject:
        """Send a request and return the raw result. Whatever goes wrong is a `TaskError`."""
        method, task_id = request.method, self._task_id
        limit = self._tasks._request_timeout if self._read_timeout_seconds is None else None
        try:
            with anyio.fail_after(limit):
                raw = await self._session.send_request(request, _RawResult, self._read_timeout_seconds)
        except MCPError as error:
            unknown = error.code == types.INVALID_PARAMS and method != "tasks/update"
            kind = UnknownTaskError if unknown else TaskError
            raise kind(error.code, error.message, error.data, task_id=task_id) from error
        except ValidationError:
            raise InvalidTaskResponseError._because(f"the result of {method}", task_id=task_id) from None
        except TimeoutError as error:
            raise TaskError(types.REQUEST_TIMEOUT, f"{method} timed out", task_id=task_id) from error
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise TaskError(types.CONNECTION_CLOSED, "Connection closed", task_id=task_id) from error
        # C14: a handle answers nothing but tools/call. No resultType at all is how older servers say "complete".
        if raw.root.get("resultType", "complete") != "complete":
            raise InvalidTaskResponseError._because(f"the resultType of {method}", task_id=task_id)
        return raw.root

    async def _abandon(self) -> None:
        """Cancel the task because this side gives up; also when cancelled, but never for long."""
        if self._abandoned:
            return
        self._abandoned = True
        with anyio.move_on_after(self._tasks._cancel_timeout, shield=True):
            try:
                await self.cancel()
            except Exception:  # whatever it is, it must not hide why the task was given up
                logger.debug("A task that was given up could not be cancelled", exc_info=True)

    async def _report(self, snapshot: TaskSnapshot) -> None:
        if snapshot == self._reported:
            return
        self._reported = snapshot
        if self._tasks._on_update is not None:
            try:
                await self._tasks._on_update(snapshot)
            except Exception:
                logger.exception("on_update raised")

    async def _ask(self, key: str, raw: JSONObject) -> JSONObject:
        """Put a question to the client's own callback, and return its answer."""
        method = raw.get("method")
        known = _INPUT_REQUESTS.get(method) if isinstance(method, str) else None
        if known is None:
            raise self._invalid(f"input request {key!r} has the unknown method {method!r}")
        model, answers = known
        try:
            request = model.model_validate(raw, by_name=False)
        except ValidationError as error:
            raise self._invalid(f"input request {key!r}: {_problems(error)}") from None
        context = ClientRequestContext(
            session=self._session, request_id=key, meta=request.params.meta if request.params else None
        )
        answer = await self._session.dispatch_input_request(context, request)
        if isinstance(answer, types.ErrorData):
            raise MCPError.from_error_data(answer)
        if not isinstance(answer, answers):
            raise MCPError(types.INTERNAL_ERROR, "Client callback returned an invalid result")
        value: JSONObject = to_json_value(answer)
        return value

    def _invalid(self, problem: str) -> InvalidTaskResponseError:
        return InvalidTaskResponseError._because(problem, task_id=self._task_id)


@dataclass(slots=True, eq=False)
class _Question:
    """An input request, and how far this side is with it."""

    request: JSONObject
    answer: JSONObject | None = None  # kept until the server has it: nobody is asked twice
    delivered: bool = False


@dataclass(slots=True, eq=False)
class _Failure:
    """Why an answer could not be delivered."""

    error: TaskError
    look: int  # the last one that had begun by then
    count: int


class _Looks:
    """Looks at a task again and again, as often as its server suggests."""

    def __init__(self, task: ClientTask) -> None:
        self._task = task
        self._seconds = 0.0  # the first look is at once
        self._woken = anyio.Event()
        self.begun = 0

    def wake(self) -> None:
        """Make the next look due now."""
        self._woken.set()

    async def next(self) -> TaskSnapshot:
        """Return how the task stands when the next look is due.

        Raises:
            TaskError: The look failed, and not for the first time if the reason is one that may pass.
        """
        failures = 0
        while True:
            await self._until_due()
            self.begun += 1
            try:
                snapshot = await self._task.get()
            except TaskError as error:
                failures += 1
                if error.code not in _PASSING_CODES or failures == MAX_FAILED_REQUESTS:
                    raise
                self._seconds = _RETRY_SECONDS * 2 ** (failures - 1)
            else:
                self._seconds = _poll_seconds(snapshot.poll_interval_ms)
                return snapshot

    async def _until_due(self) -> None:
        """Wait for the next look: the one place where waiting happens, and where a push would end it early."""
        with anyio.move_on_after(self._seconds):
            await self._woken.wait()
        self._woken = anyio.Event()


class _Following:
    """One run of following a task to its end, with its questions asked and answered beside the polling."""

    _beside: anyio.abc.TaskGroup

    def __init__(self, task: ClientTask) -> None:
        self._task = task
        self._looks = _Looks(task)
        self._busy: set[str] = set()  # the questions that are being asked or answered
        self._prompts: dict[str, anyio.CancelScope] = {}  # those that are being asked
        self._failures: dict[str, _Failure] = {}  # those whose answer could not be delivered
        self._error: Exception | None = None
        self._refused = False

    async def run(self) -> TaskSnapshot:
        """Return the terminal snapshot.

        Raises:
            Exception: What a callback raised or refused with; the task was cancelled.
            TaskError: The task could not be followed.
        """
        final: TaskSnapshot | None = None
        async with anyio.create_task_group() as self._beside:
            self._beside.start_soon(self._task._tasks._listen, self._task, self._looks)
            try:
                final = await self._until_end()
            except Exception as error:  # raised below: from here it would come out in an exception group
                self._error = self._error or error
            self._beside.cancel_scope.cancel()
        if final is None:
            if self._refused:
                await self._task._abandon()
            assert self._error is not None
            raise self._error
        await self._task._report(final)
        return final

    async def _until_end(self) -> TaskSnapshot:
        if self._task._handle is not None and self._task._reported is None:
            await self._task._report(self._task._handle)
        while True:
            snapshot = await self._looks.next()
            if is_terminal(snapshot.status):
                return snapshot
            self._attend(snapshot.input_requests)
            await self._task._report(snapshot)

    def _attend(self, requests: Mapping[str, JSONObject]) -> None:
        """Ask what is new, withdraw what is no longer asked, and deliver what the server has not got yet."""
        for key in self._prompts.keys() - requests.keys():
            self._prompts[key].cancel()
        for key, request in requests.items():
            question = self._task._questions.setdefault(key, _Question(request))
            if _content(question.request) != _content(request):
                raise self._task._invalid(f"the key {key!r} of an input request was used twice")  # C7
            if question.delivered or key in self._busy:
                continue
            failure = self._failures.get(key)
            if failure is not None:
                if failure.look == self._looks.begun:
                    continue  # this snapshot may be from before the failure
                if failure.error.code not in _PASSING_CODES:
                    self._refuse(failure.error)
                    return
                if failure.count >= MAX_FAILED_REQUESTS:
                    raise failure.error
            self._busy.add(key)
            self._beside.start_soon(self._settle, key, question)

    async def _settle(self, key: str, question: _Question) -> None:
        """Get the answer to a question and deliver it."""
        try:
            if question.answer is None:
                await self._ask(key, question)
            if question.answer is not None:
                await self._task.update({key: question.answer})
                question.delivered = True
        except TaskError as error:
            # Not the end yet: the task may have ended meanwhile, or somebody else may have answered.
            earlier = self._failures.get(key)
            count = 1 if earlier is None else earlier.count + 1
            self._failures[key] = _Failure(error, self._looks.begun, count)
            if error.code not in _PASSING_CODES:
                self._looks.wake()
        finally:
            self._busy.discard(key)

    async def _ask(self, key: str, question: _Question) -> None:
        with anyio.CancelScope() as prompt:
            self._prompts[key] = prompt
            try:
                question.answer = await self._task._ask(key, question.request)
            except Exception as error:
                if not prompt.cancel_called:  # else the server no longer wants to know
                    self._refuse(error)
            finally:
                del self._prompts[key]

    def _refuse(self, error: Exception) -> None:
        """End the run: the question has no answer, so that the task would wait for ever."""
        if self._error is None:
            self._error = error
            self._refused = True
            self._beside.cancel_scope.cancel()


class _Handle(types.Result):
    """The answer to a call that became a task, as it came: what it holds is checked by `_parse_task`."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class _Pushed(BaseModel):
    """A pushed change: it only says that there is something new to see."""

    task_id: StrictStr = Field(alias="taskId")


class _TaskParams(types.RequestParams):
    task_id: str


class _UpdateParams(_TaskParams):
    input_responses: dict[str, JSONValue]


class _GetTask(types.Request[_TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: _TaskParams
    name_param: ClassVar[str | None] = "taskId"  # C14: sent as Mcp-Name


class _UpdateTask(types.Request[_UpdateParams, Literal["tasks/update"]]):
    method: Literal["tasks/update"] = "tasks/update"
    params: _UpdateParams
    name_param: ClassVar[str | None] = "taskId"


class _CancelTask(types.Request[_TaskParams, Literal["tasks/cancel"]]):
    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: _TaskParams
    name_param: ClassVar[str | None] = "taskId"


_TasksRequest: TypeAlias = _GetTask | _UpdateTask | _CancelTask


class _RawResult(RootModel[dict[str, Any]]):
    """A result as it came."""


class _TaskFields(BaseModel):
    """What every form of a task has. Serialisers that drop nulls lose `ttlMs`: it may be missing."""

    model_config = ConfigDict(alias_generator=to_camel)

    task_id: str
    status: TaskStatus
    status_message: str | None = None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None


class _ErrorFields(BaseModel):
    code: StrictInt
    message: StrictStr
    data: Any = None


class _InputRequired(BaseModel):
    requests: dict[str, dict[str, Any]] = Field(alias="inputRequests")


class _Completed(BaseModel):
    result: dict[str, Any]


class _Failed(BaseModel):
    error: _ErrorFields


def _parse_task(raw: JSONObject, task_id: str, method: str, *, detailed: bool) -> TaskSnapshot:
    """Return the snapshot that a server sent, if it is one of this task.

    Args:
        raw: What it sent.
        task_id: The task that was asked for.
        method: The method that it answers, for the error's text.
        detailed: Whether it must hold what belongs to its status (C6); a handle must not (C4).

    Raises:
        InvalidTaskResponseError: It is none.
    """
    questions: dict[str, dict[str, Any]] = {}
    result_json: str | None = None
    error_json: str | None = None
    try:
        fields = _TaskFields.model_validate(raw)
        if detailed and fields.status == "input_required":
            questions = _InputRequired.model_validate(raw).requests
        elif detailed and fields.status == "completed":
            result_json = dump_json(_Completed.model_validate(raw).result)
        elif detailed and fields.status == "failed":
            error_json = dump_json(_Failed.model_validate(raw).error.model_dump(exclude_unset=True))
        questions_json = dump_json(questions)
    except ValidationError as error:
        raise InvalidTaskResponseError._because(f"{method}: {_problems(error)}", task_id=task_id) from None
    except ValueError:  # only from a server in this process: anything else came as JSON
        raise InvalidTaskResponseError._because(f"{method}: not JSON", task_id=task_id) from None
    if fields.task_id != task_id:
        raise InvalidTaskResponseError._because(f"{method}: another task than the one asked for", task_id=task_id)
    return TaskSnapshot(
        task_id,
        fields.status,
        fields.status_message,
        _utc(fields.created_at),
        _utc(fields.last_updated_at),
        fields.ttl_ms,
        fields.poll_interval_ms,
        questions_json,
        result_json,
        error_json,
    )


def _outcome(final: TaskSnapshot) -> CallToolResult:
    """Return the result of a task that ended, or raise its error."""
    if final.status == "cancelled":
        message = final.status_message or "The task was cancelled"
        raise TaskCancelledError(types.INTERNAL_ERROR, message, task_id=final.task_id)
    if final.error is not None:
        raise TaskFailedError(**final.error, task_id=final.task_id)
    try:
        result = CallToolResult.model_validate(final.result, by_name=False)
    except ValidationError as error:
        raise InvalidTaskResponseError._because(f"result: {_problems(error)}", task_id=final.task_id) from None
    if result.result_type != "complete":
        raise InvalidTaskResponseError._because("the resultType of a task's result", task_id=final.task_id)
    return result


def _problems(error: ValidationError) -> str:
    """Return what is wrong, without the values: those are the server's, and may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:5])


def _utc(when: datetime) -> datetime:
    """Return the time in UTC, which it is in already where it does not say so (A4)."""
    return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when.astimezone(timezone.utc)


def _content(request: JSONObject) -> JSONObject:
    """Return what a question asks: its `_meta` may differ each time it is shown."""
    params = request.get("params")
    if isinstance(params, dict):
        return {**request, "params": {name: value for name, value in params.items() if name != "_meta"}}
    return request


def _poll_seconds(suggested_ms: int | None) -> float:
    """Return the seconds until the next look, within bounds."""
    wanted = DEFAULT_POLL_INTERVAL_MS if suggested_ms is None else suggested_ms
    return min(max(wanted, MIN_POLL_INTERVAL_MS), MAX_POLL_INTERVAL_MS) / 1000


@dataclass(slots=True, eq=False)
class _Start:
    """A `TasksClient.start` that is, or was, under way."""

    tasks: TasksClient
    session: ClientSession
    anyio_task_id: int
    under_way: bool = True

    def is_for(self, session: ClientSession) -> bool:
        """Whether the handle that is being resolved now, on this session, is the one `start` waits for.

        `Client.call_tool` resolves it in the anyio task that called it. Other calls inherit the context:
        a callback's, in a task of its own, an in-process server's, on another session, and those of
        whatever the two leave running.
        """
        return self.under_way and session is self.session and anyio.get_current_task().id == self.anyio_task_id


class _Started(Exception):  # no error: the way out of `Client.call_tool` with a task
    def __init__(self, task: ClientTask) -> None:
        super().__init__()
        self.task = task


_starting: ContextVar[_Start | None] = ContextVar("mcp_task_runtime_starting", default=None)
