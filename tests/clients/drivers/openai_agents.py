"""openai-agents: `MCPServerStreamableHttp`, which has neither tasks nor callbacks."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from agents.mcp import MCPServerStreamableHttp
from cells import Until, fill


def connect(url: str) -> MCPServerStreamableHttp:
    return MCPServerStreamableHttp({"url": url}, client_session_timeout_seconds=30)


async def main(url: str) -> None:
    async with connect(url) as server, connect(url) as other:

        async def call(tool: str, arguments: dict[str, Any]) -> object:
            return (await server.call_tool(tool, arguments)).content

        async def watch(tool: str, arguments: dict[str, Any]) -> object:
            return (await other.call_tool(tool, arguments)).content

        async def cancel(begun: Until) -> None:
            running = asyncio.create_task(call("wait", {}))
            await begun()
            running.cancel()

        none, mute = "has no tasks; the call is plain", "has no callback for it"
        limits = {
            "task": none,
            "question, plain": mute,
            "question, task": mute,
            "sampling": mute,
            "progress": mute,
        }
        await fill(call, watch=watch, cancel=cancel, limits=limits)


asyncio.run(main(sys.argv[1]))
