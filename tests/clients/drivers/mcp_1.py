"""The client of `mcp` 1.x: `ClientSession`, with its experimental task methods as its documentation shows them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

from cells import Until, fill
from mcp import ClientSession, types
from mcp.client.streamable_http import streamablehttp_client

progress: list[Any] = []


async def accept(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def write(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="a haiku")
    return types.CreateMessageResult(role="assistant", model="m", content=content)


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    async with streamablehttp_client(url) as (read, write_stream, _):
        async with ClientSession(read, write_stream, elicitation_callback=accept, sampling_callback=write) as session:
            await session.initialize()

            async def call(tool: str, arguments: dict[str, Any]) -> object:
                return (await session.call_tool(tool, arguments, progress_callback=note)).content

            async def task(tool: str, arguments: dict[str, Any]) -> object:
                task_id = (await session.experimental.call_tool_as_task(tool, arguments)).task.taskId
                async for state in session.experimental.poll_task(task_id):
                    if state.status == "input_required":
                        break
                return (await session.experimental.get_task_result(task_id, types.CallToolResult)).content

            async def cancel(begun: Until) -> None:
                handle = await session.experimental.call_tool_as_task("wait", {})
                await begun()
                await session.experimental.cancel_task(handle.task.taskId)

            await fill(call, task=task, cancel=cancel, progress=progress)


with suppress(asyncio.CancelledError):
    asyncio.run(main(sys.argv[1]))
