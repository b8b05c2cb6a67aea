"""`RecordingSession`: a client for tests, which answers by script and notes what it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from typing import Final, TypeAlias

import anyio

from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.errors import METHOD_NOT_FOUND, ProtocolError

__all__ = ["Answerer", "RecordingSession", "Reply"]

Answerer: TypeAlias = Callable[[str, JSONObject], Awaitable[JSONObject]]
"""Answers a request by its method and params; may take its time, and may raise."""

Reply: TypeAlias = "JSONObject | Exception | Callable[[JSONObject], Awaitable[JSONObject]]"
"""The answer to one method: a result, an error to raise (`ProtocolError` for a refusal), or what makes
either of the request's params."""

_EVERYTHING: Final[JSONObject] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {},
    "tasks": {"requests": {"elicitation": {"create": {}}, "sampling": {"createMessage": {}}}},
}


class RecordingSession:
    """A `TaskSession` for tests: nothing is sent, everything is noted.

    Attributes:
        client_capabilities: What the client declares; set it at any time.
        can_send_request: Whether requests reach the client; `disconnect` sets it to `False`.
        answers: How the client answers; set it at any time. `None`: it reads and never answers. A mapping
            of methods: what it says for the method, and -32601 for a method that is not there. Otherwise
            something that is called with the method and the params of each request.
        requests: Each request that came, with its params, in order; also those never answered.
        notifications: Each notification that came, with its params, in order.
        cancelled: How many requests their senders gave up.
    """

    def __init__(
        self,
        answers: Mapping[str, Reply] | Answerer | None = None,
        *,
        capabilities: JSONObject | None = None,
    ) -> None:
        """Connect a client.

        Args:
            answers: How it answers; see the attribute.
            capabilities: What it declares; `None` for everything that work can ask for.
        """
        self.client_capabilities: JSONObject = deepcopy(_EVERYTHING) if capabilities is None else capabilities
        self.can_send_request: bool = True
        self.answers: Mapping[str, Reply] | Answerer | None = answers
        self.requests: list[tuple[str, JSONObject]] = []
        self.notifications: list[tuple[str, JSONObject]] = []
        self.cancelled: int = 0
        self._in_flight: set[anyio.CancelScope] = set()
        self._has_left = False
        self._arrived = anyio.Event()

    @property
    def methods(self) -> list[str]:
        """What was requested, in order."""
        return [method for method, _ in self.requests]

    def disconnect(self) -> None:
        """Leave for good: requests in flight and later ones fail, notifications go nowhere."""
        self._has_left = True
        self.can_send_request = False
        for scope in self._in_flight:
            scope.cancel()

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Note the notification, unless the client has left."""
        if not self._has_left:
            self.notifications.append((method, deepcopy(params)))

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Note the request and answer it by the script.

        Raises:
            ProtocolError: The script says so, or says nothing about this method.
            BrokenResourceError: `can_send_request` is off, or the client left before it had answered.
        """
        if not self.can_send_request:
            raise anyio.BrokenResourceError("The client cannot be asked")
        self.requests.append((method, deepcopy(params)))
        self._arrived.set()
        self._arrived = anyio.Event()
        with anyio.CancelScope() as scope:
            self._in_flight.add(scope)
            try:
                result = await self._answer(method, params)
            except anyio.get_cancelled_exc_class():
                self.cancelled += not self._has_left
                raise
            finally:
                self._in_flight.discard(scope)
        if self._has_left:
            raise anyio.BrokenResourceError("The client has left")
        return result

    async def until_requested(self, count: int = 1) -> None:
        """Wait until so many requests have come."""
        while len(self.requests) < count:
            await self._arrived.wait()

    async def _answer(self, method: str, params: JSONObject) -> JSONObject:
        answers = self.answers
        if answers is None:
            await anyio.sleep_forever()
            raise AssertionError("not reached")
        if not isinstance(answers, Mapping):
            return await answers(method, params)
        reply = answers.get(method)
        if reply is None:
            raise ProtocolError(METHOD_NOT_FOUND, f"The client was given no answer to {method!r}")
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Mapping):
            return deepcopy(dict(reply))
        return await reply(params)
