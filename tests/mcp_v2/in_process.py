"""Servers in this process: over streams in memory with the same JSON as over stdio, or over HTTP in a thread."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from mcp.server import MCPServer, Server
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from tests.mcp_v1.raw_client import Answer, never, stream_client
from tests.mcp_v1.raw_client import RawClient as RawClient2025
from tests.mcp_v2.raw_client import RawClient, Reply
from tests.mcp_v2.schemas import Wire
from tests.support.applications import application_over_http
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE


class _MemoryExchange:
    def __init__(self, send: Callable[[SessionMessage], Any]) -> None:
        self._send = send
        self._replies: dict[str, Wire] = {}
        self._notifications: dict[str | None, list[Wire]] = {}  # by their token; log messages have none
        self._arrived = anyio.Event()

    def receive(self, message: Wire) -> None:
        if "id" in message:
            self._replies[message["id"]] = message
        else:
            self._notifications.setdefault(message["params"].get("progressToken"), []).append(message)
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()

    async def __call__(self, message: Wire, headers: Mapping[str, str | None]) -> Reply:
        await self._send(SessionMessage(jsonrpc_message_adapter.validate_json(json.dumps(message), by_name=False)))
        while message["id"] not in self._replies:
            await self._arrived.wait()
        token = message["params"]["_meta"].get("progressToken")
        told = [self._notifications.pop(key, []) for key in dict.fromkeys((None, token))]
        return Reply(self._replies.pop(message["id"]), [each for messages in told for each in messages])


@asynccontextmanager
async def memory_client(server: MCPServer[Any] | Server[Any]) -> AsyncGenerator[RawClient, None]:
    """Connect a raw client to a server in this process, which it serves as it serves stdio."""
    inner = low_level(server)
    async with create_client_server_memory_streams() as ((read, write), server_streams):
        exchange = _MemoryExchange(write.send)

        async def receive() -> None:
            async for item in read:
                assert isinstance(item, SessionMessage)
                exchange.receive(json.loads(item.message.model_dump_json(by_alias=True, exclude_unset=True)))

        async def serve() -> None:
            await inner.run(*server_streams, inner.create_initialization_options())

        failure: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(serve)
            try:
                yield RawClient(exchange)
            except BaseException as error:  # the group would wrap it
                failure = error
            await write.aclose()
            with anyio.move_on_after(PATIENCE, shield=True):
                await server_streams[1].aclose()
        if failure is not None:
            raise failure


@asynccontextmanager
async def connect_2025(
    server: MCPServer[Any] | Server[Any],
    answer: Answer = never,
    *,
    capabilities: Wire | None = None,
    hello: list[Wire] | None = None,
) -> AsyncGenerator[RawClient2025, None]:
    """Connect a raw client of revision 2025-11-25 to a server in this process; see `tests.mcp_v1.in_memory`."""
    inner = low_level(server)
    async with create_client_server_memory_streams() as ((read, write), server_streams):

        async def serve() -> None:
            await inner.run(*server_streams, inner.create_initialization_options())

        async def send(message: Wire) -> None:
            await write.send(SessionMessage(jsonrpc_message_adapter.validate_json(json.dumps(message))))

        async def receive() -> Wire:
            received: Any = await read.receive()
            wire: Wire = json.loads(received.message.model_dump_json(by_alias=True, exclude_unset=True))
            return wire

        async with stream_client(
            serve, send, receive, write.aclose, answer=answer, capabilities=capabilities, hello=hello
        ) as client:
            yield client


@contextmanager
def served_over_http(make: Callable[[], MCPServer[Any]], **options: Any) -> Generator[str, None, None]:
    """Serve in a thread of its own, where the server is made as well."""
    with application_over_http(lambda: make().streamable_http_app(**options)) as address:
        yield f"{address}/mcp"
