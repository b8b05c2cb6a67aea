"""The session of a tool call on `mcp` 2.x that may become a task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp_types import (
    REQUEST_TIMEOUT,
    ClientCapabilities,
    InitializeRequestParams,
    LoggingMessageNotification,
    LoggingMessageNotificationParams,
    ProgressNotification,
    RequestId,
)
from pydantic import BaseModel
from typing_extensions import Self

from mcp_task_runtime.adapters._own_loop import HomeLoop, run_in_own_loop
from mcp_task_runtime.adapters._session_proxy import SessionProxy
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import PromotedCall
from mcp_task_runtime.adapters.mcp_v2._requests import Context, KeptRequest, as_json, as_mcp_errors, is_modern
from mcp_task_runtime.adapters.notifications import CallNotifier
from mcp_task_runtime.core.json import JSONObject, dump_json
from mcp_task_runtime.wire.v2025_11_25 import PROTOCOL_VERSION

__all__ = ["PromotingSession", "call_in_own_loop", "context_by_name"]

logger: logging.Logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT", bound=BaseModel)


class _EndedRequest:
    """In place of the channel of a request that is over."""

    can_send_request = False

    async def send_raw_request(self, method: str, *_: Any) -> Any:
        """Refuse, as the SDK does where a request has no way to its client.

        Raises:
            NoBackChannelError: Always.
        """
        raise NoBackChannelError(method)

    async def notify(self, *_: Any) -> None:
        """Drop it."""

    async def progress(self, *_: Any) -> None:
        """Drop it."""


_ENDED: Any = _EndedRequest()

_declarations: WeakValueDictionary[str, InitializeRequestParams] = WeakValueDictionary()
"""What the clients of requests that are over have declared, by its JSON: tasks share what was declared alike."""


class _EndedConnection(Connection):
    """A connection without a request. Each task may have one, so what few tools look at is made for those that do."""

    @classmethod
    def of(cls, version: str, declared: ClientCapabilities | None) -> Connection:
        """Return the connection of a client that declared these capabilities."""
        connection = cls.from_envelope(version, None, declared)
        del connection.exit_stack, connection.initialized
        return connection

    def __getattr__(self, name: str) -> Any:
        if name == "exit_stack":
            self.exit_stack = AsyncExitStack()
        elif name == "initialized":
            self.initialized = anyio.Event()
            self.initialized.set()
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, name)


class _EndedSession(ServerSession):
    """A session that is of no request: it knows what the client declared."""

    def __init__(
        self, version: str, client: InitializeRequestParams | None, declared: ClientCapabilities | None
    ) -> None:
        connection = _EndedConnection.of(version, declared)
        connection.client_params = client
        super().__init__(_ENDED, connection)

    @classmethod
    def after(cls, session: ServerSession) -> Self:
        """Return one that says of the client what the session of a request does, and keeps nothing of the request.

        The state of the connection stays with it, by which frameworks tell clients apart: tasks share no session.
        """
        client = session.client_params
        if client is not None:
            client = _declarations.setdefault(dump_json(as_json(client)), client)
        ended = cls(session.protocol_version, client, session.client_capabilities)
        # The SDK leads to it by no public name.
        ended._connection.state = session._connection.state  # pyright: ignore[reportPrivateUsage]
        return ended


async def context_by_name(
    call: TaskCall, arguments: JSONObject, lifespan_state: Any, headers: Mapping[str, str]
) -> Context:
    """Return a context for a tool that runs by its name: it asks and reports through the task.

    Its request id is the task's id. It has the revision whose servers send requests, so that tools do.
    """
    task = await call.context()
    declared = ClientCapabilities.model_validate(call.client_capabilities)
    meta: Any = {"progress_token": "", **task.caller.trace_context}  # the SDK reports to a token alone
    ctx: Context = ServerRequestContext(
        session=_EndedSession(PROTOCOL_VERSION, None, declared),
        lifespan_context=lifespan_state,
        protocol_version=PROTOCOL_VERSION,
        method="tools/call",
        params={"name": call.name, "arguments": arguments},
        request_id=task.task_id,
        meta=meta,
        request=KeptRequest(headers) if headers else None,
    )
    session: Any = PromotingSession(ctx, call)
    return replace(ctx, session=session)


async def call_in_own_loop(call_next: CallNext, ctx: Context) -> HandlerResult:
    """Run a handler in a thread with an event loop of its own; its context reaches the client from there."""

    async def call(home: HomeLoop) -> HandlerResult:
        there = replace(
            ctx,
            session=home.bridge(ctx.session),
            close_sse_stream=home.bridge_function(ctx.close_sse_stream),
            close_standalone_sse_stream=home.bridge_function(ctx.close_standalone_sse_stream),
        )
        return await call_next(there)

    return await run_in_own_loop(call)


class PromotingSession(SessionProxy):
    """A `ServerSession` for one call: as before while it is a call, through the task once it is one.

    A task that asks may wait for days: where its client's protocol has no connections, it keeps nothing of the request.
    """

    __slots__ = ("_dropped", "_has_connection", "_has_request", "_later")

    def __init__(
        self, ctx: Context, call: PromotedCall, later: Callable[[], CallNotifier | None] | None = None
    ) -> None:
        """Make the session of a call, in place of the one of its request.

        Args:
            ctx: The request.
            call: The call.
            later: Returns the request that the client waits for once the call is a task, if it does; `None` where a
                task has none.
        """
        super().__init__(ctx.session, ServerSession, call)
        self._has_connection = not is_modern(ctx)
        self._has_request = True
        self._later = later
        self._dropped: tuple[str, ...] = ()

    async def send_request(
        self,
        request: BaseModel,
        result_type: type[ResultT],
        request_read_timeout_seconds: float | None = None,
        metadata: Any = None,
        progress_callback: Any = None,
    ) -> ResultT:
        """Send a request: on this connection while that is possible, otherwise as a question of the task.

        Raises:
            MCPError: The client answered with an error, or it did not declare that it can be asked this, or
                it did not answer in time; then the question is withdrawn.
        """
        if not self._call.is_task and (self._session.can_send_request or not self._call.may_become_task):
            result: ResultT = await self._session.send_request(
                request, result_type, request_read_timeout_seconds, metadata, progress_callback
            )
            return result
        if self._has_request and not self._has_connection and self._call.is_task:
            self._leave_request()
        with as_mcp_errors():
            try:
                asking = await self._question(request, request_read_timeout_seconds)
                del request, metadata, progress_callback  # the answer may take days
                answer = await asking
            except TimeoutError:
                message = f"The client did not answer within {request_read_timeout_seconds} seconds"
                raise MCPError(REQUEST_TIMEOUT, message) from None
        return result_type.model_validate(answer, by_name=False)

    def _declared(self) -> JSONObject:
        return as_json(self._session.client_capabilities)

    def _leave_request(self) -> None:
        self._session = _EndedSession.after(self._session)
        self._has_request = False

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress: of the call, or as the status of the task."""
        if not self._call.is_task:
            await self._session.report_progress(progress, total, message)
            return
        with as_mcp_errors():
            await (await self._call.context()).report_progress(progress, total, message)

    async def send_notification(self, notification: Any, related_request_id: RequestId | None = None) -> None:
        """Send a notification: by the call's stream, or for a task by the connection, if its protocol has one."""
        if not self._call.is_task:
            await self._session.send_notification(notification, related_request_id)
        elif self._has_connection:
            await self._session.send_notification(notification)
        elif isinstance(notification, ProgressNotification):
            said = notification.params
            await self.report_progress(said.progress, said.total, said.message)
        elif isinstance(notification, LoggingMessageNotification):
            await self._log_later(notification.params)
        else:
            self._log_dropped("A notification")

    async def send_log_message(
        self, level: Any, data: Any, logger: str | None = None, related_request_id: RequestId | None = None
    ) -> None:
        """Send a log message, as any notification."""
        if not self._call.is_task:
            await self._session.send_log_message(level, data, logger, related_request_id)
        elif self._has_connection:
            await self._session.send_log_message(level, data, logger)
        else:
            await self._log_later(LoggingMessageNotificationParams(level=level, data=data, logger=logger))

    async def _log_later(self, params: LoggingMessageNotificationParams) -> None:
        """Send a log message to the request that the client waits for now; while it waits for none, drop it."""
        if self._later is None:
            self._log_dropped("A log message")
        elif (request := self._later()) is not None:
            await request.log(params.model_dump(by_alias=True, mode="json", exclude_none=True))

    def _log_dropped(self, what: str) -> None:
        """Log once a call what its protocol has no way to send (wire rule C11)."""
        if what not in self._dropped:
            self._dropped = (*self._dropped, what)
            logger.info("%s of a tool was dropped: its call has become a task, which carries none", what)
