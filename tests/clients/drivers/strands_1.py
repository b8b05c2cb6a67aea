"""Strands Agents: `MCPClient`, which makes tasks of its calls when it has a `tasks_config`."""

from __future__ import annotations

import asyncio
import sys
import threading
from datetime import timedelta
from typing import Any

from cells import Until, fill
from mcp.types import ElicitResult
from strands.tools.mcp import MCPClient

progress: list[Any] = []


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def note(done: float, total: float | None, message: str | None) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    plain = MCPClient(url=url, elicitation_callback=accept, progress_callback=note)
    tasks = MCPClient(url=url, elicitation_callback=accept, tasks_config={"poll_interval": timedelta(milliseconds=100)})
    with plain, tasks:
        tasks.list_tools_sync()

        async def call(tool: str, arguments: dict[str, Any]) -> object:
            return (await plain.call_tool_async("use", tool, arguments))["content"]

        async def task(tool: str, arguments: dict[str, Any]) -> object:
            return (await tasks.call_tool_async("use", tool, arguments))["content"]

        async def cancel(begun: Until) -> None:
            leave = threading.Event()
            running = asyncio.create_task(tasks.call_tool_async("use", "wait", {}, cancel_signal=leave))
            await begun()
            leave.set()
            await running

        await fill(call, task=task, cancel=cancel, progress=progress, limits={"sampling": "has no sampling callback"})


asyncio.run(main(sys.argv[1]))
