"""An application that notes what it has for the connection of each request, to see who keeps it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import anyio.lowlevel

__all__ = ["NotedConnections"]

_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class _Connection:
    def __init__(self, receive: _Receive) -> None:
        self._receive = receive

    async def receive(self) -> MutableMapping[str, Any]:
        return await self._receive()


class NotedConnections:
    """An ASGI application around another one.

    Attributes:
        connections: What there was for each request, the oldest first.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.connections: list[weakref.ref[_Connection]] = []

    async def __call__(self, scope: Any, receive: _Receive, send: Any) -> None:
        connection = _Connection(receive)
        self.connections.append(weakref.ref(connection))
        await self._app(scope, connection.receive, send)

    async def until_gone(self, number: int) -> None:
        """Wait until nothing holds the connection of a request; what has just ended may for a moment.

        Args:
            number: The request, from 0. It may not be the last: a session of `mcp` 1.x holds that until the next.
        """
        while self.connections[number]() is not None:
            gc.collect()
            await anyio.lowlevel.checkpoint()
