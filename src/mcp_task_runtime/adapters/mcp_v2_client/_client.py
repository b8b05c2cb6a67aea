"""The client's side of tasks, for `mcp` 2.x: one API for servers of both protocol revisions.

`Client(server, extensions=[TasksClient()])` is all it takes for servers of revision 2026-07-28:
`client.call_tool` then returns the result also of a call that the server turned into a task.
`TasksClient.start` and `resume` give the task itself to whoever wants to hold it; they serve servers of
revision 2025-11-25 too, where the client says which call is a task, and the SDK's `call_tool` cannot.

What holds for everything here:

- A server is not trusted to keep the rules. Whatever it sends becomes a result or a `TaskError`.
- A user is asked each question once, and the answer is kept until the server has it. (Under 2025-11-25 the
  SDK asks the user, and a server asks again when the connection's stream was lost.)
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
from functools import partial
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import anyio

try:
    import mcp_types as types
except ImportError as _error:
    raise ImportError(
        "mcp_task_runtime.adapters.mcp_v2_client needs mcp 2.x: pip install 'mcp-task-runtime[mcp]' 'mcp>=2'"
    ) from _error
from mcp.client import (
    ClaimContext,
    Client,
    ClientExtension,
    ClientSession,
    NotificationBinding,
    ResultClaim,
)
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from mcp_task_runtime.adapters.mcp_v2_client import _task_2025 as legacy
from mcp_task_runtime.adapters.mcp_v2_client._support import (
    MAX_FAILED_REQUESTS,
    MAX_POLL_INTERVAL_MS,
    MIN_POLL_INTERVAL_MS,
    InvalidTaskResponseError,
    RemoteTask,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskSnapshot,
    Timeouts,
    UnknownTaskError,
    is_passing,
    problems,
    retry_after_seconds,
)
from mcp_task_runtime.adapters.mcp_v2_client._task_2026 import ModernTask
from mcp_task_runtime.core.json import dump_json, load_json, to_json_value
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.wire.v2025_11_25 import STATUS_NOTIFICATION
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

DEFAULT_POLL_INTERVAL_MS: Final = 1_000
"""Milliseconds between two polls where a server suggests nothing."""

_RETRY_SECONDS: Final = 0.5
"""Seconds until a failed look is tried again, doubled with each failure in a row."""


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

    Under revision 2025-11-25 the SDK's `call_tool` asks for no task: call `start` there, and `wait`.

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
        push: Whether to have changes pushed by servers that do so, besides polling (wire rules B10, C11).

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
        self._timeouts = Timeouts(request_timeout, cancel_timeout)
        self._push = push
        self._tools: WeakKeyDictionary[ClientSession, legacy.ListedTools] = WeakKeyDictionary()
        self._listening: dict[str, set[_Looks]] = {}
        self._streams = 0

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        """Return the bindings for pushed changes; the SDK calls this."""
        return tuple(
            NotificationBinding(method=method, params_type=_Pushed, handler=self._on_push)
            for method in (NOTIFICATION, STATUS_NOTIFICATION)
        )

    async def _on_push(self, pushed: _Pushed) -> None:
        for looks in self._listening.get(pushed.task_id, ()):
            looks.wake()

    async def _listen(self, remote: RemoteTask, looks: _Looks) -> None:
        """Have a task's changes pushed, if the server does that, until this is cancelled."""
        if not self._push or self._streams >= MAX_LISTEN_STREAMS:
            return
        self._streams += 1
        self._listening.setdefault(remote.task_id, set()).add(looks)
        try:
            await remote.subscribe()
            looks.wake()  # the SDK may deliver what was pushed last after this response
        except (MCPError, ValidationError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("The server does not push changes; polling goes on", exc_info=True)
        finally:
            self._streams -= 1
            others = self._listening[remote.task_id]
            others.discard(looks)
            if not others:
                del self._listening[remote.task_id]

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Return the claim on `resultType: "task"`; the SDK calls this."""
        return (ResultClaim(result_type="task", model=_Handle, resolve=self._resolve),)

    async def start(
        self,
        client: Client,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        ttl_ms: int | None = None,
        meta: types.RequestParamsMeta | None = None,
        read_timeout_seconds: float | None = None,
    ) -> ClientTask | CallToolResult:
        """Call a tool and return its task, without waiting for the end.

        A server of revision 2026-07-28 alone decides whether there is a task: any call may come back with
        its result (wire rule C14). One of 2025-11-25 is asked for a task if its list of tools says that the
        tool runs as one (B2); the list is read once a connection, and again when a call is refused for its
        mode. Otherwise the call is a plain one. Cancelled, a task that was asked for is cancelled if the server
        answers within `cancel_timeout`; one that a server of 2026-07-28 made by itself may be lost.

        Args:
            client: A connected client that has a `TasksClient` among its extensions.
            name: The tool's name.
            arguments: The tool's arguments.
            ttl_ms: Milliseconds that the task is to live, for servers of 2025-11-25. The server may decide
                otherwise, and one of 2026-07-28 is not asked.
            meta: Further `_meta` of the request.
            read_timeout_seconds: Seconds that this request, and each later one for the task, may take; not
                the one that waits for the task's end under 2025-11-25.

        Returns:
            The task, or the result of a call that did not become one.

        Raises:
            ValueError: `ttl_ms` is not positive.
            MCPError: The server refused the call, or a callback refused what it asked beforehand.
            InvalidTaskResponseError: The server sent a malformed handle.
        """
        if ttl_ms is not None and not ttl_ms > 0:
            raise ValueError("ttl_ms must be positive")
        call_plainly = partial(self._call, client, name, arguments, meta, read_timeout_seconds)
        call_as_task = partial(self._call_as_task, client, name, arguments, ttl_ms, meta, read_timeout_seconds)
        if not legacy.serves_tasks(client):
            return await call_plainly()
        tools = self._tools.setdefault(client.session, legacy.ListedTools())
        is_task = await tools.mode(client, name) in ("optional", "required")
        try:
            return await (call_as_task if is_task else call_plainly)()
        except MCPError as error:
            # Refused for its mode? The list may have changed, or may not show every tool.
            if error.code != types.METHOD_NOT_FOUND:
                raise
            if await tools.mode(client, name, anew=True) == ("required" if is_task else "forbidden"):
                raise
        return await (call_plainly if is_task else call_as_task)()

    async def _call_as_task(
        self,
        client: Client,
        name: str,
        arguments: dict[str, Any] | None,
        ttl_ms: int | None,
        meta: types.RequestParamsMeta | None,
        read_timeout_seconds: float | None,
    ) -> ClientTask | CallToolResult:
        """Call a tool of a server of 2025-11-25 as a task."""
        session = client.session
        answer = await legacy.call_as_task(
            session,
            self._timeouts,
            name,
            arguments,
            ttl_ms=ttl_ms,
            meta=meta,
            read_timeout_seconds=read_timeout_seconds,
        )
        if isinstance(answer, legacy.LegacyTask):
            return ClientTask(self, answer, tool_name=name)
        if not answer.is_error:
            await session.validate_tool_result(name, answer)
        return answer

    async def _call(
        self,
        client: Client,
        name: str,
        arguments: dict[str, Any] | None,
        meta: types.RequestParamsMeta | None,
        read_timeout_seconds: float | None,
    ) -> ClientTask | CallToolResult:
        """Call a tool as the SDK does, and return the task if the server made one."""
        this = _Start(self, client.session, anyio.get_current_task().id)
        token = _starting.set(this)
        try:
            return await client.call_tool(name, arguments, read_timeout_seconds, meta=meta)
        except _Started as started:
            return started.task
        except ValidationError as error:
            raise InvalidTaskResponseError._because(f"tools/call: {problems(error)}") from None
        finally:
            this.under_way = False
            _starting.reset(token)

    def resume(self, client: Client, task_id: str) -> ClientTask:
        """Return a task by its id alone, such as one that was started before a restart.

        Sends nothing: whether the server has the task shows at the first request. Each call returns an object of
        its own, and two that wait for one task at once both ask its questions; the first answer counts (C8).

        Args:
            client: A connected client that has a `TasksClient` among its extensions.
            task_id: The task's identifier.

        Raises:
            ValueError: `task_id` is empty.
            TaskError: The server of this connection has no tasks.
        """
        if not task_id:
            raise ValueError("task_id must not be empty")
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return ClientTask(self, ModernTask(client.session, task_id, self._timeouts))
        if legacy.serves_tasks(client):
            return ClientTask(self, legacy.LegacyTask(client.session, task_id, self._timeouts))
        message = f"The server of this connection has no tasks (protocol revision {client.protocol_version})"
        raise TaskError(types.METHOD_NOT_FOUND, message, task_id=task_id)

    def list_tasks(self, client: Client) -> AsyncGenerator[TaskSnapshot, None]:
        """Return the tasks that a server of 2025-11-25 lists for this client, in its own order.

        They are read page by page while they are iterated over, which raises a `TaskError` if it fails.

        Args:
            client: A connected client that has a `TasksClient` among its extensions.

        Raises:
            TaskError: The server lists no tasks, as none of 2026-07-28 does.
        """
        tasks = client.server_capabilities.tasks
        if not legacy.serves_tasks(client) or tasks is None or tasks.list is None:
            message = f"The server of this connection lists no tasks (protocol revision {client.protocol_version})"
            raise TaskError(types.METHOD_NOT_FOUND, message)
        return legacy.list_tasks(client, self._timeouts)

    async def _resolve(self, handle: _Handle, context: ClaimContext) -> CallToolResult:
        """Finish a call that became a task: the SDK calls this inside `Client.call_tool`."""
        start = _starting.get()
        if start is not None and not start.is_for(context.session):
            start = None
        raw = handle.model_dump(by_alias=True)
        task_id = raw.get("taskId")
        if not isinstance(task_id, str) or not task_id:
            raise InvalidTaskResponseError._because("a task handle without a taskId")
        tasks = self if start is None else start.tasks
        remote = ModernTask(
            context.session, task_id, tasks._timeouts, read_timeout_seconds=context.read_timeout_seconds
        )
        task = ClientTask(tasks, remote, tool_name=context.tool_name)
        try:
            remote.take_handle(raw)
            if start is not None:
                raise _Started(task)
            return await task._follow()
        except (anyio.get_cancelled_exc_class(), InvalidTaskResponseError):
            await remote.abandon()
            raise


class ClientTask:
    """A task on a server, held by its id. `TasksClient.start` and `TasksClient.resume` return it.

    It lives as long as the connection it was made on; afterwards, resume the task by its id. Every
    method raises `UnknownTaskError` when the server has no such task, `InvalidTaskResponseError` when
    what it sends breaks the rules, and `TaskError` with the server's code, message and data when a
    request fails in another way. Cancelled, a request may or may not have reached the server.
    """

    def __init__(self, tasks: TasksClient, remote: RemoteTask, *, tool_name: str | None = None) -> None:
        self._tasks = tasks
        self._remote = remote
        self._tool_name = tool_name
        self._reported: TaskSnapshot | None = None
        self._waiting = anyio.ResourceGuard("waiting for")

    @property
    def task_id(self) -> str:
        """The task's identifier. Where clients are not authenticated it is also the key to the task."""
        return self._remote.task_id

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""
        return await self._remote.get()

    async def update(self, responses: Mapping[str, Mapping[str, Any] | types.Result]) -> None:
        """Answer some or all of the task's open questions.

        The first answer to a question counts; the server ignores one to a question that is not open (C8).
        There is no such request under 2025-11-25: a `TaskError` says so, and `wait` answers.

        Args:
            responses: The answers by the keys of `TaskSnapshot.input_requests`: results of the SDK, or JSON
                objects.

        Raises:
            ValueError: An answer or a key has no JSON form.
        """
        answers = {key: to_json_value(response) for key, response in responses.items()}
        await self._remote.update(load_json(dump_json(answers)))

    async def cancel(self) -> None:
        """Ask the server to cancel the task.

        It has agreed when this returns, also for a task that had ended; the status may follow later (C9).
        """
        await self._remote.cancel()

    async def wait(self) -> CallToolResult:
        """Follow the task to its end, as `Client.call_tool` does, and return its result.

        Answers the task's questions with the client's callbacks; a refusal cancels the task. Cancelling
        this method does not: wait again whenever you like. A question that was being asked is then asked
        anew, one that was answered is not. A result is checked against the tool's output schema when the
        task was made by `start`.

        Under 2025-11-25 the questions come on the stream of `tasks/result`, and the SDK answers them: a
        refusal is for the server to judge, and raises nothing here.

        Raises:
            TaskFailedError: The task failed; this is its error.
            TaskCancelledError: The task was cancelled.
            MCPError: A callback refused; this is its error, and the task was cancelled.
            RuntimeError: The result does not match the tool's output schema, as with `Client.call_tool`.
            anyio.BusyResourceError: Somebody else waits for this same object.
        """
        with self._waiting:
            result = await self._follow()
        if self._tool_name is not None and not result.is_error:
            await self._remote.session.validate_tool_result(self._tool_name, result)
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

    async def _follow(self) -> CallToolResult:
        looks = _Looks(self)
        return await self._remote.follow(looks, self._report, partial(self._tasks._listen, self._remote, looks))

    async def _report(self, snapshot: TaskSnapshot) -> None:
        if snapshot == self._reported:
            return
        self._reported = snapshot
        if self._tasks._on_update is not None:
            try:
                await self._tasks._on_update(snapshot)
            except Exception:
                logger.exception("on_update raised")


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
                rest = retry_after_seconds(error)
                if rest is not None:  # no failure, and no push makes it sooner
                    await anyio.sleep(rest)
                    self._woken.set()
                    continue
                failures += 1
                if not is_passing(error) or failures == MAX_FAILED_REQUESTS:
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


class _Handle(types.Result):
    """The answer to a call that became a task, as it came: what it holds is checked by `_parse_task`."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class _Pushed(BaseModel):
    """A pushed change: it only says that there is something new to see."""

    task_id: StrictStr = Field(alias="taskId")


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
