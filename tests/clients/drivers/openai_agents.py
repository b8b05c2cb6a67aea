"""openai-agents: `MCPServerStreamableHttp`, which has neither tasks nor callbacks."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from agents.mcp import MCPServerStreamableHttp
from cells import fill


async def main(url: str) -> None:
    async with MCPServerStreamableHttp({"url": url}, client_session_timeout_seconds=30) as server:

        async def call(tool: str, arguments: dict[str, Any]) -> object:
            return (await server.call_tool(tool, arguments)).content

        async def cancel() -> None:
            running = asyncio.create_task(call("wait", {}))
            await asyncio.sleep(0.5)
            running.cancel()

        none, mute = "has no tasks; the call is plain", "has no callback for it"
        limits = {
            "task": none,
            "question, plain": mute,
            "question, task": mute,
            "sampling": mute,
            "progress": mute,
        }
        await fill(call, cancel=cancel, limits=limits)


asyncio.run(main(sys.argv[1]))
