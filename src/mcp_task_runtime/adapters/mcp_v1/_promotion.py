"""The SDK's own context inside a task on `mcp` 1.x."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar

from mcp import types
from mcp.server.lowlevel.server import request_ctx
from mcp.server.session import ServerSession
from mcp.shared.context import RequestContext
from pydantic import BaseModel

from mcp_task_runtime.adapters._own_loop import HomeLoop, run_in_own_loop
from mcp_task_runtime.adapters._session_proxy import SessionProxy
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import PromotedCall
from mcp_task_runtime.adapters.mcp_v1._requests import (
    Context,
    KeptRequest,
    SharedSession,
    as_caller,
    as_mcp_errors,
    mcp_error,
    send_safely,
)
from mcp_task_runtime.core.json import JSONObject

__all__ = ["call_in_own_loop", "context_by_name", "within_call", "within_task"]

ResultT = TypeVar("ResultT", bound=BaseModel)
T = TypeVar("T")

_REQUEST_TIMEOUT: Final = 408
"""The code that the SDK gives to its own requests that time out."""


_ANY_TOKEN: Final = types.RequestParams.Meta(progressToken="")


class _TaskSession(SessionProxy):
    """A `ServerSession` for a call that is a task: it asks through the task, and notifies by the connection."""

    __slots__ = ("_declared_of",)

    def __init__(self, session: Any, call: PromotedCall, declared: Callable[[], JSONObject]) -> None:
        """Make the session of a call.

        Args:
            session: The session of the request.
            call: The call.
            declared: Returns what the client declared.
        """
        super().__init__(session, ServerSession, call)
        self._declared_of = declared

    def _declared(self) -> JSONObject:
        return self._declared_of()

    async def send_request(
        self,
        request: BaseModel,
        result_type: type[ResultT],
        request_read_timeout_seconds: timedelta | None = None,
        metadata: Any = None,
        progress_callback: Any = None,
    ) -> ResultT:
        """Put a request to the client as a question of the task.

        Raises:
            McpError: The client answered with an error, or it did not declare that it can be asked this, or
                it did not answer in time; then the question is withdrawn.
        """
        seconds = None if request_read_timeout_seconds is None else request_read_timeout_seconds.total_seconds()
        with as_mcp_errors():
            try:
                asking = await self._question(request, seconds)
                del request, metadata, progress_callback  # the answer may take days
                answer = await asking
            except TimeoutError:
                raise mcp_error(_REQUEST_TIMEOUT, f"The client did not answer within {seconds} seconds") from None
        return result_type.model_validate(answer)

    async def send_progress_notification(
        self,
        progress_token: str | int,
        progress: float,
        total: float | None = None,
        message: str | None = None,
        related_request_id: str | None = None,
    ) -> None:
        """Report progress of the task, for any token: the task has its own."""
        with as_mcp_errors():
            await (await self._call.context()).report_progress(progress, total, message)

    async def send_notification(self, notification: Any, related_request_id: Any = None) -> None:
        """Send a notification by the connection: the request is over."""
        await send_safely(self._session, notification, None)


class _NoConnection:
    """In place of a session: the request is over, and its connection unknown."""

    def __init__(self, client_capabilities: JSONObject) -> None:
        capabilities = types.ClientCapabilities.model_validate(client_capabilities)
        client = types.Implementation(name="", version="")
        self.client_params = types.InitializeRequestParams(
            protocolVersion=types.LATEST_PROTOCOL_VERSION, capabilities=capabilities, clientInfo=client
        )

    async def send_notification(self, *_: Any) -> None:
        """Drop it."""


async def context_by_name(call: TaskCall, lifespan_state: Any, headers: Mapping[str, str]) -> Context:
    """Return the SDK's context for a tool that runs by its name; its request id is the task's id."""
    task = await call.context()
    session: Any = _NoConnection(call.client_capabilities)
    return RequestContext(
        request_id=task.task_id,
        meta=types.RequestParams.Meta.model_validate(task.caller.trace_context),
        session=session,
        lifespan_context=lifespan_state,
        request=KeptRequest(headers) if headers else None,
    )


async def call_in_own_loop(ctx: Context, handler: Callable[[], Awaitable[T]]) -> T:
    """Run a handler in a thread with an event loop of its own; its SDK context reaches the client from there."""

    async def call(home: HomeLoop) -> T:
        request_ctx.set(replace(ctx, session=home.bridge(ctx.session)))  # the thread's own variable
        return await handler()

    return await run_in_own_loop(call)


class within_task:  # read as a verb: with within_task(ctx, call, declared)
    """Context manager that runs a block whose SDK context reaches the client through the task of a call."""

    __slots__ = ("_ctx", "_reset")

    def __init__(
        self, ctx: Context, call: PromotedCall, declared: Callable[[], JSONObject], experimental: Any = None
    ) -> None:
        """Make the block.

        Args:
            ctx: The request.
            call: The call.
            declared: Returns what the client declared.
            experimental: What stands for the SDK's own tasks in the context of the block.
        """
        # The SDK reports progress only where there is a token.
        token = _ANY_TOKEN if ctx.meta is None else ctx.meta
        if token.progressToken is None:
            token = token.model_copy(update={"progressToken": ""})
        session: Any = _TaskSession(ctx.session, call, declared)
        changed = {"session": session, "meta": token, "experimental": experimental}
        self._ctx: Context = RequestContext(**{**vars(ctx), **changed})

    def __enter__(self) -> None:
        self._reset = request_ctx.set(self._ctx)

    def __exit__(self, *_: object) -> None:
        request_ctx.reset(self._reset)


class within_call:  # read as a verb: with within_call(ctx, connection, call)
    """Context manager that runs a block as a request's caller, with the context of `within_task`."""

    __slots__ = ("_as_caller", "_within_task")

    def __init__(self, ctx: Context, connection: SharedSession, call: PromotedCall) -> None:
        """Make the block.

        Args:
            ctx: The request.
            connection: What the tasks of its connection share.
            call: The call.
        """
        self._as_caller = as_caller(ctx)
        experimental = connection.shared_experimental(ctx.experimental)
        self._within_task = within_task(ctx, call, connection.declared, experimental)

    def __enter__(self) -> None:
        self._as_caller.__enter__()
        self._within_task.__enter__()

    def __exit__(self, *_: object) -> None:
        self._within_task.__exit__()
        self._as_caller.__exit__()
