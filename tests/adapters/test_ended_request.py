"""The HTTP request of a call whose task goes on: what it says stays, its connection does not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import MutableMapping
from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request

from mcp_task_runtime.adapters._ended_request import without_connection
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/mcp",
    "query_string": b"a=1",
    "headers": [(b"x-user", b"ada")],
    "state": {"noted": 1},
    "user": "Ada",
}
BODY = b'{"jsonrpc": "2.0"}'


class Connection:
    """What a server has for a connection: it brings a body, once."""

    def __init__(self) -> None:
        self.parts = [BODY[:5], BODY[5:]]

    async def receive(self) -> MutableMapping[str, Any]:
        if not self.parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.parts.pop(0), "more_body": bool(self.parts)}


class OfAnother(Request):
    """A request of a framework."""


async def test_a_request_says_the_same_without_its_connection() -> None:
    connection = Connection()
    request = Request(SCOPE, connection.receive)
    await request.body()
    kept = await without_connection(request, Request)
    gone = weakref.ref(connection)
    del connection, request
    gc.collect()
    assert gone() is None
    assert (kept.headers["x-user"], kept.query_params["a"], kept.state.noted, kept.user) == ("ada", "1", 1, "Ada")
    assert (await kept.body(), await kept.json()) == (BODY, {"jsonrpc": "2.0"})
    assert b"".join([part async for part in kept.stream()]) == BODY
    assert await kept.is_disconnected()


@pytest.mark.parametrize("kept", [None, object(), OfAnother(SCOPE)])
async def test_what_is_no_plain_request_stays_as_it_is(kept: object) -> None:
    assert await without_connection(kept, Request) is kept


async def test_a_request_whose_body_cannot_be_read_stays_as_it_is() -> None:
    async def read(request: Request) -> None:
        async for _ in request.stream():
            pass

    async def leave(request: Request) -> None:
        connection.parts.clear()
        with pytest.raises(ClientDisconnect):
            await request.body()

    for before in (read, leave):
        connection = Connection()
        request = Request(SCOPE, connection.receive)
        await before(request)
        assert await without_connection(request, Request) is request


async def test_a_request_whose_body_was_read_elsewhere_stays_as_it_is() -> None:
    """The next that its connection brings is its end, which a call does not wait for."""

    async def receive() -> MutableMapping[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    request = Request(SCOPE, receive)
    kept: Request | None = None
    with anyio.move_on_after(PATIENCE):
        kept = await without_connection(request, Request)
    assert kept is request
