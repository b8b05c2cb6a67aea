"""A balancer for tests: one address, behind which each request goes to the next server in turn.

Each method has turns of its own, so that two requests of one method go to two servers, even if others come between.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import anyio
import httpx
from starlette.types import Receive, Scope, Send

from tests.support.applications import application_over_http

_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding"}


class Balancer:
    """An ASGI application that passes requests on, and responses back as they come.

    A server that cannot be reached is left out. One that breaks off is a 502, or a response that breaks off.

    Attributes:
        log: The JSON-RPC method of each request and the server that took it, in order.
    """

    def __init__(self, servers: list[str]) -> None:
        self.log: list[tuple[str, str]] = []
        self._count = len(servers)
        self._turns: defaultdict[str, Iterator[str]] = defaultdict(lambda: cycle(servers))
        self._http: httpx.AsyncClient

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            limits = httpx.Limits(max_keepalive_connections=0)  # no connection that a server may have left
            transport = httpx.AsyncHTTPTransport(verify=False, limits=limits)
            async with httpx.AsyncClient(transport=transport, timeout=None) as self._http:
                for step in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{step}.complete"})
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await self._pass_on(scope, body, send)
            group.cancel_scope.cancel()

    async def _pass_on(self, scope: Scope, body: bytes, send: Send) -> None:
        method = json.loads(body).get("method", "") if body else ""
        headers = [(name, value) for name, value in scope["headers"] if name.decode() not in _NOT_PASSED_ON]
        has_started = False
        for _ in range(self._count):
            server = next(self._turns[method])
            url = f"{server}{scope['path']}"
            try:
                async with self._http.stream(scope["method"], url, content=body, headers=headers) as response:
                    self.log.append((method, server))
                    has_started = True
                    await send(_head(response.status_code, response.headers.raw))
                    async for chunk in response.aiter_raw():
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    await send({"type": "http.response.body"})
                    return
            except httpx.ConnectError:
                continue
            except httpx.TransportError:
                break
        if not has_started:
            await send(_head(502, []))
            await send({"type": "http.response.body"})


def _head(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    passed_on = [(name.lower(), value) for name, value in headers if name.lower().decode() not in _NOT_PASSED_ON]
    return {"type": "http.response.start", "status": status, "headers": passed_on}


@contextmanager
def balanced(*servers: str) -> Generator[tuple[str, Balancer], None, None]:
    """Run a balancer for servers; yield its address."""
    balancer = Balancer(list(servers))
    with application_over_http(lambda: balancer) as address:
        yield address, balancer
