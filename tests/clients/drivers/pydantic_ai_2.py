"""pydantic-ai 2: `MCPToolset`, as an agent calls it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from pydantic_ai.mcp import MCPToolset

progress: list[Any] = []


async def accept(message: str, response_type: Any, params: Any, context: Any) -> Any:
    return response_type(name="Ada")


async def write(messages: Any, params: Any, context: Any) -> str:
    return "a haiku"


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    toolset: Any = MCPToolset(url, elicitation_handler=accept, sampling_handler=write, progress_handler=note)

    async def call(tool: str, arguments: dict[str, Any]) -> object:
        return await toolset.direct_call_tool(tool, arguments)

    async def cancel(begun: Until) -> None:
        running = asyncio.create_task(call("wait", {}))
        await begun()
        running.cancel()

    none = "has no tasks; the call is plain"
    async with toolset:
        await fill(call, cancel=cancel, progress=progress, limits={"task": none, "question, task": none})


asyncio.run(main(sys.argv[1]))
