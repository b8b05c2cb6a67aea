"""`Channel`: how the SDK calls a `TasksClient` back on behalf of one client."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Literal

import anyio
import mcp_types as types
from mcp.client import ClaimContext, ClientSession
from mcp_types import CallToolResult
from pydantic import ConfigDict

from mcp_task_runtime.adapters.mcp_v2_client._client_task import ClientTask
from mcp_task_runtime.adapters.mcp_v2_client._errors import ERRORS, InvalidTaskResponseError
from mcp_task_runtime.adapters.mcp_v2_client._sessions import Sessions
from mcp_task_runtime.core.event_loop import current_task
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Arriving", "Channel", "Handle", "Started", "starting"]

logger: logging.Logger = logging.getLogger(__name__)


class Handle(types.Result):
    """The answer to a call that became a task, as it came: what it holds is checked by the task."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class Arriving:
    """Stands for the model of a notification: hands over the params as soon as the SDK validates them.

    The SDK validates a notification when it arrives, and then queues it: the queue gives one to its handler in
    each turn of the event loop, and drops the oldest of more than 256. A hundred tasks that end at about the
    same time would be seen late, or not.
    """

    def __init__(self, take: Callable[[JSONObject], None]) -> None:
        """Make a model; `take` must not raise."""
        self._take = take

    def model_validate(self, params: JSONObject) -> None:
        """Hand over the params, and leave nothing to be queued."""
        self._take(params)


class Channel:
    """Takes the handles and the pushes of one client.

    The SDK does not say which session a push came over. It asks for the claim and for the bindings of one
    client together, so both can share this object, and the first handle shows the session.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._session: weakref.ref[ClientSession] | None = None

    async def resolve(self, handle: Handle, context: ClaimContext) -> CallToolResult:
        """Finish a call that became a task: the SDK calls this inside `Client.call_tool`."""
        session = context.session
        if self._session is None or self._session() is None:  # a client may be entered again
            self._session = weakref.ref(session)
        start = _start.get()
        if start is not None and not start.waits_for(session):
            start = None
        sessions = self._sessions if start is None else start.sessions
        raw = handle.model_extra or {}
        task_id = raw.get("taskId")
        if not isinstance(task_id, str) or not task_id:
            raise ERRORS.invalid("a task handle without a taskId")
        task = sessions.task_2026(session, task_id, read_timeout_seconds=context.read_timeout_seconds)
        try:
            task.take_handle(raw)
            if start is None:
                return await task.result()
        except (anyio.get_cancelled_exc_class(), InvalidTaskResponseError):
            if not await task.give_up():
                sessions.unfinished.add(task_id)
            raise
        raise Started(ClientTask(task, session, tool_name=context.tool_name))

    def take_push(self, params: JSONObject) -> None:
        """Take a change of a task of 2026-07-28."""
        session = None if self._session is None else self._session()
        self._push(session, params)

    def take_status(self, params: JSONObject) -> None:
        """Take a change of a task of 2025-11-25, which holds no result: it makes a look due."""
        self._push(None, params)

    def _push(self, session: ClientSession | None, params: JSONObject) -> None:
        task_id = params.get("taskId")
        if isinstance(task_id, str):
            self._sessions.push(session, task_id, params)
        else:
            logger.warning("A server pushed a change that names no task")

    async def ignore(self, _: object) -> None:
        """Do nothing: the change was taken when it arrived."""


class Started(Exception):  # no error: the way out of `Client.call_tool` with a task
    """A task was started.

    Attributes:
        task: The task.
    """

    def __init__(self, task: ClientTask) -> None:
        super().__init__()
        self.task = task


class starting:  # read as a phrase: with starting(sessions, session)
    """Context manager in which `Client.call_tool` raises `Started` with a task instead of following it."""

    __slots__ = ("_event_loop_task", "_is_under_way", "_session", "_token", "sessions")

    def __init__(self, sessions: Sessions, session: ClientSession) -> None:
        self.sessions: Sessions = sessions
        self._session = session
        self._event_loop_task = current_task()
        self._is_under_way = True

    def __enter__(self) -> None:
        self._token = _start.set(self)

    def __exit__(self, *_: object) -> None:
        self._is_under_way = False
        _start.reset(self._token)

    def waits_for(self, session: ClientSession) -> bool:
        """Return whether this waits for the handle that is being resolved now.

        `Client.call_tool` resolves a handle in the task of the event loop that called it. Other calls inherit the
        context: a callback's, in a task of its own, an in-process server's, on another session, and those of tasks
        that the two leave running.
        """
        return self._is_under_way and session is self._session and current_task() == self._event_loop_task


_start: ContextVar[starting | None] = ContextVar("mcp_task_runtime_start", default=None)
