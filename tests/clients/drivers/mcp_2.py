"""The client of `mcp` 2.x without the tasks extension, which it knows nothing of."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from mcp import Client
from mcp_types import CreateMessageResult, ElicitResult, TextContent

progress: list[Any] = []


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(type="text", text="a haiku"))


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    async with Client(url, elicitation_callback=accept, sampling_callback=write) as client:

        async def call(tool: str, arguments: dict[str, Any]) -> object:
            return (await client.call_tool(tool, arguments, progress_callback=note)).content

        async def cancel(begun: Until) -> None:
            running = asyncio.create_task(call("wait", {}))
            await begun()
            running.cancel()

        none = "has no tasks; the call is plain"
        limits = {"task": none, "question, task": none}
        await fill(call, cancel=cancel, progress=progress, limits=limits)


asyncio.run(main(sys.argv[1]))
