"""`TasksClient`: the client's side of tasks for `mcp` 1.x."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio
from mcp import ClientSession, McpError
from mcp.types import METHOD_NOT_FOUND, CallToolResult, PaginatedRequestParams
from pydantic import ValidationError

from mcp_task_runtime.adapters.mcp_v1_client._connection import Connection
from mcp_task_runtime.adapters.mcp_v1_client._errors import ERRORS, InvalidTaskResponseError, TaskError
from mcp_task_runtime.adapters.task_client.calls_2025 import ListedTools, call_as_task, list_tasks
from mcp_task_runtime.adapters.task_client.client_task import BaseClientTask
from mcp_task_runtime.adapters.task_client.polling import PollSettings
from mcp_task_runtime.adapters.task_client.remote_task import Limits
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot, problems
from mcp_task_runtime.adapters.task_client.statistics import ClientStatistics
from mcp_task_runtime.adapters.task_client.task_2025 import Task2025
from mcp_task_runtime.adapters.task_client.unfinished import UnfinishedTasks
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.wire.v2025_11_25 import TaskSupport

__all__ = ["ClientTask", "TasksClient"]


class ClientTask(BaseClientTask[CallToolResult]):
    __doc__ = BaseClientTask.__doc__

    async def wait(self) -> CallToolResult:
        """Follow the task to its end and return its result.

        The questions come on the stream of `tasks/result`, and the session answers them with its own callbacks: a
        refusal is for the server to judge, and raises nothing here. The session reads nothing else while a callback
        runs, so a prompt is not closed when the task ends. Cancelling this method leaves the task alone: wait again
        at any time. The result is not checked against the tool's output schema.

        Any number of callers may wait, on this object or on others for the same task: all get the same result or
        error.

        Raises:
            TaskFailedError: The task failed; this is its error.
            TaskCancelledError: The task was cancelled.
        """
        return await self._remote.result()


class TasksClient:
    """Calls tools as tasks over a `ClientSession`, on servers that have the `tasks` capability of 2025-11-25.

    `call_tool` polls a task as its server suggests and returns its result; the session's own elicitation, sampling
    and roots callbacks answer its questions. What it raises:

    - `TaskFailedError` with the error that the call would have had, and `TaskCancelledError`;
    - `InvalidTaskResponseError`, after the task was cancelled, where the server breaks the rules;
    - `UnknownTaskError` where the task has vanished, and any other `TaskError` where a request failed:
      then the task lives on, and `resume` takes its `task_id`.

    A `call_tool` that is cancelled cancels its task on the server. `unfinished` names the tasks for which that
    failed, also because the SDK ended the whole session when it could not connect to a server that has stopped.

    One instance serves any number of sessions and calls at once.

    Args:
        on_update: Called with each new snapshot of any task that `call_tool` or `ClientTask.wait` follows,
            beginning with the handle. Polling goes on when it returns. What it raises is logged.
        request_timeout: Seconds that one `tasks/*` request may take, unless the call names a read
            time-out. A lower `read_timeout_seconds` of the session counts as well.
        cancel_timeout: Seconds that `tasks/cancel` may take when this side gives up. The caller waits
            for it, also when the caller was cancelled.
        poll_bounds_ms: The shortest and the longest time between two polls, in milliseconds. What a server
            suggests is kept within them.
        poll_interval_ms: Milliseconds between two polls where a server suggests nothing.
        max_failures: How often in a row a request may fail for a reason that may pass, before its error is
            raised.
        retry_pause: Seconds until a request that failed is tried again, doubled with each failure in a row.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        on_update: Callable[[TaskSnapshot], Awaitable[None]] | None = None,
        request_timeout: float = 30.0,
        cancel_timeout: float = 5.0,
        poll_bounds_ms: tuple[float, float] = (50, 60_000),
        poll_interval_ms: float = 1_000,
        max_failures: int = 3,
        retry_pause: float = 0.5,
    ) -> None:
        polling = PollSettings(poll_bounds_ms, poll_interval_ms, max_failures=max_failures, retry_pause=retry_pause)
        self._limits = Limits(request_timeout, cancel_timeout, polling)
        self._on_update = on_update
        self._tools: WeakKeyDictionary[ClientSession, ListedTools] = WeakKeyDictionary()
        self._tasks: WeakValueDictionary[tuple[ClientSession, str], Task2025[CallToolResult]] = WeakValueDictionary()
        self._unfinished = UnfinishedTasks()

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Ids of tasks that `call_tool` gave up and could not cancel, oldest first.

        They may live on at their server: `resume` takes the id, and takes it off this list. The newest 1,000
        are kept.
        """
        return self._unfinished.ids

    def statistics(self) -> ClientStatistics:
        """Return what this object holds now."""
        return ClientStatistics(followed=sum(task.is_followed for task in self._tasks.values()))

    async def call_tool(
        self,
        session: ClientSession,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        ttl_ms: int | None = None,
        meta: JSONObject | None = None,
        read_timeout_seconds: float | None = None,
    ) -> CallToolResult:
        """Call a tool and return its result, also where it runs as a task. For the arguments see `start`.

        Cancelled, the task is cancelled as well.

        Raises:
            ValueError: `ttl_ms` is not positive.
            McpError: The server refused the call.
            TaskError: The task did not end with a result; see the class.
        """
        answer = await self.start(
            session, name, arguments, ttl_ms=ttl_ms, meta=meta, read_timeout_seconds=read_timeout_seconds
        )
        if not isinstance(answer, ClientTask):
            return answer
        try:
            return await answer.wait()
        except (anyio.get_cancelled_exc_class(), InvalidTaskResponseError):
            if not await self._task(session, answer.task_id).give_up():
                self._unfinished.add(answer.task_id)
            raise

    async def start(
        self,
        session: ClientSession,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        ttl_ms: int | None = None,
        meta: JSONObject | None = None,
        read_timeout_seconds: float | None = None,
    ) -> ClientTask | CallToolResult:
        """Call a tool and return its task, without waiting for the end.

        The server is asked for a task if its list of tools says that the tool runs as one (B2); the list is read
        once a session, and again when a call is refused for its mode. Otherwise the call is a plain one. Cancelled,
        a task that was asked for is cancelled if the server answers within `cancel_timeout`.

        Args:
            session: An initialised session.
            name: The tool's name.
            arguments: The tool's arguments.
            ttl_ms: Milliseconds that the task is to live. The server may decide otherwise.
            meta: Further `_meta` of the request.
            read_timeout_seconds: Seconds that this request, and each later one for the task, may take; not
                the one that waits for the task's end.

        Returns:
            The task, or the result of a call that did not become one.

        Raises:
            ValueError: `ttl_ms` is not positive.
            McpError: The server refused the call.
            InvalidTaskResponseError: The server sent a malformed handle.
        """
        if ttl_ms is not None and not ttl_ms > 0:
            raise ValueError("ttl_ms must be positive")
        call_plainly = partial(_call, session, name, arguments, meta, read_timeout_seconds)
        if not _serves_tasks(session):
            return await call_plainly()
        return await self._tools.setdefault(session, ListedTools()).call(
            name,
            partial(_read_modes, session),
            as_task=partial(self._call_as_task, session, name, arguments, ttl_ms, meta, read_timeout_seconds),
            plainly=call_plainly,
            is_refusal=lambda error: isinstance(error, McpError) and error.error.code == METHOD_NOT_FOUND,
        )

    async def _call_as_task(
        self,
        session: ClientSession,
        name: str,
        arguments: dict[str, Any] | None,
        ttl_ms: int | None,
        meta: JSONObject | None,
        read_timeout_seconds: float | None,
    ) -> ClientTask | CallToolResult:
        params: JSONObject = {"name": name, "task": {} if ttl_ms is None else {"ttl": ttl_ms}}
        if arguments is not None:
            params["arguments"] = arguments
        if meta is not None:
            params["_meta"] = meta
        answer = await call_as_task(
            Connection(session, self._limits),
            partial(self._task, session, read_timeout_seconds=read_timeout_seconds),
            params,
            read_timeout_seconds=read_timeout_seconds,
        )
        return ClientTask(answer) if isinstance(answer, Task2025) else answer

    def resume(self, session: ClientSession, task_id: str) -> ClientTask:
        """Return a task by its id alone, for example one that was started before a restart.

        Sends nothing: whether the server has the task shows at the first request.

        Args:
            session: An initialised session.
            task_id: The task's identifier.

        Raises:
            ValueError: `task_id` is empty.
            TaskError: The server of this session has no tasks.
        """
        if not task_id:
            raise ValueError("task_id must not be empty")
        if not _serves_tasks(session):
            raise TaskError(METHOD_NOT_FOUND, "The server of this session has no tasks", task_id=task_id)
        self._unfinished.discard(task_id)
        return ClientTask(self._task(session, task_id))

    def list_tasks(self, session: ClientSession) -> AsyncGenerator[TaskSnapshot, None]:
        """Return the tasks that the server lists for this client, in its own order.

        They are read page by page while they are iterated over, which raises a `TaskError` if it fails.

        Raises:
            TaskError: The server lists no tasks.
        """
        tasks = _capability(session)
        if tasks is None or tasks.get("list") is None:
            raise TaskError(METHOD_NOT_FOUND, "The server of this session lists no tasks")
        return list_tasks(Connection(session, self._limits))

    def _task(
        self, session: ClientSession, task_id: str, *, read_timeout_seconds: float | None = None
    ) -> Task2025[CallToolResult]:
        """Return a task, which all who follow it on this session share."""
        task = self._tasks.get((session, task_id))
        if task is None:
            task = Task2025(
                Connection(session, self._limits),
                task_id,
                on_update=self._on_update,
                read_timeout_seconds=read_timeout_seconds,
            )
            self._tasks[session, task_id] = task
        return task


async def _call(
    session: ClientSession,
    name: str,
    arguments: dict[str, Any] | None,
    meta: JSONObject | None,
    read_timeout_seconds: float | None,
) -> CallToolResult:
    """Call a tool as the SDK does."""
    timeout = None if read_timeout_seconds is None else timedelta(seconds=read_timeout_seconds)
    options: dict[str, Any] = {} if meta is None else {"meta": meta}  # which `mcp` 1.23 does not know
    return await session.call_tool(name, arguments, timeout, **options)


def _capability(session: ClientSession) -> JSONObject | None:
    """Return the server's `tasks` capability, as JSON."""
    capabilities = session.get_server_capabilities()
    declared: JSONObject = {} if capabilities is None else to_json_value(capabilities)
    tasks: JSONObject | None = declared.get("tasks")
    return tasks


def _serves_tasks(session: ClientSession) -> bool:
    """Return whether the server runs tools as tasks when it is asked to (B1). `mcp` 1.23 does not say `call`."""
    tasks = _capability(session) or {}
    return (tasks.get("requests") or {}).get("tools") is not None


async def _read_modes(session: ClientSession, cursor: str | None) -> tuple[dict[str, TaskSupport], str | None]:
    """Read a page of the list of tools."""
    try:
        page = await session.list_tools(params=None if cursor is None else PaginatedRequestParams(cursor=cursor))
    except ValidationError as error:
        raise ERRORS.invalid(f"tools/list: {problems(error)}") from None
    modes: dict[str, TaskSupport] = {}
    for tool in page.tools:
        mode = None if tool.execution is None else tool.execution.taskSupport
        modes[tool.name] = mode or "forbidden"
    return modes, page.nextCursor
