"""The client of the package `fastmcp` 4, which has no tasks of its own."""

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
        return (await client.call_tool(tool, arguments)).content

    async def cancel(begun: Until) -> None:
        running = asyncio.create_task(call("wait", {}))
        await begun()
        running.cancel()

    none = "has no tasks; the call is plain"
    async with client:
        await fill(call, cancel=cancel, progress=progress, limits={"task": none, "question, task": none})


asyncio.run(main(sys.argv[1]))
