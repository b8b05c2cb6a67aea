"""Slow calls that become tasks by themselves, and what the SDK's own calls do inside them.

A tool that knows nothing of tasks asks its client through the session of its request. Once its call
is a task, that request is over; so the tool gets a session that asks through the task instead, and makes
the call a task when it asks.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any, TypeVar

import anyio
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import REQUEST_TIMEOUT, RequestId
from pydantic import BaseModel

from mcp_task_runtime.adapters.mcp_v2._requests import as_mcp_errors
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.errors import CapabilityError

__all__ = ["PromotingSession"]

logger: logging.Logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT", bound=BaseModel)

_NEEDED_CAPABILITY = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


class PromotingSession:
    """A `ServerSession` for one call: as before while it is a call, through the task once it is one."""

    def __init__(
        self,
        session: ServerSession,
        execution: Execution[Any],
        begin: Callable[[], Awaitable[ServerTaskContext]],
    ) -> None:
        """Make the session of a call.

        Args:
            session: The session of the request.
            execution: The run of the call.
            begin: Makes the call a task, if it is none, and returns a context for it.
        """
        self._session = session
        self._execution = execution
        self._begin = begin
        self._task_context: ServerTaskContext | None = None
        self._dropped: set[str] = set()

    async def _context(self) -> ServerTaskContext:
        if self._task_context is None:
            self._task_context = await self._begin()
        return self._task_context

    def __getattr__(self, name: str) -> Any:
        # The SDK's helpers, such as `elicit_form`, come back here for the request they send.
        member = inspect.getattr_static(ServerSession, name, None)
        if inspect.isfunction(member) and not name.startswith("_"):
            return MethodType(member, self)
        return getattr(self._session, name)

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
        if not self._execution.is_announced and self._session.can_send_request:
            return await self._session.send_request(
                request,  # type: ignore[arg-type]  # the SDK's union of requests
                result_type,
                request_read_timeout_seconds,
                metadata,
                progress_callback,
            )
        message = request.model_dump(by_alias=True, mode="json", exclude_none=True)
        method = message["method"]
        needed = _NEEDED_CAPABILITY.get(method)
        with as_mcp_errors():
            if needed is not None and getattr(self._session.client_capabilities, needed, None) is None:
                raise CapabilityError(f"Client does not support {needed} capability")
            with anyio.move_on_after(request_read_timeout_seconds) as limit:
                answer = await (await self._context()).ask(method, message.get("params", {}))
        if limit.cancelled_caught:
            raise MCPError(REQUEST_TIMEOUT, f"Nobody answered within {request_read_timeout_seconds} seconds")
        return result_type.model_validate(answer, by_name=False)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress: of the call, or as the status of the task."""
        if not self._execution.is_announced:
            await self._session.report_progress(progress, total, message)
        else:
            await (await self._context()).report_progress(progress, total, message)

    async def send_notification(self, notification: Any, related_request_id: RequestId | None = None) -> None:
        """Send a notification on this connection, while the call is not a task; then there is no way to."""
        if not self._execution.is_announced:
            await self._session.send_notification(notification, related_request_id)
        else:
            self._say_dropped("A notification")

    async def send_log_message(self, *args: Any, **kwargs: Any) -> None:
        """Send a log message on this connection, while the call is not a task; then there is no way to."""
        if not self._execution.is_announced:
            await self._session.send_log_message(*args, **kwargs)
        else:
            self._say_dropped("A log message")

    def _say_dropped(self, what: str) -> None:
        """Say once a call what its protocol has no way to send (wire rule C11)."""
        if what not in self._dropped:
            self._dropped.add(what)
            logger.info("%s of a tool was dropped: its call has become a task, which carries none", what)
