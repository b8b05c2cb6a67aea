"""Calls that ask a server of 2025-11-25 for a task: which tools run as one, and the handle that comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
from pydantic import BaseModel, Field, ValidationError

from mcp_task_runtime.adapters.task_client.errors import BaseInvalidTaskResponseError, MalformedError
from mcp_task_runtime.adapters.task_client.remote_task import TaskConnection
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.adapters.task_client.task_2025 import (
    Fields2025,
    Task2025,
    parse_result,
    problem_of,
    snapshot_2025,
)
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.wire.v2025_11_25 import PROTOCOL_VERSION, TaskSupport

__all__ = ["ListedTools", "call_as_task", "list_tasks", "serves_tasks"]

AnswerT = TypeVar("AnswerT")
ResultT = TypeVar("ResultT")

_EARLIER_VERSION: Final = "2025-06-18"
"""The revision before tasks: `mcp` 1.23.0 has tasks, and does not know the name of the later one."""

_MAX_PAGES: Final = 100
"""Pages of a list of tools that are read at most: it may never end."""


def serves_tasks(protocol_version: str | int | None, capabilities: JSONObject) -> bool:
    """Return whether a server with these capabilities runs tools as tasks when it is asked to (B1)."""
    tasks = capabilities.get("tasks")
    requests = tasks.get("requests") if isinstance(tasks, dict) else None
    tools = requests.get("tools") if isinstance(requests, dict) else None
    if protocol_version == _EARLIER_VERSION:
        return tools is not None  # `mcp` 1.23.0 does not say `call`
    return protocol_version == PROTOCOL_VERSION and isinstance(tools, dict) and tools.get("call") is not None


ReadPage: TypeAlias = Callable[[str | None], Awaitable[tuple[dict[str, TaskSupport], str | None]]]
"""Reads the page of a list of tools at a cursor: their modes by name, and the next cursor."""


class ListedTools:
    """Which tools run as tasks, as the list of one server says (B2). It is read when it is first needed."""

    def __init__(self) -> None:
        self._modes: dict[str, TaskSupport] = {}

    async def call(
        self,
        name: str,
        read: ReadPage,
        *,
        as_task: Callable[[], Awaitable[AnswerT]],
        plainly: Callable[[], Awaitable[AnswerT]],
        is_refusal: Callable[[Exception], bool],
    ) -> AnswerT:
        """Call a tool in its mode; in the other one, once, where it is refused and the list no longer says why.

        Args:
            name: The tool's name.
            read: Reads the list; what it raises is raised.
            as_task: Calls the tool as a task.
            plainly: Calls the tool without a task.
            is_refusal: Returns whether an error refuses a call for its mode.

        Raises:
            Exception: What the calls raised.
        """
        is_task = await self._mode(read, name) in ("optional", "required")
        try:
            return await (as_task if is_task else plainly)()
        except Exception as error:
            if not is_refusal(error):
                raise
            # The list may have changed, or may not show every tool.
            self._modes.pop(name, None)
            if await self._mode(read, name) == ("required" if is_task else "forbidden"):
                raise
        return await (plainly if is_task else as_task)()

    async def _mode(self, read: ReadPage, name: str) -> TaskSupport | None:
        """Return the mode of a tool, or `None` if it is not listed."""
        if name not in self._modes:
            await self._read(read, name)
        return self._modes.get(name)

    async def _read(self, read: ReadPage, name: str) -> None:
        """Read the list up to the page with this tool."""
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            modes, cursor = await read(cursor)
            self._modes.update(modes)
            if cursor is None or name in self._modes:
                return


async def call_as_task(
    connection: TaskConnection[ResultT],
    make: Callable[[str], Task2025[ResultT]],
    params: JSONObject,
    *,
    read_timeout_seconds: float | None,
) -> Task2025[ResultT] | ResultT:
    """Call a tool as a task (B3). A server may answer with the result all the same.

    Cancelled, it still takes the handle, to cancel the task: `notifications/cancelled` must not do that.

    Args:
        connection: The connection to the server.
        make: Returns the task with an id.
        params: The params of `tools/call`.
        read_timeout_seconds: Seconds that the request may take.

    Raises:
        Exception: The server refused the call: the SDK's own error.
        BaseInvalidTaskResponseError: It sent neither a handle nor a result; a task that has an id was cancelled.
    """
    await anyio.lowlevel.checkpoint()  # a call that is cancelled already is not sent
    task: Task2025[ResultT] | None = None
    results: list[ResultT] = []
    failure: Exception | None = None
    answered = anyio.Event()

    async def send() -> None:
        nonlocal task, failure
        with sending:
            try:
                raw = await connection.call_tool(params, read_timeout_seconds=read_timeout_seconds)
                if "task" in raw:
                    task = await _take_handle(connection, make, raw["task"])
                else:
                    results.append(parse_result(connection, raw))
            except Exception as error:  # raised below: from here it would come out in an exception group
                failure = error
        answered.set()

    sending = anyio.CancelScope(shield=True)
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        try:
            await answered.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(connection.limits.cancel, shield=True):
                await answered.wait()
            sending.cancel()
            if task is not None:
                await task.give_up()
            raise
    if failure is not None:
        raise failure
    return results[0] if task is None else task


async def _take_handle(
    connection: TaskConnection[ResultT], make: Callable[[str], Task2025[ResultT]], handle: object
) -> Task2025[ResultT]:
    task_id = handle.get("taskId") if isinstance(handle, dict) else None
    if not isinstance(handle, dict) or not isinstance(task_id, str) or not task_id:
        raise connection.errors.invalid("a task handle without a taskId")
    task = make(task_id)
    try:
        task.take_handle(handle)
    except BaseInvalidTaskResponseError:
        await task.give_up()
        raise
    return task


async def list_tasks(connection: TaskConnection[ResultT]) -> AsyncGenerator[TaskSnapshot, None]:
    """Yield the tasks that the server lists for this client (B9)."""
    cursor: str | None = None
    while True:
        params: JSONObject = {} if cursor is None else {"cursor": cursor}
        raw = await connection.request("tasks/list", params, task_id="", is_limited=True, read_timeout_seconds=None)
        try:
            page = _Page.model_validate(raw)
            snapshots = [snapshot_2025(fields, fields["taskId"]) for fields in page.tasks]
        except (ValidationError, MalformedError) as error:
            raise connection.errors.invalid(f"tasks/list: {problem_of(error)}") from None
        for snapshot in snapshots:
            yield snapshot
        if page.next_cursor is None:
            return
        if page.next_cursor == cursor:
            raise connection.errors.invalid("tasks/list: a page that leads to itself")
        cursor = page.next_cursor


class _Page(BaseModel):
    tasks: list[Fields2025]
    next_cursor: str | None = Field(default=None, alias="nextCursor")
