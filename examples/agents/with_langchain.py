"""langchain-mcp-adapters calls task tools as plain calls: it waits for the result, and asks its user on the way.

pip install mcp-task-runtime langchain-mcp-adapters && python examples/agents/with_langchain.py
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp.types import ElicitResult

SERVER = str(Path(__file__).with_name("server.py"))


async def ask_user(mcp_context: Any, params: Any, context: Any) -> ElicitResult:
    print(f"the server asks: {params.message}")
    return ElicitResult(action="accept", content={"ok": True})


async def main() -> None:
    client = MultiServerMCPClient(
        {"reports": {"transport": "stdio", "command": sys.executable, "args": [SERVER]}},
        callbacks=Callbacks(on_elicitation=ask_user),
    )
    tools = {tool.name: tool for tool in await client.get_tools()}  # what an agent of LangGraph is given
    print(await tools["build_report"].ainvoke({"topic": "Bees"}))


asyncio.run(main())
