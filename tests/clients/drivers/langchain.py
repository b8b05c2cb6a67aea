"""langchain-mcp-adapters: the tools of `MultiServerMCPClient`, as an agent calls them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells import Until, fill
from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp.types import ElicitResult

progress: list[Any] = []


async def accept(mcp_context: Any, params: Any, context: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def note(done: float, total: float | None, message: str | None, context: Any) -> None:
    progress.append((done, total))


async def main(url: str) -> None:
    client = MultiServerMCPClient(
        {"tasks": {"url": url, "transport": "streamable_http"}},
        callbacks=Callbacks(on_elicitation=accept, on_progress=note),
    )
    tools = {tool.name: tool for tool in await client.get_tools()}

    async def call(tool: str, arguments: dict[str, Any]) -> object:
        return [part["text"] for part in await tools[tool].ainvoke(arguments)]

    async def cancel(begun: Until) -> None:
        running = asyncio.create_task(call("wait", {}))
        await begun()
        running.cancel()

    none = "has no tasks; the call is plain"
    limits = {"task": none, "question, task": none, "sampling": "has no sampling callback"}
    await fill(call, cancel=cancel, progress=progress, limits=limits)


asyncio.run(main(sys.argv[1]))
