"""A real `ServerSession` of `mcp` 1.x or 2.x as a `TaskSession`, without importing either.

Both lines are recognised by the members that they share: `check_client_capability` and `client_params`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import anyio

from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.abilities import implements
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.errors import ProtocolError

__all__ = ["CONNECTION_CLOSED", "SDKSession", "as_task_session", "is_open"]

logger: logging.Logger = logging.getLogger(__name__)

CONNECTION_CLOSED: Final = -32000
"""What both SDK lines raise for a request on a connection that was lost."""

_PING_SECONDS: Final = 2.0


def as_task_session(session: object) -> TaskSession:
    """Return a session as a `TaskSession`: as it is, or a real `ServerSession` wrapped.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(session, type):
        if callable(getattr(session, "check_client_capability", None)) and hasattr(session, "client_params"):
            return SDKSession(session)
        if implements(session, TaskSession):
            return cast(TaskSession, session)
    raise ValueError("session must be a TaskSession, or a ServerSession of the mcp package")


class SDKSession:
    """The `TaskSession` over a `ServerSession`: what is sent here goes over the connection's general stream."""

    def __init__(self, session: Any) -> None:
        """Wrap a session.

        Args:
            session: A `ServerSession` of `mcp` 1.x or 2.x.
        """
        self._session = session

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it connected; `{}` for nothing."""
        declared: Any = getattr(self._session, "client_capabilities", None)
        if declared is None and self._session.client_params is not None:
            declared = self._session.client_params.capabilities
        return cast(JSONObject, to_json_value(declared) or {})

    @property
    def can_send_request(self) -> bool:
        """Whether a request can be sent to the client now."""
        return bool(getattr(self._session, "can_send_request", self._session.client_params is not None))

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification; a client that has left is no error."""
        try:
            await self._session.send_notification(_RawMessage(method, params))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            logger.debug("A notification was dropped: the client has left")

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request and return what the client answers.

        Raises:
            ConnectionError: The client has left.
            ProtocolError: The client answered with a JSON-RPC error.
        """
        try:
            return cast(JSONObject, await self._session.send_request(_RawMessage(method, params), _RawResult))
        except Exception as error:
            answered = await self._to_protocol_error(error)
            if answered is None:
                raise
            raise answered from error

    async def _to_protocol_error(self, error: Exception) -> Exception | None:
        """Return the error as this library's; `None` if it is none that the client answered with."""
        inner = getattr(error, "error", None)  # the SDK's error classes differ by line, their data do not
        code = getattr(inner, "code", None)
        if not isinstance(code, int):
            return None
        if code == CONNECTION_CLOSED and not await self._is_open():
            return ConnectionError("The client has left")
        return ProtocolError(code, str(getattr(inner, "message", "")), getattr(inner, "data", None))

    async def _is_open(self) -> bool:
        if hasattr(self._session, "client_capabilities"):  # mcp 2.x
            return await is_open(self._ping)
        with anyio.move_on_after(_PING_SECONDS):
            try:
                await self._ping()
            except Exception as error:
                return hasattr(error, "error")  # mcp 1.x raises its own error for what the client answers only
            return True
        return False

    async def _ping(self) -> None:
        await self._session.send_request(_RawMessage("ping", {}), _RawResult)


async def is_open(ping: Callable[[], Awaitable[object]]) -> bool:
    """Whether a connection of `mcp` 2.x is open. Nothing is sent.

    The SDK raises -32000 for a lost connection, and a client may answer with the same error. On a lost one a request
    fails before its first checkpoint; on an open one it is cancelled there.

    Args:
        ping: Sends a request on the connection.
    """
    with anyio.CancelScope() as scope:
        scope.cancel()
        with suppress(Exception):
            await ping()
    return scope.cancelled_caught


class _RawMessage:
    """A message that the SDK sends as it is: it asks for these members only."""

    method = "raw"  # not the method on the wire: the SDK would validate the result by it

    def __init__(self, method: str, params: JSONObject) -> None:
        self._message = {"method": method, "params": params}

    def model_dump(self, **_: Any) -> JSONObject:
        return dict(self._message)


class _RawResult:
    """A result type that takes any result as it is."""

    @staticmethod
    def model_validate(value: Any, **_: Any) -> Any:
        return value
