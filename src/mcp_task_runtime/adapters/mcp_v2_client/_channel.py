"""`Channel`: how the SDK calls a `TasksClient` back on behalf of one client."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import anyio
import mcp_types as types
from mcp.client import ClaimContext, ClientSession
from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator
from typing_extensions import Self

from mcp_task_runtime.adapters.mcp_v2_client._client_task import ClientTask
from mcp_task_runtime.adapters.mcp_v2_client._errors import ERRORS, InvalidTaskResponseError
from mcp_task_runtime.adapters.mcp_v2_client._sessions import Sessions

__all__ = ["Channel", "Handle", "Started", "arriving", "starting"]


class Handle(types.Result):
    """The answer to a call that became a task, as it came: what it holds is checked by the task."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class Pushed(BaseModel):
    """A pushed change, as it came but for the id."""

    model_config = ConfigDict(extra="allow")

    task_id: StrictStr = Field(alias="taskId")


def arriving(take: Callable[[Pushed], None]) -> type[Pushed]:
    """Return a model that hands over each notification as soon as the SDK validates it, which must not raise.

    The SDK validates a notification when it arrives, and then queues it: the queue gives one to its handler in
    each turn of the event loop, and drops the oldest of more than 256. A hundred tasks that end at about the
    same time would be seen late, or not.
    """

    class Arriving(Pushed):
        @model_validator(mode="after")
        def _arrive(self) -> Self:
            take(self)
            return self

    return Arriving


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
        start = current_start(session)
        sessions = self._sessions if start is None else start.sessions
        raw = handle.model_extra or {}
        task_id = raw.get("taskId")
        if not isinstance(task_id, str) or not task_id:
            raise ERRORS.invalid("a task handle without a taskId")
        task = sessions.task_2026(session, task_id, read_timeout_seconds=context.read_timeout_seconds)
        try:
            task.take_handle(raw)
            if start is not None:
                raise Started(ClientTask(task, session, tool_name=context.tool_name))
            return await task.result()
        except (anyio.get_cancelled_exc_class(), InvalidTaskResponseError):
            if not await task.give_up():
                sessions.unfinished.add(task_id)
            raise

    def take_push(self, pushed: Pushed) -> None:
        """Take a change of a task of 2026-07-28."""
        session = None if self._session is None else self._session()
        self._sessions.push(session, pushed.task_id, {**(pushed.model_extra or {}), "taskId": pushed.task_id})

    def take_status(self, pushed: Pushed) -> None:
        """Take a change of a task of 2025-11-25, which holds no result: it makes a look due."""
        self._sessions.push(None, pushed.task_id, {})

    async def ignore(self, pushed: Pushed) -> None:
        """Do nothing: the change was taken when it arrived."""


class Started(Exception):  # no error: the way out of `Client.call_tool` with a task
    """A task was started.

    Attributes:
        task: The task.
    """

    def __init__(self, task: ClientTask) -> None:
        super().__init__()
        self.task = task


@dataclass(slots=True, eq=False)
class _Start:
    """A `TasksClient.start` that is, or was, under way."""

    sessions: Sessions
    session: ClientSession
    anyio_task_id: int
    is_under_way: bool = True


_start: ContextVar[_Start | None] = ContextVar("mcp_task_runtime_start", default=None)


@contextmanager
def starting(sessions: Sessions, session: ClientSession) -> Iterator[None]:
    """A block whose `Client.call_tool` raises `Started` with a task instead of following it."""
    start = _Start(sessions, session, anyio.get_current_task().id)
    token = _start.set(start)
    try:
        yield
    finally:
        start.is_under_way = False
        _start.reset(token)


def current_start(session: ClientSession) -> _Start | None:
    """Return the `TasksClient.start` that waits for the handle which is being resolved now, if one does.

    `Client.call_tool` resolves a handle in the anyio task that called it. Other calls inherit the context: a
    callback's, in a task of its own, an in-process server's, on another session, and those of tasks that the
    two leave running.
    """
    start = _start.get()
    if start is None or not start.is_under_way or session is not start.session:
        return None
    return start if anyio.get_current_task().id == start.anyio_task_id else None
