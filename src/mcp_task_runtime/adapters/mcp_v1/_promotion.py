"""The SDK's own context inside a task on `mcp` 1.x."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from mcp import types
from mcp.server.lowlevel.server import request_ctx
from mcp.server.session import ServerSession
from mcp.shared.context import RequestContext
from pydantic import BaseModel

from mcp_task_runtime.adapters._own_loop import HomeLoop, run_in_own_loop
from mcp_task_runtime.adapters._session_proxy import SessionProxy
from mcp_task_runtime.adapters._tool_calls import PromotedCall, TaskCall
from mcp_task_runtime.adapters.mcp_v1._requests import (
    Context,
    KeptRequest,
    as_mcp_errors,
    declared_by,
    mcp_error,
    send_safely,
)
from mcp_task_runtime.core.json import JSONObject

__all__ = ["call_in_own_loop", "context_by_name", "within_task"]

ResultT = TypeVar("ResultT", bound=BaseModel)
T = TypeVar("T")

_REQUEST_TIMEOUT: Final = 408
"""The code that the SDK gives to its own requests that time out."""


_ANY_TOKEN: Final = types.RequestParams.Meta(progressToken="")


class _TaskSession(SessionProxy):
    """A `ServerSession` for a call that is a task: it asks through the task, and notifies by the connection."""

    __slots__ = ()

    def __init__(self, ctx: Context, call: PromotedCall) -> None:
        super().__init__(ctx.session, ServerSession, call, partial(declared_by, ctx.session))

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
                answer = await self._ask(request, seconds)
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
        """Report progress of the task, for whichever token: the task has its own."""
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


@contextmanager
def within_task(ctx: Context, call: PromotedCall) -> Generator[None, None, None]:
    """Run a block whose SDK context reaches the client through the task of this call."""
    # The SDK reports progress only where there is a token.
    token = _ANY_TOKEN if ctx.meta is None else ctx.meta
    if token.progressToken is None:
        token = token.model_copy(update={"progressToken": ""})
    inner: Any = replace(ctx, session=_TaskSession(ctx, call), meta=token)
    reset = request_ctx.set(inner)
    try:
        yield
    finally:
        request_ctx.reset(reset)
