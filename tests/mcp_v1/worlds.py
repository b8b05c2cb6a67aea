"""A `World` on `mcp` 1.x, in memory: messages are what a transport would write, as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.raw_client import Answer, RawClient, never, stream_client
from tests.mcp_v1.scenarios import World, add_tools, greet
from tests.mcp_v1.schemas import Wire


def make_world(tasks: Tasks | None = None) -> World:
    """Return a server with all the tools, to connect to in memory."""
    mcp: FastMCP[Any] = FastMCP("world", log_level="CRITICAL")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05)) if tasks is None else tasks
    tasks.install(mcp)
    mcp.tool()(greet)
    low_level = mcp._mcp_server

    @asynccontextmanager
    async def connect(
        *, answer: Answer = never, capabilities: Wire | None = None, hello: list[Wire] | None = None
    ) -> AsyncGenerator[RawClient, None]:
        async with create_client_server_memory_streams() as ((read, write), (server_read, server_write)):

            async def serve() -> None:
                await low_level.run(server_read, server_write, low_level.create_initialization_options())

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

    world = World(tasks, connect)
    add_tools(world)
    return world
