"""`TasksClient` of this project on `mcp` 1.x."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from mcp import ClientSession, types
from mcp.client.streamable_http import streamablehttp_client

from mcp_task_runtime.client import ClientTask, TasksClient

progress: list[Any] = []


async def accept(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def write(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="a haiku")
    return types.CreateMessageResult(role="assistant", model="m", content=content)


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    tasks = TasksClient()
    async with streamablehttp_client(url) as (read, write_stream, _):
        async with ClientSession(read, write_stream, elicitation_callback=accept, sampling_callback=write) as session:
            await session.initialize()

            async def call(tool: str, arguments: dict[str, Any]) -> object:
                return (await session.call_tool(tool, arguments, progress_callback=note)).content

            async def task(tool: str, arguments: dict[str, Any]) -> object:
                return (await tasks.call_tool(session, tool, arguments)).content

            async def cancel(begun: Until) -> None:
                started = await tasks.start(session, "wait", {})
                assert isinstance(started, ClientTask)
                await begun()
                await started.cancel()

            await fill(call, task=task, cancel=cancel, progress=progress)


asyncio.run(main(sys.argv[1]))
