"""`TasksClient` of this project on `mcp` 2.x."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from mcp import Client
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from mcp_task_runtime.client import ClientTask, TasksClient

progress: list[Any] = []


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(type="text", text="a haiku"))


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    tasks = TasksClient()
    async with Client(url, extensions=[tasks], elicitation_callback=accept, sampling_callback=write) as client:

        async def call(tool: str, arguments: dict[str, Any]) -> object:
            return (await client.call_tool(tool, arguments, progress_callback=note)).content

        async def task(tool: str, arguments: dict[str, Any]) -> object:
            started = await tasks.start(client, tool, arguments)
            return (await started.wait()).content if isinstance(started, ClientTask) else started.content

        async def cancel(begun: Until) -> None:
            started = await tasks.start(client, "wait", {})
            assert isinstance(started, ClientTask)
            await begun()
            await started.cancel()

        limits = {}
        if client.protocol_version >= "2026":
            limits["progress"] = "the protocol has no progress of tasks: status messages"
        await fill(call, task=task, cancel=cancel, progress=progress, limits=limits)


asyncio.run(main(sys.argv[1]))
