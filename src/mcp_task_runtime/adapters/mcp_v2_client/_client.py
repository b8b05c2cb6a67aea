"""`TasksClient`: the client's side of tasks for `mcp` 2.x, one API for servers of both protocol revisions.

What holds for everything here:

- A server is not trusted to keep the rules. What it sends becomes a result or a `TaskError`.
- A user is asked each question once, and the answer is kept until the server has it. (Under 2025-11-25 the
  SDK asks the user, and a server asks again when the connection's stream was lost.)
- A task is cancelled with `tasks/cancel` and by no other message (wire rule C14). It is cancelled when
  this side gives up on it, never because the connection failed: then it can be resumed.
- Only a `Watch` decides when to look at a task. A pushed state is used in place of a look if it is newer, well
  formed, and came over the connection of the task; in all other cases it only makes a look due.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast

import mcp_types as types
from mcp.client import Client, ClientExtension, NotificationBinding, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._channel import Arriving, Channel, Handle, Started, starting
from mcp_task_runtime.adapters.mcp_v2_client._client_task import ClientTask
from mcp_task_runtime.adapters.mcp_v2_client._errors import ERRORS, TaskError
from mcp_task_runtime.adapters.mcp_v2_client._sessions import Sessions
from mcp_task_runtime.adapters.task_client.calls_2025 import call_as_task, list_tasks, serves_tasks
from mcp_task_runtime.adapters.task_client.polling import PollSettings
from mcp_task_runtime.adapters.task_client.remote_task import Limits, RemoteTask
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot, problems
from mcp_task_runtime.adapters.task_client.statistics import ClientStatistics
from mcp_task_runtime.adapters.task_client.task_2025 import Task2025
from mcp_task_runtime.core.json import to_json_value
from mcp_task_runtime.wire.v2025_11_25 import STATUS_NOTIFICATION, TaskSupport
from mcp_task_runtime.wire.v2026_07_28 import EXTENSION_ID, NOTIFICATION

__all__ = ["TasksClient"]


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
    time-out inside the client's `async with` block, not around it. `unfinished` names the tasks for which that
    failed, also because the SDK ended the whole client when it could not connect to a server that has stopped.

    One instance serves any number of clients and calls at once.

    Args:
        on_update: Called with each new snapshot of any task that `call_tool` or `ClientTask.wait` follows,
            beginning with the handle. Polling goes on when it returns. What it raises is logged.
        request_timeout: Seconds that one `tasks/*` request may take, unless the call names a read
            time-out. A lower `read_timeout_seconds` of the client counts as well.
        cancel_timeout: Seconds that `tasks/cancel` may take when this side gives up. The caller waits
            for it, also when the caller was cancelled.
        push: Whether to have changes pushed by servers that do so, besides polling (wire rules B10, C11).
        max_listen_streams: Streams that one connection may have open for pushes; any number of tasks share them.
        poll_bounds_ms: The shortest and the longest time between two polls, in milliseconds. What a server
            suggests is kept within them.
        poll_interval_ms: Milliseconds between two polls where a server suggests nothing.
        pushed_poll_interval_ms: Milliseconds between two polls of a task whose changes are pushed, at least:
            these polls only find what a push lost.
        max_failures: How often in a row a request may fail for a reason that may pass, before its error is
            raised.
        retry_pause: Seconds until a request that failed is tried again, doubled with each failure in a row.

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
        max_listen_streams: int = 4,
        poll_bounds_ms: tuple[float, float] = (50, 60_000),
        poll_interval_ms: float = 1_000,
        pushed_poll_interval_ms: float = 5_000,
        max_failures: int = 3,
        retry_pause: float = 0.5,
    ) -> None:
        if max_listen_streams < 1:
            raise ValueError("max_listen_streams must be positive")
        polling = PollSettings(poll_bounds_ms, poll_interval_ms, pushed_poll_interval_ms, retry_pause, max_failures)
        self._sessions = Sessions(
            Limits(request_timeout, cancel_timeout, polling),
            on_update=on_update,
            max_streams=max_listen_streams if push else 0,
        )
        self._channel: Channel | None = None

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Ids of tasks that `call_tool` gave up and could not cancel, oldest first.

        They may live on at their server: `resume` takes the id, and takes it off this list. The newest 1,000
        are kept.
        """
        return self._sessions.unfinished.ids

    def statistics(self) -> ClientStatistics:
        """Return what this object holds now."""
        return self._sessions.statistics()

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Return the claim on `resultType: "task"`; the SDK calls this once for each client."""
        self._channel = Channel(self._sessions)
        return (ResultClaim(result_type="task", model=Handle, resolve=self._channel.resolve),)

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        """Return the bindings for pushed changes; the SDK calls this once for each client, after `claims`."""
        channel, self._channel = self._channel or Channel(self._sessions), None
        takes = ((NOTIFICATION, channel.take_push), (STATUS_NOTIFICATION, channel.take_status))
        return tuple(
            NotificationBinding(method=method, params_type=cast(Any, Arriving(take)), handler=channel.ignore)
            for method, take in takes
        )

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
        answers within `cancel_timeout`; one that a server of 2026-07-28 made of its own accord may be lost.

        Args:
            client: A connected client that has this `TasksClient` among its extensions.
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
        if not _serves_tasks(client):
            return await call_plainly()
        return await self._sessions.tools(client.session).call(
            name,
            partial(_read_modes, client),
            as_task=partial(self._call_as_task, client, name, arguments, ttl_ms, meta, read_timeout_seconds),
            plainly=call_plainly,
            is_refusal=lambda error: isinstance(error, MCPError) and error.code == types.METHOD_NOT_FOUND,
        )

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
        params = types.CallToolRequestParams(
            name=name, arguments=arguments, task=types.TaskMetadata(ttl=ttl_ms), _meta=meta
        )
        answer = await call_as_task(
            self._sessions.connection(session),
            partial(self._sessions.task_2025, session, read_timeout_seconds=read_timeout_seconds),
            to_json_value(params),
            read_timeout_seconds=read_timeout_seconds,
        )
        if isinstance(answer, Task2025):
            return ClientTask(answer, session, tool_name=name)
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
        try:
            with starting(self._sessions, client.session):
                return await client.call_tool(name, arguments, read_timeout_seconds, meta=meta)
        except Started as started:
            return started.task
        except ValidationError as error:
            raise ERRORS.invalid(f"tools/call: {problems(error)}") from None

    def resume(self, client: Client, task_id: str) -> ClientTask:
        """Return a task by its id alone, for example one that was started before a restart.

        Sends nothing: whether the server has the task shows at the first request. All objects for one task on one
        connection share what the user was asked.

        Args:
            client: A connected client that has this `TasksClient` among its extensions.
            task_id: The task's identifier.

        Raises:
            ValueError: `task_id` is empty.
            TaskError: The server of this connection has no tasks.
        """
        if not task_id:
            raise ValueError("task_id must not be empty")
        session = client.session
        task: RemoteTask[CallToolResult]
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
            task = self._sessions.task_2026(session, task_id)
        elif _serves_tasks(client):
            task = self._sessions.task_2025(session, task_id)
        else:
            message = f"The server of this connection has no tasks (protocol revision {client.protocol_version})"
            raise TaskError(types.METHOD_NOT_FOUND, message, task_id=task_id)
        self._sessions.unfinished.discard(task_id)
        return ClientTask(task, session)

    def list_tasks(self, client: Client) -> AsyncGenerator[TaskSnapshot, None]:
        """Return the tasks that a server of 2025-11-25 lists for this client, in its own order.

        They are read page by page while they are iterated over, which raises a `TaskError` if it fails.

        Args:
            client: A connected client that has this `TasksClient` among its extensions.

        Raises:
            TaskError: The server lists no tasks, as none of 2026-07-28 does.
        """
        tasks = client.server_capabilities.tasks
        if not _serves_tasks(client) or tasks is None or tasks.list is None:
            message = f"The server of this connection lists no tasks (protocol revision {client.protocol_version})"
            raise TaskError(types.METHOD_NOT_FOUND, message)
        return list_tasks(self._sessions.connection(client.session))


def _serves_tasks(client: Client) -> bool:
    """Return whether the server of this connection runs tools as tasks when it is asked to (B1)."""
    if client.protocol_version in MODERN_PROTOCOL_VERSIONS:  # known without its capabilities
        return False
    return serves_tasks(client.protocol_version, to_json_value(client.server_capabilities))


async def _read_modes(client: Client, cursor: str | None) -> tuple[dict[str, TaskSupport], str | None]:
    """Read a page of the list of tools."""
    try:
        page = await client.list_tools(cursor=cursor)
    except ValidationError as error:
        raise ERRORS.invalid(f"tools/list: {problems(error)}") from None
    modes: dict[str, TaskSupport] = {}
    for tool in page.tools:
        mode = None if tool.execution is None else tool.execution.task_support
        modes[tool.name] = mode or "forbidden"
    return modes, page.next_cursor
