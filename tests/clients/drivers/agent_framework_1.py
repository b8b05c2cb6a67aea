"""Microsoft's agent-framework: `MCPStreamableHTTPTool`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from agent_framework import MCPStreamableHTTPTool
from cells import Until, fill


async def main(url: str) -> None:
    async with MCPStreamableHTTPTool(name="tasks", url=url) as tool:
        functions = {function.name: function for function in tool.functions}

        async def call(name: str, arguments: dict[str, Any]) -> object:
            return [content.text for content in await functions[name].invoke(arguments=arguments)]

        async def cancel(begun: Until) -> None:
            running = asyncio.create_task(call("wait", {}))
            await begun()
            running.cancel()

        none, mute = "has no tasks; the call is plain", "has no callback for it"
        limits = {
            "task": none,
            "question, plain": mute,
            "question, task": mute,
            "sampling": "needs a chat model of its own",
            "progress": mute,
        }
        await fill(call, cancel=cancel, limits=limits)


asyncio.run(main(sys.argv[1]))
