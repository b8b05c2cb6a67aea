"""The client of the package `fastmcp` 3, whose `call_tool(task=True)` polls and never opens `tasks/result` early."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from fastmcp import Client

progress: list[Any] = []


async def accept(message: str, response_type: Any, params: Any, context: Any) -> Any:
    return response_type(name="Ada")


async def write(messages: Any, params: Any, context: Any) -> str:
    return "a haiku"


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    client: Any = Client(url, elicitation_handler=accept, sampling_handler=write, progress_handler=note)

    async def call(tool: str, arguments: dict[str, Any]) -> Any:
        return (await client.call_tool(tool, arguments)).data

    async def task(tool: str, arguments: dict[str, Any]) -> Any:
        return (await (await client.call_tool(tool, arguments, task=True)).result()).data

    async def cancel(begun: Until) -> None:
        running = await client.call_tool("wait", {}, task=True)
        await begun()
        await running.cancel()

    async with client:
        await fill(call, task=task, cancel=cancel, progress=progress)


asyncio.run(main(sys.argv[1]))
