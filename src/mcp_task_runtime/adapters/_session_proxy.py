"""The SDK's own session inside a call that may become a task.

A tool that knows nothing of tasks asks its client through the session of its request. Once its call is a task, that
request is over; so the tool gets a session that asks through the task instead.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import MethodType
from typing import Any

import anyio
from pydantic import BaseModel

from mcp_task_runtime.adapters._tool_calls import PromotedCall
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.text import shared_text
from mcp_task_runtime.errors import CapabilityError

__all__ = ["SessionProxy"]

_NEEDED_CAPABILITY = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


class SessionProxy(ABC):
    """A session for one call: what a class of one SDK line does not replace goes to the request's own session.

    What a tool or a framework sets on it stays on it, as long as the call.
    """

    __slots__ = ("__dict__", "_call", "_sdk_class", "_session")

    def __init__(self, session: Any, sdk_class: type, call: PromotedCall) -> None:
        """Make the session of a call.

        Args:
            session: The session of the request.
            sdk_class: The SDK's class of sessions.
            call: The call.
        """
        self._session: Any = session
        self._sdk_class = sdk_class
        self._call = call

    def __getattr__(self, name: str) -> Any:
        # The SDK's helpers, such as `elicit_form`, come back here for the request they send.
        member = inspect.getattr_static(self._sdk_class, name, None)
        if inspect.isfunction(member) and not name.startswith("_"):
            return MethodType(member, self)
        return getattr(self._session, name)

    @abstractmethod
    def _declared(self) -> JSONObject:
        """Return what the client declared, as JSON."""

    async def _question(self, request: BaseModel, seconds: float | None) -> Coroutine[Any, Any, JSONObject]:
        """Return what puts a request of the SDK's to the client, as a question of the task, and returns the answer.

        It is to be awaited at once, and raises `ProtocolError` if the client answers with an error, or `TimeoutError`
        if it does not answer within so many seconds; then the question is withdrawn.

        Raises:
            CapabilityError: The client did not declare that it can be asked this.
        """
        message = request.model_dump(by_alias=True, mode="json", exclude_none=True)
        method = shared_text(message["method"])  # each question that waits has it
        params = message.get("params", {})
        needed = _NEEDED_CAPABILITY.get(method)
        lacks = needed is not None and self._declared().get(needed) is None
        if lacks and not (self._call.has_inbox and (await self._call.context()).asks_person(method, params)):
            raise CapabilityError(f"Client does not support {needed} capability")
        if seconds is None:
            return (await self._call.context()).ask(method, params)
        return self._ask_within(seconds, method, params)

    async def _ask_within(self, seconds: float, method: str, params: JSONObject) -> JSONObject:
        with anyio.fail_after(seconds):
            asking = (await self._call.context()).ask(method, params)
            del params  # the answer may take days
            return await asking
