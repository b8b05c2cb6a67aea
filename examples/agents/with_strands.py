"""Strands makes a task of each call once it has a `tasks_config`: it polls, and answers through its callback.

pip install mcp-task-runtime strands-agents && python examples/agents/with_strands.py
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import ElicitResult
from strands.tools.mcp import MCPClient

SERVER = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("server.py"))])


async def ask_user(context: Any, params: Any) -> ElicitResult:
    print(f"the server asks: {params.message}")
    return ElicitResult(action="accept", content={"ok": True})


async def main() -> None:
    client = MCPClient(
        lambda: stdio_client(SERVER),
        elicitation_callback=ask_user,
        tasks_config={"poll_timeout": timedelta(minutes=30)},
    )
    with client:
        client.list_tools_sync()  # Agent(tools=[client]) does the same
        result = await client.call_tool_async("1", "build_report", {"topic": "Bees"})
        print(result["content"])


asyncio.run(main())
