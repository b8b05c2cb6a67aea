"""The HTTP request of a call that has become a task, without its connection."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import anyio

__all__ = ["without_connection"]


async def without_connection(request: Any, kind: type[Any]) -> Any:
    """Return a request that says what another one does, and holds nothing of its connection.

    A task may wait for days, and what the server has for a connection is as large as the task.

    Args:
        request: The HTTP request of a call, whose body the SDK has read; `None` where there is none. One with
            an unread body is returned as it is.
        kind: The class of Starlette's requests; a request of another class is returned as it is.
    """
    if type(request) is not kind:
        return request
    body = None
    with anyio.CancelScope() as scope:
        scope.cancel()  # what was read is there at once; the connection may bring nothing but its end
        try:
            body = await request.body()
        except Exception:  # it was read in another way, by a transport that is not the SDK's
            return request
    if body is None:
        return request
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": body},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop() if len(messages) > 1 else messages[0]

    kept = kind(request.scope, receive)
    await kept.body()
    return kept
