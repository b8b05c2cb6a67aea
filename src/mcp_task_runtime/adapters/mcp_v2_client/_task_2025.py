"""The client's side of a task under protocol revision 2025-11-25: the `tasks` capability, for `mcp` 2.x.

The SDK's client sends these requests, puts the questions that come meanwhile to its own callbacks and answers
them by itself (wire rule B6). It knows no task handles: see `_answer_of`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Literal, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import mcp_types as types
from mcp.client import Client, ClientSession
from mcp_types import CallToolResult
from pydantic import BaseModel, Field, ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._support import (
    MAX_FAILED_REQUESTS,
    Beside,
    InvalidTaskResponseError,
    Looks,
    Milliseconds,
    RawResult,
    RemoteTask,
    Report,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskFields,
    TaskSnapshot,
    Timeouts,
    UnknownTaskError,
    is_passing,
    parse_result,
    problems,
    retry_after_seconds,
)
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.wire.v2025_11_25 import PROTOCOL_VERSION, related_task_id

__all__ = ["LegacyTask", "ListedTools", "call_as_task", "list_tasks", "serves_tasks"]

_EARLIER_VERSION: Final = "2025-06-18"
"""The revision before tasks: `mcp` 1.23.0 has tasks, and cannot say the later one's name."""

_MAX_PAGES: Final = 100
"""Pages of the list of tools that are read at the most: it may never end."""

_DOUBTFUL_CODES: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT})
"""Codes that this side gives to a request it heard nothing of, and that a task may fail with all the same."""

_TaskSupport: TypeAlias = Literal["required", "optional", "forbidden"]


def serves_tasks(client: Client) -> bool:
    """Whether the server of this connection runs tools as tasks when it is asked to (B1)."""
    tasks = client.server_capabilities.tasks
    tools = tasks.requests.tools if tasks is not None and tasks.requests is not None else None
    if client.protocol_version == _EARLIER_VERSION:
        return tools is not None  # `mcp` 1.23.0 does not say `call`
    return client.protocol_version == PROTOCOL_VERSION and tools is not None and tools.call is not None


class ListedTools:
    """Which tools run as tasks, as the list of one server says (B2). It is read when it is first needed."""

    def __init__(self) -> None:
        self._modes: dict[str, _TaskSupport] = {}

    async def mode(self, client: Client, name: str, *, anew: bool = False) -> _TaskSupport | None:
        """Return the mode of a tool, or `None` if it is not listed.

        Args:
            client: The connection to the server.
            name: The tool's name.
            anew: Whether to read it again, because it may have changed.

        Raises:
            MCPError: The server did not list its tools.
        """
        if anew:
            self._modes.pop(name, None)
        if name not in self._modes:
            await self._read(client, name)
        return self._modes.get(name)

    async def _read(self, client: Client, name: str) -> None:
        """Read the list up to the page with this tool."""
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            try:
                page = await client.list_tools(cursor=cursor)
            except ValidationError as error:
                raise InvalidTaskResponseError._because(f"tools/list: {problems(error)}") from None
            for tool in page.tools:
                mode = None if tool.execution is None else tool.execution.task_support
                self._modes[tool.name] = mode or "forbidden"
            cursor = page.next_cursor
            if cursor is None or name in self._modes:
                return


async def call_as_task(
    session: ClientSession,
    timeouts: Timeouts,
    name: str,
    arguments: dict[str, Any] | None,
    *,
    ttl_ms: int | None,
    meta: types.RequestParamsMeta | None,
    read_timeout_seconds: float | None,
) -> LegacyTask | CallToolResult:
    """Call a tool as a task (B3). A server may answer with the result all the same.

    Cancelled, it still takes the handle, to cancel the task: `notifications/cancelled` must not do that.

    Raises:
        MCPError: The server refused the call.
        InvalidTaskResponseError: It sent neither a handle nor a result; a task that has an id was cancelled.
    """
    params = types.CallToolRequestParams(
        name=name, arguments=arguments, task=types.TaskMetadata(ttl=ttl_ms), _meta=meta
    )
    await anyio.lowlevel.checkpoint()  # who is cancelled already calls nothing
    answer: LegacyTask | CallToolResult | None = None
    failure: Exception | None = None
    answered = anyio.Event()

    async def send() -> None:
        nonlocal answer, failure
        with sending:
            try:
                raw = await _answer_of(session, types.CallToolRequest(params=params), read_timeout_seconds)
                answer = await _take_answer(raw, session, timeouts, read_timeout_seconds)
            except Exception as error:  # raised below: from here it would come out in an exception group
                failure = error
        answered.set()

    sending = anyio.CancelScope(shield=True)
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        try:
            await answered.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(timeouts.cancel, shield=True):
                await answered.wait()
            sending.cancel()
            if isinstance(answer, LegacyTask):
                await answer.abandon()
            raise
    if answer is None:
        assert failure is not None
        raise failure
    return answer


async def _answer_of(
    session: ClientSession, request: types.CallToolRequest, read_timeout_seconds: float | None
) -> JSONObject:
    """Send a call that asks for a task, and return the raw answer.

    The SDK knows only results under this revision, and refuses a handle as a result without content. Its
    documented exception holds what it refused.
    """
    try:
        return (await session.send_request(request, RawResult, read_timeout_seconds)).root
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            refused = problem["input"]
            if problem["type"] == "missing" and isinstance(refused, dict) and "task" in refused:
                return refused
        raise InvalidTaskResponseError._because(f"tools/call: {problems(error)}") from None


async def _take_answer(
    raw: JSONObject, session: ClientSession, timeouts: Timeouts, read_timeout_seconds: float | None
) -> LegacyTask | CallToolResult:
    if "task" not in raw:
        return parse_result(raw, "")
    handle = raw["task"]
    task_id = handle.get("taskId") if isinstance(handle, dict) else None
    if not isinstance(task_id, str) or not task_id:
        raise InvalidTaskResponseError._because("a task handle without a taskId")
    task = LegacyTask(session, task_id, timeouts, read_timeout_seconds=read_timeout_seconds)
    try:
        task.handle = _parse_task(handle, task_id, "tools/call")
    except InvalidTaskResponseError:
        await task.abandon()
        raise
    return task


async def list_tasks(client: Client, timeouts: Timeouts) -> AsyncGenerator[TaskSnapshot, None]:
    """Yield the tasks that the server lists for this client (B9)."""
    cursor: str | None = None
    while True:
        params = None if cursor is None else types.PaginatedRequestParams(cursor=cursor)
        raw = await LegacyTask(client.session, "", timeouts).request(types.ListTasksRequest(params=params))
        try:
            page = _Page.model_validate(raw)
        except ValidationError as error:
            raise InvalidTaskResponseError._because(f"tasks/list: {problems(error)}") from None
        for fields in page.tasks:
            yield fields.snapshot(fields.task_id, "tasks/list")
        if page.next_cursor is None:
            return
        if page.next_cursor == cursor:
            raise InvalidTaskResponseError._because("tasks/list: a page that leads to itself")
        cursor = page.next_cursor


class LegacyTask(RemoteTask):
    """A task of the `tasks` capability: its questions come while its result is awaited."""

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands (B4)."""
        params = types.GetTaskRequestParams(task_id=self.task_id)
        return _parse_task(await self.request(types.GetTaskRequest(params=params)), self.task_id, "tasks/get")

    async def update(self, answers: Mapping[str, JSONObject]) -> None:
        """Refuse: this revision has no such request."""
        message = "Protocol revision 2025-11-25 has no tasks/update: questions are answered while wait() waits"
        raise TaskError(types.METHOD_NOT_FOUND, message, task_id=self.task_id)

    async def cancel(self) -> None:
        """Have the server cancel the task; one that has ended is no error, as under the later revision."""
        params = types.CancelTaskRequestParams(task_id=self.task_id)
        try:
            raw = await self.request(types.CancelTaskRequest(params=params))
        except UnknownTaskError as refused:  # or it has ended: the code is the same (B8)
            if is_terminal((await self.get()).status):
                return
            raise TaskError(refused.code, refused.message, refused.data, task_id=self.task_id) from refused
        _parse_task(raw, self.task_id, "tasks/cancel")

    async def result(self, *, has_ended: bool = False) -> CallToolResult:
        """Return the result when there is one (B5); the server sends the task's questions meanwhile (B6).

        Args:
            has_ended: Whether the result should be there at once, so that the request may take only so long.

        Raises:
            TaskError: The task's own error, or that of the request.
        """
        params = types.GetTaskPayloadRequestParams(task_id=self.task_id)
        raw = await self.request(types.GetTaskPayloadRequest(params=params), limited=has_ended)
        if related_task_id(raw) not in (None, self.task_id):
            raise self.invalid("tasks/result: another task than the one asked for")
        if raw.keys() <= {"_meta"}:
            raise _NoResultError._because("tasks/result: nothing", task_id=self.task_id)
        raw.pop("resultType", None)  # of a later revision
        return parse_result(raw, self.task_id)

    async def subscribe(self) -> None:
        """Do nothing: a server that tells changes does so unasked (B10)."""
        await anyio.sleep_forever()

    async def follow(self, looks: Looks, report: Report, beside: Beside) -> CallToolResult:
        """Follow the task to its end, with `tasks/result` open while it needs input."""
        return await _Following(self, looks, report).run(beside)


class _NoResultError(InvalidTaskResponseError):
    """A result without anything in it."""


class _Following:
    """One run of following a task to its end.

    Looking at it tells where it stands. While it needs input, `tasks/result` is open beside that (B6); when
    it has ended, `tasks/result` tells how.
    """

    def __init__(self, task: LegacyTask, looks: Looks, report: Report) -> None:
        self._task = task
        self._looks = looks
        self._report = report
        self._result: CallToolResult | None = None
        self._is_open = False
        self._opened = 0  # the last look that had begun by then
        self._failed = 0  # the same
        self._failure: TaskError | None = None
        self._failures = 0  # those in a row that came at once

    async def run(self, beside: Beside) -> CallToolResult:
        """Return the result.

        Args:
            beside: What else runs until then.

        Raises:
            TaskError: The task's own error, or it could not be followed.
        """
        result: CallToolResult | None = None
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(beside)
            try:
                result = await self._until_end(group)
            except Exception as error:  # raised below: from here it would come out in an exception group
                failure = error
            group.cancel_scope.cancel()
        if result is None:
            assert failure is not None
            raise failure
        return result

    async def _until_end(self, group: anyio.abc.TaskGroup) -> CallToolResult:
        await self._task.report_handle(self._report)
        failures = 0
        while True:
            try:
                snapshot = await self._looks.next()
            except TaskError:
                if self._result is not None:  # some servers forget a task whose result was fetched
                    return self._result
                raise
            await self._report(snapshot)
            if is_terminal(snapshot.status):
                try:
                    return await self._outcome(snapshot, is_certain=failures > 0)
                except (TaskFailedError, TaskCancelledError):
                    raise
                except TaskError as error:
                    failures += 1
                    if not is_passing(error) or failures == MAX_FAILED_REQUESTS:
                        raise
                    await anyio.sleep(retry_after_seconds(error) or 0)
            elif self._result is not None:
                return self._result
            elif snapshot.status == "input_required" and not self._is_open:
                self._open(group)

    async def _outcome(self, final: TaskSnapshot, *, is_certain: bool) -> CallToolResult:
        """Return the result of a task that ended, or raise its error.

        Args:
            final: How it ended.
            is_certain: Whether an answer that looks like a failed request was given before, so that it is the
                task's own error.
        """
        if final.status == "cancelled":
            raise TaskCancelledError._of(final)
        try:
            return await self._task.result(has_ended=True) if self._result is None else self._result
        except _NoResultError:
            if final.status != "failed":
                raise
            # The runtime of `mcp` 1.x keeps no errors: its status messages say what they were.
            message = final.status_message or "The task failed"
            raise TaskFailedError(types.INTERNAL_ERROR, message, task_id=final.task_id) from None
        except InvalidTaskResponseError:
            raise
        except TaskError as error:
            if self._result is not None:
                return self._result
            doubtful = error.code in _DOUBTFUL_CODES or retry_after_seconds(error) is not None
            unanswered = isinstance(error.__cause__, TimeoutError)  # this side's own clock
            if final.status != "failed" or unanswered or (doubtful and not is_certain):
                raise
            raise TaskFailedError(error.code, error.message, error.data, task_id=final.task_id) from error

    def _open(self, group: anyio.abc.TaskGroup) -> None:
        """Open the stream that brings the questions, unless it failed too often, or a moment ago.

        Raises:
            TaskError: It failed too often, or for a reason that will not pass.
        """
        if self._failure is not None:
            if self._looks.begun == self._failed:
                return  # this snapshot may be from before the failure
            if not is_passing(self._failure) or self._failures == MAX_FAILED_REQUESTS:
                raise self._failure
            if self._looks.begun == self._failed + 1:
                return  # this look was made at once
        self._is_open = True
        self._opened = self._looks.begun
        group.start_soon(self._stream)

    async def _stream(self) -> None:
        try:
            self._result = await self._task.result()
        except TaskError as error:  # the task's own, or the stream's: the next look tells
            self._failures = self._failures + 1 if self._looks.begun <= self._opened + 1 else 1
            self._failed = self._looks.begun
            if isinstance(error, UnknownTaskError):  # whether there is such a task, the looks tell
                error = TaskError(error.code, error.message, error.data, task_id=error.task_id)
            self._failure = error
        self._is_open = False
        self._looks.wake()


class _Fields(TaskFields):
    ttl_ms: Milliseconds | None = Field(default=None, alias="ttl")
    poll_interval_ms: Milliseconds | None = Field(default=None, alias="pollInterval")


class _Page(BaseModel):
    tasks: list[_Fields]
    next_cursor: str | None = Field(default=None, alias="nextCursor")


def _parse_task(raw: JSONObject, task_id: str, method: str) -> TaskSnapshot:
    """Return the snapshot that a server sent, if it is one of this task.

    Raises:
        InvalidTaskResponseError: It is none.
    """
    try:
        fields = _Fields.model_validate(raw)
    except ValidationError as error:
        raise InvalidTaskResponseError._because(f"{method}: {problems(error)}", task_id=task_id) from None
    return fields.snapshot(task_id, method)
