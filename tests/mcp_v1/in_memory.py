"""Servers of `mcp` 1.x in this process, over streams in memory: messages are what a transport would write, as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server.fastmcp import FastMCP
from mcp.server.lowlevel import Server
from mcp.server.models import InitializationOptions
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from tests.mcp_v1.raw_client import Answer, RawClient, never, stream_client
from tests.mcp_v1.schemas import Wire
from tests.support.low_level import low_level


@asynccontextmanager
async def connect(
    server: FastMCP[Any] | Server[Any, Any],
    answer: Answer = never,
    *,
    capabilities: Wire | None = None,
    hello: list[Wire] | None = None,
    stateless: bool = False,
    options: InitializationOptions | None = None,
) -> AsyncGenerator[RawClient, None]:
    """Connect a raw client to a server.

    Args:
        server: The server.
        answer: What the client answers to questions.
        capabilities: What it declares; everything unless given.
        hello: Gets what the server said of itself.
        stateless: Whether the server takes requests without a handshake.
        options: What the server says of itself; made by the server unless given.
    """
    inner = low_level(server)
    async with create_client_server_memory_streams() as ((read, write), served):

        async def serve() -> None:
            await inner.run(*served, options or inner.create_initialization_options(), stateless=stateless)

        async def send(message: Wire) -> None:
            await write.send(SessionMessage(types.JSONRPCMessage.model_validate(message)))

        async def receive() -> Wire:
            received = await read.receive()
            assert isinstance(received, SessionMessage)
            wire: Wire = json.loads(received.message.model_dump_json(by_alias=True, exclude_none=True))
            return wire

        async with stream_client(
            serve, send, receive, write.aclose, answer=answer, capabilities=capabilities, hello=hello
        ) as client:
            yield client
